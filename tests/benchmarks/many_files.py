"""Are ten thousand small files planned and scored at the speed of one?

    PYTHONPATH=. python tests/benchmarks/many_files.py [--rows 20000] [--files 1 10000] [--paces 0 132]

The same arena pairs on a local disk, in one file and in many, scored as `score_scale.py` does: the seconds of
the plan, and of the whole run, its start included. A replica takes no time for its pairs, so that the two
cores are all that limits it, or as long as GPUs that score so many pairs a second: four at 33 make 132.
Writes results/many_files.json, or --json; exits with 1 where rows are wrong.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from common import HERE, write_result
from score_scale import run_driver, some_texts

from tests.integration.struck_run import make_model
from wsdm_ray.data.arena import arena_batches


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--files", type=int, nargs="+", default=[1, 10_000])
    parser.add_argument("--paces", type=float, nargs="+", default=[0, 132], help="pairs/s; 0: no limit")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--object-store-mib", type=int, default=400)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "many_files.json")
    given = parser.parse_args()
    given.unit_rows = None
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ.pop("RAY_ADDRESS", None)
    results = []
    with tempfile.TemporaryDirectory(prefix="files-") as folder:
        make_model(f"{folder}/model", 1_024, some_texts(), vocabulary=8_192)
        table = pa.concat_tables(arena_batches(given.rows)).drop_columns(["winner", "best_prob_a"])
        for pace, files in itertools.product(given.paces, given.files):
            given.pace = pace
            pairs = f"{folder}/pairs-{files}"
            write(table, Path(pairs), files)
            found = run_driver(pairs, f"{folder}/out-{files}", folder, given.rows, given)
            after_plan = round(given.rows / (found["seconds"] - found["plan_seconds"]), 1)
            results.append({"files": files, "pace": pace, "pairs_per_second_after_plan": after_plan} | found)
            print(json.dumps(results[-1]), flush=True)
            write_result(given.json, str(__doc__).splitlines()[0], {"rows": given.rows}, results)
    if not all(run["rows_right"] for run in results):
        sys.exit(1)


def write(table: pa.Table, folder: Path, files: int) -> None:
    """The rows in so many files of about the same size."""
    folder.mkdir()
    for number in range(files):
        start, stop = (table.num_rows * each // files for each in (number, number + 1))
        pq.write_table(table.slice(start, stop - start), folder / f"part-{number:06d}.parquet")


if __name__ == "__main__":
    main()
