"""Parts: which units are done, what their footers keep, and that every row is in exactly one."""

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wsdm_ray.config import Columns
from wsdm_ray.errors import DataError
from wsdm_ray.inputs.conversion import ParquetInput
from wsdm_ray.inputs.files import InputFile
from wsdm_ray.scoring.parts import (
    COUNTS_KEY,
    Totals,
    UnitReport,
    add_up,
    completed_units,
    delete_others,
    digest_of_sizes,
    list_parts,
    part_sizes,
    parts_are_there,
    write_part,
)
from wsdm_ray.scoring.plan import ScorePlan, Slice, WorkUnit

DIGEST = "of this run"

A, B = (ParquetInput(file=InputFile(name, name), columns=Columns()) for name in "ab")
SLICES = (Slice(A, 0, 3), Slice(A, 3, 2), Slice(B, 0, 3))
PLAN = ScorePlan(tuple(WorkUnit(number, (part,)) for number, part in enumerate(SLICES)), id_type=pa.int64())
REPORTS = (
    UnitReport(unit=0, rows=3, errors=1, cut=2, tokens=30, rerun=0, forward_tokens=70, token_budget=512),
    UnitReport(unit=1, rows=2, tokens=20, rerun=1, halvings=2, token_budget=128, seconds=0.5, process=7),
    UnitReport(unit=2, rows=3, tokens=30, halvings=1, token_budget=256),
)


@pytest.fixture
def output(tmp_path) -> str:
    """A folder with the parts of all units."""
    for report in REPORTS:
        write_part(str(tmp_path), pa.table({"id": [*range(report.rows)]}), report, DIGEST)
    return str(tmp_path)


@pytest.mark.parametrize("report", [*REPORTS, UnitReport(unit=4, error='["DataError", "a: b"]')])
def test_a_report_travels_as_a_row(report):
    row = {name: values[0] for name, values in report.to_row().items()}
    again = UnitReport.from_row(row)
    assert again == report
    assert json.dumps(again.rows) == str(report.rows), "numbers of Python, as run.json needs them"


def test_footers_keep_what_they_always_kept(output):
    footers = [pq.read_metadata(f"{output}/part-00000{number}.parquet").metadata for number in (0, 1)]
    # Parts of earlier versions are read, and the same rows give the same bytes as then.
    assert footers[0][COUNTS_KEY] == (
        b'{"unit": 0, "rows": 3, "errors": 1, "cut": 2, "tokens": 30, "rerun": 0}'
    )
    assert footers[1][COUNTS_KEY] == (
        b'{"unit": 1, "rows": 2, "errors": 0, "cut": 0, "tokens": 20, "rerun": 1, "halved": 2, '
        b'"token_budget": 128}'
    )


def test_completed_units_are_those_whose_parts_are_theirs(output, tmp_path, caplog):
    completed = completed_units(PLAN, output, DIGEST)
    assert {number: report.rows for number, report in completed.items()} == {0: 3, 1: 2, 2: 3}
    assert (completed[1].halvings, completed[1].token_budget) == (2, 128)
    assert not caplog.text
    (tmp_path / "part-000000.parquet").write_bytes((tmp_path / "part-000002.parquet").read_bytes())
    (tmp_path / "part-000001.parquet").write_bytes(b"PAR1")
    pq.write_table(pa.table({"id": [1]}), tmp_path / "part-000009.parquet")
    assert set(completed_units(PLAN, output, DIGEST)) == {2}
    assert "part-000000.parquet: is not the part of that number; its rows are scored again" in caplog.text
    assert "part-000001.parquet: not a parquet file" in caplog.text
    assert "part-000009.parquet: is not the part of that number" in caplog.text


def test_totals(output):
    totals = add_up(PLAN, output, {0: REPORTS[0]}, REPORTS[1:], DIGEST)
    assert totals == Totals(
        rows=8, errors=1, cut=2, tokens=80, rerun=1, units=3, resumed_units=1, halvings=3, smallest_budget=128
    )
    assert list(totals.counts) == ["rows", "errors", "cut", "tokens", "rerun", "units", "resumed_units"]
    assert add_up(PLAN, output, {}, REPORTS, DIGEST).resumed_units == 0


