"""Units through Ray Data: a task reads and encodes each, a replica scores it and commits its part.

Only a row of counts comes back. Both halves run in child processes, whose deaths their Ray workers outlive
(`supervision`). Where a Ray worker itself is lost, Ray Data goes on without what it had at hand, and those
units are run in another pass. Not covered: which units there are, and what becomes of the counts
(`pipeline`).
"""

import contextlib
import dataclasses
import functools
import gc
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import ray.data
from ray import cloudpickle

from wsdm_ray.errors import ClusterError
from wsdm_ray.events import Event
from wsdm_ray.failures import unpack_error
from wsdm_ray.runs import run_folder
from wsdm_ray.scoring.check import ScoreRun
from wsdm_ray.scoring.cluster import READER_CPUS, REPLICA_CPUS, fit_readers, replicas_that_fit, waited_for
from wsdm_ray.scoring.coordinator import Coordinator, RayCoordination
from wsdm_ray.scoring.crash_records import UnitStage, read_deaths, write_deaths
from wsdm_ray.scoring.encode import encode_unit
from wsdm_ray.scoring.isolation import Part, PartDeath
from wsdm_ray.scoring.parts import Scored, UnitReport
from wsdm_ray.scoring.plan import WorkUnit
from wsdm_ray.scoring.pool import LOST_SECONDS, Pool, first_slots
from wsdm_ray.scoring.progress import Follower, Reporter, following
from wsdm_ray.scoring.read_ahead import data_context, most_open_units
from wsdm_ray.scoring.reader import Encode, reader_of_process, reading
from wsdm_ray.scoring.replica import Replica
from wsdm_ray.scoring.replica_slot import ReplicaSlot, replicating
from wsdm_ray.scoring.supervision import Supervision
from wsdm_ray.session import actor_here
from wsdm_ray.telemetry import RowProgress, logger
from wsdm_ray.waiting import nodes_that_stay

__all__ = ["score_units"]

MAX_IDLE_PASSES = 3
"""The run fails when so many passes in a row neither finished a unit nor lost one that was begun."""

LOST = "process died: its Ray worker was lost"
PREEMPTED = "its node was taken away, or its process was asked to end"

SHOWN = 10
"""At most so many units are named in a line."""


def score_units(
    run: ScoreRun,
    units: Sequence[WorkUnit],
    replica_class: type[Replica] = Replica,
    on_report: Callable[[], None] = lambda: None,
    encode: Encode = encode_unit,
) -> Scored:
    """Score and commit `units`.

    Args:
        on_report: is called as each report comes; what it raises ends the run.

    Raises:
        WsdmRayError: what a user caused, in whatever process it came up.
        WorkerDefectError: a defect in another process.
    """
    rows = {unit.number: unit.rows for unit in units}
    progress = RowProgress("score", run.plan.rows, run.plan.rows - sum(rows.values()))
    finished: dict[int, UnitReport] = {}
    coordinator = actor_here(Coordinator)
    left, idle = list(units), 0
    folder = run_folder(run.output)
    follower = Follower(coordinator, progress, rows, finished, folder, gpu_price(run, run.cluster.replicas))
    with following(follower) as reporter, said_at_the_end(units, finished):
        while left:
            pool = pool_of(run, left, coordinator, follower)
            for report in unit_reports(run, left, coordinator, reporter, replica_class, encode, pool):
                progress.begin(seconds_ago=report.seconds)
                finished[report.unit] = dataclasses.replace(report, kinds="")  # they are read from the parts
                progress.advance(report.rows, report.forward_tokens)
                on_report()
            gc.collect()  # Ray Data leaves the replicas of a pass to it; until then they hold GPUs and CPUs
            before, left = left, [unit for unit in left if unit.number not in finished]
            begun = record_lost(run.output, left, coordinator)
            idle = 0 if begun or len(left) < len(before) else idle + 1
            if idle == MAX_IDLE_PASSES:
                raise ClusterError(
                    f"unit {left[0].number}: its processes are lost before they begin it; see the logs of "
                    "Ray's workers, and run again"
                )
    dropped: Any = ray.get(coordinator.dropped.remote())
    ray.kill(coordinator)  # else its process lives until Python's garbage collection
    return Scored([*finished.values()], dropped, follower.log.counts)


@contextlib.contextmanager
def said_at_the_end(units: Sequence[WorkUnit], finished: Mapping[int, UnitReport]) -> Iterator[None]:
    """Where the run is stopped, by a signal, a line says what is done and how to go on."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        logger.warning(
            "score: stopped; of %d units that were left, %d are committed and none of them is scored again: "
            "run the same command to go on",
            len(units), len(finished),
        )  # fmt: skip
        raise


def gpu_price(run: ScoreRun, replicas: int) -> float | None:
    """The price of the run's GPUs for a second; None where it is not known or there are none."""
    if run.gpu_hour_price is None or not run.cluster.on_gpu:
        return None
    return run.gpu_hour_price * replicas / 3600


def pool_of(run: ScoreRun, units: Sequence[WorkUnit], coordinator: Any, follower: Follower) -> Pool:
    """The replicas and readers of a pass, which begins when the cluster has room for one.

    Raises:
        ClusterError: it has not, for too long.
    """
    seconds = max(run.cluster.wait_seconds, LOST_SECONDS)
    poll = functools.partial(room_now, run.cluster.most, run.cluster.on_gpu)
    room, readers = waited_for(poll, 1, run.cluster.on_gpu, seconds)

    def resized(slots: int, there: int) -> None:
        follower.set_gpu_price(gpu_price(run, there))
        coordinator.resize.remote(slots)

    pool = Pool(
        slots=first_slots(room, len(units), run.cluster.most, run.cluster.limit),
        readers=readers,
        units=len(units),
        poll=functools.partial(working_room, poll, coordinator),
        resized=resized,
        wait_seconds=seconds,
    )
    ray.get(coordinator.begin_pass.remote(pool.slots, units))
    pool.note(room)
    return pool


