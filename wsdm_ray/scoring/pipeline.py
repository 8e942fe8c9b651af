"""Scoring on Ray Data: plan the units, encode them, score and commit each, and account for all of them.

Unit k is read and encoded by a task, scored by a replica and written as `part-k` in one atomic put; only a
row of counts comes back. What is there when a run starts is not done again. Not covered: how a unit is scored
(`replica`, `engine`).
"""

import dataclasses
import json
import logging
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wsdm_ray import errors
from wsdm_ray.config import ScoreConfig, to_dict
from wsdm_ray.errors import ClusterError, ConfigError, DataError, WsdmRayError
from wsdm_ray.modeling.loading import local_base
from wsdm_ray.modeling.manifest import folder_digest, read_manifest
from wsdm_ray.modeling.precision import BY_CAPABILITY, resolve_precision, scoring_layout, uses_fused_decoder
from wsdm_ray.runs import check_no_overlap, file_versions, finish_run, names_in, open_run, options
from wsdm_ray.scoring.models import ModelSpec
from wsdm_ray.scoring.plan import ScorePlan, WorkUnit, make_plan, part_name
from wsdm_ray.scoring.replica import (
    COUNTS,
    CRASH_RECORD_NAME,
    Replica,
    ReplicaOptions,
    encode_unit,
    pack_error,
    to_bytes,
)
from wsdm_ray.storage import (
    absolute,
    delete_file,
    is_remote,
    join,
    list_files,
    local_copy,
    open_parquet,
    read_json,
)
from wsdm_ray.telemetry import human, logger, track_rows

__all__ = ["score"]

READER_CPUS = (
    0.5  # a fraction, so that readers fit beside replicas; not a replica's share, or Ray Data fuses the two
)
REPLICA_CPUS = 1
SAMPLED_ROWS = 200
PART_NAME = re.compile(r"part-\d{6}\.parquet")

NOT_OF_THE_OUTPUT = (
    *("output", "restart", "dry_run", "replicas", "base", "model", "input", "precision"),
    "token_budget",  # decides what shares a pass, which changes roundings alone
)
"""Options that a run may go on with changed, or whose effect the fingerprint holds in another form."""


def score(config: ScoreConfig) -> dict[str, Any]:
    """Score every row of the input; returns what run.json holds.

    Raises:
        DataError, ModelError, ConfigError: what was asked for cannot be done, found before anything runs.
        RunMismatchError: the output folder belongs to another run.
        ClusterError: one replica does not fit the cluster beside one reader.
    """
    started = time.monotonic()
    files = list_files(config.input)
    check_no_overlap(config.output, [*config.input, *files, *config.model, *config.base])
    replicas, on_gpu = fit_cluster(config.replicas)
    models, digests = check_models(config, "cuda" if on_gpu else "cpu")
    plan = make_plan(files, config.unit_rows, config.columns)
    if config.dry_run:
        return describe(plan, models, config)
    settings = replica_options(config, plan, models, replicas, on_gpu)
    fingerprint = {
        "options": options(
            config,
            leave_out=(*NOT_OF_THE_OUTPUT, *(() if config.orders == "adaptive" else ("adaptive_threshold",))),
        )
        | {"layout": settings.layout},
        "models": digests,
        "inputs": file_versions(files),
    }
    earlier = open_run(config.output, "score", fingerprint, config.restart)
    committed = completed_units(plan, config.output)
    if earlier and len(committed) == len(plan.units):
        logger.info("score: %s is complete already (%d rows)", config.output, earlier["counts"]["rows"])
        return earlier
    todo = [unit for unit in plan.units if unit.number not in committed]
    fresh = run_units(todo, plan, settings, config, replicas, on_gpu)
    counts, oom_backoff = account(plan, config.output, committed, fresh)
    losses = list_crash_records(config.output)
    seconds = time.monotonic() - started
    run = finish_run(
        config.output,
        "score",
        fingerprint,
        {
            "config": to_dict(config),
            "counts": counts,
            "adaptive": {"rerun": counts["rerun"], "share_rerun": round(counts["rerun"] / counts["rows"], 4)}
            if config.orders == "adaptive"
            else None,
            "budget_halved": oom_backoff,
            "replicas_lost": sum(len(read_json(path)) for path in losses),
            "throughput": throughput(fresh, seconds) | {"replicas": replicas, "gpu": on_gpu},
        },
    )
    for path in losses:
        delete_file(path)
    logger.info(
        "score: %d rows in %s, %d with an error, %d cut; %.0f s, %s pairs/s",
        counts["rows"], config.output, counts["errors"], counts["cut"], seconds,
        human(sum(report["rows"] for report in fresh) / seconds),
    )  # fmt: skip
    if oom_backoff["times"]:
        logger.warning(
            "score: memory ran out: the token budget was halved %d times, down to %d (--token-budget)",
            oom_backoff["times"], oom_backoff["smallest"],
        )  # fmt: skip
    if run["replicas_lost"]:
        logger.warning("score: %d replicas lost their GPU and were replaced", run["replicas_lost"])
    return run


