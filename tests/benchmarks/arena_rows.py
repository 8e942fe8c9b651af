"""How many rows a second do `arena` and `prepare` handle, and does their memory grow with the rows?

    python tests/benchmarks/arena_rows.py

Each run is a process of its own, so that its peak memory is its own. Writes results/arena_rows.json.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile

from common import HERE, ROOT, write_result

ARENA = """
import json, resource, sys, time
from wsdm_ray.config import ArenaConfig
from wsdm_ray.data.arena import make_arena
output, rows, lengths = sys.argv[1], int(sys.argv[2]), sys.argv[3]
start = time.perf_counter()
make_arena(ArenaConfig(output=output, rows=rows, lengths=lengths))
seconds = time.perf_counter() - start
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""
PREPARE = """
import json, resource, sys, time
from wsdm_ray.config import PrepareConfig
from wsdm_ray.data.prepare import prepare
source, output = sys.argv[1:]
start = time.perf_counter()
prepare(PrepareConfig(input=(source,), output=output))
seconds = time.perf_counter() - start
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def run(code: str, *arguments: str) -> tuple[float, float]:
    """Seconds and peak memory in MiB of one process."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    seconds, peak = json.loads(done.stdout)
    return seconds, peak


def summary(rows: int, runs: list[tuple[float, float]]) -> dict:
    speeds = [rows / seconds for seconds, _ in runs]
    return {
        "rows": rows,
        "repeats": len(runs),
        "rows_per_second": {
            "median": round(statistics.median(speeds)), "min": round(min(speeds)), "max": round(max(speeds))
        },
        "peak_memory_mib": {"max": round(max(peak for _, peak in runs))},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for lengths in ("short", "real"):
            for rows in options.rows:
                runs: dict[str, list] = {"arena": [], "prepare": []}
                for repeat in range(options.repeats):
                    arena, data = (
                        f"{folder}/{lengths}{rows}-{repeat}",
                        f"{folder}/{lengths}{rows}-{repeat}-data",
                    )
                    runs["arena"].append(run(ARENA, arena, str(rows), lengths))
                    # Most of the time of prepare is ftfy, by the character: many long rows tell nothing new.
                    if lengths == "short" or rows == min(options.rows):
                        runs["prepare"].append(run(PREPARE, arena, data))
                        shutil.rmtree(data)
                    shutil.rmtree(arena)
                for job, measured in ((job, measured) for job, measured in runs.items() if measured):
                    results.append({"job": job, "lengths": lengths, **summary(rows, measured)})
                    print(json.dumps(results[-1]), flush=True)
    write_result(
        HERE / "results/arena_rows.json",
        __doc__.splitlines()[0],
        {"seed": 0, "shard_rows": 20_000, "valid_fraction": 0.1, "threads": "one process"},
        results,
    )


if __name__ == "__main__":
    main()
