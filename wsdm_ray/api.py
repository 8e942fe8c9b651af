"""The jobs as functions, for scripts and notebooks: `score(model="model", input="pairs.parquet", ...)`.

Each takes the options of its job as keywords and does what the command line does. One value is taken as a
list of one; a nested option is a mapping (`lora={"r": 16}`) or a config of `wsdm_ray.config`; `config` names
a file of options, as `--config` does. What a user can correct is raised as a `WsdmRayError`.

`train`, `score` and `pseudolabel` use the Ray that this process is connected to, if it is, and otherwise
connect as the job does; Ray stays connected. Where the caller has not set up `logging`, log lines go to
standard error.
"""

import dataclasses
import inspect
import logging
import textwrap
from collections.abc import Callable
from typing import Any

from jobs._options import Option, options_of
from jobs._registry import JOBS
from wsdm_ray.telemetry import set_up_logging

__all__ = ["arena", "ensemble", "evaluate", "prepare", "pseudolabel", "quantize", "score", "train"]

JobFunction = Callable[..., dict[str, Any]]

WIDTH = 100
"""Characters of a line of a function's help."""


def documented(function: JobFunction) -> JobFunction:
    """The function with its job's options as its keywords, in its signature and its help."""
    config_type = JOBS[function.__name__].config_type()
    fields = {field.name: initial(field) for field in dataclasses.fields(config_type)}
    options = options_of(config_type)
    extra = (option.flag.removeprefix("--") for option in options)
    fields |= {name: None for name in extra if name.partition(".")[0].replace("-", "_") not in fields}
    function.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=fields[name]) for name in fields],
        return_annotation=dict[str, Any],
    )
    args = [textwrap.fill(described(option), WIDTH, subsequent_indent=" " * 8) for option in options]
    function.__doc__ = "\n".join([inspect.cleandoc(function.__doc__ or ""), "", "Args:", *args])
    return function


def initial(field: dataclasses.Field[Any]) -> Any:
    """The default of a config's field; `inspect.Parameter.empty` where it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default


def described(option: Option) -> str:
    """A line of help on an option of the command line, as a keyword."""
    default = "" if option.default is None else f" Default: {option.default}"
    return f"    {option.flag.removeprefix('--').replace('-', '_')}: {option.text}{default}"


def run(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """What the function of a job returns, with its options as keywords."""
    from jobs._parse import parse_values

    config = parse_values(JOBS[name].config_type(), options, name)
    if not logging.getLogger().handlers:
        set_up_logging()
    return JOBS[name].run(config)


@documented
def arena(**options: Any) -> dict[str, Any]:
    """Make synthetic votes whose best reachable accuracy is known.

    Returns:
        What run.json holds: `config`, `rows`, `best_accuracy`, `best_log_loss` and more.
    """
    return run("arena", options)


@documented
def prepare(**options: Any) -> dict[str, Any]:
    """Turn raw votes into canonical shards: clean, drop duplicates, split by prompt.

    Returns:
        What run.json holds: `config` and `counts` (`input_rows`, `kept`, `dropped` by reason, ...).
    """
    return run("prepare", options)


@documented
def quantize(**options: Any) -> dict[str, Any]:
    """Write a quantized checkpoint of a base model, with adapters merged in on request.

    Returns:
        What run.json holds: `config`, `kind` of the checkpoint and `check`, how far it is from the
        unquantized merge.
    """
    return run("quantize", options)


@documented
def train(**options: Any) -> dict[str, Any]:
    """Fine-tune a classifier on votes with QLoRA on Ray Train.

    Returns:
        What run.json holds: `config`, `resolved` options, `counts` of rows and steps, `metrics` of the
        checkpoint that was kept; with `dry_run=True` the figures of the run.
    """
    return run("train", options)


@documented
def score(**options: Any) -> dict[str, Any]:
    """Score every row of a data set of pairs on Ray Data.

    Returns:
        What run.json holds: `config`, `counts` (rows, errors, cut) and `throughput`; with `dry_run=True` the
        figures of the plan.
    """
    return run("score", options)


@documented
def pseudolabel(**options: Any) -> dict[str, Any]:
    """Score unlabelled pairs and make training shards of them.

    Returns:
        What run.json holds: `config`, `counts` (`input_rows`, `kept`, `dropped` by reason) and `labels`.
    """
    return run("pseudolabel", options)


@documented
def ensemble(**options: Any) -> dict[str, Any]:
    """Combine several sets of predictions into one, with a submission file on request.

    Returns:
        What run.json holds: `config`, `weights`, `temperature`, `counts` and `metrics`.
    """
    return run("ensemble", options)


@documented
def evaluate(**options: Any) -> dict[str, Any]:
    """Compare predictions with votes: metrics.json and a report.

    Returns:
        What metrics.json holds: `rows`, `accuracy`, `accuracy_ci95`, `log_loss`, `auc`, `brier`, `ece` and
        more, also by language and by length.
    """
    return run("evaluate", options)
