"""Does the whole flow run at its real size? A base of random weights, quantized, trained, scored, evaluated.

    python tests/benchmarks/train_smoke.py --shape gemma2-9b --work FOLDER [--presets gemma2_9b ...]

What is not known of random weights is what they learn; all else is as for a user: every job by its command,
each preset as it is but for the number of steps and, as those are few, for compiling. Texts have the lengths
of real votes. Writes results/train_smoke_SHAPE.json, or --json, with the seconds of each job, and what
training and scoring say of speed and memory; exits with 1 where a job fails.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import HERE, ROOT, write_result
from synthetic import SHAPES, config_of, random_parquet, write_base

from wsdm_ray.presets import PRESETS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", required=True, choices=SHAPES)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder, or that of an earlier run")
    parser.add_argument("--presets", nargs="+", default=["gemma2_9b"], choices=PRESETS)
    parser.add_argument("--precision", default="bnb-int8", help="of the quantized base; none: as it is")
    parser.add_argument("--only-train", action="store_true", help="leave scoring and evaluation out")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rows", type=int, default=200, help="votes, a tenth of them for validation")
    parser.add_argument("--max-tokens", type=int, default=2_048, help="which lengths are scaled with")
    parser.add_argument("--memory-gib", type=float, help="take the GPU for one with so much memory")
    parser.add_argument("--override", nargs="*", default=[], help="options for train, without their dashes")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    settings = {name: value for name, value in vars(given).items() if name not in ("json", "work")}
    path = given.json or HERE / "results" / f"train_smoke_{given.shape}.json"
    for results in run(given):
        write_result(path, str(__doc__).splitlines()[0], settings, results)


def run(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The seconds of each job, and what each preset's training and scoring were like, after each preset."""
    work, seconds = given.work, {}
    work.mkdir(parents=True, exist_ok=True)
    environment = os.environ | limited(given.memory_gib)

    def job(name: str, title: str = "", **options: Any) -> None:
        words = [word for option, value in options.items() for word in words_of(option, value)]
        command = [sys.executable, "-m", f"jobs.{name}", *words]
        print(f"$ {' '.join(command[2:])}", flush=True)
        started = time.monotonic()
        status = subprocess.run(command, cwd=ROOT, env=environment).returncode
        if status:
            sys.exit(f"error: {name} ended with {status}")
        seconds[title or name] = round(time.monotonic() - started, 1)

    started = time.monotonic()
    if not (work / "base").exists():
        write_base(work / "base", config_of(given.shape), "cuda" if torch.cuda.is_available() else "cpu")
        seconds["base"] = round(time.monotonic() - started, 1)
    of_votes = f"{given.rows} rows of {given.max_tokens} tokens"
    if not (work / "votes.parquet").exists():  # another version of them would be another input
        (work / "votes.txt").write_text(of_votes)
        random_parquet(work / "votes.parquet", given.rows, max_tokens=given.max_tokens, votes=True)
    if (work / "votes.txt").read_text() != of_votes:
        sys.exit(f"error: {work}: its votes are {(work / 'votes.txt').read_text()}, not {of_votes}")
    job("prepare", input=work / "votes.parquet", output=work / "data", valid_fraction=0.1)
    base = work / "base"
    if given.precision != "none":
        base = work / "quantized"
        job("quantize", base=work / "base", precision=given.precision, output=base)
    presets = {}
    for preset in given.presets:
        at = work / preset
        shutil.rmtree(at, ignore_errors=True)
        more = {"compile": "yes"} | dict(each.split("=", 1) for each in given.override)
        job(
            "train", f"train {preset}", preset=preset, base=base, train=work / "data/train",
            valid=work / "data/valid", output=at / "model", max_steps=given.steps, **more,
        )  # fmt: skip
        presets[preset] = of_training(at / "model")
        print(preset, json.dumps(presets[preset]), flush=True)
        if not given.only_train:
            job("score", f"score {preset}", model=at / "model", input=work / "data/valid",
                output=at / "scored")  # fmt: skip
            job("evaluate", f"evaluate {preset}", predictions=at / "scored", votes=work / "data/valid",
                output=at / "report")  # fmt: skip
            presets[preset]["scoring"] = json.loads((at / "scored.run/run.json").read_text())["throughput"]
        yield {"seconds": seconds, "all_seconds": round(time.monotonic() - started, 1), "presets": presets}


def words_of(option: str, value: Any) -> list[str]:
    return [f"--{option.replace('_', '-')}", *str(value).split()]


def limited(memory_gib: float | None) -> dict[str, str]:
    """The environment in which processes may take so much of the GPU."""
    if memory_gib is None or not torch.cuda.is_available():
        return {}
    share = memory_gib * 2**30 / torch.cuda.get_device_properties(0).total_memory
    return {"PYTORCH_ALLOC_CONF": f"per_process_memory_fraction:{share:.4f}"}


def of_training(model: Path) -> dict[str, Any]:
    """What a training run says of itself."""
    steps = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    speeds = [step["tokens_per_second"] for step in steps]
    return {
        "losses": [round(step["loss"], 4) for step in steps],
        "first_step_seconds": steps[0]["seconds"],
        "tokens_per_second": statistics.median(speeds[len(speeds) // 2 :]),
        "memory_gb": max(step["memory_gb"] for step in steps),
    }


if __name__ == "__main__":
    main()