def check_models(config: ScoreConfig, device: str) -> tuple[tuple[ModelSpec, ...], list[dict[str, Any]]]:
    """The models, and digests of all that decides their output. Every part is checked to be there and fit.

    Args:
        device: of the replicas, `cuda` or `cpu`.
    """
    asks_the_gpu = device == "cuda" and config.precision in BY_CAPABILITY
    capability = gpu_capability() if asks_the_gpu else None
    models, digests = [], []
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
        if manifest.kind == "adapter":
            local_base(local, manifest, base, verify=True)
        shared = folder if is_remote(folder) else local
        precision = resolve_precision(config.precision, device, manifest, capability)
        models.append(ModelSpec(shared, absolute(base) if base else None, manifest, precision))
        digests.append(
            {
                "digest": folder_digest(local),
                "base_digest": manifest.base_digest,
                "precision": precision,
            }
        )
    return tuple(models), digests


def gpu_capability() -> tuple[int, int]:
    """The least compute capability of the cluster's GPUs, so that every replica has what it takes.

    A task on each node asks: a driver that was submitted as a job sees no GPU, and may be on a node without.
    """
    ask = ray.remote(num_gpus=0.01, num_cpus=0)(torch.cuda.get_device_capability)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    if len(nodes) == 1 and torch.cuda.is_available():  # its own
        return torch.cuda.get_device_capability()
    there = (NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes)
    return min(ray.get([ask.options(scheduling_strategy=strategy).remote() for strategy in there]))


