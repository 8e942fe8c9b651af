"""`quickstart`: the whole flow on synthetic votes, on one CPU machine.

arena -> prepare -> a tiny Gemma-2, quantized to bnb-int8 -> train -> score a test set in both orders
-> evaluate

The test set is an arena of another seed without the prompts of train and valid: it neither trained the
classifier nor chose its checkpoint.
"""

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs._registry import command
from wsdm_ray import presets
from wsdm_ray.config import (
    ArenaConfig,
    EvaluateConfig,
    PrepareConfig,
    QuantizeConfig,
    QuickstartConfig,
    ScoreConfig,
)
from wsdm_ray.data.arena import make_arena
from wsdm_ray.data.prepare import prepare
from wsdm_ray.data.votes import read_votes
from wsdm_ray.evaluation.curves import write_curves
from wsdm_ray.evaluation.evaluate import evaluate
from wsdm_ray.modeling.quantization import quantize
from wsdm_ray.modeling.tiny import make_tiny_model
from wsdm_ray.runs import RUN_FILE, hold_run
from wsdm_ray.scoring.pipeline import score
from wsdm_ray.session import connect
from wsdm_ray.storage import join, read_json, upload_folder
from wsdm_ray.telemetry import logger
from wsdm_ray.training.runner import train

__all__ = ["make_base", "quickstart"]

TOKENIZER_ROWS = 400
"""Train rows whose texts the tokenizer of the tiny model is made from."""

