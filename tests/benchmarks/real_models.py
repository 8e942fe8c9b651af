"""What makes real models better on real votes: a larger teacher, folds as one model, warm-up, lengths?

    python tests/benchmarks/real_models.py --votes VOTES.parquet --work DIR \\
        --teacher qwen25_1_5b=FOLDER --student qwen25_0_5b=FOLDER [--other-sources NAME...]

The splits are those of `votes_study.py`: a fifth of the votes, by prompt, judges. The unlabelled pairs are
those of responses to one prompt of the train votes that nobody voted on. Each model by its preset:

    alone       trained on the votes, every seed
    fold        without one part of the train votes, seed 0; scores that part and the unlabelled pairs
    averaged    the adapters of the folds as one model (`quantize --average`), and the mean of their
                probabilities

and the student, every seed:

    soft        taught by the teacher's folds, each on the votes that it did not see
                (`--objective.teachers`)
    pseudo      the same, with the unlabelled pairs by the mean of the teacher's folds
    w8a8        on a base in w8a8-int8, both ways in 8 bits; fp8: in w8a8-fp8; bf16: on the base as it is
    target      trained on the votes that are not of --other-sources
    warm_up     trained on the votes of --other-sources first, then on the rest (`--start-from`)
    balanced    votes weighed by difference of length (`--objective.length-balance 1`); half_balanced: 0.5
    swap        `--objective.swap-consistency-weight 0.5`
    half_scale  half the adapter's alpha

Each is compared with the student alone of the same seed: paired differences by prompt, also on the votes that
the shorter response won, and on those that are not of --other-sources. One run is one process, as many at
once as --at-once says; after --minutes none is begun. Runs whose result is in the working folder are not done
again. Writes results/real_models.json, or --json.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import HERE, ROOT, run_in_processes, write_result
from votes_baselines import evaluated
from votes_splits import split, split_sources, split_train, write_unvoted
from votes_study import gather, overridden, score_folder, train_one

from wsdm_ray.config import EnsembleConfig, QuantizeConfig, TrainConfig
from wsdm_ray.evaluation.ensemble import ensemble
from wsdm_ray.evaluation.join import join_by_id, read_predictions
from wsdm_ray.evaluation.metrics import bootstrap_intervals
from wsdm_ray.evaluation.votes import read_votes
from wsdm_ray.inputs.rows import Reading
from wsdm_ray.presets import PRESETS
from wsdm_ray.statistics import agreement, cross_entropy

CHANGES: dict[str, dict[str, str]] = {
    "alone": {},
    "fold": {},
    "w8a8": {},
    "fp8": {},
    "bf16": {},
    "target": {},
    "warm_up_first": {},
    "warm_up": {},
    "soft": {},
    "pseudo": {},
    "balanced": {"objective.length_balance": "1.0"},
    "half_balanced": {"objective.length_balance": "0.5"},
    "swap": {"objective.swap_consistency_weight": "0.5"},
    "half_scale": {},
}
"""Fields of the preset that a way changes."""

OF_STUDENT = tuple(way for way in CHANGES if way not in ("alone", "fold", "warm_up_first"))
WAITING = ("warm_up", "soft", "pseudo")
"""Ways that need the results of other runs."""

PRECISIONS = {"w8a8": "w8a8-int8", "fp8": "w8a8-fp8", "bf16": "none"}
"""Of the base, for ways that name one."""


class Run(NamedTuple):
    preset: str
    way: str
    seed: int
    fold: int = -1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--votes", required=True)
    parser.add_argument("--teacher", required=True, metavar="PRESET=FOLDER")
    parser.add_argument("--student", required=True, metavar="PRESET=FOLDER")
    parser.add_argument("--other-sources", nargs="*", default=[], help="of votes to warm up on")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--ways", nargs="*", default=list(OF_STUDENT), choices=OF_STUDENT)
    parser.add_argument("--precision", default="bnb-int8", help="of the base, or none")
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after these")
    parser.add_argument("--override", nargs="*", default=[], metavar="FIELD=VALUE", help="of the presets")
    parser.add_argument("--one", help="for its own processes: PRESET,WAY,SEED,FOLD")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "real_models.json")
    given = parser.parse_args()
    given.models = dict(pair.split("=", 1) for pair in (given.teacher, given.student))
    given.teacher, given.student = list(given.models)
    if given.one:
        preset, way, *numbers = given.one.split(",")
        run_one(Run(preset, way, *map(int, numbers)), given)
        return
    started = time.monotonic()
    given.deadline = started + 60 * given.minutes
    prepare_inputs(given)
    runs = runs_of(given)
    run_in_processes(runs, lambda run: folder_of(run, given), given, ready=inputs_of(given))
    means = {preset: averaged(preset, given) for preset in given.models}
    results = collected(runs, means, given)
    results["seconds"] = round(time.monotonic() - started, 1)
    kept = ("teacher", "student", "seeds", "folds", "ways", "other_sources", "precision", "override")
    settings = {name: getattr(given, name) for name in kept}
    write_result(given.json, __doc__.splitlines()[0], settings, results)


def runs_of(given: argparse.Namespace) -> list[Run]:
    """All runs: first those that others need, last those that need others."""
    skipped = () if given.other_sources else ("target", "warm_up")
    ways = [way for way in given.ways if way not in skipped]

    def of_student(*wanted: str) -> list[Run]:
        return [Run(given.student, way, seed) for way in ways if way in wanted for seed in given.seeds]

    alone = [Run(preset, "alone", seed) for preset in given.models for seed in given.seeds]
    before_warm_up = [run._replace(way="warm_up_first") for run in of_student("warm_up")]
    own = of_student(*(way for way in OF_STUDENT if way not in WAITING))
    first = [*folds_of(given.teacher, given), *alone, *before_warm_up]
    return [*first, *own, *folds_of(given.student, given), *of_student(*WAITING)]


def folds_of(preset: str, given: argparse.Namespace) -> list[Run]:
    return [Run(preset, "fold", 0, fold) for fold in range(given.folds)]


def inputs_of(given: argparse.Namespace) -> Callable[[Run, Mapping[Run, Future]], bool]:
    """What makes the inputs of a run from runs before it, and says whether they are there."""
    lock, labels = threading.Lock(), []

    def ready(run: Run, ended: Mapping[Run, Future]) -> bool:
        needed = {
            "warm_up": [run._replace(way="warm_up_first")],
            "soft": folds_of(given.teacher, given),
            "pseudo": folds_of(given.teacher, given),
        }.get(run.way, [])
        wait(ended[each] for each in needed)
        if not all(read_result(each, given) for each in needed):
            return False
        if run.way in ("soft", "pseudo"):
            with lock:
                if not labels:
                    labels.append(soft_labels(given))
        return run.way != "pseudo" or labels[0].wait() == 0

    return ready


def prepare_inputs(given: argparse.Namespace) -> None:
    """The splits, the unlabelled pairs, the votes by source, and the bases; what is there stays."""
    from wsdm_ray.modeling.quantization import quantize

    work = given.work
    split(given.votes, work)
    split_train(work, given.folds)
    split_sources(work, given.other_sources)
    write_unvoted(work)
    for preset, folder in given.models.items():
        of_ways = {PRECISIONS[way] for way in given.ways if way in PRECISIONS and preset == given.student}
        for precision in (of_ways | {given.precision}) - {"none"}:
            output = f"{work}/bases/{preset}-{precision}"
            quantize(QuantizeConfig(base=folder, precision=precision, output=output))


def base_of(run: Run, given: argparse.Namespace) -> str:
    precision = PRECISIONS.get(run.way, given.precision)
    return given.models[run.preset] if precision == "none" else f"{given.work}/bases/{run.preset}-{precision}"


def folder_of(run: Run, given: argparse.Namespace) -> Path:
    return given.work / "runs" / run.preset / "-".join(map(str, run[1:]))


def config_of(run: Run, given: argparse.Namespace) -> TrainConfig:
    work, train = given.work, f"{given.work}/by_prompt/train"
    if run.way == "fold":
        train = f"{work}/parts/{run.fold}/train"
    target = (f"{work}/sources/target/train",)
    sets = {
        "target": target, "warm_up": target, "warm_up_first": (f"{work}/sources/others/train",),
        "pseudo": (train, f"{work}/pseudo/train"),
    }  # fmt: skip
    config = PRESETS[run.preset](
        base=base_of(run, given),
        train=sets.get(run.way, (train,)),
        valid=(f"{work}/by_prompt/valid",),
        output=str(folder_of(run, given)),
    )
    changes: dict[str, Any] = {"seed": run.seed}
    if base_of(run, given) == given.models[run.preset]:
        changes["quantization"] = "none"
    if run.way == "warm_up":
        changes["start_from"] = str(folder_of(run._replace(way="warm_up_first"), given) / "model")
    if run.way in ("soft", "pseudo"):
        changes["objective"] = dataclasses.replace(config.objective, teachers=(f"{work}/soft/predictions",))
    if run.way == "half_scale":
        changes["lora"] = dataclasses.replace(config.lora, alpha=config.lora.alpha / 2)
    config = dataclasses.replace(config, **changes)
    for override in [*map("=".join, CHANGES[run.way].items()), *given.override]:
        config = overridden(config, *override.split("=", 1))
    return config


def run_one(run: Run, given: argparse.Namespace) -> None:
    """Train, keep the best checkpoint by its valid log loss, score the judging votes, evaluate."""
    config, folder, work = config_of(run, given), folder_of(run, given), given.work
    started = time.monotonic()
    checkpoints, steps = train_one(config, folder / "model")
    trained = time.monotonic()
    model = str(folder / "model")
    score_folder(model, (f"{work}/outer/valid",), f"{folder}/predictions")
    if run.way == "fold":
        score_folder(model, (f"{work}/parts/{run.fold}/held_out",), f"{folder}/held_out")
    result = run._asdict() | {
        "steps": len(steps),
        "valid_log_loss": min(found["valid_log_loss"] for found in checkpoints),
        "train_seconds": round(trained - started, 1),
        "train_tokens_per_second": float(np.median([step["tokens_per_second"] for step in steps])),
        "metrics": figures(f"{folder}/predictions", folder, given),
    }
    (folder / "result.json").write_text(json.dumps(result, default=float))


def figures(predictions: str, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """The metrics on the judging votes, also by whether the shorter response won and by kind of source."""
    values, group = by_row(predictions, given)
    intervals = bootstrap_intervals(np.stack(list(values.values()), axis=1), group, resamples=1_000, seed=0)
    named = zip(values.items(), intervals, strict=True)
    of_lengths = {
        name: {"mean": float(np.nanmean(column)), "ci95": interval} for (name, column), interval in named
    }
    return evaluated(predictions, given.work, f"{folder}/report") | {"by_length": of_lengths}


def by_row(predictions: str, given: argparse.Namespace) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Accuracy and log loss of each judging vote, NaN where it is not of the kind, and its prompt group."""
    joined = join_by_id(
        read_predictions(predictions), read_votes([f"{given.work}/outer/valid/*.parquet"], Reading())
    )
    right, loss = agreement(joined.prob, joined.label), cross_entropy(joined.prob, joined.label)
    towards = np.sign(joined.characters_a - joined.characters_b) * (joined.label - 0.5)
    kinds = {"": np.isfinite(towards), "shorter_won_": towards < 0, "longer_won_": towards > 0}
    if given.other_sources:
        kinds["target_"] = ~np.isin(joined.source.astype(str), given.other_sources)
    values = {
        f"{kind}{name}": np.where(rows, column, np.nan)
        for kind, rows in kinds.items()
        for name, column in (("accuracy", right), ("log_loss", loss))
    }
    return values, joined.group


