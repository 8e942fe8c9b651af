"""What a plan costs: memory of the driver for the ids of millions of rows, and time for thousands of files.

    PYTHONPATH=. python tests/benchmarks/plan_ids.py [--rows 10000000] [--files 10000]

Each figure is of a process of its own, whose peak memory the system tells. Writes results/plan_ids.json, or
--json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import HERE, write_result

KINDS = ("int64", "text36", "files")


def write_rows(folder: Path, kind: str, rows: int) -> None:
    """Ten files with the ids of `rows` rows, and texts of a letter."""
    for number in range(10):
        part = np.arange(number, rows, 10, np.int64)
        ids = pa.array(part)
        if kind == "text36":
            ids = pa.array([f"{value:032x}-abc" for value in part.tolist()])
        letter = pa.array(["x"]).take(pa.array(np.zeros(len(part), np.int64)))
        table = pa.table({"id": ids, "prompt": letter, "response_a": letter, "response_b": letter})
        pq.write_table(table, folder / f"{number}.parquet")


def write_files(folder: Path, files: int) -> None:
    """Files of two rows each."""
    texts = {"prompt": ["What is it? " * 8] * 2, "response_a": ["It is so. " * 40] * 2}
    for number in range(files):
        table = pa.table({"id": [2 * number, 2 * number + 1], **texts, "response_b": ["No. " * 90] * 2})
        pq.write_table(table, folder / f"{number:05d}.parquet")


def peak_mb() -> float:
    """The most memory that this process had. (`ru_maxrss` is also of the process that started it.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def plan(folder: str) -> dict[str, float | int]:
    """Seconds, CPU seconds and peak memory in MB of planning a folder in this process."""
    from wsdm_ray.inputs.conversion import parquet_inputs
    from wsdm_ray.inputs.files import list_inputs
    from wsdm_ray.inputs.rows import Reading
    from wsdm_ray.scoring.plan import check_inputs_unchanged, make_plan
    from wsdm_ray.scoring.unit_rows import read_unit

    before = peak_mb()
    begun, cpu = time.monotonic(), time.process_time()
    files = list_inputs([folder])
    made = make_plan(parquet_inputs(files, Reading(labels=False)), None, files=files)
    check_inputs_unchanged(made)
    figures: dict[str, float | int] = {
        "rows": made.rows, "files": len(files), "units": len(made.units),
        "seconds": round(time.monotonic() - begun, 2), "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_mb_before": round(before), "peak_mb": round(peak_mb()),
    }  # fmt: skip
    cpu = time.process_time()
    rows = sum(len(read_unit(unit).table) for unit in made.units[:4])
    return figures | {"read_cpu_ms_a_row": round((time.process_time() - cpu) / rows * 1e3, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "plan_ids.json")
    parser.add_argument("--plan", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.plan:
        print(json.dumps(plan(given.plan)))
        return
    found = {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            if kind == "files":
                write_files(Path(folder), given.files)
            else:
                write_rows(Path(folder), kind, given.rows)
            done = subprocess.run(
                [sys.executable, __file__, "--plan", folder], check=True, capture_output=True, text=True
            )
            found[kind] = json.loads(done.stdout.splitlines()[-1]) | {"load": os.getloadavg()[0]}
        print(kind, json.dumps(found[kind]), flush=True)
        settings = {"rows": given.rows, "files": given.files}
        write_result(given.json, str(__doc__).splitlines()[0], settings, found)


if __name__ == "__main__":
    main()