TEST_ROWS = 1_000
"""The most votes of the test set before prompts of train and valid are dropped."""


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where the parts of a quickstart lie."""

    arena: str
    test_arena: str
    train: str
    valid: str
    test: str
    data: str
    prepared_test: str
    base: str
    quantized: str
    model: str
    predictions: str
    report: str


def folders_in(output: str) -> Folders:
    data, prepared_test = join(output, "data"), join(output, "test")
    return Folders(
        arena=join(output, "arena"),
        test_arena=join(output, "test_arena"),
        train=join(data, "train"),
        valid=join(data, "valid"),
        test=join(prepared_test, "train"),  # `prepare` without a valid fraction writes one split of this name
        data=data,
        prepared_test=prepared_test,
        base=join(output, "base"),
        quantized=join(output, "quantized"),
        model=join(output, "model"),
        predictions=join(output, "predictions"),
        report=join(output, "report"),
    )


def quickstart(config: QuickstartConfig) -> None:
    """Run every step; one that is finished already is not done again."""
    started = time.monotonic()
    if "RAY_ADDRESS" not in os.environ:  # CPUs do, and a machine with one GPU has no room for two workers
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    at = folders_in(config.output)
    step("1/7 arena: votes whose best accuracy is known")
    make_votes(config, at)
    step("2/7 prepare: clean, drop duplicates, split by prompt")
    prepare_splits(config, at)
    step("3/7 quantize: a tiny Gemma-2 with its own tokenizer, to bnb-int8")
    once(at.base, config, lambda: make_base(at.base, at.train, config.seed))
    quantize(QuantizeConfig(base=at.base, output=at.quantized, restart=config.restart))
    connect(local=True)
    step(f"4/7 train: QLoRA on {config.num_workers} workers of Ray Train")
    train_classifier(config, at)
    step("5/7 score: the test set in both orders on Ray Data")
    score_test(config, at)
    step("6/7 evaluate: against the votes, and against what is possible")
    metrics = evaluate(EvaluateConfig(predictions=(at.predictions,), votes=(at.test,), output=at.report))
    step("7/7 done")
    trained = read_json(join(at.model, RUN_FILE))["metrics"]
    show(metrics, trained, at, time.monotonic() - started)


def step(title: str) -> None:
    logger.info("── %s", title)


def make_votes(config: QuickstartConfig, at: Folders) -> None:
    """The votes to train and validate on, and those to test on, of the next seed."""
    test_rows, test_seed = min(TEST_ROWS, config.rows), (config.seed + 1) % 2**63
    for output, rows, seed in (
        (at.arena, config.rows, config.seed),
        (at.test_arena, test_rows, test_seed),
    ):
        make_arena(ArenaConfig(output=output, rows=rows, seed=seed, lengths="short", restart=config.restart))


def prepare_splits(config: QuickstartConfig, at: Folders) -> None:
    """train and valid of the one arena; a test set of the other, without the prompts of the two."""
    prepare(PrepareConfig(input=(at.arena,), output=at.data, seed=config.seed, restart=config.restart))
    prepare(
        PrepareConfig(
            input=(at.test_arena,),
            output=at.prepared_test,
            valid_fraction=0.0,
            exclude=(at.train, at.valid),
            restart=config.restart,
        )
    )


def train_classifier(config: QuickstartConfig, at: Folders) -> None:
    """The classifier of the checkpoint with the lowest log loss on valid, and its curves."""
    preset = presets.tiny(base=at.quantized, train=(at.train,), output=at.model, valid=(at.valid,))
    own = {
        name: getattr(config, name) for name in ("num_workers", "seed", "restart", "store_timeout_seconds")
    }
    train(dataclasses.replace(preset, **own))
    write_curves(at.model)


def score_test(config: QuickstartConfig, at: Folders) -> None:
    score(
        ScoreConfig(
            model=(at.model,),
            input=(at.test,),
            output=at.predictions,
            token_budget=4_096,
            unit_rows=200,
            restart=config.restart,
            store_timeout_seconds=config.store_timeout_seconds,
        )
    )


def once(folder: str, config: QuickstartConfig, make: Callable[[], None]) -> None:
    """Fill `folder` by `make`, unless it is filled already."""
    fingerprint = {"rows": config.rows, "seed": config.seed}
    with hold_run(folder, "tiny model", fingerprint, config.restart, resumes=False) as run:
        if not run.finished:
            make()
            run.finish({})


def make_base(folder: str, shards: str, seed: int) -> None:
    """Write a tiny random Gemma-2 whose tokenizer is made from the first rows of canonical shards."""
    rows = read_votes([shards]).table.slice(0, TOKENIZER_ROWS)
    texts = (
        text for name in ("prompt", "response_a", "response_b") for text in rows.column(name).to_pylist()
    )
    with tempfile.TemporaryDirectory() as work:
        make_tiny_model(work, texts, seed=seed)
        upload_folder(work, folder, last="config.json")


def show(metrics: dict[str, Any], trained: dict[str, Any], at: Folders, seconds: float) -> None:
    """Print where everything is, the test accuracy and the valid accuracy.

    Args:
        metrics: of `evaluate` on the test set.
        trained: metrics of the checkpoint that `train` chose, on valid.
    """
    table = Table(
        title=f"The whole flow took {seconds:.0f} s", title_justify="left", box=None, pad_edge=False
    )
    for column in ("", "where", "what"):
        table.add_column(column)
    for row in (
        ("votes", at.data, "train and valid, split by prompt"),
        ("test votes", at.prepared_test, f"{metrics['rows']:,} with prompts of neither train nor valid"),
        ("classifier", at.model, f"a PEFT adapter with its head; base in {at.quantized}"),
        ("curves", join(at.model, "training.html"), "loss and accuracy by step"),
        ("predictions", at.predictions, "a probability for every test row, in input order"),
        ("report", join(at.report, "report.html"), "accuracy, calibration, errors by language and length"),
    ):
        table.add_row(*row)
    console = Console(markup=False)  # a folder may have any name
    console.print(table)
    # Unwrapped, so that a command can be copied and a number stays whole.
    console.print("\n".join(accuracy_lines(metrics, trained)), highlight=False, soft_wrap=True)
    console.print(
        "\nNext: open the report, then score data of your own:\n"
        f"  {command('score')} --model {at.model} --input YOUR.parquet --output my-predictions\n"
        "with the columns id, prompt, response_a and response_b; "
        f"or give `{command('prepare')}` votes of your own.",
        highlight=False,
        soft_wrap=True,
    )


def accuracy_lines(metrics: dict[str, Any], trained: dict[str, Any]) -> list[str]:
    """The headline, on rows that chose nothing; then the accuracy on the rows that chose the checkpoint."""
    low, high = metrics["accuracy_ci95"]
    valid_low, valid_high = trained["valid_accuracy_ci95"]
    return [
        "",
        f"test accuracy   {metrics['accuracy']:.3f} ({low:.3f} to {high:.3f}) on {metrics['rows']:,} votes; "
        f"best possible {metrics['best_accuracy']:.3f}; {metrics['share_of_best']:.0%} of the way from 0.5",
        f"valid accuracy  {trained['valid_accuracy']:.3f} ({valid_low:.3f} to {valid_high:.3f}) on "
        f"{trained['valid_rows']:,} votes, by which the checkpoint was chosen",
    ]
