"""What makes real models better on real votes: a larger teacher, folds as one model, warm-up, lengths?

    python tests/benchmarks/real_models.py --votes VOTES.parquet --work DIR \\
        --teacher qwen25_1_5b=FOLDER --student qwen25_0_5b=FOLDER [--others FILE...] [--unlabelled FILE...]

The splits are those of `votes_study.py`: a fifth of the votes, by prompt, judges. Each model by its preset:

    alone       trained on the votes, every seed
    fold        without one part of the train votes, seed 0; scores that part and the unlabelled pairs
    averaged    the adapters of the folds as one model (`quantize --average`), and the mean of their
                probabilities

and the student, every seed:

    soft        taught by the teacher's folds, each on the votes that it did not see
                (`--objective.teachers`)
    pseudo      the same, with the unlabelled pairs by the mean of the teacher's folds
    warm_up     trained on --others first, then on the votes (`--start-from`)
    balanced    votes weighed by difference of length (`--objective.length-balance 1`); half_balanced: 0.5
    swap        `--objective.swap-consistency-weight 0.5`
    half_scale  half the adapter's alpha

Each is compared with the student alone of the same seed: paired differences by prompt, also on the votes that
the shorter response won. One run is one process, as many at once as --at-once says. Runs whose result is in
the working folder are not done again. Writes results/real_models.json, or --json.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import HERE, run_in_processes, write_result
from votes_baselines import evaluated
from votes_splits import split, split_train
from votes_study import gather, overridden, score_folder, train_one

from wsdm_ray.config import EnsembleConfig, PrepareConfig, PseudolabelConfig, QuantizeConfig, TrainConfig
from wsdm_ray.data.prepare import prepare
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

OF_STUDENT = ("soft", "pseudo", "warm_up", "balanced", "half_balanced", "swap", "half_scale")
FIRST = ("alone", "balanced", "half_balanced", "swap", "half_scale")
"""What needs nothing of other runs."""


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
    parser.add_argument("--others", nargs="*", default=[], help="votes to warm up on")
    parser.add_argument("--unlabelled", nargs="*", default=[], help="pairs for pseudolabels")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--ways", nargs="*", default=list(OF_STUDENT), choices=OF_STUDENT)
    parser.add_argument("--precision", default="bnb-int8", help="of the base, or none")
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=1)
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
    prepare_inputs(given)
    first, second = runs_of(given)
    run_in_processes(first, lambda run: folder_of(run, given), given)
    means = {preset: averaged(preset, given) for preset in given.models}
    if any(run.way in ("soft", "pseudo") for run in second):
        soft_labels(given)
    run_in_processes(second, lambda run: folder_of(run, given), given)
    results = collected(first + second, means, given) | {"seconds": round(time.monotonic() - started, 1)}
    kept = ("teacher", "student", "seeds", "folds", "ways", "precision", "override")
    settings = {name: getattr(given, name) for name in kept}
    write_result(given.json, __doc__.splitlines()[0], settings, results)


def runs_of(given: argparse.Namespace) -> tuple[list[Run], list[Run]]:
    """The runs that need no other, and those that do."""
    ways = [
        way
        for way in given.ways
        if (given.others or way != "warm_up") and (given.unlabelled or way != "pseudo")
    ]
    first = [Run(preset, "alone", seed) for preset in given.models for seed in given.seeds]
    first += [Run(preset, "fold", 0, fold) for preset in given.models for fold in range(given.folds)]
    second = []
    for seed in given.seeds:
        first += [Run(given.student, way, seed) for way in ways if way in FIRST]
        first += [Run(given.student, "warm_up_first", seed)] if "warm_up" in ways else []
        second += [Run(given.student, way, seed) for way in ways if way not in FIRST]
    return first, second


def prepare_inputs(given: argparse.Namespace) -> None:
    """The splits, the other votes without judging prompts, and the bases; what is there stays."""
    from wsdm_ray.modeling.quantization import quantize

    work = given.work
    split(given.votes, work)
    split_train(work, given.folds)
    judged = tuple(f"{work}/{name}/valid" for name in ("outer", "by_prompt"))
    if given.others:
        others = tuple(given.others)
        prepare(PrepareConfig(input=others, output=f"{work}/others", valid_fraction=0.0, exclude=judged))
    if given.precision != "none":
        for preset, folder in given.models.items():
            quantize(QuantizeConfig(base=folder, precision=given.precision, output=f"{work}/bases/{preset}"))


def base_of(preset: str, given: argparse.Namespace) -> str:
    return given.models[preset] if given.precision == "none" else f"{given.work}/bases/{preset}"


def folder_of(run: Run, given: argparse.Namespace) -> Path:
    return given.work / "runs" / run.preset / "-".join(map(str, run[1:]))


def config_of(run: Run, given: argparse.Namespace) -> TrainConfig:
    work, train = given.work, f"{given.work}/by_prompt/train"
    if run.way == "fold":
        train = f"{work}/parts/{run.fold}/train"
    sets = {"warm_up_first": (f"{work}/others/train",), "pseudo": (train, f"{work}/pseudo/train")}
    config = PRESETS[run.preset](
        base=base_of(run.preset, given),
        train=sets.get(run.way, (train,)),
        valid=(f"{work}/by_prompt/valid",),
        output=str(folder_of(run, given)),
    )
    changes: dict[str, Any] = {"seed": run.seed}
    if given.precision == "none":
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
        if given.unlabelled:
            score_folder(model, tuple(given.unlabelled), f"{folder}/unlabelled")
    result = run._asdict() | {
        "steps": len(steps),
        "valid_log_loss": min(found["valid_log_loss"] for found in checkpoints),
        "train_seconds": round(trained - started, 1),
        "train_tokens_per_second": float(np.median([step["tokens_per_second"] for step in steps])),
        "metrics": figures(f"{folder}/predictions", folder, work),
    }
    (folder / "result.json").write_text(json.dumps(result, default=float))


def figures(predictions: str, folder: Path, work: Path) -> dict[str, Any]:
    """The metrics on the judging votes, also on those that the shorter or the longer response won."""
    values, group = by_row(predictions, work)
    intervals = bootstrap_intervals(np.stack(list(values.values()), axis=1), group, resamples=1_000, seed=0)
    named = zip(values.items(), intervals, strict=True)
    of_lengths = {
        name: {"mean": float(np.nanmean(column)), "ci95": interval} for (name, column), interval in named
    }
    return evaluated(predictions, work, f"{folder}/report") | {"by_length": of_lengths}


def by_row(predictions: str, work: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Accuracy and log loss of each judging vote, NaN where it is not of the kind, and its prompt group."""
    joined = join_by_id(
        read_predictions(predictions), read_votes([f"{work}/outer/valid/*.parquet"], Reading())
    )
    right, loss = agreement(joined.prob, joined.label), cross_entropy(joined.prob, joined.label)
    towards = np.sign(joined.characters_a - joined.characters_b) * (joined.label - 0.5)
    kinds = {"": np.isfinite(towards), "shorter_won_": towards < 0, "longer_won_": towards > 0}
    values = {
        f"{kind}{name}": np.where(rows, column, np.nan)
        for kind, rows in kinds.items()
        for name, column in (("accuracy", right), ("log_loss", loss))
    }
    return values, joined.group


