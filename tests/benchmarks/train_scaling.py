"""How much faster is a training step on several GPUs, and is it the same step?

    python tests/benchmarks/train_scaling.py --shape gemma2-9b --work FOLDER [--workers 1 2 4] [--kill]

A base of random weights, trained by the job `train` through Ray Train on each number of workers: the same
rows, the same micro-batches and so the same steps. Compared are the seconds of the steps after the first
three: their medians, the fastest, and each step with itself; and the losses, which differ by rounding alone.
One worker runs once more with the micro-batches that it cuts when it is alone; speeds are compared with that.
With --beside, runs that follow each other and fit on the GPUs together are done at once, each on GPUs of its
own. With --compile-first a run of one step comes before them all, so that all find the same kernels compiled.
With --kill the run on most workers is done once more, and one of its workers is ended by SIGKILL while its
first checkpoint is written: it is replaced, and the run must end with the same losses. Writes
results/train_scaling_SHAPE.json, or --json, anew after every run; exits with 1 where a job fails.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import psutil
import torch
from common import HERE, ROOT, spread, write_result
from synthetic import SHAPES, config_of, random_parquet, write_base
from train_smoke import limited, words_of

WARM_UP = 3
"""Steps whose time does not count."""
CHECKPOINT_STEPS = 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", required=True, choices=SHAPES)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder, or that of an earlier run")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--precision", default="w8a8-int8", help="in which the base is held, or none")
    parser.add_argument("--preset", default="gemma2_9b")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--pairs-per-step", type=int, default=128)
    parser.add_argument("--token-budget", type=int, default=8_192)
    parser.add_argument("--max-tokens", type=int, default=2_048, help="which lengths are scaled with")
    parser.add_argument("--memory-gib", type=float, help="take a GPU for one with so much memory")
    parser.add_argument("--shard-base", action="store_true", help="several workers share the base")
    parser.add_argument("--beside", action="store_true")
    parser.add_argument("--compile-first", action="store_true")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    base, votes = inputs(given)
    most = max(given.workers)
    runs = [Run(workers, most) for workers in given.workers]
    if 1 in given.workers and most > 1:
        runs.append(Run(1, 1))
    results: list[dict[str, Any]] = []
    if given.compile_first:
        train(Run(1, most), None, base, votes, argparse.Namespace(**vars(given) | {"steps": 1}))
    for together in rounds_of(runs, torch.cuda.device_count() if given.beside else 0):
        with ThreadPoolExecutor(len(together)) as pool:
            started = [pool.submit(one_run, run, gpus, base, votes, given) for run, gpus in together]
        results += [result.result() for result in started]
        write(results, given)
    if given.kill:
        results.append(one_run(Run(most, most, killed=True), None, base, votes, given))
        write(results, given)


class Run(NamedTuple):
    """A run to be made."""

    workers: int
    micro_batches: int
    """For how many workers a step is cut."""
    killed: bool = False


def rounds_of(runs: list[Run], gpus: int) -> list[list[tuple[Run, range | None]]]:
    """Runs and their GPUs (None: all), in groups that are done at once on `gpus`."""
    rounds: list[list[tuple[Run, range | None]]] = []
    first = gpus
    for run in runs:
        if first + run.workers > gpus:
            rounds.append([])
            first = 0
        rounds[-1].append((run, range(first, first + run.workers) if run.workers <= gpus else None))
        first += run.workers
    return rounds


def inputs(given: argparse.Namespace) -> tuple[Path, Path]:
    """The base and the votes; what is there stays."""
    work, votes = given.work, given.work / "votes.parquet"
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "base").exists():
        write_base(work / "base", config_of(given.shape), "cuda" if torch.cuda.is_available() else "cpu")
    if not votes.exists():
        random_parquet(votes, given.steps * given.pairs_per_step, max_tokens=given.max_tokens, votes=True)
    return work / "base", votes


def train(
    run: Run, gpus: range | None, base: Path, votes: Path, given: argparse.Namespace
) -> list[dict[str, Any]]:
    """Run the job; the metrics of its steps."""
    output = given.work / f"{run.workers}-{run.micro_batches}{'-killed' if run.killed else ''}"
    shutil.rmtree(output, ignore_errors=True)
    visible = {} if gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
    process = start_job(
        limited(given.memory_gib) | visible, preset=given.preset, base=base, train=votes, output=output,
        num_workers=run.workers, max_steps=given.steps, pairs_per_step=given.pairs_per_step,
        micro_batches=run.micro_batches, token_budget=given.token_budget,
        checkpoint_steps=CHECKPOINT_STEPS if run.killed else given.steps,
        compile="yes" if torch.cuda.is_available() else "no", quantization=given.precision,
        **({"shard_base": ""} if given.shard_base else {}),
    )  # fmt: skip
    if run.killed:
        kill_a_worker(process, output)
    if status := process.wait():
        sys.exit(f"error: train on {run.workers} workers ended with {status}")
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def one_run(run: Run, *given: Any) -> dict[str, Any]:
    """What a run of `train` was like."""
    started = time.monotonic()
    steps = train(run, *given)
    return run._asdict() | {
        "losses": [step["loss"] for step in steps],
        "all_step_seconds": [round(step["seconds"], 3) for step in steps],
        "step_seconds": spread([step["seconds"] for step in steps[WARM_UP:]]),
        "tokens_per_second": spread([step["tokens_per_second"] for step in steps[WARM_UP:]]),
        "pairs_per_second": spread([step["pairs_per_second"] for step in steps[WARM_UP:]]),
        "memory_gb": max(step["memory_gb"] for step in steps),
        "seconds": round(time.monotonic() - started, 1),
    }


def kill_a_worker(process: subprocess.Popen, output: Path) -> None:
    """End one of the job's workers while its first checkpoint is written, or later."""
    while process.poll() is None and not list((output / "_checkpoints").glob("**/metrics.jsonl")):
        time.sleep(0.2)
    for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
        if "RayTrainWorker" in " ".join(child.cmdline()):
            print(f"kill -9 {child.pid}: {child.cmdline()[0]}", flush=True)
            child.send_signal(signal.SIGKILL)
            return
    sys.exit("error: no worker was there to be killed")


