"""Types of columns that parquet and Arrow files hold, to types that later steps can use."""

import csv
import io
from decimal import Decimal
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from tests.unit.inputs.table_files import NEEDED, read, warnings_of
from wsdm_ray.errors import DataError
from wsdm_ray.inputs import tables
from wsdm_ray.inputs.tables import read_tables


def odd_columns() -> dict[str, pa.Array]:
    """Columns of the types that other libraries write."""
    texts = ["é", None, "b"]
    uuids = pa.array([b"\xff" * 16, None, b"0" * 16], pa.binary(16))
    return {
        "view": pa.array(texts, pa.string_view()),
        "bytes_view": pa.array([b"\xff", None, b""], pa.binary_view()),
        "large": pa.array(texts, pa.large_string()),
        "dictionary": pa.array(texts).dictionary_encode(),
        "uuid": pa.ExtensionArray.from_storage(pa.uuid(), uuids),
        "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}', None, "1"])),
        "decimal": pa.array([Decimal(2**70), None, Decimal(1)], pa.decimal128(38, 0)),
        "map": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int64())),
        "time": pa.array([1, None, 2], pa.duration("us")),
        "half": pa.array([1.5, None, float("nan")], pa.float16()),
        "list_view": pa.array([[1], None, []], pa.list_view(pa.int64())),
        "nothing": pa.nulls(3),
    }


ONLY_ARROW = {
    "runs": pa.RunEndEncodedArray.from_arrays([1, 3], pa.array(["a", "b"], pa.string_view())),
    "views_in_lists": pa.array([[["a"]], None, [[]]], pa.large_list(pa.list_view(pa.string_view()))),
    "views_in_structs": pa.array([{"a": b"x"}, None, {}], pa.struct([("a", pa.binary_view())])),
    "views_in_maps": pa.array([[("a", "b")], None, []], pa.map_(pa.string_view(), pa.string_view())),
    "views_in_pairs": pa.array([["a", "b"], None, ["c", "d"]], pa.list_(pa.string_view(), 2)),
    "views_in_dictionary": pa.DictionaryArray.from_arrays(
        pa.array([1, None, 0], pa.uint32()), pa.array(["x", "y"], pa.string_view())
    ),
}
IN_NO_PARQUET = {
    "empty": (pa.array([{}, None, {}], pa.struct([])), ["{}", None, "{}"]),
    "empty_in_lists": (pa.array([[{}], None, []], pa.list_(pa.struct([]))), ["[{}]", None, "[]"]),
    "union": (
        pa.UnionArray.from_sparse(
            pa.array([0, 1, 0], pa.int8()), [pa.array([1, 9, 2]), pa.array(["", "x", ""])]
        ),
        ["1", '"x"', "2"],
    ),
    "interval": (pa.array([pa.MonthDayNano([1, 2, 3]), None, None]), ["[1, 2, 3]", None, None]),
}


def write_arrow(path: Path, table: pa.Table, *, stream: bool) -> Path:
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with path.open("wb") as file, new(file, table.schema) as writer:
        writer.write_table(table)
    return path