def less(ours: str, theirs: str, work: Path) -> dict[str, Any]:
    """Each figure of `by_row` of some predictions minus that of others, with 95 % intervals by prompt."""
    (one, group), (other, _) = (by_row(predictions, work) for predictions in (ours, theirs))
    values = np.stack([one[name] - other[name] for name in one], axis=1)
    intervals = bootstrap_intervals(values, group, resamples=1_000, seed=0)
    named = zip(one, values.T, intervals, strict=True)
    return {name: {"mean": float(np.nanmean(column)), "ci95": interval} for name, column, interval in named}


def averaged(preset: str, given: argparse.Namespace) -> dict[str, Any] | None:
    """The folds of a model as one, by adapters and by probabilities; None where a fold is missing."""
    from wsdm_ray.modeling.quantization import quantize

    work, folder = given.work, given.work / "averaged" / preset
    folds = [folder_of(Run(preset, "fold", 0, fold), given) for fold in range(given.folds)]
    if len(folds) < 2 or not all((fold / "result.json").exists() for fold in folds):
        return None
    adapters = tuple(f"{fold}/model" for fold in folds)
    merged = QuantizeConfig(
        base=base_of(preset, given),
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
    best = min((run for run in alone if run), key=lambda run: run["valid_log_loss"])
    single = folder_of(Run(preset, "alone", best["seed"]), given)
    return {
        name: {
            "metrics": figures(f"{folder}/{place}", folder, work),
            "less_best_single": less(f"{folder}/{place}", f"{single}/predictions", work),
        }
        for name, place in (("adapters", "predictions"), ("probabilities", "mean"))
    }


def soft_labels(given: argparse.Namespace) -> None:
    """The teacher's folds on the votes that each did not see, and the mean of all on the unlabelled pairs."""
    from wsdm_ray.scoring.pseudolabels import pseudolabel

    work = given.work
    folds = [folder_of(Run(given.teacher, "fold", 0, fold), given) for fold in range(given.folds)]
    gather([fold / "held_out" for fold in folds], work / "soft" / "predictions")
    if not given.unlabelled or (work / "pseudo" / "run.json").exists():
        return
    sets = tuple(f"{fold}/unlabelled" for fold in folds)
    ensemble(EnsembleConfig(predictions=sets, output=f"{work}/soft/unlabelled", restart=True))
    pseudolabel(
        PseudolabelConfig(
            model=(f"{folds[0]}/model",),
            predictions=f"{work}/soft/unlabelled",
            input=tuple(given.unlabelled),
            output=f"{work}/pseudo",
            exclude=tuple(f"{work}/{name}/valid" for name in ("outer", "by_prompt")),
        )
    )


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
            differences.append(run._asdict() | {"less_alone": less(ours, theirs, given.work)})
    return {
        "runs": [result for result in found.values() if result],
        "averaged": means,
        "differences": differences,
        "missing": [list(run) for run, result in found.items() if not result],
    }


if __name__ == "__main__":
    main()
