"""Scoring on Ray Data: check the run, execute its units, report.

Unit k is read and encoded by a task, scored by a replica and written as `part-k` in one atomic put; only a
row of counts comes back. A part that is there when a run starts is not made again. Not covered: how a unit is
scored (`replica`, `engine`).
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import ray.data

from wsdm_ray import errors
from wsdm_ray.config import ScoreConfig
from wsdm_ray.data.submission import check_submission, submit
from wsdm_ray.errors import WsdmRayError
from wsdm_ray.runs import finish_run, open_run
from wsdm_ray.scoring.check import ScoreRun, check_run, describe
from wsdm_ray.scoring.cluster import READER_CPUS, REPLICA_CPUS, check_cluster
from wsdm_ray.scoring.crash_records import list_crash_records
from wsdm_ray.scoring.encode import encode_unit, table_to_bytes
from wsdm_ray.scoring.parts import Totals, UnitReport, add_up, completed_units
from wsdm_ray.scoring.plan import WorkUnit
from wsdm_ray.scoring.replica import Replica, pack_error
from wsdm_ray.storage import delete_file, read_json
from wsdm_ray.telemetry import human, logger, track_rows

__all__ = ["check", "execute", "score"]


def score(config: ScoreConfig) -> dict[str, Any]:
    """Score every row of the input; returns what run.json holds, or the figures of a dry run.

    Raises:
        DataError, ModelError, ConfigError: what was asked for cannot be done, found before anything runs.
        RunMismatchError: the output folder belongs to another run.
        ClusterError: one replica does not fit the cluster beside one reader.
    """
    run = check(config)
    ties = check_submission(config, run.output, [*config.input, *run.files, *config.model, *config.base])
    if config.dry_run:
        return describe(run)
    written = execute(run)
    return written | {"submission": submit(config, run.output, ties)} if config.submission else written


def check(config: ScoreConfig) -> ScoreRun:
    """The run that `config` asks for. No folder is touched yet."""
    return check_run(config, check_cluster(config.replicas, config.precision))


def execute(run: ScoreRun, replica_class: type[Replica] = Replica) -> dict[str, Any]:
    """Score the units that are not done yet; returns what run.json holds."""
    finished = open_run(run.output, "score", run.fingerprint, run.restart)
    completed = completed_units(run.plan, run.output)
    if finished and len(completed) == len(run.plan.units):
        logger.info("score: %s is complete already (%d rows)", run.output, finished["counts"]["rows"])
        return finished
    units = [unit for unit in run.plan.units if unit.number not in completed]
    fresh = score_units(run, units, replica_class)
    totals = add_up(run.plan, run.output, completed, fresh)
    return report(run, totals, fresh)


def score_units(run: ScoreRun, units: Sequence[WorkUnit], replica_class: type[Replica]) -> list[UnitReport]:
    """Score and commit `units`; returns a report of each, in the order in which they finished."""
    fresh: list[UnitReport] = []
    with track_rows("score", run.plan.rows, run.plan.rows - sum(unit.rows for unit in units)) as progress:
        for unit_report in unit_reports(run, units, replica_class):
            progress.advance(unit_report.rows, unit_report.forward_tokens)
            fresh.append(unit_report)
    return fresh


def unit_reports(
    run: ScoreRun, units: Sequence[WorkUnit], replica_class: type[Replica]
) -> Iterator[UnitReport]:
    """The dataset itself: units -> encoded -> reports, a row each, as they come."""
    if not units:
        return
    quiet_ray_data()
    models, columns, keep = run.replica.models, run.columns, run.keep

    def encode(batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        unit = units[int(batch["index"][0])]
        try:
            encoded, error = table_to_bytes(encode_unit(unit, models, columns, keep)), ""
        except WsdmRayError as failure:
            encoded, error = b"", pack_error(failure)
        return {"unit": [unit.number], "encoded": [encoded], "error": [error]}

    dataset = (
        ray.data.from_items([{"index": index} for index in range(len(units))], override_num_blocks=len(units))
        .map_batches(encode, batch_size=1, num_cpus=READER_CPUS)  # pyright: ignore[reportArgumentType]
        .map_batches(
            replica_class,
            fn_constructor_args=(run.replica,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(run.cluster.replicas, len(units))),
            num_cpus=REPLICA_CPUS,
            num_gpus=1 if run.cluster.on_gpu else None,
        )
    )
    for row in dataset.iter_rows():
        unit_report = UnitReport.from_row(row)
        if unit_report.error:
            kind, text = json.loads(unit_report.error)
            raise getattr(errors, kind, WsdmRayError)(text)
        yield unit_report


def quiet_ray_data() -> None:
    """Leave progress to us: Ray Data's own bars and execution logs say nothing of pairs or tokens."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that the bars are off


def report(run: ScoreRun, totals: Totals, fresh: Sequence[UnitReport]) -> dict[str, Any]:
    """Write run.json, delete the crash records and log the totals; returns what run.json holds."""
    crash_records = list_crash_records(run.output)
    seconds = time.monotonic() - run.started
    adaptive = {"rerun": totals.rerun, "share_rerun": round(totals.rerun / totals.rows, 4)}
    content = {
        "config": run.config,
        "counts": totals.counts,
        "adaptive": adaptive if run.replica.orders == "adaptive" else None,
        "budget_halved": {"times": totals.halvings, "smallest": totals.smallest_budget},
        "replicas_lost": sum(len(read_json(path)) for path in crash_records),
        "throughput": throughput(fresh, seconds)
        | {"replicas": run.cluster.replicas, "gpu": run.cluster.on_gpu},
    }
    written = finish_run(run.output, "score", run.fingerprint, content)
    for path in crash_records:
        delete_file(path)
    log_totals(run.output, totals, content, fresh, seconds)
    return written


def log_totals(
    output: str, totals: Totals, content: Mapping[str, Any], fresh: Sequence[UnitReport], seconds: float
) -> None:
    """Say what was scored, how fast, and what went wrong on the way."""
    logger.info(
        "score: %d rows in %s, %d with an error, %d cut; %.0f s, %s pairs/s",
        totals.rows, output, totals.errors, totals.cut, seconds,
        human(sum(unit_report.rows for unit_report in fresh) / seconds),
    )  # fmt: skip
    if totals.halvings:
        logger.warning(
            "score: memory ran out: the token budget was halved %d times, down to %d (--token-budget)",
            totals.halvings, totals.smallest_budget,
        )  # fmt: skip
    if content["replicas_lost"]:
        logger.warning("score: %d replicas lost their GPU and were replaced", content["replicas_lost"])


def throughput(fresh: Sequence[UnitReport], seconds: float) -> dict[str, float]:
    """Speed of this run's own share; `busy` is the time within replicas, without start-up."""
    rows, busy = sum(report.rows for report in fresh), sum(report.seconds for report in fresh)
    processes = max(len({report.process for report in fresh}), 1)
    return {
        "seconds": round(seconds, 2),
        "pairs_per_second": round(rows / max(seconds, 1e-9), 2),
        "busy_seconds": round(busy, 2),
        "busy_pairs_per_second": round(rows * processes / max(busy, 1e-9), 2),
        "padded_tokens": int(sum(report.forward_tokens for report in fresh)),
    }
