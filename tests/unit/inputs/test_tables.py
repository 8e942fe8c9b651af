"""Files of every kind to tables: one schema a file, and no column that nobody needs stops one."""

import bz2
import errno
import gzip
import json
import lzma
from datetime import datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from tests.unit.inputs.table_files import NEEDED, read, warnings_of, write_lines
from wsdm_ray import storage
from wsdm_ray.errors import DataError, StorageError
from wsdm_ray.inputs import objects, tables
from wsdm_ray.inputs.tables import read_tables
from wsdm_ray.storage.patience import StoreAwayError

MIXED = {
    "text and number": (["n/a", 1, None, 2.5, True], ['"n/a"', "1", None, "2.5", "true"]),
    "number and text later": ([1, 2, 3, 4, "n/a"], ["1", "2", "3", "4", '"n/a"']),
    "beyond 64 bits": ([1, 2**70, -(2**63), None, 0], ["1", str(2**70), str(-(2**63)), None, "0"]),
    "beyond 64 bits, nested": ([[1], [2**70], [], [], []], ["[1]", f"[{2**70}]", "[]", "[]", "[]"]),
    "empty objects": ([{}, {}, None, {}, {}], ["{}", "{}", None, "{}", "{}"]),
    "empty objects, nested": ([{"a": {}}] * 5, ['{"a": {}}'] * 5),
    "lists of all kinds": ([[1, "é"], [], [[]], None, []], ['[1, "é"]', "[]", "[[]]", None, "[]"]),
    "object and list": ([{"a": 1}, [1], None, [], []], ['{"a": 1}', "[1]", None, "[]", "[]"]),
    "objects of other types": (
        [{"a": 1}, None, {"a": "x"}, None, None], ['{"a": 1}', None, '{"a": "x"}', None, None]
    ),
    "too precise": ([2**60 + 1, 0.5, 1, 1, 1], [str(2**60 + 1), "0.5", "1", "1", "1"]),
    "true and fraction": ([True, 0.5, 1.0, 1.0, 1.0], ["true", "0.5", "1.0", "1.0", "1.0"]),
    "infinite and text": ([float("inf"), "x", None, None, None], ["Infinity", '"x"', None, None, None]),
}  # fmt: skip


@pytest.mark.parametrize("batch_rows", [1, 2, 1_000])
@pytest.mark.parametrize("kind", MIXED)
def test_values_that_do_not_go_together_are_kept_as_json(tmp_path, monkeypatch, caplog, kind, batch_rows):
    monkeypatch.setattr(tables, "BATCH_ROWS", batch_rows)
    monkeypatch.setattr(tables, "BATCH_BYTES", 100)  # so that the file is parsed twice
    values, expected = MIXED[kind]
    rows = [{"id": row, "x": value, "prompt": "p" * 40} for row, value in enumerate(values)]
    path = write_lines(tmp_path / "x.jsonl", *rows)
    (tmp_path / "x.json").write_text(json.dumps(rows))
    for file in (path, tmp_path / "x.json"):
        table = read(file)
        assert table["x"].to_pylist() == expected
        assert table["x"].type == pa.string()
        assert table["id"].to_pylist() == [0, 1, 2, 3, 4]
        read(file)
    told = warnings_of(caplog)
    assert [line.split(" holds ")[0] for line in told] == [
        f"{file}: the column 'x'" for file in (path, tmp_path / "x.json")
    ]
    assert all(line.endswith(": it is kept as JSON text") for line in told)


GOING_TOGETHER = {
    "integers": [1, None, -(2**63), 2**63 - 1],
    "integers and fractions": [1, 0.5, None, 2**53],
    "true or false": [True, None, False, True],
    "only null": [None, None, None, None],
    "infinite": [float("inf"), 1, -float("inf"), 0.5],
    "lists": [[], [None], ["a"], None],
    "messages": [[], [{"role": "user"}], [{"role": "user", "content": ["x"]}], None],
    "objects": [{}, {"a": 1}, None, {"b": {"c": "x"}}],
}


