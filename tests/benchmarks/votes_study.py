"""Do our defaults beat the recipe's way on real votes, with small pretrained models on a GPU?

    python tests/benchmarks/votes_study.py --votes VOTES.parquet --base smollm2_135m=FOLDER --work DIR

For each base (its preset by name) and seed:

    ours       the preset
    bf16       on an unquantized base
    one_order  trained in one order; scored in both like all, and in that order alone
    shorter    texts cut at 1,024 tokens, the adapter scaled by 64 (alpha)
    recipe     one order, truncation on the left, padded passes, a checkpoint chosen on rows that share
               prompts with train, the head at the adapter's learning rate

One run is one process: train, score the held-out fifth of the votes, whose prompts no run has seen, evaluate.
As many run at once as `--at-once` says, over all GPUs. Beside them: our way's mean over the seeds, logistic
regression on TF-IDF and length, and "the longer answer wins". As a fifth is few, our way and the regression
are also trained without each other fifth in turn (`--folds`), so that every vote is scored by models that
have not seen its prompt. Runs that the JSON or the working folder has already are not done again, so that a
study may take several sittings. Writes results/votes_study.json, or --json.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from common import HERE, differences, run_in_processes, write_result
from votes_baselines import REGRESSION, baselines, evaluated
from votes_splits import fold_folder, split, split_folds

from wsdm_ray.config import (
    EnsembleConfig,
    QuantizeConfig,
    TrainConfig,
)
from wsdm_ray.data.votes import read_votes
from wsdm_ray.evaluation.ensemble import ensemble
from wsdm_ray.presets import PRESETS
from wsdm_ray.storage import write_parquet

VARIANTS = ("ours", "bf16", "one_order", "shorter", "recipe")
COMPARED = (*(("ours", other) for other in VARIANTS[1:]), *((way, REGRESSION) for way in VARIANTS))
"""A way and what it is compared with."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--votes", required=True)
    parser.add_argument("--base", nargs="+", required=True, metavar="PRESET=FOLDER")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--folds", type=int, default=5, help="fifths to hold out in turn; 1: the first alone")
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--override", nargs="*", default=[], metavar="FIELD=VALUE", help="of the preset")
    parser.add_argument("--one", help="for its own processes: PRESET,VARIANT,SEED,FOLD")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "votes_study.json")
    given = parser.parse_args()
    bases = dict(pair.split("=", 1) for pair in given.base)
    if given.one:
        preset, variant, *numbers = given.one.split(",")
        run = Run(preset, variant, *map(int, numbers))
        run_one(bases[preset], run, given.work, given.override)
        return
    split(given.votes, given.work)
    split_folds(given.work, given.folds)
    for preset, folder in bases.items():
        quantize_base(folder, given.work / preset)
    runs = [
        Run(preset, variant, seed) for seed in given.seeds for preset in bases for variant in given.variants
    ]
    known = earlier_results(given.json, given.override)
    earlier = {Run(run["preset"], run["variant"], run["seed"]): run for run in known["runs"]}
    other_folds = range(1, 1 if known["every_vote"] else given.folds)
    folds = [Run(preset, "ours", fold, fold) for fold in other_folds for preset in bases]
    started = time.monotonic()
    run_in_processes(
        [run for run in runs + folds if run not in earlier], lambda run: folder_of(given.work, run), given
    )
    done = [earlier.get(run) or read_run(given.work, run) for run in runs]
    results = {
        "baselines": baselines(given.work),
        "mean_of_seeds": mean_of_seeds(given.work, list(bases), given.seeds) or known["mean_of_seeds"],
        "every_vote": known["every_vote"] or every_vote(given.work, list(bases), given.folds),
        "runs": [*earlier.values(), *(run for run in done if run and run not in earlier.values())],
        "differences": known["differences"]
        + differences_of(given.work, bases, given.seeds, known["differences"]),
        "missing": [run for run, found in zip(runs, done, strict=True) if not found]
        + [run for run in folds if not read_run(given.work, run)],
        "seconds": round(time.monotonic() - started, 1),
    }
    settings = {
        name: value for name, value in vars(given).items() if name not in ("votes", "base", "work", "json")
    }
    write_result(given.json, __doc__.splitlines()[0], settings | {"presets": list(bases)}, results)
    show(results)