def fit_cluster(asked: int | None) -> tuple[int, bool]:
    """How many replicas to run, and whether each holds a GPU.

    Raises:
        ClusterError: they do not fit the cluster's nodes beside one reader: the run would wait for ever.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    cpus = sum(node.get("CPU", 0) for node in nodes)
    # A machine without GPU runs one replica over all of its cores: products in one process share a cache.
    wanted = asked or max(gpus, 1)
    fits = [
        int(min(node.get("CPU", 0) // REPLICA_CPUS, node.get("GPU", 0) if gpus else np.inf)) for node in nodes
    ]
    left = [node.get("CPU", 0) - fit * REPLICA_CPUS for node, fit in zip(nodes, fits, strict=True)]
    # Where all nodes are full to the brim, one replica fewer makes room for a reader.
    if wanted > sum(fits) - (not any(cpu >= READER_CPUS for cpu in left)):
        kind = f"{REPLICA_CPUS} CPU and 1 GPU" if gpus else f"{REPLICA_CPUS} CPU"
        raise ClusterError(
            f"the cluster has {cpus:g} CPUs and {gpus} GPUs: too small for {wanted} replicas of {kind} "
            f"beside one reader of {READER_CPUS} CPU; add nodes"
            + (" or lower --replicas" if wanted > 1 else "")
        )
    return wanted, gpus > 0


def replica_options(
    config: ScoreConfig, plan: ScorePlan, models: tuple[ModelSpec, ...], replicas: int, on_gpu: bool
) -> ReplicaOptions:
    """What each replica is told, with every `auto` resolved."""
    return ReplicaOptions(
        models=models,
        output=absolute(config.output),
        id_type=plan.id_type,
        orders=config.orders,
        layout=fastest_layout(models, on_gpu) if config.layout == "auto" else config.layout,
        token_budget=config.token_budget,
        adaptive_threshold=config.adaptive_threshold,
        model_weights=config.model_weights,
        logits=config.logits,
        threads=None if on_gpu else max(int(ray.cluster_resources().get("CPU", 1)) // replicas, 1),
    )


def fastest_layout(models: Sequence[ModelSpec], on_gpu: bool) -> str:
    """`shared` where stacks run on GPUs; dense masks of long rows cost more than padding of short ones."""
    device = "cuda" if on_gpu else "cpu"
    fused = [uses_fused_decoder(model.precision, device, model.manifest) for model in models]
    return scoring_layout(fused, device)


def run_units(
    units: Sequence[WorkUnit],
    plan: ScorePlan,
    settings: ReplicaOptions,
    config: ScoreConfig,
    replicas: int,
    on_gpu: bool,
) -> list[dict[str, Any]]:
    """Score and commit `units`; returns the counts of each, in the order in which they finished."""
    reports: list[dict[str, Any]] = []
    with track_rows("score", plan.rows, plan.rows - sum(unit.rows for unit in units)) as progress:
        for report in reports_of(units, settings, config, min(replicas, max(len(units), 1)), on_gpu):
            progress.advance(report["rows"], report["forward_tokens"])
            reports.append(report)
    return reports


def reports_of(
    units: Sequence[WorkUnit], settings: ReplicaOptions, config: ScoreConfig, replicas: int, on_gpu: bool
) -> Iterator[dict[str, Any]]:
    """The dataset itself: units -> encoded -> counts, a row each, as they come."""
    if not units:
        return
    quiet_ray_data()
    models, columns = settings.models, config.columns

    def encode(batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        unit = units[int(batch["index"][0])]
        try:
            return {
                "unit": [unit.number],
                "encoded": [to_bytes(encode_unit(unit, models, columns))],
                "error": [""],
            }
        except WsdmRayError as error:  # Ray Data would bring it back as text
            return {"unit": [unit.number], "encoded": [b""], "error": [pack_error(error)]}

    dataset = (
        ray.data.from_items([{"index": index} for index in range(len(units))], override_num_blocks=len(units))
        .map_batches(encode, batch_size=1, num_cpus=READER_CPUS)  # pyright: ignore[reportArgumentType]
        .map_batches(
            Replica,
            fn_constructor_args=(settings,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=replicas),
            num_cpus=REPLICA_CPUS,
            num_gpus=1 if on_gpu else None,
        )
    )
    for report in dataset.iter_rows():
        if report["error"]:
            kind, text = json.loads(report["error"])
            raise getattr(errors, kind, WsdmRayError)(text)
        yield report


def quiet_ray_data() -> None:
    """Leave progress to us: Ray Data's own bars and execution logs say nothing of pairs or tokens."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that the bars are off


def completed_units(plan: ScorePlan, output: str) -> dict[int, dict[str, Any]]:
    """Counts of the units whose parts are there and are theirs; a part that is not is scored again."""
    found = {}
    units = {unit.number: unit for unit in plan.units}
    for number, path in list_parts(output).items():
        try:
            counts = counts_of(path)
        except DataError as error:
            logger.warning("score: %s; its rows are scored again", error)
            continue
        if counts.get("unit") == number and number in units and counts["rows"] == units[number].rows:
            found[number] = counts
        else:
            logger.warning("score: %s: is not the part of that number; its rows are scored again", path)
    return found


