"""Units through Ray Data: a task reads and encodes each, a replica scores it and commits its part.

Only a row of counts comes back. Not covered: which units there are, and what becomes of the counts
(`pipeline`).
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import ray.data

from wsdm_ray.failures import pack_final, unpack_error
from wsdm_ray.runs import check_same_numbers
from wsdm_ray.scoring.check import ScoreRun
from wsdm_ray.scoring.cluster import READER_CPUS, REPLICA_CPUS
from wsdm_ray.scoring.encode import encode_unit, table_to_bytes
from wsdm_ray.scoring.parts import UnitReport
from wsdm_ray.scoring.plan import WorkUnit
from wsdm_ray.scoring.progress import follow_replicas
from wsdm_ray.scoring.replica import Replica, ReplicaOptions
from wsdm_ray.storage import set_store_timeout
from wsdm_ray.telemetry import RowProgress

__all__ = ["score_units"]


def score_units(
    run: ScoreRun,
    units: Sequence[WorkUnit],
    replica_class: type[Replica] = Replica,
    on_report: Callable[[], None] = lambda: None,
) -> list[UnitReport]:
    """Score and commit `units`; returns a report of each, in the order in which they finished.

    Args:
        on_report: is called as each report comes; what it raises ends the run.

    Raises:
        WsdmRayError: what a user caused, in whatever process it came up.
        WorkerDefectError: a defect in another process.
    """
    rows = {unit.number: unit.rows for unit in units}
    progress = RowProgress("score", run.plan.rows, run.plan.rows - sum(rows.values()))
    finished: dict[int, UnitReport] = {}
    with follow_replicas(progress, rows, finished) as reporter:
        options = dataclasses.replace(run.replica, report_progress=reporter)
        for report in unit_reports(run, units, options, replica_class):
            progress.begin(seconds_ago=report.seconds)
            finished[report.unit] = report
            progress.advance(report.rows, report.forward_tokens)
            on_report()
    return list(finished.values())


def unit_reports(
    run: ScoreRun, units: Sequence[WorkUnit], options: ReplicaOptions, replica_class: type[Replica]
) -> Iterator[UnitReport]:
    """The dataset itself: units -> encoded -> reports, a row each, as they come."""
    quiet_ray_data()
    models, keep, store_timeout_seconds = options.models, run.keep, options.store_timeout_seconds

    def encode(batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        unit = units[int(batch["index"][0])]
        set_store_timeout(store_timeout_seconds, reached=True)
        try:
            check_same_numbers(options.numbers)
            encoded, error = table_to_bytes(encode_unit(unit, models, keep)), ""
        except Exception as failure:
            encoded, error = b"", pack_final(failure)
        return {"unit": [unit.number], "encoded": [encoded], "error": [error]}

    dataset = (
        ray.data.from_items([{"index": index} for index in range(len(units))], override_num_blocks=len(units))
        .map_batches(encode, batch_size=1, num_cpus=READER_CPUS)  # pyright: ignore[reportArgumentType]
        .map_batches(
            replica_class,
            fn_constructor_args=(options,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(run.cluster.replicas, len(units))),
            num_cpus=REPLICA_CPUS,
            num_gpus=1 if run.cluster.on_gpu else None,
        )
    )
    for row in dataset.iter_rows():
        report = UnitReport.from_row(row)
        if report.error:
            raise unpack_error(report.error)
        yield report


def quiet_ray_data() -> None:
    """Leave progress to us: Ray Data's own bars and execution logs say nothing of pairs or tokens."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that the bars are off
    # It warns that a replica asks for a GPU and CPUs, which is what it takes.
    logging.getLogger("ray.data._internal.execution.operators.map_operator").setLevel(logging.ERROR)