@pytest.mark.parametrize("batch_rows", [1, 1_000])
@pytest.mark.parametrize("kind", GOING_TOGETHER)
def test_values_that_go_together_keep_their_type(tmp_path, monkeypatch, caplog, kind, batch_rows):
    monkeypatch.setattr(tables, "BATCH_ROWS", batch_rows)
    monkeypatch.setattr(tables, "BATCH_BYTES", 10)
    values = GOING_TOGETHER[kind]
    table = read(write_lines(tmp_path / "x.jsonl", *[{"x": value} for value in values]))
    assert table["x"].to_pylist() == pa.array(values).to_pylist()
    assert table["x"].type == pa.array(values).type
    assert warnings_of(caplog) == []


def test_nan_is_null_wherever_it_is(tmp_path):
    path = write_lines(
        tmp_path / "x.jsonl",
        '{"id": 1, "prompt": NaN, "score": NaN, "all": NaN, "nested": [NaN, 1.5], "text": "NaN"}',
        '{"id": NaN, "prompt": "p", "score": 2.5, "all": NaN, "nested": null, "text": "x"}',
    )
    assert read(path).to_pylist() == [
        {"id": 1, "prompt": None, "score": None, "all": None, "nested": [None, 1.5], "text": "NaN"},
        {"id": None, "prompt": "p", "score": 2.5, "all": None, "nested": None, "text": "x"},
    ]


@pytest.mark.parametrize(
    ("values", "expected", "kind"),
    [
        (["k0", 1, "01", 2**70], ["k0", "1", "01", str(2**70)], pa.string()),
        ([1, 2**70], [Decimal(1), Decimal(2**70)], pa.decimal256(76, 0)),
        ([1, 2**63], [Decimal(1), Decimal(2**63)], pa.decimal256(76, 0)),
        ([1, 10**90], ["1", str(10**90)], pa.string()),
        ([1, 2.5], [1.0, 2.5], pa.float64()),
        ([2**60 + 1, 2.5], [2.0**60, 2.5], pa.float64()),
        (["a", ["b"], {"c": "é"}], ["a", '["b"]', '{"c": "é"}'], pa.string()),
    ],
)
def test_needed_columns_are_given_to_be_judged(tmp_path, monkeypatch, values, expected, kind):
    for batch_rows in (1, 1_000):
        monkeypatch.setattr(tables, "BATCH_ROWS", batch_rows)
        monkeypatch.setattr(tables, "BATCH_BYTES", 5)
        path = write_lines(tmp_path / f"{batch_rows}.jsonl", *[{"id": value, "x": 1} for value in values])
        for needed in (NEEDED, None):
            assert read(path, needed)["id"].to_pylist() == expected
            assert read(path, needed)["id"].type == kind


def test_only_a_file_that_is_too_large_to_hold_is_parsed_twice(tmp_path, monkeypatch):
    opened = []

    def counted(path, open_text=objects.open_text):
        opened.append(path)
        return open_text(path)

    monkeypatch.setattr(objects, "open_text", counted)
    path = write_lines(tmp_path / "x.jsonl", *[{"id": row} for row in range(100)])
    for limit, times in ((10_000, 1), (500, 2)):
        monkeypatch.setattr(tables, "BATCH_BYTES", limit)
        opened.clear()
        assert read(path)["id"].to_pylist() == list(range(100))
        assert len(opened) == times


def test_objects_of_many_keys_are_kept_as_json(tmp_path):
    rows = [{"x": {f"k{row}-{key}": key for key in range(30)}} for row in range(10)]
    assert [json.loads(text) for text in read(write_lines(tmp_path / "x.jsonl", *rows))["x"].to_pylist()] == [
        row["x"] for row in rows
    ]


