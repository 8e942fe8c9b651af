"""Scoring on Ray Data: check the run, execute its units, report.

Unit k is read and encoded by a task, scored by a replica and written as `part-k` in one atomic put. A part
that is there when a run starts is not made again. Ray and torch take seconds to import, and Ray more to
start: they are, when all that needs neither has been checked. Not covered: how units travel (`ray_data`), and
how one is scored (`replica`, `engine`).
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wsdm_ray.config import ScoreConfig
from wsdm_ray.data.submission import submit
from wsdm_ray.errors import DataError
from wsdm_ray.preflight.job import cluster_at_hand
from wsdm_ray.runs import RUN_FILE, HeldRun, hold_run, numeric_versions, run_folder
from wsdm_ray.scoring.check import Cluster, ScoreRun, describe
from wsdm_ray.scoring.crash_records import list_crash_records, list_death_records
from wsdm_ray.scoring.error_kinds import ErrorKind, by_process
from wsdm_ray.scoring.finished import finished_run
from wsdm_ray.scoring.parts import (
    Scored,
    Totals,
    UnitReport,
    add_up,
    completed_units,
    delete_others,
    digest_of_sizes,
    part_sizes,
    parts_are_there,
)
from wsdm_ray.scoring.plan import check_inputs_unchanged
from wsdm_ray.scoring.preflight import checked
from wsdm_ray.scoring.run_status import slowest_units
from wsdm_ray.scoring.shared_inputs import shared_units
from wsdm_ray.storage import delete_file, join, read_json
from wsdm_ray.telemetry import counted, human, logger

if TYPE_CHECKING:
    from wsdm_ray.scoring.reader import Encode
    from wsdm_ray.scoring.replica import Replica

__all__ = ["check", "execute", "score"]

LOGGED_KINDS = 20
"""Kinds of errors that the log names at the end."""


def score(config: ScoreConfig) -> dict[str, Any]:
    """Score every row of the input; returns what run.json holds, or the figures of a dry run.

    Raises:
        DataError, ModelError, ConfigError: what was asked for cannot be done, found before anything runs.
        DataError: the run is strict, and rows ended their process; all is written.
        RunMismatchError: the output folder belongs to another run.
        ClusterError: one replica does not fit the cluster beside one reader.
    """
    if finished := finished_run(config):
        log_complete(config.output, finished)
        check_no_row_killed(config, finished)
        return finished
    run = check(config)
    if config.dry_run:
        return describe(run)
    written = execute(run)
    if config.submission:
        written = written | {"submission": submit(config, run.output, run.ties)}
    check_no_row_killed(config, written)  # when all is written, the submission too
    return written


def check(config: ScoreConfig) -> ScoreRun:
    """The run that `config` asks for. No folder is touched yet; what needs no cluster is checked first."""
    return checked(config, cluster_of)


def cluster_of(config: ScoreConfig) -> Cluster:
    """What the run takes of the cluster. A dry run starts none: without one it takes this machine for one."""
    replicas = None if config.replicas == "auto" else config.replicas
    if config.dry_run and not cluster_at_hand():
        from wsdm_ray.modeling.precision import default_device

        on_gpu = default_device() == "cuda"
        return Cluster(replicas=replicas or 1, on_gpu=on_gpu, threads=None, assumed=True)
    from wsdm_ray.scoring.cluster import check_cluster

    seconds = 0.0 if config.dry_run else config.wait_for_resources_seconds
    return check_cluster(replicas, config.precision, config.min_replicas, seconds)


def execute(
    run: ScoreRun, replica_class: "type[Replica] | None" = None, encode: "Encode | None" = None
) -> dict[str, Any]:
    """Score the units that are not done yet; returns what run.json holds.

    Args:
        replica_class: makes the replicas; by default `Replica`.
        encode: reads and encodes a unit; by default `encode_unit`.
    """
    from wsdm_ray.scoring.model_check import numeric_libraries

    libraries = numeric_libraries(run.replica.models, run.cluster.on_gpu)
    with hold_run(
        run.output,
        "score",
        run.fingerprint,
        run.restart,
        is_whole=lambda record: parts_are_there(run.plan, run.output, record.get("parts_digest")),
        numbers=numeric_versions(libraries),
        allow_version_change=run.allow_version_change,
    ) as held:
        if held.finished:
            log_complete(run.output, held.finished)
            return held.finished
        return score_rest(run, held, replica_class, encode)


def score_rest(
    run: ScoreRun, held: HeldRun, replica_class: "type[Replica] | None", encode: "Encode | None"
) -> dict[str, Any]:
    """Score the units of a run that are not done yet; returns what run.json holds."""
    replica = dataclasses.replace(run.replica, run_digest=held.digest, numbers=held.numbers)
    run = dataclasses.replace(run, replica=replica)
    completed = completed_units(run.plan, run.output, held.digest)
    held.check()
    delete_others(run.output, completed)
    units = [unit for unit in run.plan.units if unit.number not in completed]
    if completed:
        logger.info(
            "score: %d of %d parts are there, %s rows left",
            len(completed), len(run.plan.units), f"{sum(unit.rows for unit in units):,}",
        )  # fmt: skip
    scored = Scored()
    if units:
        from wsdm_ray.scoring.encode import encode_unit
        from wsdm_ray.scoring.ray_data import score_units
        from wsdm_ray.scoring.replica import Replica

        scored = score_units(
            run,
            shared_units(units, run.output),
            replica_class or Replica,
            lambda: held.check(reread=False),
            encode or encode_unit,
        )
    totals = add_up(run.plan, run.output, completed, scored.reports, held.digest)
    return report(run, held, totals, scored)


def log_complete(output: str, finished: Mapping[str, Any]) -> None:
    """Say that there is nothing to do."""
    logger.info("score: %s is complete already (%d rows)", output, finished["counts"]["rows"])


def report(run: ScoreRun, held: HeldRun, totals: Totals, scored: Scored) -> dict[str, Any]:
    """Write run.json, delete the crash records and log the totals; returns what run.json holds."""
    fresh, dropped = scored.reports, scored.dropped
    check_inputs_unchanged(run.plan)
    crash_records, death_records = list_crash_records(run.output), list_death_records(run.output)
    seconds = time.monotonic() - run.started
    adaptive = {"rerun": totals.rerun, "share_rerun": round(totals.rerun / totals.rows, 4)}
    content = {
        "config": run.config,
        "counts": totals.counts,
        "duplicate_ids": run.plan.duplicate_ids,
        "bad_files": [dataclasses.asdict(file) for file in run.plan.bad_files],
        "adaptive": adaptive if run.replica.orders == "adaptive" else None,
        "budget_halved": {"times": totals.halvings, "smallest": totals.smallest_budget},
        "replicas_lost": sum(len(read_json(path)) for path in crash_records),
        "processes_died": sum(len(read_json(path)) for path in death_records),
        "store_retries": scored.events.get("store_retried", 0),
        "preemptions": {"times": len(dropped), "rows_lost": sum(one.rows for one in dropped)},
        "rows_given_up": by_process(totals.kinds),
        "error_kinds": {name: dataclasses.asdict(kind) for name, kind in totals.kinds.items()},
        "throughput": throughput(fresh, seconds)
        | {"replicas": run.cluster.replicas, "gpu": run.cluster.on_gpu},
        "slowest_units": slowest_units(fresh),
        "parts_digest": digest_of_sizes(part_sizes(run.output)),
        "model_identities": [model.identity for model in run.replica.models],
    }
    written = held.finish(content)
    for path in (*crash_records, *death_records):
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
            "score: memory ran out: the token budget was halved %s, down to %d (--token-budget)",
            counted(totals.halvings, "time"), totals.smallest_budget,
        )  # fmt: skip
    if content["replicas_lost"]:
        logger.warning(
            "score: %s lost their GPU, each was replaced", counted(content["replicas_lost"], "replica")
        )
    if content["processes_died"]:
        logger.warning(
            "score: %s died or ran out of time; rows that ended theirs and have an error: %d",
            counted(content["processes_died"], "process", "processes"),
            content["rows_given_up"],
        )  # fmt: skip
    if content["preemptions"]["times"]:
        logger.info(
            "score: %s work was dropped as its process was asked to end or its node was lost; rows that were "
            "scored again: %d",
            counted(content["preemptions"]["times"], "time"), content["preemptions"]["rows_lost"],
        )  # fmt: skip
    if content["store_retries"]:
        logger.info(
            "score: %s to a store failed and were sent again", counted(content["store_retries"], "request")
        )
    if len(fresh) > 1:
        slowest = (
            f"{unit['unit']} ({unit['seconds']} s, {unit['rows']:,} rows)" for unit in slowest_units(fresh)
        )
        logger.info("score: the slowest units: %s", ", ".join(slowest))
    log_kinds(output, totals.kinds)


def log_kinds(output: str, kinds: Mapping[str, ErrorKind]) -> None:
    """Say which errors rows have: the most frequent kinds, and how many more there are."""
    for name, kind in [*kinds.items()][:LOGGED_KINDS]:
        logger.info("score: %d rows: %s; one is id %s", kind.rows, name, kind.example)
    more = [*kinds.values()][LOGGED_KINDS:]
    if more:
        logger.info(
            "score: %d rows have errors of %s more, which `error_kinds` in %s lists",
            sum(kind.rows for kind in more), counted(len(more), "kind"), join(run_folder(output), RUN_FILE),
        )  # fmt: skip


def check_no_row_killed(config: ScoreConfig, written: Mapping[str, Any]) -> None:
    """Raise `DataError` of a strict run where rows have no probability because their process died."""
    rows = written.get("rows_given_up", 0)
    if config.strict and rows:
        raise DataError(
            f"{config.output}: {rows} rows end the process that reads or scores them; their `error` says "
            "how, all other rows are scored (--strict)"
        )


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
