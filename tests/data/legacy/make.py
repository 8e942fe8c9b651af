"""Makes the folders beside this file with the code of version 0.1.0, whose checkout is on PYTHONPATH.

    cd CHECKOUT && PYTHONPATH=$PWD python .../tests/data/legacy/make.py WORK OUTPUT

base-int8       `quantize --precision int8`: a base
adapter         `train` on it: an adapter, with an unfinished and a finished run's record
full-fp8        `quantize --precision fp8` of both: a full model
full-int8-rows  `quantize --precision int8-rows` of both: a full model
predictions     the record of `score --precision int8` of the adapter
expected.json   log-odds of every folder and precision, on fixed token ids, and the machine that computed them
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
import transformers
from scores import SCORED, log_odds, machine  # beside this file

from tests.runs import open_run
from wsdm_ray.modeling.tiny import make_tiny_model

JOBS = (
    "arena --rows 200 --lengths short --output arena",
    "prepare --input arena --output data --valid-fraction 0.1",
    "quantize --base plain --precision int8 --output base-int8",
    "train --preset tiny --base base-int8 --train data/train --output adapter --lora.r 2 --max-steps 2"
    " --checkpoint-steps 2 --text.max-tokens 64 --pairs-per-step 4 --quantization int8 --num-workers 1"
    " --objective.order-agreement 0.1 --no-tensorboard",
    "quantize --base base-int8 --adapter adapter --precision fp8 --output full-fp8",
    "quantize --base base-int8 --adapter adapter --precision int8-rows --output full-int8-rows",
    "score --model adapter --input data/valid --precision int8 --output predictions",
)
FOLDERS = ("base-int8", "adapter", "full-fp8", "full-int8-rows")
OLD_NAMES = {"w8a8-int8": "int8", "w8a8-fp8": "fp8"}
UNFINISHED = ("adapter", "full-fp8", "predictions")


def main(work: Path, output: Path) -> None:
    make_tiny_model(
        str(work / "plain"), ("the sum of 12 and 30",), family="llama", vocabulary=260, width=32, layers=1
    )
    network = transformers.AutoModelForCausalLM.from_pretrained(work / "plain", dtype=torch.bfloat16)
    network.save_pretrained(work / "plain")
    for job in JOBS:
        name, *options = job.split()
        subprocess.run([sys.executable, "-m", f"jobs.{name}", *options], cwd=work, check=True)
    for folder in FOLDERS:
        shutil.copytree(
            work / folder,
            output / folder,
            ignore=shutil.ignore_patterns("_checkpoints", "*.html", "*.jsonl", "tensorboard"),
        )
    (output / "predictions").mkdir()
    shutil.copy(work / "predictions" / "run.json", output / "predictions")
    for folder in UNFINISHED:
        run = json.loads((work / folder / "run.json").read_text())
        open_run(str(work / "unfinished" / folder), run["job"], run["fingerprint"], False)
        shutil.copy(work / "unfinished" / folder / "_run.json", output / folder / "unfinished.json")
    found = {
        f"{name} {precision}": log_odds(output, name, OLD_NAMES.get(precision, precision))
        for name, precision in SCORED
    }
    expected = {"machine": machine(), "log_odds": found}
    (output / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