def quantize_base(folder: str, work: Path) -> None:
    from wsdm_ray.modeling.quantization import quantize

    quantize(QuantizeConfig(base=folder, output=f"{work}/int8"))


class Run(NamedTuple):
    preset: str
    variant: str
    seed: int
    fold: int = 0


def earlier_results(path: Path, overrides: list[str]) -> dict[str, Any]:
    """The results of an earlier sitting: what ran, and what was averaged and compared there."""
    if not path.exists():
        return {"runs": [], "mean_of_seeds": [], "every_vote": [], "differences": []}
    found = json.loads(path.read_text())
    if found["settings"]["override"] != overrides:
        raise SystemExit(f"{path}: is of --override {found['settings']['override']}; give another --json")
    return {"every_vote": [], **found["results"]}


def differences_of(
    work: Path, presets: Iterable[str], seeds: list[int], known: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What of `COMPARED` is not known yet, by preset and seed, on the same held-out votes."""
    names = ("preset", "way", "less", "seed")
    found, earlier = [], {tuple(each[name] for name in names) for each in known}
    for preset, seed, (way, less) in product(presets, seeds, COMPARED):
        theirs = work / REGRESSION if less == REGRESSION else folder_of(work, Run(preset, less, seed))
        ours, other = (each / "predictions" for each in (folder_of(work, Run(preset, way, seed)), theirs))
        if (preset, way, less, seed) not in earlier and ours.exists() and other.exists():
            values = differences(str(ours), str(other), f"{work}/outer/valid")
            found.append(dict(zip(names, (preset, way, less, seed), strict=True)) | values)
    return found


def mean_of_seeds(work: Path, presets: list[str], seeds: list[int]) -> list[dict[str, Any]]:
    """Our way's probabilities averaged over the seeds of each preset, and over all."""
    found = []
    for name, averaged in {**{preset: [preset] for preset in presets}, "all": presets}.items():
        runs = [Run(preset, "ours", seed) for preset in averaged for seed in seeds]
        folders = [folder_of(work, run) / "predictions" for run in runs]
        if all(folder.exists() for folder in folders):
            regression = f"{work}/{REGRESSION}/predictions"
            figures = mean_of(folders, work / "mean" / name, regression, "valid", work)
            found.append({"presets": averaged, **figures})
    return found


def mean_of(folders: list[Path], output: Path, regression: str, votes: str, work: Path) -> dict[str, Any]:
    """Figures of the mean of several predictions of the votes in `outer/VOTES`, a glob."""
    sets = tuple(map(str, folders))
    ensemble(EnsembleConfig(predictions=sets, output=str(output), restart=True))
    metrics = evaluated(str(output), work, f"{output}-report", votes)
    return {
        "metrics": metrics,
        "less_regression": differences(str(output), regression, f"{work}/outer/{votes}/*.parquet"),
    }


def every_vote(work: Path, presets: list[str], folds: int) -> list[dict[str, Any]]:
    """Figures on all votes, each scored by the models that its fold was held out from: the regression's, each
    preset's, and those of the mean over the presets.
    """
    gathered = {}
    for preset in presets:
        folders = [folder_of(work, Run(preset, "ours", fold, fold)) / "predictions" for fold in range(folds)]
        if folds > 1 and all(folder.exists() for folder in folders):
            gathered[preset] = gather(folders, work / "every_vote" / preset)
    if not gathered:
        return []
    for fold in range(1, folds):
        baselines(fold_folder(work, fold))
    regressions = [fold_folder(work, fold) / REGRESSION / "predictions" for fold in range(folds)]
    regression = str(gather(regressions, work / "every_vote" / REGRESSION))
    found: list[dict[str, Any]] = [
        {"presets": [], "metrics": evaluated(regression, work, f"{regression}-report", "*")}
    ]
    for name, averaged in {**{preset: [preset] for preset in gathered}, "all": list(gathered)}.items():
        output = work / "every_vote" / f"mean-{name}"
        figures = mean_of([gathered[preset] for preset in averaged], output, regression, "*", work)
        found.append({"presets": averaged, **figures})
    return found


def gather(folders: list[Path], output: Path) -> Path:
    """The predictions of several folders in one, for different rows."""
    for number, folder in enumerate(folders):
        write_parquet(f"{output}/part-{number:06}.parquet", pq.read_table(folder))
    return output


def folder_of(work: Path, run: Run) -> Path:
    return fold_folder(work, run.fold) / run.preset / f"{run.variant}-{run.seed}"


def read_run(work: Path, run: Run) -> dict[str, Any] | None:
    path = folder_of(work, run) / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def config_of(run: Run, base: str, work: Path, overrides: list[str]) -> TrainConfig:
    preset, variant, seed, fold = run
    data = fold_folder(work, fold) / ("by_row" if variant == "recipe" else "by_prompt")
    quantized = variant != "bf16"
    config = PRESETS[preset](
        base=f"{work}/{preset}/int8" if quantized else base,
        train=(f"{data}/train",),
        valid=(f"{data}/valid",),
        output=str(folder_of(work, run)),
    )
    changes: dict[str, Any] = {"seed": seed, "allow_leakage": variant == "recipe"}
    changes |= {} if quantized else {"quantization": "none"}
    if variant in ("recipe", "one_order"):
        changes["orders"] = "ab"
    if variant == "recipe":
        changes |= {"text": dataclasses.replace(config.text, truncation="left"), "layout": "padded"}
        changes["optimizer"] = dataclasses.replace(config.optimizer, head_learning_rate=None)
    if variant == "shorter":
        changes["text"] = dataclasses.replace(config.text, max_tokens=1_024)
        changes["lora"] = dataclasses.replace(config.lora, alpha=64)
    config = dataclasses.replace(config, **changes)
    for override in overrides:
        config = overridden(config, *override.split("=", 1))
    return config


def overridden(config: Any, path: str, value: str) -> Any:
    """`config` with the field that a dotted path names set to a value in JSON (or a bare string)."""
    name, _, rest = path.partition(".")
    if rest:
        return dataclasses.replace(config, **{name: overridden(getattr(config, name), rest, value)})
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value
    return dataclasses.replace(config, **{name: parsed})


def run_one(base: str, run: Run, work: Path, overrides: list[str]) -> None:
    """Train, keep the best checkpoint by its valid log loss, score the test votes with it, evaluate."""
    config = config_of(run, base, work, overrides)
    folder, judged = Path(config.output), fold_folder(work, run.fold)
    started = time.monotonic()
    checkpoints, steps = train_one(config, folder / "model")
    trained = time.monotonic()
    layout = "padded" if run.variant == "recipe" else "shared"
    speed = score_folder(f"{folder}/model", (f"{judged}/outer/valid",), f"{folder}/predictions", layout)
    result = run._asdict() | {
        "checkpoints": checkpoints,
        "steps": len(steps), "train_seconds": round(trained - started, 1),
        "train_tokens_per_second": float(np.median([step["tokens_per_second"] for step in steps])),
        "score_pairs_per_second": speed,
        "metrics": evaluated(f"{folder}/predictions", judged, f"{folder}/report"),
    }  # fmt: skip
    if run.variant == "one_order":
        alone = in_one_order(folder)
        result["in_one_order"] = evaluated(alone, judged, f"{folder}/report-in-one-order")
    (folder / "result.json").write_text(json.dumps(result, default=float))


def in_one_order(folder: Path) -> str:
    """Predictions as they would be of (prompt, a, b) alone, made of those in both orders."""
    table = pq.read_table(folder / "predictions")
    alone = table.select(["id"]).append_column("prob_a", table["prob_a_ab"])
    write_parquet(f"{folder}/in_one_order/part-000000.parquet", alone)
    return f"{folder}/in_one_order"


def train_one(config: TrainConfig, target: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    from wsdm_ray.modeling.manifest import Manifest, folder_digest
    from wsdm_ray.modeling.quantization_config import stored_quantization
    from wsdm_ray.training.loop import Trainer

    manifest = Manifest(
        kind="adapter", base=config.base, base_digest=folder_digest(config.base),
        quantization=stored_quantization(config.base, config.quantization), head=config.head,
        text=config.text, orders=config.orders,
    )  # fmt: skip
    trainer = Trainer(config, config.base, manifest, read_votes(config.train), read_votes(config.valid))
    checkpoints: list[dict[str, Any]] = []
    for step in trainer.steps():
        if step.step % 10 == 0:
            row = step.to_row()
            print({name: round(row[name], 4) for name in ("step", "loss", "tokens_per_second")}, flush=True)
        if step.step % config.checkpoint_steps == 0 or step.step == trainer.total_steps:
            found = trainer.evaluate_step().summary()
            print(found, flush=True)
            if all(found["valid_log_loss"] < earlier["valid_log_loss"] for earlier in checkpoints):
                trainer.save(str(target))
            checkpoints.append(found)
    return checkpoints, [step.to_row() for step in trainer.metrics]


def score_folder(model: str, votes: tuple[str, ...], output: str, layout: str = "shared") -> float:
    """Score pairs with a model as a replica does; pairs a second. On a CPU the layout is `padded`."""
    import torch

    from wsdm_ray.inputs.conversion import parquet_inputs
    from wsdm_ray.inputs.files import list_inputs
    from wsdm_ray.inputs.rows import Reading
    from wsdm_ray.modeling.manifest import read_manifest
    from wsdm_ray.scoring.encode import encode_unit
    from wsdm_ray.scoring.model_spec import ModelSpec
    from wsdm_ray.scoring.plan import make_plan, part_name
    from wsdm_ray.scoring.replica import Replica, ReplicaOptions

    on_gpu = torch.cuda.is_available()
    spec = ModelSpec(model, None, read_manifest(model), "bf16" if on_gpu else "fp32")
    plan = make_plan(parquet_inputs(list_inputs(list(votes)), Reading(labels=False)), 100_000)
    options = ReplicaOptions(
        models=(spec,),
        output=output,
        id_type=plan.id_type,
        orders="both",
        layout=layout if on_gpu else "padded",
        token_budget=16_384,
        logits=False,
        threads=None,
    )
    replica = Replica(options)
    seconds = 0.0
    for unit in plan.units:
        encoded = encode_unit(unit, [spec])
        started = time.monotonic()
        table, _ = replica.score(encoded)
        seconds += time.monotonic() - started
        write_parquet(f"{output}/{part_name(unit.number)}", table)
    return plan.rows / seconds


def show(results: dict[str, Any]) -> None:
    for name, found in results["baselines"].items():
        print(
            f"{name:40} accuracy {found['accuracy']:.4f} log loss {found.get('log_loss', float('nan')):.4f}"
        )
    for run in results["runs"]:
        metrics = run["metrics"]
        what = f"{run['preset']:16}{run['variant']:12}{run['seed']:4}"
        quality = f"accuracy {metrics['accuracy']:.4f} log loss {metrics['log_loss']:.4f}"
        speed = f"train {run['train_seconds']:.0f} s, scoring {run['score_pairs_per_second']:.1f} pairs/s"
        print(what, quality, speed)
    for what in ("mean_of_seeds", "every_vote"):
        for mean in results[what]:
            metrics, name = mean["metrics"], " and ".join(mean["presets"]) or REGRESSION
            quality = f"accuracy {metrics['accuracy']:.4f} log loss {metrics['log_loss']:.4f}"
            print(f"{name}, {what}:", quality, mean.get("less_regression", ""))
    if results["missing"]:
        print("missing:", results["missing"])


if __name__ == "__main__":
    main()