@pytest.mark.parametrize("levels", [70, 500])
@pytest.mark.parametrize("both", [('{"a":', "}"), ("[", "]")])
def test_values_that_are_too_deep_for_a_file_of_columns_are_kept_as_json(tmp_path, levels, both):
    deep = both[0] * levels + "1" + both[1] * levels
    path = write_lines(tmp_path / "x.jsonl", '{"id": 1, "x": ' + deep + "}")
    [table] = read_tables(str(path), NEEDED)
    assert table["x"][0].as_py().replace(" ", "") == deep


def test_a_key_that_is_there_twice_is_named(tmp_path, caplog):
    path = write_lines(
        tmp_path / "x.jsonl", '{"a": 1}', '{"a": 1, "b": {"c": 1, "c": 2}}', '{"a": 1, "a": 2}'
    )
    assert read(path).to_pylist()[1:] == [{"a": 1, "b": {"c": 2}}, {"a": 2, "b": None}]
    assert warnings_of(caplog) == [
        f"{path}:2: an object has the key 'c' twice; the last value of a key counts"
    ]


@pytest.mark.parametrize(
    "content",
    [
        {"prompt": {"0": "p", "1": "q"}, "id": {"0": 1, "1": 2}},
        {"columns": ["id"], "index": [0], "data": [[1]]},
        {"schema": {}, "data": [{"id": 1}]},
    ],
)
def test_pandas_by_columns(tmp_path, content):
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"x.json: is one object .*to_json\(FILE, orient='records'"):
        read(tmp_path / "x.json")


def test_one_row_of_lists_is_a_row(tmp_path):
    row = {"prompt": ["p"], "response_a": ["a"], "response_b": ["b"]}
    (tmp_path / "x.json").write_text(json.dumps(row))
    assert read(tmp_path / "x.json").to_pylist() == [row]


TEXTS = {
    "jsonl": '{"id": 1, "prompt": "é"}\n\n{"id": 2, "prompt": "b"}\n'.encode(),
    "json": '[{"id": 1, "prompt": "é"},\n{"id": 2, "prompt": "b"}]'.encode(),
    "csv": 'id,prompt\r\n1,é\r\n\r\n2,"b"\r\n'.encode(),
    "tsv": "\ufeffid\tprompt\n1\té\n2\tb".encode(),
}
PACK = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("pack", PACK)
@pytest.mark.parametrize("kind", TEXTS)
def test_compressed_files_hold_the_same(tmp_path, kind, pack):
    data, path = TEXTS[kind], tmp_path / f"x.{kind}.{pack}"
    (tmp_path / f"x.{kind}").write_bytes(data)
    path.write_bytes(PACK[pack](data))
    assert [str(row["id"]) + row["prompt"] for row in read(path).to_pylist()] == ["1é", "2b"]
    assert read(path).equals(read(tmp_path / f"x.{kind}"))
    path.write_bytes(PACK[pack](data[:9]) + PACK[pack](data[9:]))  # as `cat` joins them
    assert read(path).equals(read(tmp_path / f"x.{kind}"))


