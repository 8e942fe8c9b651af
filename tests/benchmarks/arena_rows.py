"""How many rows a second do `arena` and `prepare` handle, and does their memory grow with the rows?

    python tests/benchmarks/arena_rows.py

Each run is a process of its own, so that its peak memory is its own. Writes results/arena_rows.json.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

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
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    from wsdm_ray.runs import versions

    report = {
        "question": __doc__.splitlines()[0],
        "hardware": {"cpu": cpu_name(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {name: versions()[name] for name in ("python", "numpy", "pyarrow", "ftfy", "wsdm_ray")},
        "commit": commit.stdout.strip(),
        "settings": {"seed": 0, "shard_rows": 20_000, "valid_fraction": 0.1, "threads": "one process"},
        "results": results,
    }
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results/arena_rows.json").write_text(json.dumps(report, indent=2) + "\n")


def cpu_name() -> str:
    """The processor's own name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


if __name__ == "__main__":
    main()
