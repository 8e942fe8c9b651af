"""python -m jobs.quickstart: the whole flow on synthetic votes, on one CPU machine.

arena -> prepare -> a tiny Gemma-2, quantized to bnb-int8 -> train -> score the valid set in both orders
-> evaluate
"""

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from jobs._main import main
from jobs._ray import connect
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
from wsdm_ray.runs import finish_run, open_run
from wsdm_ray.scoring.pipeline import score
from wsdm_ray.storage import join, upload_folder
from wsdm_ray.telemetry import logger
from wsdm_ray.training.runner import train

TOKENIZER_ROWS = 400


def quickstart(config: QuickstartConfig) -> None:
    """Run every step; one that is finished already is not done again."""
    started = time.monotonic()
    at = {
        name: join(config.output, name)
        for name in ("arena", "data", "base", "quantized", "model", "predictions", "report")
    }
    restart = config.restart
    step("1/7 arena: votes whose best accuracy is known")
    make_arena(
        ArenaConfig(output=at["arena"], rows=config.rows, seed=config.seed, lengths="short", restart=restart)
    )
    step("2/7 prepare: clean, drop duplicates, split by prompt")
    prepare(PrepareConfig(input=(at["arena"],), output=at["data"], seed=config.seed, restart=restart))
    shards = {name: join(at["data"], name) for name in ("train", "valid")}
    step("3/7 quantize: a tiny Gemma-2 with its own tokenizer, to bnb-int8")
    once(at["base"], config, lambda: make_base(at["base"], shards["train"], config.seed))
    quantize(QuantizeConfig(base=at["base"], output=at["quantized"], restart=restart))
    connect(local=True)
    step(f"4/7 train: QLoRA on {config.num_workers} workers of Ray Train")
    train(
        dataclasses.replace(
            presets.tiny(
                base=at["quantized"], train=(shards["train"],), output=at["model"], valid=(shards["valid"],)
            ),
            num_workers=config.num_workers,
            seed=config.seed,
            restart=restart,
        )
    )
    write_curves(at["model"])
    step("5/7 score: the valid set in both orders on Ray Data")
    score(
        ScoreConfig(
            model=(at["model"],),
            input=(shards["valid"],),
            output=at["predictions"],
            token_budget=4_096,
            unit_rows=200,
            restart=restart,
        )
    )
    step("6/7 evaluate: against the votes, and against what is possible")
    metrics = evaluate(
        EvaluateConfig(predictions=at["predictions"], votes=(shards["valid"],), output=at["report"])
    )
    step("7/7 done")
    show(metrics, at, time.monotonic() - started)


def step(title: str) -> None:
    logger.info("── %s", title)


def once(folder: str, config: QuickstartConfig, make: Callable[[], None]) -> None:
    """Fill `folder` by `make`, unless it is filled already."""
    fingerprint = {"rows": config.rows, "seed": config.seed}
    if open_run(folder, "tiny model", fingerprint, config.restart, resumes=False) is None:
        make()
        finish_run(folder, "tiny model", fingerprint, {})


def make_base(folder: str, shards: str, seed: int) -> None:
    rows = read_votes([shards]).table.slice(0, TOKENIZER_ROWS)
    texts = (
        text for name in ("prompt", "response_a", "response_b") for text in rows.column(name).to_pylist()
    )
    with tempfile.TemporaryDirectory() as work:
        make_tiny_model(work, texts, seed=seed)
        upload_folder(work, folder, last="config.json")


def show(metrics: dict, at: dict[str, str], seconds: float) -> None:
    table = Table(
        title=f"The whole flow took {seconds:.0f} s", title_justify="left", box=None, pad_edge=False
    )
    for column in ("", "where", "what"):
        table.add_column(column)
    figures = (
        f"accuracy {metrics['accuracy']:.3f}; best possible {metrics['best_accuracy']:.3f}; "
        f"{metrics['share_of_best']:.0%} of the way there from 0.5"
    )
    table.add_row("votes", at["data"], f"{metrics['rows']} of them held out by prompt")
    table.add_row("classifier", at["model"], "a PEFT adapter with its head; base in " + at["quantized"])
    table.add_row("curves", join(at["model"], "training.html"), "loss and accuracy by step")
    table.add_row("predictions", at["predictions"], "a probability for every row, in input order")
    table.add_row("report", join(at["report"], "report.html"), figures)
    console = Console()
    console.print(table)
    console.print(
        "\nNext: open the report, then score data of your own:\n"
        f"  python -m jobs.score --model {at['model']} --input YOUR.parquet --output my-predictions\n"
        "with the columns id, prompt, response_a and response_b; or give `jobs.prepare` votes of your own.",
        highlight=False,
    )


if __name__ == "__main__":
    sys.exit(main(quickstart, QuickstartConfig))