@pytest.mark.parametrize("pack", PACK)
@pytest.mark.parametrize("damage", ["cut", "changed", "other"])
def test_damaged_compressed_files(tmp_path, pack, damage):
    data = PACK[pack]("".join(f'{{"id": {row * 7919}}}\n' for row in range(20_000)).encode())
    half = len(data) // 2
    path = tmp_path / f"x.jsonl.{pack}"
    changed = data[:half] + bytes(byte ^ 0x5A for byte in data[half : half + 50]) + data[half + 50 :]
    path.write_bytes({"cut": data[:half], "changed": changed, "other": b'{"id": 1}\n' * 9}[damage])
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:")
    assert "\n" not in str(caught.value)
    if damage != "changed":  # what is changed may unpack to something else
        reason = {"cut": "cut short or damaged (", "other": "is not compressed as its name says; rename it"}
        assert reason[damage] in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.csv", "id\n1\n".encode("utf-16"), r"is UTF-16; save it as UTF-8: iconv -f UTF-16"),
        ("x.jsonl", '{"id": 1}'.encode("utf-16"), r"is UTF-16; save it as UTF-8: iconv -f UTF-16"),
        ("x.csv", gzip.compress(b"id\n1\n", mtime=0), r"is compressed with gzip; rename it to end with .gz"),
        (
            "x.csv.gz",
            gzip.compress(gzip.compress(b"id\n1\n", mtime=0), mtime=0),
            r"with gzip twice .*; unpack it once",
        ),
        (
            "x.json",
            b'{"data": [{"id": 1}], "n": 1}',
            r"holds its rows in the list 'data'; .* '\.\[\"data\"\]\[\]",
        ),
        ("x.json", b'{"votes": [{"id": 1}]}', r"holds its rows in the list 'votes'"),
        ("x.json", b'{\n "id": 1\n}', r"x.json:1: not JSON .*`jq -c \. FILE` writes an object over several"),
        ("x.jsonl", PACK["zst"](b'{"id": 1}'), r"is compressed with zstd; rename it to end with .zst"),
        ("x.csv", b"PK\x03\x04...", r"is a zip archive or an Excel workbook; unpack it, or save it as CSV"),
        ("x.jsonl", b"PAR1\x15\x04", r"is a parquet file; rename it to end with .parquet"),
        ("x.csv", b"id\n\xe9\n", r"x.csv:2: not UTF-8 .*; save the file as UTF-8"),
        ("x.zip", b"PK", r"an archive; unpack it"),
        ("x.tar.gz", b"", r"an archive; unpack it"),
        ("x.csv.zip", b"", r"an archive; unpack it"),
        ("x.xlsx", b"", r"a workbook; save it as CSV"),
        ("x.orc", b"", r"a format that is not read; convert it to parquet"),
        ("x.pkl", b"", r"a pickle, which is not read"),
        ("x.parquet.gz", b"", r"compressed as a whole; unpack it first"),
        ("part-0.gz", b"", r"its name does not say what is in it; rename it"),
        ("x.arrow", b"no arrow at all", r"cannot be read after row 0 .*; it is damaged or another kind"),
        ("x.feather", b"FEA1....", r"Feather of version 1"),
        ("x.arrow", b"", r"cannot be read after row 0"),
        ("x.tsv", b"id,prompt\n1\t2\n", r"x.tsv:2: 2 fields, but the header has 1"),
        ("x.csv", b"id;prompt\n1;2\n", r"x.csv: the fields are separated by ';'; write commas"),
        (
            "x.csv",
            b'id,prompt\n1,"a \\"b\\" c"\n',
            r"x.csv:2: not CSV .* \(Spark writes it so with escape='\"'\)",
        ),
    ],
)
def test_files_that_are_not_what_is_read(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.jsonl", "x.json", "x.csv.xz"])
def test_an_empty_file_has_no_rows(tmp_path, caplog, name):
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b""))
    assert list(read_tables(str(tmp_path / "x.jsonl.gz"))) == []
    assert warnings_of(caplog) == [f"{tmp_path / 'x.jsonl.gz'}: is empty, so it has no rows"]
    caplog.clear()
    (tmp_path / name).write_bytes(b"")
    assert list(read_tables(str(tmp_path / name))) == []
    assert warnings_of(caplog) == [f"{tmp_path / name}: is empty, so it has no rows"]


@pytest.mark.parametrize(
    "data", [b"id,prompt\n", b"\n\r\nid,prompt", b"\xef\xbb\xbf\nid,prompt\r\n\n", b"\n\n"]
)
def test_a_header_alone_has_no_rows(tmp_path, caplog, data):
    (tmp_path / "x.csv").write_bytes(data)
    assert list(read_tables(str(tmp_path / "x.csv"))) == []
    (tmp_path / "x.csv").write_bytes(data + b"\nid,prompt\n1,p\n")
    assert read(tmp_path / "x.csv")["id"].to_pylist() == ["1"] if data == b"\n\n" else ["id", "1"]
    assert warnings_of(caplog) == []


