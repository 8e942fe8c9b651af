"""Columns of the input that are copied to the predictions: names, types over files, values by row."""

import datetime
import decimal
import json
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.scoring.fakes import plan_of as made_plan
from wsdm_ray.config import Columns
from wsdm_ray.errors import ConfigError, DataError
from wsdm_ray.inputs.conversion import ParquetInput
from wsdm_ray.inputs.files import InputFile
from wsdm_ray.scoring.kept_columns import NO_COLUMNS, append_kept, encoded_kept, kept_names, kept_schema
from wsdm_ray.scoring.plan import ScorePlan, Slice, WorkUnit
from wsdm_ray.scoring.unit_rows import read_columns


def plan_of(tmp_path, *tables: pa.Table, unit_rows: int = 2) -> ScorePlan:
    """A plan of a file for each table."""
    units: list[WorkUnit] = []
    for number, table in enumerate(tables):
        path = str(tmp_path / f"{'abc'[number]}.parquet")
        pq.write_table(table, path)
        source = ParquetInput(file=InputFile(path, "abc"[number]), columns=Columns())
        for start in range(0, len(table), unit_rows):
            part = Slice(source, start, min(unit_rows, len(table) - start))
            units.append(WorkUnit(len(units), (part,)))
    return ScorePlan(tuple(units), pa.int64())


def kept(plan: ScorePlan, *names: str) -> pa.Table:
    """What the predictions of all units have of the columns."""
    schema = kept_schema(plan, names)
    found = []
    for unit in plan.units:
        [part] = unit.slices
        own = kept_names(part.source, schema)
        encoded = pa.table(dict(encoded_kept(read_columns(part, own), own, schema)))
        found.append(append_kept(pa.table({"id": range(unit.rows)}), encoded).drop_columns(["id"]))
    return pa.concat_tables(found)


def test_values_stay_with_their_rows_in_their_own_types(tmp_path):
    columns = {
        "number": pa.array([1, None, 2**60], pa.int64()),
        "price": pa.array([decimal.Decimal("1.20"), None, decimal.Decimal("3.00")], pa.decimal128(10, 2)),
        "day": pa.array([datetime.date(2024, 1, 2), None, datetime.date(2024, 1, 3)]),
        "when": pa.array([1, 2, None], pa.timestamp("us", "UTC")),
        "tags": pa.array([["a"], [], None], pa.list_(pa.string())),
        "one": pa.array([{"x": 1}, None, {"x": 2}], pa.struct([("x", pa.int16())])),
        "key": pa.array([uuid.UUID(int=5).bytes, None, uuid.UUID(int=6).bytes], pa.uuid()),
        "flag": pa.array([True, None, False]),
        "bytes": pa.array([b"\xff", None, b""]),
        "language": pa.array(["en", None, "de"]).dictionary_encode(),
        "view": pa.array(["a", None, "b"], pa.string_view()),
    }
    plan = plan_of(tmp_path, pa.table(columns))
    found = kept(plan, *columns)
    assert found.column_names == list(columns)
    for name, column in columns.items():
        assert found[name].to_pylist() == column.to_pylist()
        expected = column.type if name not in ("language", "view") else pa.string()
        assert found.schema.field(name).type == expected
    pq.write_table(found, tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").equals(found)
    assert kept_schema(plan, ()) == NO_COLUMNS
    assert dict(encoded_kept(pa.table({}), [], NO_COLUMNS)) == {}


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (pa.array([1], pa.int32()), pa.array([2], pa.int64()), pa.int64()),
        (pa.array([1], pa.uint32()), pa.array([-2], pa.int8()), pa.int64()),
        (pa.array([1], pa.int32()), pa.array([0.5], pa.float32()), pa.float64()),
        (pa.nulls(1), pa.array(["x"]), pa.string()),
        (pa.array(["y"]).dictionary_encode(), pa.array(["x"], pa.large_string()), pa.large_string()),
        (pa.array([1], pa.timestamp("s")), pa.array([1], pa.timestamp("us")), pa.timestamp("us")),
    ],
)
def test_files_share_the_type_that_holds_both_exactly(tmp_path, one, other, expected):
    for tables in ((one, other), (other, one)):
        plan = plan_of(tmp_path, *(pa.table({"x": values}) for values in tables))
        found = kept(plan, "x")
        assert found.schema.field("x").type == expected
        assert found["x"].to_pylist() == [*tables[0].to_pylist(), *tables[1].to_pylist()]


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (pa.array(["x"]), pa.array([1]), "int64, but string"),
        (pa.array([2**60]), pa.array([0.5]), "double, but int64"),
        (pa.array([2**64 - 1], pa.uint64()), pa.array([-1]), "int64, but uint64"),
    ],
)
def test_files_of_types_that_do_not_fit_are_refused(tmp_path, one, other, said):
    plan = plan_of(tmp_path, pa.table({"x": one}), pa.table({"x": other}))
    with pytest.raises(DataError, match=rf"b\.parquet: column x is {said} in .*a\.parquet, .*--keep-columns"):
        kept_schema(plan, ["x"])


def test_a_file_without_a_column_gives_nulls(tmp_path):
    plan = plan_of(tmp_path, pa.table({"x": [1, 2, 3]}), pa.table({"y": ["a"]}))
    assert kept(plan, "y", "x", "y").to_pydict() == {"y": [None] * 3 + ["a"], "x": [1, 2, 3, None]}


def test_a_name_that_no_file_has_or_that_the_predictions_have_is_refused(tmp_path):
    plan = plan_of(tmp_path, pa.table({"x": [1], "winner": ["a"], "logit_ab": [0.5]}))
    with pytest.raises(DataError, match=r"no column z in any input file \(there are x, winner, logit_ab\)"):
        kept_schema(plan, ["x", "z"])
    for name in ("winner", "logit_ab"):
        with pytest.raises(
            ConfigError, match=f"--keep-columns {name}: the predictions have a column of that"
        ):
            kept_schema(plan, ["x", name])


def test_columns_of_a_file_that_is_converted_keep_the_names_that_it_gives(tmp_path):
    row = {"key": 1, "q": "p", "response_a": "a", "response_b": "b", "prompt": "aside", "more": 5, "left": 0}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    names = ("q", "prompt", "more", "key")
    columns = Columns(id="key", prompt="q")
    plan = made_plan([str(tmp_path / "x.jsonl")], 5, columns, others=names)
    assert kept(plan, *names).to_pylist() == [{"q": "p", "prompt": "aside", "more": 5, "key": 1}]
    assert pq.read_schema(plan.units[0].slices[0].source.file.path).get_field_index("left") == -1, (
        "it is not copied"
    )
    with pytest.raises(DataError) as caught:
        kept_schema(plan, ("gone",))
    assert "x.jsonl: no column gone in any input file (there are key, q," in str(caught.value)
    assert "_wsdm_ray" not in str(caught.value)
