"""How long does the quickstart take, how much memory, and how near to the best accuracy does it come?

    python tests/benchmarks/quickstart.py [--repeats 3]

Memory is the sum over the whole process tree, Ray's daemons included (proportional set size, so that shared
pages count once), sampled every half second. Writes results/quickstart.json.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from common import HERE, ROOT, write_result

SAMPLE_SECONDS = 0.5


def run(output: str, seed: int) -> dict:
    """One quickstart in processes of its own."""
    command = [sys.executable, "-m", "jobs.quickstart", "--output", output, "--seed", str(seed)]
    start, peak = time.monotonic(), 0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, tree_memory(psutil.Process(process.pid)))
            time.sleep(SAMPLE_SECONDS)
    seconds = time.monotonic() - start
    if process.returncode:
        raise SystemExit(
            f"quickstart failed with status {process.returncode}; run it by hand: {' '.join(command)}"
        )
    metrics = json.loads(Path(output, "report/metrics.json").read_text())
    kept = (
        "rows",
        "accuracy",
        "accuracy_ci95",
        "best_accuracy",
        "share_of_best",
        "log_loss",
        "best_log_loss",
        "baselines",
    )
    return {"seed": seed, "seconds": round(seconds, 1), "peak_memory_gb": round(peak / 1e9, 2)} | {
        key: metrics[key] for key in kept
    }


def tree_memory(root: psutil.Process) -> int:
    """Bytes that a process and all below it hold."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    runs = []
    for seed in range(given.repeats):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(run(f"{folder}/quickstart", seed))
        print(json.dumps(runs[-1]), flush=True)
    summary = {
        f"{name}_{which.__name__}": round(which([each[name] for each in runs]), 4)
        for name in ("seconds", "peak_memory_gb", "accuracy", "share_of_best")
        for which in (statistics.median, min, max)
    }
    write_result(
        HERE / "results/quickstart.json", __doc__.splitlines()[0], vars(given), summary | {"runs": runs}
    )


if __name__ == "__main__":
    main()