def start_job(environment: dict[str, str], **options: Any) -> subprocess.Popen:
    """Begin `python -m jobs.train`."""
    words = [word for option, value in options.items() for word in words_of(option, value)]
    print(f"$ jobs.train {' '.join(words)}", flush=True)
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.train", *words], cwd=ROOT, env=os.environ | environment
    )


def write(runs: list[dict[str, Any]], given: argparse.Namespace) -> None:
    """The JSON: each run, how many times as fast as the first it is, and how far its losses are from those of
    the first with the same micro-batches.
    """
    last = runs[-1]
    runs.sort(key=lambda run: (run["workers"], run["micro_batches"], run["killed"]))
    alone = runs[0]
    first = next(run for run in runs if run["micro_batches"] == max(given.workers))
    for run in runs[1:]:
        run["speedup"] = alone["step_seconds"]["median"] / run["step_seconds"]["median"]
        run["speedup_of_fastest_steps"] = alone["step_seconds"]["min"] / run["step_seconds"]["min"]
        seconds = zip(alone["all_step_seconds"], run["all_step_seconds"], strict=True)
        run["speedup_of_same_steps"] = median([one / more for one, more in seconds][WARM_UP:])
        if run is first:
            continue
        pairs = list(zip(run["losses"], first["losses"], strict=True))
        run["loss_differences"] = [ours - theirs for ours, theirs in pairs]
        run["largest_relative_difference_of_8"] = max(abs(a - b) / b for a, b in pairs[:8])
        if run["killed"]:
            calm = next(each for each in runs if each["workers"] == run["workers"])
            run["same_losses_as_calm"] = run["losses"] == calm["losses"]
    shown = ("workers", "micro_batches", "killed", "step_seconds", "tokens_per_second", "speedup", "losses")
    print(json.dumps({name: last.get(name) for name in shown}), flush=True)
    path = given.json or HERE / "results" / f"train_scaling_{given.shape}.json"
    settings = {name: value for name, value in vars(given).items() if name not in ("json", "work")}
    write_result(path, str(__doc__).splitlines()[0], settings, {"runs": runs})


if __name__ == "__main__":
    main()