def test_a_part_that_is_missing_is_an_error(output, tmp_path):
    with pytest.raises(DataError, match=r"part-000002.parquet: missing or not of 3 rows; delete it"):
        add_up(PLAN, output, {}, REPORTS[:2], DIGEST)
    (tmp_path / "part-000001.parquet").unlink()
    assert set(list_parts(output)) == {0, 2}
    with pytest.raises(DataError, match=r"part-000001.parquet: missing or not of 2 rows"):
        add_up(PLAN, output, {}, REPORTS, DIGEST)


def test_a_part_that_is_there_stays_and_its_counts_are_reported(output):
    again = dataclasses.replace(REPORTS[1], tokens=99, seconds=3.0)
    there = (Path(output) / "part-000001.parquet").read_bytes()
    report = write_part(output, pa.table({"id": [7, 8]}), again, DIGEST)
    assert report == dataclasses.replace(REPORTS[1], seconds=3.0)
    assert (Path(output) / "part-000001.parquet").read_bytes() == there


def test_an_empty_file_is_no_part(output):
    """As of a process that was killed while it created one on a disk without hard links."""
    path = Path(output, "part-000001.parquet")
    path.write_bytes(b"")
    report = UnitReport(unit=1, rows=2, tokens=5)
    assert write_part(output, pa.table({"id": [7, 8]}), report, DIGEST) == report
    assert pq.read_table(path)["id"].to_pylist() == [7, 8]


def test_a_part_of_another_run_is_neither_replaced_nor_taken_for_ones_own(output):
    there = (Path(output) / "part-000000.parquet").read_bytes()
    with pytest.raises(DataError, match=r"part-000000\.parquet: was written by another run meanwhile"):
        write_part(output, pa.table({"id": [7, 8, 9]}), REPORTS[0], "of another run")
    assert (Path(output) / "part-000000.parquet").read_bytes() == there


def test_parts_of_another_run_are_named_scored_again_and_refused_at_the_end(output, caplog):
    delete_others(output, [0, 1])
    write_part(output, pa.table({"id": [7, 8, 9]}), REPORTS[2], "of another run")
    completed = completed_units(PLAN, output, DIGEST)
    assert set(completed) == {0, 1}
    assert "part-000002.parquet: is of another run; its rows are scored again" in caplog.text
    assert parts_are_there(PLAN, output)
    with pytest.raises(DataError, match=r"part-000002\.parquet: is of another run; delete it and run again"):
        add_up(PLAN, output, completed, REPORTS[2:], DIGEST)
    delete_others(output, completed)
    assert set(list_parts(output)) == {0, 1}
    assert not parts_are_there(PLAN, output)


def test_a_part_that_was_cut_is_known_by_its_size(output, tmp_path):
    sizes, part = digest_of_sizes(part_sizes(output)), tmp_path / "part-000001.parquet"
    assert parts_are_there(PLAN, output, sizes)
    part.write_bytes(part.read_bytes()[:50])
    assert not parts_are_there(PLAN, output, sizes)
    assert parts_are_there(PLAN, output), "a run of an earlier version kept no sizes"


def test_parts_of_earlier_versions_are_taken(output):
    delete_others(output, [])
    for report in REPORTS:
        write_part(output, pa.table({"id": [*range(report.rows)]}), report, digest="")
    completed = completed_units(PLAN, output, DIGEST)
    assert set(completed) == {0, 1, 2}
    assert add_up(PLAN, output, completed, [], DIGEST).rows == 8


def test_a_part_that_no_unit_has_is_refused_at_the_end(output):
    write_part(output, pa.table({"id": [1]}), UnitReport(unit=9, rows=1), DIGEST)
    with pytest.raises(DataError, match=r"part-000009\.parquet: is not the part of that number; delete it"):
        add_up(PLAN, output, {}, REPORTS, DIGEST)