def room_now(most: int | None, on_gpu: bool) -> tuple[int, int]:
    """How many replicas the cluster has room for now, of `most`, and how many readers beside them."""
    nodes = ray.nodes()
    replicas = replicas_that_fit(nodes, most, on_gpu)
    cpus = sum(node["Resources"].get("CPU", 0) for node in nodes if node["Alive"])
    return replicas, fit_readers(cpus, replicas)


def working_room(room: Callable[[], tuple[int, int]], coordinator: Any) -> tuple[int, int]:
    """The same, where a replica that there is room for can start, or may.

    Args:
        room: `room_now`, of this run.

    Raises:
        ClusterError: all of them were given up. Those on nodes that are gone do not count.
    """
    replicas, readers = room()
    reasons = ray.get(coordinator.given_up_on.remote(nodes_that_stay()))
    if len(reasons) >= replicas:
        raise ClusterError(f"all {replicas} replicas that nodes have room for cannot start: {reasons[-1]}")
    return replicas, readers


def record_lost(output: str, left: Sequence[WorkUnit], coordinator: Any) -> int:
    """Put on record what was run by Ray workers that were lost; returns how many parts of units that were.

    What was lost with a node, or with a worker that was asked to end, is counted against no unit.
    """
    if not left:
        return 0
    taken = coordinator.take_preempted.remote(nodes_that_stay(), PREEMPTED)
    preempted: Mapping[UnitStage, Part] = ray.get(taken)
    running: Mapping[UnitStage, Part]
    running, _, _ = ray.get(coordinator.state.remote())
    deaths, numbers = read_deaths(output), {unit.number for unit in left}
    begun = {stage: part for stage, part in running.items() if stage[1] in numbers}
    for stage, part in begun.items():
        death = PartDeath(start=part.start, stop=part.stop, reason=LOST)
        write_deaths(output, stage, [*deaths.get(stage, ()), death])
    some = ", ".join(str(unit.number) for unit in left[:SHOWN]) + ", ..." * (len(left) > SHOWN)
    reason = f"units {some} were lost with their Ray workers, and are run again"
    coordinator.tell.remote(Event(kind="unit_lost", count=len(left), reason=reason))
    return len(begun) + len(preempted)


def unit_reports(
    run: ScoreRun,
    units: Sequence[WorkUnit],
    coordinator: Any,
    reporter: Reporter,
    replica_class: type[Replica],
    encode: Encode,
    pool: Pool,
) -> Iterator[UnitReport]:
    """One pass over the units: a report of each that no Ray worker was lost with, as they come."""
    supervision = Supervision(
        target=pickled(
            reading,
            encode,
            run.replica.models,
            run.keep,
            run.replica.numbers,
            run.replica.store_timeout_seconds,
        ),
        output=run.replica.output,
        coordination=RayCoordination(coordinator),
        timeout_seconds=run.unit_timeout_seconds,
        store_timeout_seconds=run.replica.store_timeout_seconds,
        deaths=read_deaths(run.output),
    )
    for row in dataset(run, units, supervision, reporter, replica_class, pool).iter_rows():
        report = UnitReport.from_row(row)
        if report.error:
            raise unpack_error(report.error)
        yield report


def dataset(
    run: ScoreRun,
    units: Sequence[WorkUnit],
    supervision: Supervision,
    reporter: Reporter,
    replica_class: type[Replica],
    pool: Pool,
) -> "ray.data.Dataset":
    """The dataset itself: units -> encoded -> reports, a row each."""
    limit, coordination = most_open_units(pool.slots, pool.readers), supervision.coordination
    key = uuid.uuid4().hex
    replicas = dataclasses.replace(supervision, target=pickled(replicating, replica_class, run.replica))

    def read(batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        index = int(batch["index"][0])
        if index >= limit:
            coordination.wait_for_replica()
        encoded = reader_of_process(key, supervision)(coordination.unit_at(index))
        return {name: [value] for name, value in encoded.items()}

    # It warns of `max_retries` and `max_task_retries`, which later versions lack; Ray is pinned.
    with warnings.catch_warnings(), ray.data.DataContext.current(data_context(pool)):
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        # Units alone by the coordinator: in the closure, each task would unpickle all of them; in the items,
        # each would stay in the object store to the end of the pass.
        items = [{"index": index} for index in range(len(units))]
        return (
            ray.data.from_items(items, override_num_blocks=len(units))
            .map_batches(
                read,  # pyright: ignore[reportArgumentType]
                batch_size=1,
                compute=ray.data.TaskPoolStrategy(),  # `pool` says how many
                # Without GPUs, a replica that Ray restarts on another node may take all CPUs that are left.
                num_cpus=READER_CPUS if run.cluster.on_gpu else 0,
                max_retries=0,
            )
            .map_batches(
                type(replica_class.__name__, (ReplicaSlot,), {}),  # by its name, Ray shows it
                fn_constructor_args=(replicas, reporter),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=pool.slots),
                num_cpus=REPLICA_CPUS,
                num_gpus=1 if run.cluster.on_gpu else None,
                max_task_retries=0,
            )
        )


def pickled(target: Callable[..., Any], *arguments: Any) -> bytes:
    """A target of `ChildProcess`, by value where it is of a test."""
    whole = functools.partial(target, *arguments)
    return cloudpickle.dumps(whole)  # pyright: ignore[reportPrivateImportUsage]