def less(ours: str, theirs: str, given: argparse.Namespace) -> dict[str, Any]:
    """Each figure of `by_row` of some predictions minus that of others, with 95 % intervals by prompt."""
    (one, group), (other, _) = (by_row(each, given) for each in (ours, theirs))
    values = np.stack([one[name] - other[name] for name in one], axis=1)
    intervals = bootstrap_intervals(values, group, resamples=1_000, seed=0)
    named = zip(one, values.T, intervals, strict=True)
    return {name: {"mean": float(np.nanmean(column)), "ci95": interval} for name, column, interval in named}


def averaged(preset: str, given: argparse.Namespace) -> dict[str, Any] | None:
    """The folds of a model as one, by adapters and by probabilities; None where a fold is missing."""
    from wsdm_ray.modeling.quantization import quantize

    work, folder = given.work, given.work / "averaged" / preset
    runs = folds_of(preset, given)
    folds = [folder_of(run, given) for run in runs]
    if len(folds) < 2 or not all((fold / "result.json").exists() for fold in folds):
        return None
    adapters = tuple(f"{fold}/model" for fold in folds)
    merged = QuantizeConfig(
        base=base_of(runs[0], given),
        adapter=adapters,
        average=True,
        precision="bf16",
        output=f"{folder}/model",
    )
    quantize(merged)
    if not (folder / "predictions").exists():
        score_folder(f"{folder}/model", (f"{work}/outer/valid",), f"{folder}/predictions")
    sets = tuple(f"{fold}/predictions" for fold in folds)
    ensemble(EnsembleConfig(predictions=sets, output=f"{folder}/mean", restart=True))
    alone = [read_result(Run(preset, "alone", seed), given) for seed in given.seeds]
    if not any(alone):
        return None
    best = min((run for run in alone if run), key=lambda run: run["valid_log_loss"])
    single = folder_of(Run(preset, "alone", best["seed"]), given)
    return {
        name: {
            "metrics": figures(f"{folder}/{place}", folder, given),
            "less_best_single": less(f"{folder}/{place}", f"{single}/predictions", given),
        }
        for name, place in (("adapters", "predictions"), ("probabilities", "mean"))
    }


