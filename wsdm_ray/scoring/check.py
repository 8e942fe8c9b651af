"""A run of `score` that has been checked: every option resolved once, before any folder is touched.

What needs no cluster comes first (`check_inputs`), and of that what needs no torch, whose import takes
seconds: a wrong path is found at once. So modules with torch are imported where they are used. Not covered:
what the cluster has (`cluster`), and executing the run (`pipeline`).
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from wsdm_ray.config import SUBMISSION_OPTIONS, ScoreConfig, to_dict
from wsdm_ray.data.submission import TieVotes, check_submission
from wsdm_ray.inputs.conversion import parquet_inputs
from wsdm_ray.inputs.faults import BadFiles
from wsdm_ray.inputs.files import list_inputs, listed_versions
from wsdm_ray.inputs.rows import Reading
from wsdm_ray.modeling.folder_names import check_manifest_there
from wsdm_ray.runs import check_no_overlap, options, run_folder
from wsdm_ray.scoring.each_apart import each_apart
from wsdm_ray.scoring.kept_columns import NO_COLUMNS, kept_schema
from wsdm_ray.scoring.plan import (
    ScorePlan,
    WorkUnit,
    cut_digest,
    make_plan,
    narrowed,
)
from wsdm_ray.storage import absolute, check_writable

if TYPE_CHECKING:
    from wsdm_ray.scoring.model_spec import ModelSpec
    from wsdm_ray.scoring.replica import ReplicaOptions

__all__ = [
    "NOT_OF_THE_OUTPUT",
    "CheckedInputs",
    "Cluster",
    "ScoreRun",
    "assumption",
    "check_inputs",
    "check_run",
    "describe",
    "options_of_the_output",
]

SAMPLES = 4
SAMPLED_ROWS = 200
"""A dry run estimates tokens from this many rows, in so many places."""

NOT_OF_THE_OUTPUT = (
    *("output", "restart", "dry_run", "base", "model", "input", "precision"),
    *("replicas", "min_replicas", "wait_for_resources_seconds"),
    *("strict", "unit_timeout_seconds", "gpu_hour_price"),
    *SUBMISSION_OPTIONS,
    "token_budget",  # decides what shares a micro-batch, which changes roundings alone
)
"""Options that may change when a run is resumed, or whose effect the fingerprint holds in another form."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a run takes of the cluster.

    replicas: to begin with. most: while it runs, as nodes come; None: as many as there is room for.
    limit: replicas that there can be room for where the cluster scales by itself; 0: it does not.
    wait_seconds: how long the run waits for nodes when it has room for no replica.
    threads: CPU threads of each replica; None leaves torch's default.
    capability: the least compute capability of the GPUs; None where the precision does not depend on it.
    assumed: nobody asked the cluster: it is taken to be like this machine, for a dry run.
    gpu: the name of the GPUs, as nvidia-smi has it; None without one, or where they differ.
    """

    replicas: int
    on_gpu: bool
    threads: int | None
    most: int | None = None
    limit: int = 0
    wait_seconds: float = 0.0
    capability: tuple[int, int] | None = None
    assumed: bool = False
    gpu: str | None = None


@dataclass(frozen=True, kw_only=True)
class CheckedInputs:
    """All of a run that no cluster was needed to check.

    keep: columns of the input that the output has, too. ties: votes for the submission.
    models: as every process needs them, but for the precision, which is as it was asked for.
    started: `time.monotonic()` when the checks began, in seconds.
    """

    files: tuple[str, ...]
    plan: ScorePlan
    keep: pa.Schema
    ties: TieVotes | None
    models: "tuple[ModelSpec, ...]"
    started: float


@dataclass(frozen=True, kw_only=True)
class ScoreRun:
    """All that executing a run needs.

    output: the folder, as it was given. restart: delete what it holds.
    allow_version_change: go on with other versions of what changes numbers than it was begun with.
    files, plan: what is scored. keep: columns of the input that the output has, too.
    replica: how, in every replica. cluster: where. ties: votes for the submission.
    fingerprint: all that decides the output.
    config: every option as it was given, for run.json.
    started: `time.monotonic()` when the checks began, in seconds.
    unit_timeout_seconds: after which a process that reads or scores a unit is ended; None: never.
    gpu_hour_price: of one GPU, for the cost so far; None: not shown.
    """

    output: str
    restart: bool
    files: tuple[str, ...]
    plan: ScorePlan
    replica: "ReplicaOptions"
    cluster: Cluster
    fingerprint: Mapping[str, Any]
    config: Mapping[str, Any]
    started: float
    keep: pa.Schema = NO_COLUMNS
    ties: TieVotes | None = None
    unit_timeout_seconds: float | None = None
    gpu_hour_price: float | None = None
    allow_version_change: bool = False


def check_inputs(config: ScoreConfig) -> CheckedInputs:
    """What of `config` needs no cluster: paths, rows, models and options.

    Raises:
        DataError, ModelError, ConfigError, StorageError: what was asked for cannot be done.
    """
    started = time.monotonic()
    reading = Reading(
        format=config.format,
        columns=config.columns,
        make_ids=config.make_ids,
        labels=False,
        others=config.keep_columns,
    )
    inputs = list_inputs(config.input)
    files = [file.path for file in inputs]
    bad = BadFiles(skip=config.on_bad_file == "skip")
    given = [*config.input, *files, *config.model, *config.base]
    check_no_overlap(config.output, given)
    if not config.dry_run:
        for folder in (config.output, run_folder(config.output)):
            check_writable(folder)
    for folder in config.model:
        check_manifest_there(folder, "--model")
    plan = make_plan(
        parquet_inputs(inputs, reading, bad, each_apart), config.unit_rows,
        models=len(config.model), files=inputs, bad=bad, keep_duplicates=config.duplicate_ids == "keep",
        each_file=each_apart,
    )  # fmt: skip
    keep = kept_schema(plan, config.keep_columns)
    ties = check_submission(config, config.output, given)
    from wsdm_ray.scoring.model_check import check_folders

    return CheckedInputs(
        files=tuple(files), plan=plan, keep=keep, ties=ties, models=check_folders(config), started=started
    )


def check_run(config: ScoreConfig, cluster: Cluster, inputs: CheckedInputs | None = None) -> ScoreRun:
    """The run that `config` asks for, on a cluster that it fits.

    Args:
        inputs: of `check_inputs`, which is asked where they are not given.

    Raises:
        DataError, ModelError, ConfigError, StorageError: what was asked for cannot be done.
    """
    from wsdm_ray.scoring.model_check import fastest_layout, with_precision
    from wsdm_ray.scoring.replica import ReplicaOptions

    inputs = inputs or check_inputs(config)
    files, plan = inputs.files, inputs.plan
    models = with_precision(inputs.models, config.precision, cluster.on_gpu, cluster.capability)
    replica = ReplicaOptions(
        models=models,
        output=absolute(config.output),
        id_type=plan.id_type,
        orders=config.orders,
        layout=fastest_layout(models, cluster.on_gpu) if config.layout == "auto" else config.layout,
        token_budget=config.token_budget,
        adaptive_threshold=config.adaptive_threshold,
        model_weights=config.model_weights,
        logits=config.logits,
        threads=cluster.threads,
        store_timeout_seconds=config.store_timeout_seconds,
    )
    return ScoreRun(
        output=config.output,
        restart=config.restart,
        files=files,
        plan=plan,
        replica=replica,
        cluster=cluster,
        fingerprint={
            "options": options_of_the_output(config) | {"layout": replica.layout},
            "models": [model.fingerprint for model in models],
            "inputs": listed_versions(plan.files),
        }
        | ({"units": cut} if (cut := cut_digest(plan, config.unit_rows)) else {}),
        config=to_dict(config),
        started=inputs.started,
        keep=inputs.keep,
        ties=inputs.ties,
        unit_timeout_seconds=config.unit_timeout_seconds,
        gpu_hour_price=config.gpu_hour_price,
        allow_version_change=config.allow_version_change,
    )


def options_of_the_output(config: ScoreConfig) -> dict[str, Any]:
    """The options that decide the output."""
    unused = [] if config.orders == "adaptive" else ["adaptive_threshold"]
    unused += [] if config.format != "canonical" else ["format"]  # runs of earlier versions do not name it
    unused += [] if config.make_ids else ["make_ids"]
    unused += [] if config.keep_columns else ["keep_columns"]
    unused += [] if config.on_bad_file == "skip" else ["on_bad_file"]
    unused += [] if config.duplicate_ids == "keep" else ["duplicate_ids"]
    return options(config, leave_out=(*NOT_OF_THE_OUTPUT, *unused))


def describe(run: ScoreRun) -> dict[str, Any]:
    """The plan in figures, which are printed too; tokens by a sample of rows, time by measured speeds."""
    from wsdm_ray.scoring.encode import encode_unit
    from wsdm_ray.scoring.expected import expected_time

    plan, models = run.plan, run.replica.models
    sampled = []
    for unit in sample_units(plan):
        table = encode_unit(narrowed(unit, 0, SAMPLED_ROWS // SAMPLES), models[:1])
        prefix, suffix = (table.column(name).combine_chunks() for name in ("prefix_0", "suffix_ab_0"))
        lengths = np.diff(prefix.offsets.to_numpy()) + np.diff(suffix.offsets.to_numpy())
        sampled.append(np.stack([lengths, table.column("cut_0").to_numpy() > 0]))
    tokens, cut = np.concatenate(sampled, axis=1)
    orderings = 2 if run.replica.orders in ("both", "adaptive") else 1  # adaptive: at most
    figures = {
        "rows": plan.rows,
        "units": len(plan.units),
        "models": len(models),
        "orderings": orderings,
        "sampled_rows": len(tokens),
        "tokens_per_ordering": round(float(tokens.mean()), 1),
        "cut_share": round(float(cut.mean()), 4),
        "tokens": int(tokens.mean() * plan.rows * orderings * len(models)),
    }
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):>20}  {value:,}")
    if run.cluster.assumed:
        print(f"{'cluster':>20}  not asked; with {assumption(run)}")
    tokens_each = figures["tokens"] / len(models)
    time_taken = expected_time(models, tokens_each, run.cluster.gpu, run.cluster.replicas, run.gpu_hour_price)
    for name, value in time_taken.lines():
        print(f"{name:>20}  {value}")
    if run.replica.orders == "adaptive" and time_taken.hours is not None:
        print(f"{'':>20}  at most: of rows that are not in doubt, fewer tokens are read")
    return figures | time_taken.figures()


def sample_units(plan: ScorePlan) -> list[WorkUnit]:
    """Units whose first rows stand for the input: of several files the first of some, of one file some of it.

    Rows far within a large row group are not reached without all that lies before them, so one file is
    sampled in its first units alone where its row groups are few.
    """
    firsts = [unit for unit in plan.units if unit.slices[0].start == 0]
    units = firsts if len(firsts) >= SAMPLES else list(plan.units[:SAMPLES])
    step = max(len(units) // SAMPLES, 1)
    return units[::step][:SAMPLES]


def assumption(run: ScoreRun) -> str:
    """On what the replicas run, and what follows from it."""
    precisions = sorted({model.precision for model in run.replica.models})
    here = " like this machine's" if run.cluster.on_gpu else ", like this machine"
    kind = ("GPUs" if run.cluster.on_gpu else "no GPU") + (here if run.cluster.assumed else "")
    return f"{kind}: {', '.join(precisions)}, {run.replica.layout} layout"
