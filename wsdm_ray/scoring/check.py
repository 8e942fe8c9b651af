"""A run of `score` that has been checked: every option resolved once, before any folder is touched.

Not covered: what the cluster has (`cluster`), and executing the run (`pipeline`).
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from wsdm_ray.config import SUBMISSION_OPTIONS, Columns, ScoreConfig, to_dict
from wsdm_ray.errors import ConfigError
from wsdm_ray.modeling.classifier import model_config
from wsdm_ray.modeling.loading import local_base
from wsdm_ray.modeling.manifest import folder_digest, read_manifest
from wsdm_ray.modeling.precision import resolve_precision, scoring_layout, uses_fused_decoder
from wsdm_ray.runs import check_no_overlap, file_versions, options
from wsdm_ray.scoring.encode import encode_unit
from wsdm_ray.scoring.kept_columns import NO_COLUMNS, kept_schema
from wsdm_ray.scoring.models import ModelSpec
from wsdm_ray.scoring.plan import ScorePlan, WorkUnit, make_plan
from wsdm_ray.scoring.replica import ReplicaOptions
from wsdm_ray.storage import absolute, is_remote, list_files, local_copy

__all__ = ["NOT_OF_THE_OUTPUT", "Cluster", "ScoreRun", "check_models", "check_run", "describe"]

SAMPLED_ROWS = 200
"""A dry run estimates tokens from about this many rows."""

NOT_OF_THE_OUTPUT = (
    *("output", "restart", "dry_run", "replicas", "base", "model", "input", "precision"),
    *SUBMISSION_OPTIONS,
    "token_budget",  # decides what shares a micro-batch, which changes roundings alone
)
"""Options that may change when a run is resumed, or whose effect the fingerprint holds in another form."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a run takes of the cluster.

    threads: CPU threads of each replica; None leaves torch's default.
    capability: the least compute capability of the GPUs; None where the precision does not depend on it.
    """

    replicas: int
    on_gpu: bool
    threads: int | None
    capability: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class ScoreRun:
    """All that executing a run needs.

    output: the folder, as it was given. restart: delete what it holds.
    files, plan, columns: what is scored. keep: columns of the input that the output has, too.
    replica: how, in every replica. cluster: where.
    fingerprint: all that decides the output.
    config: every option as it was given, for run.json.
    started: `time.monotonic()` when the checks began, in seconds.
    """

    output: str
    restart: bool
    files: tuple[str, ...]
    plan: ScorePlan
    columns: Columns
    keep: pa.Schema = NO_COLUMNS
    replica: ReplicaOptions
    cluster: Cluster
    fingerprint: Mapping[str, Any]
    config: Mapping[str, Any]
    started: float


def check_run(config: ScoreConfig, cluster: Cluster) -> ScoreRun:
    """The run that `config` asks for, on a cluster that it fits.

    Raises:
        DataError, ModelError, ConfigError, StorageError: what was asked for cannot be done.
    """
    started = time.monotonic()
    files = list_files(config.input)
    check_no_overlap(config.output, [*config.input, *files, *config.model, *config.base])
    models = check_models(config, cluster)
    plan = make_plan(files, config.unit_rows, config.columns)
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
    )
    return ScoreRun(
        output=config.output,
        restart=config.restart,
        files=tuple(files),
        plan=plan,
        columns=config.columns,
        keep=kept_schema(plan, config.keep_columns),
        replica=replica,
        cluster=cluster,
        fingerprint={
            "options": options_of_the_output(config) | {"layout": replica.layout},
            "models": [model.fingerprint for model in models],
            "inputs": file_versions(files),
        },
        config=to_dict(config),
        started=started,
    )


def options_of_the_output(config: ScoreConfig) -> dict[str, Any]:
    """The options that decide the output."""
    unused = [] if config.orders == "adaptive" else ["adaptive_threshold"]
    if not config.keep_columns:  # runs of earlier versions do not name it
        unused.append("keep_columns")
    return options(config, leave_out=(*NOT_OF_THE_OUTPUT, *unused))


def check_models(config: ScoreConfig, cluster: Cluster) -> tuple[ModelSpec, ...]:
    """The models, with digests of their files. Every part is checked to be there, to fit, to be supported."""
    models = []
    bases = config.base if len(config.base) > 1 else (config.base or (None,)) * len(config.model)
    for folder, base in zip(config.model, bases, strict=True):
        local = local_copy(folder)
        manifest = read_manifest(local)
        if config.max_tokens:
            text = dataclasses.replace(manifest.text, max_tokens=config.max_tokens)
            manifest = dataclasses.replace(manifest, text=text)
        if config.token_budget is not None and config.token_budget < 2 * manifest.text.max_tokens:
            raise ConfigError(
                f"--token-budget {config.token_budget}: must be at least twice the "
                f"{manifest.text.max_tokens} tokens that one ordering may have in {folder}"
            )
        weights = local_base(local, manifest, base, verify=True) if manifest.kind == "adapter" else local
        model_config(weights)
        device = "cuda" if cluster.on_gpu else "cpu"
        models.append(
            ModelSpec(
                folder=folder if is_remote(folder) else local,
                base=absolute(base) if base else None,
                manifest=manifest,
                precision=resolve_precision(config.precision, device, manifest, cluster.capability),
                digest=folder_digest(local),
            )
        )
    return tuple(models)


def fastest_layout(models: Sequence[ModelSpec], on_gpu: bool) -> str:
    """The layout that all models of a run share."""
    device = "cuda" if on_gpu else "cpu"
    fused = [uses_fused_decoder(model.precision, device, model.manifest) for model in models]
    return scoring_layout(fused, device)


def describe(run: ScoreRun) -> dict[str, Any]:
    """The plan in figures, which are printed too; tokens by a sample of rows."""
    plan, models = run.plan, run.replica.models
    step = max(len(plan.units) // 4, 1)
    sampled = []
    for unit in plan.units[::step][:4]:
        few = WorkUnit(unit.number, unit.path, unit.start, min(unit.rows, SAMPLED_ROWS // 4))
        table = encode_unit(few, models[:1], run.columns)
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
    return figures