def soft_labels(given: argparse.Namespace) -> subprocess.Popen:
    """The teacher's folds on the votes that each did not see; their pseudolabels of the unlabelled pairs are
    on their way.
    """
    work = given.work
    folds = [folder_of(run, given) for run in folds_of(given.teacher, given)]
    gather([fold / "held_out" for fold in folds], work / "soft" / "predictions")
    command = [sys.executable, "-m", "jobs.pseudolabel", "--input", f"{work}/unvoted", "--output"]
    judged = [f"{work}/{name}/valid" for name in ("outer", "by_prompt")]
    models = [f"{fold}/model" for fold in folds]
    return subprocess.Popen([*command, f"{work}/pseudo", "--exclude", *judged, "--model", *models], cwd=ROOT)


def read_result(run: Run, given: argparse.Namespace) -> dict[str, Any] | None:
    path = folder_of(run, given) / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def collected(runs: list[Run], means: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """All results, each run minus the model alone of its seed, and what is missing."""
    found = {run: read_result(run, given) for run in runs}
    differences = []
    for run, result in found.items():
        alone = Run(run.preset, "alone", run.seed)
        if result and run.way not in ("alone", "fold") and found.get(alone):
            ours, theirs = (f"{folder_of(each, given)}/predictions" for each in (run, alone))
            differences.append(run._asdict() | {"less_alone": less(ours, theirs, given)})
    return {
        "runs": [result for result in found.values() if result],
        "averaged": means,
        "differences": differences,
        "missing": [list(run) for run, result in found.items() if not result],
    }


if __name__ == "__main__":
    main()
