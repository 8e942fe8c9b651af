"""Do pseudolabels help, and what if they are on the wrong rows?

    python tests/benchmarks/pseudolabels.py --work DIR [--seeds 3] [--votes 800] [--unlabelled 8000]

For each seed, on the arena's short votes and a tiny random model: a teacher learns from a few votes and
scores pairs with other prompts, whose labels nobody sees; students learn from the votes and those soft
labels, from the votes alone in as many steps, and from the votes and the same soft labels put back in another
order: what comes of scoring rows sorted by length and writing the column back to the rows as they were. All
are measured on the same held-out votes, whose prompts nobody trained on. Every step is the job that a user
runs, in a process of its own; the same command again goes on where it stopped. Writes
results/pseudolabels.json after each seed.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from common import HERE, ROOT, differences, write_result

from wsdm_ray.schema import MODEL_A, TEXTS

HELD_OUT = 2_100
KEPT = ("rows", "accuracy", "accuracy_ci95", "log_loss", "log_loss_ci95", "ece", "share_of_best", "auc")


def job(name: str, options: str) -> None:
    """Run `python -m jobs.NAME` to its end."""
    subprocess.run([sys.executable, "-m", f"jobs.{name}", *shlex.split(options)], cwd=ROOT, check=True)


def make_votes(work: str, seed: int, given: argparse.Namespace) -> tuple[Path, Path, Path]:
    """Votes, unlabelled pairs (no label in any column) and held-out votes; no prompt is in two of them."""
    labelled = given.votes + given.unlabelled
    # A few rows are duplicates, which `prepare` drops.
    job("arena", f"--rows {labelled + HELD_OUT + 50} --seed {seed} --lengths short --output {work}/arena")
    fraction = HELD_OUT / (labelled + HELD_OUT)
    job("prepare", f"--input {work}/arena --output {work}/split --valid-fraction {fraction} --seed {seed}")
    fraction = given.votes / labelled
    job(
        "prepare",
        f"--input {work}/split/train --output {work}/pool --valid-fraction {fraction} --seed {seed}",
    )
    unlabelled = Path(work, "unlabelled", "rows.parquet")
    unlabelled.parent.mkdir(exist_ok=True)
    if not unlabelled.exists():
        pq.write_table(
            pq.read_table(f"{work}/pool/train").drop_columns(["winner", "best_prob_a"]), unlabelled
        )
    return Path(work, "pool/valid"), unlabelled, Path(work, "split/valid")


def make_base(work: str, votes: Path, seed: int) -> None:
    """A tiny Gemma-2 as the quickstart makes it, in int8."""
    code = "import sys; from jobs.quickstart import make_base; make_base(*sys.argv[1:3], int(sys.argv[3]))"
    if not Path(work, "base", "config.json").exists():
        subprocess.run(
            [sys.executable, "-c", code, f"{work}/base", str(votes), str(seed)], cwd=ROOT, check=True
        )
    job("quantize", f"--base {work}/base --precision bnb-int8 --output {work}/quantized")


def on_wrong_rows(shards: Path, target: Path) -> None:
    """The shards with their soft labels as rows sorted by length had them, on the rows as they were."""
    table = pq.read_table(shards)
    characters = sum((pc.utf8_length(table[name]).to_numpy() for name in TEXTS), np.zeros(len(table)))
    sorted_rows = table["prob_a"].take(pa.array(np.argsort(characters, kind="stable")))
    target.mkdir(exist_ok=True)
    if (target / "part-000000.parquet").exists():
        return
    index = table.column_names.index("prob_a")
    pq.write_table(table.set_column(index, "prob_a", sorted_rows), target / "part-000000.parquet")


def label_accuracy(shards: Path, truth: Path) -> float:
    """Share of soft labels whose side is that of the vote that was hidden, joined by id."""
    votes = pq.read_table(truth, columns=["id", "winner"])
    a_wins = dict(zip(votes["id"].to_pylist(), votes["winner"].to_pylist(), strict=True))
    rows = pq.read_table(shards, columns=["id", "prob_a"]).to_pylist()
    return statistics.mean((row["prob_a"] > 0.5) == (a_wins[row["id"]] == MODEL_A) for row in rows)


def run_seed(seed: int, given: argparse.Namespace) -> dict[str, Any]:
    work = f"{given.work}/seed{seed}"
    Path(work).mkdir(parents=True, exist_ok=True)
    votes, unlabelled, held_out = make_votes(work, seed, given)
    make_base(work, votes, seed)

    def train(name: str, shards: str, epochs: float) -> dict[str, Any]:
        model = f"{work}/{name}"
        options = f"--seed {seed} --epochs {epochs} {given.train_options}"
        job("train", f"--preset tiny --base {work}/quantized --train {shards} --output {model} {options}")
        job("score", f"--model {model} --input {held_out} --output {model}_predictions --token-budget 4096")
        job("evaluate", f"--predictions {model}_predictions --votes {held_out} --output {model}_report")
        metrics = json.loads(Path(f"{model}_report/metrics.json").read_text())
        run = json.loads(Path(model, "run.json").read_text())
        best = {key: metrics[key] for key in ("best_accuracy", "best_log_loss")}
        return {key: metrics[key] for key in KEPT} | best | {
            "train_rows": run["counts"]["train"], "steps": run["metrics"]["step"], "epochs": epochs
        }  # fmt: skip

    found = {"teacher": train("teacher", str(votes), given.teacher_epochs)}
    job("pseudolabel", f"--model {work}/teacher --input {unlabelled} --exclude {votes} {held_out} "
        f"--output {work}/pseudolabels --token-budget 4096")  # fmt: skip
    labels, wrong = Path(work, "pseudolabels/train"), Path(work, "wrong_rows")
    on_wrong_rows(labels, wrong)
    rows = {
        name: pq.read_table(path, columns=["id"]).num_rows
        for name, path in (("votes", votes), ("labels", labels))
    }
    same_steps = round(given.student_epochs * (rows["votes"] + rows["labels"]) / rows["votes"], 3)
    found |= {
        "student": train("student", f"{votes} {labels}", given.student_epochs),
        "votes_only": train("votes_only", str(votes), same_steps),
        "wrong_rows": train("student_wrong_rows", f"{votes} {wrong}", given.student_epochs),
    }
    run = json.loads(Path(work, "pseudolabels/run.json").read_text())
    return {
        "seed": seed,
        "pseudolabels": {"counts": run["counts"], "labels": run["labels"]["kept"]},
        "label_accuracy": {
            "right_rows": label_accuracy(labels, Path(work, "pool/train")),
            "wrong_rows": label_accuracy(wrong, Path(work, "pool/train")),
        },
        "models": found,
        "student_less": {
            name: differences(f"{work}/student_predictions", f"{work}/{folder}_predictions", held_out)
            for name, folder in (
                ("teacher", "teacher"),
                ("votes_only", "votes_only"),
                ("wrong_rows", "student_wrong_rows"),
            )
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--votes", type=int, default=800)
    parser.add_argument("--unlabelled", type=int, default=8_000)
    parser.add_argument("--teacher-epochs", type=float, default=4.0)
    parser.add_argument("--student-epochs", type=float, default=1.0)
    parser.add_argument("--train-options", default="", help="more options of jobs.train, as one string")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "pseudolabels.json")
    given = parser.parse_args()
    settings = {name: value for name, value in vars(given).items() if name not in ("work", "json")}
    runs = []
    for seed in range(given.seeds):
        runs.append(run_seed(seed, given))
        print(json.dumps(runs[-1]), flush=True)
        write_result(given.json, __doc__.splitlines()[0], settings, {"runs": runs})


if __name__ == "__main__":
    main()