@pytest.mark.parametrize("rows", [1, 1_000])
@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_types_that_other_libraries_write(tmp_path, monkeypatch, caplog, kind, rows):
    monkeypatch.setattr(tables, "BATCH_ROWS", rows)
    columns = odd_columns()
    if kind == "parquet":
        columns.pop("list_view")
        pq.write_table(pa.table(columns), tmp_path / "x")
    else:
        columns |= ONLY_ARROW | {name: column for name, (column, _) in IN_NO_PARQUET.items()}
        write_arrow(tmp_path / "x", pa.table(columns), stream=kind == "stream")
    path = (tmp_path / "x").rename(tmp_path / ("x.arrow" if kind == "stream" else "x"))
    back = list(read_tables(str(path), NEEDED))
    assert [len(part) for part in back] == ([1, 1, 1] if rows == 1 else [3])
    table = pa.concat_tables(back)
    for name, column in columns.items():
        expected = IN_NO_PARQUET[name][1] if name in IN_NO_PARQUET else column.to_pylist()
        assert str(table[name].to_pylist()) == str(expected), name  # as text, since NaN is not itself
    assert len(warnings_of(caplog)) == (0 if kind == "parquet" else len(IN_NO_PARQUET))
    pq.write_table(table.filter(pa.array([True, False, True])), tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").num_columns == len(columns), "later steps can use all"


def test_feather_and_arrow_come_in_bounded_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH_ROWS", 30)
    table = pa.table({"id": range(100), "prompt": ["x" * 1_000] * 100})
    feather.write_feather(table, tmp_path / "a.feather", compression="lz4")
    write_arrow(tmp_path / "b.ipc", table, stream=False)
    for name in ("a.feather", "b.ipc"):
        back = list(read_tables(str(tmp_path / name)))
        assert [len(part) for part in back] == [30, 30, 30, 10]
        assert pa.concat_tables(back).equals(table)
    monkeypatch.setattr(tables, "BATCH_BYTES", 10_000)
    assert max(map(len, read_tables(str(tmp_path / "b.ipc")))) <= 10


def test_a_stream_that_is_cut_short(tmp_path):
    path = write_arrow(tmp_path / "x.arrow", pa.table({"id": range(1_000)}), stream=True)
    path.write_bytes(path.read_bytes()[:-1_000])
    with pytest.raises(DataError, match=r"x\.arrow: cannot be read after row 0 "):
        read(path)


def broken(kind: pa.DataType) -> pa.Array:
    """Texts of which one is not UTF-8."""
    raw = pa.array([b"a\xffb", None, b"c"], pa.large_binary() if kind == pa.large_string() else pa.binary())
    return pa.Array.from_buffers(kind, 3, raw.buffers())


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_bytes_that_are_not_utf8_stop_nothing_but_their_column(tmp_path, caplog, kind):
    lists = pa.ListArray.from_arrays([0, 1, 2, 3], broken(pa.string()))
    table = pa.table(
        {
            "id": [1, 2, 3],
            "x": broken(pa.string()),
            "y": broken(pa.large_string()),
            "z": pa.DictionaryArray.from_arrays([0, 2, 2], broken(pa.string())),
            "lists": lists,
        }
    )
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        pq.write_table(table.drop_columns(["z"]), path)
        table = table.drop_columns(["z"])
    else:
        write_arrow(path, table, stream=False)
    back = read(path)
    assert back.schema.types == table.schema.types
    assert back["x"].to_pylist() == back["y"].to_pylist() == ["a\ufffdb", None, "c"]
    assert back["lists"].to_pylist() == [None, None, None]
    assert kind == "parquet" or back["z"].to_pylist() == ["a\ufffdb", "c", "c"]
    assert any(
        "'x' holds text that is not UTF-8: its wrong bytes are read as" in w for w in warnings_of(caplog)
    )
    assert any("'lists' holds text that is not UTF-8: it is left out" in told for told in warnings_of(caplog))
    for needed in (["y"], None):  # the caller judges it, row by row
        bytes_of_y = pa.large_binary()
        assert read(path, [*(needed or ["x", "y", "z"])])["y"].cast(bytes_of_y) == table["y"].cast(bytes_of_y)
    with pytest.raises(DataError, match=r"cannot be read after row 0 in column 'lists' \(.*UTF8"):
        read(path, ["lists"])


def test_rows_come_in_the_order_of_the_file(tmp_path):
    file = io.StringIO(newline="")
    csv.writer(file).writerows([["id", "prompt"], *([row, 'p,\n"'] for row in range(5_000))])
    (tmp_path / "x.csv").write_text(file.getvalue(), newline="")
    parts = list(read_tables(str(tmp_path / "x.csv"), NEEDED))
    assert max(map(len, parts)) <= tables.BATCH_ROWS
    table = pa.concat_tables(parts)
    assert table["id"].to_pylist() == [str(row) for row in range(5_000)]
    assert set(table["prompt"].to_pylist()) == {'p,\n"'}


def test_a_parquet_type_that_pyarrow_lacks_is_named(tmp_path):
    votes = pl.DataFrame({"id": [1], "prompt": ["p"], "hash": pl.Series([2**100], dtype=pl.Int128)})
    votes.write_parquet(tmp_path / "x.parquet")
    with pytest.raises(
        DataError, match=r"x.parquet: a column has a type that is not read \(.*64 bits.*\); write"
    ):
        read(tmp_path / "x.parquet")