def counts_of(path: str) -> dict[str, Any]:
    """What a part's footer says of it. Raises `DataError` where it is not parquet."""
    with open_parquet(path) as file:
        return json.loads((file.metadata.metadata or {}).get(COUNTS, b"{}"))


def list_parts(output: str) -> dict[int, str]:
    """Number to path of the parts that are there."""
    return {int(name[5:11]): join(output, name) for name in names_in(output) if PART_NAME.fullmatch(name)}


def account(
    plan: ScorePlan, output: str, committed: dict[int, dict[str, Any]], fresh: Sequence[dict[str, Any]]
) -> tuple[dict[str, int], dict[str, int | None]]:
    """Counts over all parts, and how often memory ran out (`times`) and the `smallest` token budget since.

    Raises:
        DataError: not every input row is in exactly one part.
    """
    by_unit = {report["unit"]: report for report in fresh} | committed
    there = list_parts(output)  # asked anew: a replica on another machine may have another disk
    wrong = [
        unit
        for unit in plan.units
        if unit.number not in there or by_unit.get(unit.number, {}).get("rows") != unit.rows
    ]
    if wrong:
        raise DataError(
            f"{join(output, part_name(wrong[0].number))}: missing or not of {wrong[0].rows} rows; "
            "delete it and run again, with an --output that all nodes share"
        )
    totals = {
        name: sum(int(by_unit[unit.number].get(name, 0)) for unit in plan.units)
        for name in ("rows", "errors", "cut", "tokens", "rerun")
    }
    short = [report for report in by_unit.values() if report.get("halved")]
    oom_backoff = {
        "times": sum(int(report["halved"]) for report in short),
        "smallest": min((int(report["token_budget"]) for report in short), default=None),
    }
    return totals | {"units": len(plan.units), "resumed_units": len(committed)}, oom_backoff


def list_crash_records(output: str) -> list[str]:
    """Paths of what replicas that lost their GPU left behind."""
    return [join(output, name) for name in names_in(output) if CRASH_RECORD_NAME.fullmatch(name)]


def throughput(fresh: Sequence[dict[str, Any]], seconds: float) -> dict[str, float]:
    """Speed of this run's own share; `busy` is the time within replicas, without start-up."""
    rows, busy = sum(report["rows"] for report in fresh), sum(report["seconds"] for report in fresh)
    processes = max(len({report["process"] for report in fresh}), 1)
    return {
        "seconds": round(seconds, 2),
        "pairs_per_second": round(rows / max(seconds, 1e-9), 2),
        "busy_seconds": round(busy, 2),
        "busy_pairs_per_second": round(rows * processes / max(busy, 1e-9), 2),
        "padded_tokens": int(sum(report["forward_tokens"] for report in fresh)),
    }


def describe(plan: ScorePlan, models: Sequence[ModelSpec], config: ScoreConfig) -> dict[str, Any]:
    """The plan in figures, tokens by a sample of rows."""
    step = max(len(plan.units) // 4, 1)
    sampled = []
    for unit in plan.units[::step][:4]:
        few = WorkUnit(unit.number, unit.path, unit.start, min(unit.rows, SAMPLED_ROWS // 4))
        table = encode_unit(few, models[:1], config.columns)
        prefix, suffix = (table.column(name).combine_chunks() for name in ("prefix_0", "suffix_ab_0"))
        lengths = np.diff(prefix.offsets.to_numpy()) + np.diff(suffix.offsets.to_numpy())
        sampled.append(np.stack([lengths, table.column("cut_0").to_numpy() > 0]))
    tokens, cut = np.concatenate(sampled, axis=1)
    orderings = 2 if config.orders in ("both", "adaptive") else 1  # adaptive: at most
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
