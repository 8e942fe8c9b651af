"""Converted inputs in a run's private folder: copied once, and read by units from there."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.unit.scoring.fakes import plan_of
from wsdm_ray.runs import PRIVATE_FOLDER, run_folder
from wsdm_ray.scoring.plan import WorkUnit
from wsdm_ray.scoring.shared_inputs import shared_units
from wsdm_ray.scoring.unit_rows import read_unit

ROWS = [{"id": row, "prompt": f"p{row}", "response_a": "a", "response_b": "b"} for row in range(5)]


def place_in_file(unit: WorkUnit) -> list[tuple[int, int]]:
    return [(part.start, part.rows) for part in unit.slices]


def test_units_of_converted_files_are_read_from_the_private_folder(tmp_path):
    lines, parquet = tmp_path / "x.jsonl", tmp_path / "y.parquet"
    lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pq.write_table(pa.Table.from_pylist([{**row, "id": row["id"] + 100} for row in ROWS]), parquet)
    plan = plan_of([str(lines), str(parquet)], 2)
    output = str(tmp_path / "out")
    units = shared_units(plan.units[1:], output)  # as where the first unit is done
    folder = Path(run_folder(output), PRIVATE_FOLDER, "inputs")
    parts = [part for unit in units for part in unit.slices]
    assert [Path(part.source.file.path).parent for part in parts] == [folder] * 2 + [tmp_path] * 3
    assert [(unit.number, place_in_file(unit)) for unit in units] == [
        (unit.number, place_in_file(unit)) for unit in plan.units[1:]
    ]
    for unit, original in zip(units, plan.units[1:], strict=True):
        assert read_unit(unit).table.equals(read_unit(original).table)
    [copy] = folder.iterdir()
    before = copy.stat().st_mtime_ns
    shared_units(plan.units, output)
    assert copy.stat().st_mtime_ns == before


def test_where_nothing_was_converted_nothing_is_written(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "y.parquet")
    plan = plan_of([str(tmp_path / "y.parquet")], 2)
    assert shared_units(plan.units, str(tmp_path / "out")) == list(plan.units)
    assert not Path(run_folder(str(tmp_path / "out"))).exists()