def test_a_name_that_a_header_has_twice(tmp_path, caplog):
    (tmp_path / "x.csv").write_text("id,x,x,prompt,x\n1,2,3,4,5\n")
    expected = [{"id": "1", "x": "2", "x.1": "3", "prompt": "4", "x.2": "5"}]
    assert read(tmp_path / "x.csv").to_pylist() == expected
    pq.write_table(pa.table([[1], [2], [3]], ["x", "id", "x"]), tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet").to_pylist() == [{"x": 1, "id": 2, "x.1": 3}]
    assert len(warnings_of(caplog)) == 3
    with pytest.raises(DataError, match=r"x\.csv: the header names the column 'x' twice"):
        read(tmp_path / "x.csv", ["x"])


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_only_the_columns_that_are_used_are_read(tmp_path, kind):
    table = pa.table({"ID": [1, 2], "prompt": ["a", "b"], "more": ["x", "y"]})
    path = tmp_path / f"x.{kind}"
    pq.write_table(table, path) if kind == "parquet" else feather.write_feather(table, path, "uncompressed")
    assert pa.concat_tables(read_tables(str(path), only=["id", "prompt", "gone"])).column_names == [
        "ID",
        "prompt",
    ]
    assert pa.concat_tables(read_tables(str(path), only=["gone"])).column_names == ["ID", "prompt", "more"]


def test_a_large_parquet_file_is_read_a_part_at_a_time(tmp_path, monkeypatch):
    pq.write_table(pa.table({"id": range(4_000)}), tmp_path / "x.parquet", row_group_size=500)
    buffers, opened = [], storage.open_parquet
    monkeypatch.setattr(
        storage, "open_parquet", lambda path, buffer_bytes=0: (buffers.append(buffer_bytes), opened(path))[1]
    )
    assert read(tmp_path / "x.parquet")["id"].to_pylist() == list(range(4_000))
    assert buffers == [0]
    monkeypatch.setattr(storage, "WHOLE_BYTES", 1_000)
    assert read(tmp_path / "x.parquet")["id"].to_pylist() == list(range(4_000))
    assert buffers == [0, 0, storage.STREAM_BYTES]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize(
    "error", [StoreAwayError("gone", has_answered=True), OSError(errno.EIO, "Input/output error")]
)
def test_a_store_or_disk_that_fails_makes_no_damaged_file(tmp_path, monkeypatch, kind, error):
    """A file that is left out as damaged would be lost, where another try reads it."""
    path = tmp_path / f"x.{kind}"
    table = pa.table({"id": [1]})
    (pq.write_table if kind == "parquet" else feather.write_feather)(table, str(path))

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(tables, "sound", fail)
    with pytest.raises(StorageError) as caught:
        list(read_tables(str(path)))
    assert caught.value.__cause__ is error
    assert error.__cause__ is None, "whose own cause says what to do"


def test_times_that_nanoseconds_do_not_hold(tmp_path):
    """As Spark writes them: 9999-12-31 says that a row is valid for ever."""
    times = pa.array([datetime(9999, 12, 31), datetime(1, 1, 1)], pa.timestamp("us"))
    pq.write_table(pa.table({"t": times}), tmp_path / "x.parquet", use_deprecated_int96_timestamps=True)
    assert read(tmp_path / "x.parquet")["t"].to_pylist() == times.to_pylist()


def test_null_in_csv_as_databases_write_it(tmp_path):
    (tmp_path / "x.csv").write_text('a,b\n\\N,"\\N is null"\n')
    assert read(tmp_path / "x.csv").to_pylist() == [{"a": None, "b": "\\N is null"}]


def test_two_columns_of_one_name_that_nobody_needs_stop_no_arrow_file(tmp_path, caplog):
    table = pa.table([pa.array([1]), pa.array([2]), pa.array([3])], names=["id", "x", "x"])
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    found = pa.concat_tables(read_tables(str(tmp_path / "x.arrow"), {"id"}, {"id", "x"}))
    assert found.to_pylist() == [{"id": 1, "x": 2, "x.1": 3}]
