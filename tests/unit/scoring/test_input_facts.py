"""Input files that change, that are bad, and ids that are there twice, as the options say."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wsdm_ray.errors import DataError
from wsdm_ray.inputs.conversion import parquet_inputs
from wsdm_ray.inputs.faults import BadFiles
from wsdm_ray.inputs.files import list_inputs, listed_versions
from wsdm_ray.inputs.rows import Reading
from wsdm_ray.runs import file_versions
from wsdm_ray.scoring.parts import Scored
from wsdm_ray.scoring.pipeline import report
from wsdm_ray.scoring.plan import ScorePlan, check_inputs_unchanged, make_plan
from wsdm_ray.scoring.unit_rows import read_unit

ROOT = Path(__file__).parents[3]
DAMAGED = ROOT / "tests/data/damaged/level_histogram.parquet"


def table_of(ids: list) -> pa.Table:
    texts = [f"text {value}" for value in ids]
    return pa.table({"id": ids, "prompt": texts, "response_a": texts, "response_b": texts})


def planned(files: list[str], *, skip: bool = False, keep: bool = False) -> ScorePlan:
    """The plan of files, as the options of `score` ask for it."""
    inputs, bad = list_inputs(files), BadFiles(skip)
    sources = parquet_inputs(inputs, Reading(labels=False), bad)
    return make_plan(sources, 10, files=inputs, bad=bad, keep_duplicates=keep)


def test_versions_are_those_of_the_listing(write):
    files = [write(table_of([number]), f"{number}.parquet") for number in range(3)]
    plan = planned(files)
    assert listed_versions(plan.files) == file_versions(files)
    check_inputs_unchanged(plan)
    write(table_of([9]), "1.parquet")
    with pytest.raises(DataError, match=r"1\.parquet: has changed"):
        check_inputs_unchanged(plan)
    os.unlink(files[1])
    with pytest.raises(DataError, match=r"1\.parquet: is gone"):
        check_inputs_unchanged(plan)


def test_all_bad_files_are_named_before_anything_is_scored(tmp_path, write, caplog):
    good = [write(table_of([number]), f"good{number}.parquet") for number in range(2)]
    for name, content in (("cut.parquet", b"PAR1 of old"), ("x.csv", b"id,prompt\n1,x\n")):
        (tmp_path / name).write_bytes(content)
    lacks = write(table_of([5, 6]).drop_columns(["prompt"]), "lacks.parquet")
    bad = [str(tmp_path / "cut.parquet"), str(tmp_path / "x.csv"), lacks]
    with pytest.raises(DataError) as caught:
        planned([good[0], *bad, good[1]])
    assert str(caught.value).startswith("3 of 5 input files cannot be scored: ")
    assert all(path in str(caught.value) for path in bad)
    plan = planned([good[0], *bad, good[1]], skip=True)
    assert plan.rows == 2
    assert {file.file: file.rows for file in plan.bad_files} == dict(zip(bad, (None, None, 2), strict=True))
    assert "3 of 5 input files are left out" in caplog.text
    with pytest.raises(DataError, match="3 of 3 input files cannot be scored"):
        planned(bad, skip=True)


def test_rows_that_turn_out_to_be_damaged_get_the_error_where_bad_files_are_skipped(write):
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    damaged = Path(write(table_of(list(range(4))), "a.parquet", **options))
    group = pq.read_metadata(damaged).row_group(0)
    [column] = [group.column(i) for i in range(4) if group.column(i).path_in_schema == "prompt"]
    data = bytearray(damaged.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 2] ^= 1
    damaged.write_bytes(data)
    files = [str(damaged), write(table_of([7]), "b.parquet")]
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read from row 0 on \(.*; it is damaged"):
        planned(files)
    rows, faults = read_unit(planned(files, skip=True).units[0])
    assert rows["id"].to_pylist() == [0, 1, 2, 3, 7]
    assert rows["prompt"].to_pylist() == [None] * 4 + ["text 7"]
    assert sorted(faults) == [0, 1, 2, 3]
    assert "a.parquet: cannot be read" in str(faults[0])


def test_a_replaced_file_is_refused_also_where_bad_files_are_skipped(write):
    path = write(table_of([1, 2]))
    [unit] = planned([path], skip=True).units
    write(table_of([3, 4, 5]))
    with pytest.raises(DataError, match="has changed from"):
        read_unit(unit)


def test_ids_that_are_there_twice_may_be_kept(write, caplog):
    first, second = write(table_of([4, 5, 5]), "1.parquet"), write(table_of([4]), "2.parquet")
    plan = planned([first, second], keep=True)
    assert (plan.rows, plan.duplicate_ids) == (4, 2)
    assert f"2 rows have an id that an earlier row has, the first: id 4 is in {first} row 0" in caplog.text


def test_a_run_whose_input_changed_at_the_end_has_no_report(write):
    plan = planned([write(table_of([1, 2]))])
    write(table_of([3, 4, 5]))
    run: Any = SimpleNamespace(plan=plan)
    with pytest.raises(DataError, match="has changed from"):
        report(run, held=None, totals=None, scored=Scored())  # pyright: ignore[reportArgumentType]


def test_a_column_whose_name_is_not_utf8_is_named(write, tmp_path):
    table = table_of([1, 2, 3]).append_column("straße", pa.array([1, 2, 3]))
    path = write(table, store_schema=False)
    damaged = tmp_path / "latin.parquet"
    damaged.write_bytes(Path(path).read_bytes().replace("straße".encode(), b"stra\xdfe "))
    with pytest.raises(
        DataError, match=r"latin\.parquet: the name of a column is not UTF-8 .* write the file"
    ):
        planned([str(damaged)])


def test_a_footer_that_ends_processes_is_named():
    """PyArrow throws an exception of C++ that nobody catches where a column of this footer is asked for."""
    line = f"from {__name__} import planned; planned([{str(DAMAGED)!r}])"
    command = [sys.executable, "-c", line]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1, done.stderr
    assert "level_histogram.parquet: cannot be read from row 0 on" in done.stderr.splitlines()[-1]
