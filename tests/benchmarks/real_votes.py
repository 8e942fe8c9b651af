"""What does a small pretrained model learn from real votes, through the same jobs that a user runs?

    python tests/benchmarks/real_votes.py --votes VOTES.parquet --base FOLDER --preset smollm2_135m --work DIR

prepare -> quantize (int8) -> train -> score the held-out votes in both orders -> evaluate. Each is a process
of its own, timed from outside. Writes results/real_votes_PRESET.json, or --json.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from common import HERE, ROOT, write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--votes", required=True)
    parser.add_argument("--base", required=True)
    parser.add_argument("--preset", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--valid-fraction", default="0.2")
    parser.add_argument("--train-options", default="", help="more options of jobs.train, as one string")
    parser.add_argument("--score-options", default="", help="more options of jobs.score, as one string")
    given = parser.parse_args()
    data, quantized, model, predictions, report = (
        f"{given.work}/{name}" for name in ("data", "quantized", "model", "predictions", "report")
    )
    commands = {
        "prepare": f"--input {given.votes} --output {data} --valid-fraction {given.valid_fraction}",
        "quantize": f"--base {given.base} --precision bnb-int8 --output {quantized}",
        "train": f"--preset {given.preset} --base {quantized} --train {data}/train --valid {data}/valid "
        f"--output {model} {given.train_options}",
        "score": f"--model {model} --input {data}/valid --output {predictions} {given.score_options}",
        "evaluate": f"--predictions {predictions} --votes {data}/valid --output {report}",
    }
    seconds = {}
    for job, options in commands.items():
        start = time.monotonic()
        subprocess.run([sys.executable, "-m", f"jobs.{job}", *shlex.split(options)], cwd=ROOT, check=True)
        seconds[job] = round(time.monotonic() - start, 1)
    steps = [json.loads(line) for line in Path(model, "metrics.jsonl").read_text().splitlines()]
    metrics = json.loads(Path(report, "metrics.json").read_text())
    trained, scored = (
        json.loads(Path(folder, "run.json").read_text()) for folder in (model, f"{predictions}.run")
    )
    results = {
        "seconds": seconds,
        "commands": {
            job: " ".join(f"python -m jobs.{job} {options}".replace(f"{given.work}/", "").split())
            for job, options in commands.items()
        },
        "train_rows": trained["counts"]["train"],
        "steps": len(steps),
        "train_tokens_per_second": {
            "median": sorted(step["tokens_per_second"] for step in steps)[len(steps) // 2],
        },
        "best_checkpoint": trained["metrics"],
        "score_throughput": scored["throughput"],
        "metrics": {key: value for key, value in metrics.items() if key not in ("config", "version")},
    }
    path = given.json or HERE / "results" / f"real_votes_{given.preset}.json"
    write_result(path, __doc__.splitlines()[0], vars(given) | {"json": str(path)}, results)
    print(
        json.dumps(
            {"seconds": seconds}
            | {key: metrics[key] for key in ("rows", "accuracy", "accuracy_ci95", "log_loss")}
        )
    )


if __name__ == "__main__":
    main()
