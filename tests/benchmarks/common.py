"""What benchmarks share: what every JSON says of where it ran, spreads, differences, some of many pairs."""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np

from wsdm_ray.evaluation.join import join_by_id, read_predictions
from wsdm_ray.evaluation.metrics import bootstrap_intervals
from wsdm_ray.evaluation.votes import read_votes
from wsdm_ray.inputs.rows import Reading
from wsdm_ray.runs import versions
from wsdm_ray.statistics import agreement, cross_entropy

__all__ = ["HERE", "ROOT", "differences", "run_in_processes", "spread", "write_result"]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def write_result(path: Path, question: str, settings: dict[str, Any], results: Any) -> None:
    """Write a benchmark's JSON, with hardware, versions and commit."""
    report = {
        "question": question,
        "hardware": hardware(),
        "versions": versions(),
        "commit": commit(),
        "settings": settings,
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def differences(ours: str, theirs: str, held_out: str) -> dict[str, Any]:
    """Accuracy and log loss of one set of predictions less those of another; 95 % intervals by prompt."""
    votes = read_votes([held_out], Reading())
    one, other = (join_by_id(read_predictions(folder), votes) for folder in (ours, theirs))
    values = np.stack(
        [
            measure(one.prob, one.label) - measure(other.prob, one.label)
            for measure in (agreement, cross_entropy)
        ],
        axis=1,
    )
    intervals = bootstrap_intervals(values, one.group, resamples=1_000, seed=0)
    return {
        name: {"mean": float(column.mean()), "ci95": interval}
        for name, column, interval in zip(("accuracy", "log_loss"), values.T, intervals, strict=True)
    }


def run_in_processes(
    runs: Iterable[tuple[Any, ...]],
    folder_of: Callable[[Any], Path],
    given: argparse.Namespace,
    ready: Callable[[Any, Mapping[Any, Future]], bool] = lambda run, ended: True,
) -> None:
    """Run the script again for each run without a result, with `--one RUN`, so many at once on so many GPUs.

    Args:
        folder_of: where a run leaves result.json; what it prints goes to log.txt there.
        given: the script's arguments, with `at_once`, `gpus` and, where it has one, the `deadline` on the
            monotonic clock after which no run begins.
        ready: waits until a run may begin, by what ends when each run before it does; False leaves it out.
    """
    script, free = Path(sys.argv[0]).resolve(), Queue[int]()
    for slot in range(given.at_once):
        free.put(slot % given.gpus)

    ended: dict[tuple[Any, ...], Future] = {}

    def start(run: tuple[Any, ...]) -> None:
        folder = folder_of(run)
        if (folder / "result.json").exists() or not ready(run, ended):
            return
        folder.mkdir(parents=True, exist_ok=True)
        gpu = free.get()
        try:
            if time.monotonic() > getattr(given, "deadline", math.inf):
                return
            with (folder / "log.txt").open("w") as log:
                subprocess.run(
                    [sys.executable, script, *sys.argv[1:], "--one", ",".join(map(str, run))],
                    cwd=ROOT, stdout=log, stderr=log, check=False,
                    env=os.environ | {"CUDA_VISIBLE_DEVICES": str(gpu), "OMP_NUM_THREADS": "2"},
                )  # fmt: skip
        finally:
            free.put(gpu)
        outcome = "done" if (folder / "result.json").exists() else f"failed, see {folder}/log.txt"
        print(*run, outcome, flush=True)

    with ThreadPoolExecutor(given.at_once) as pool:
        for run in runs:
            ended[run] = pool.submit(start, run)
    for each in ended.values():
        each.result()


def hardware() -> dict[str, Any]:
    """The processor, its cores and the GPUs."""
    gpus = subprocess.run(
        ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
        capture_output=True, text=True, check=False,
    ).stdout if has("nvidia-smi") else ""  # fmt: skip
    found = {"cpu": cpu_name(), "cores": os.cpu_count(), "system": platform.platform()}
    return found | ({"gpus": gpus.split("\n")[:-1]} if gpus else {})


def has(program: str) -> bool:
    return any((Path(folder) / program).exists() for folder in os.environ.get("PATH", "").split(":"))


def commit() -> str:
    """The commit of the checkout, marked where files were changed since; `$COMMIT` where there is no git."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run(
        [*git, "rev-parse", "--verify", "HEAD"], capture_output=True, text=True, check=False
    )
    if head.returncode:
        return os.environ.get("COMMIT", "unknown")
    changed = subprocess.run(
        [*git, "status", "--porcelain"], capture_output=True, text=True, check=False
    ).stdout
    return head.stdout.strip() + ("+changes" if changed else "")


def cpu_name() -> str:
    """The processor's own name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
