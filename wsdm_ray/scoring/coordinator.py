"""The actor to which the processes of a run tell what they do. It outlives them, and the driver asks it."""

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from wsdm_ray.events import Event
from wsdm_ray.scoring.crash_records import UnitStage
from wsdm_ray.scoring.isolation import Part
from wsdm_ray.scoring.plan import WorkUnit
from wsdm_ray.scoring.preemption import Holder, Preemption, rows_lost, was_preempted
from wsdm_ray.scoring.progress import ProgressActor

__all__ = ["Coordinator", "RayCoordination"]

POLL_SECONDS = 1.0
"""Who waits for another process asks so often."""

WAIT_SECONDS = 60.0


class Coordinator(ProgressActor):
    """What is being run, what died, and which replicas cannot start.

    slots: of the pool that runs now. units: of its pass. starts: by slot, since it was last ready.
    given_up: node and reason by slot.
    running: the part of each unit and stage that is being run, or was when its Ray worker was lost, and who
    runs it (`holders`).
    deaths: of child processes, as lines. leaving: Ray workers that were asked to end. preemptions: what was
    dropped for that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begin_pass(0, ())
        self.deaths: list[str] = []
        self.events: list[Event] = []
        self.preemptions: list[Preemption] = []

    def begin_pass(self, slots: int, units: Sequence[WorkUnit]) -> None:
        """Forget a pool of replicas; the next one has so many slots, and runs these units."""
        self.slots = slots
        self.units = units
        self.starts: Counter[str] = Counter()
        self.ready_slots: set[str] = set()
        self.given_up: dict[str, tuple[str, str]] = {}
        self.running: dict[UnitStage, Part] = {}
        self.holders: dict[UnitStage, Holder] = {}
        self.leaving: set[str] = set()

    def unit_at(self, index: int) -> WorkUnit:
        """A unit of the pass."""
        return self.units[index]

    def resize(self, slots: int) -> None:
        """The pool has so many slots from now on."""
        self.slots = slots

    def starting(self, slot: str) -> int:
        """How many times the slot was starting before without being ready since."""
        if slot in self.starts or slot in self.ready_slots:
            self.events.append(Event(kind="worker_replaced", worker=slot))
        if self.given_up.pop(slot, None):  # it was on a node that is gone, and is elsewhere now
            self.starts[slot] = 0
        self.starts[slot] += 1
        self.ready_slots.discard(slot)
        return self.starts[slot] - 1

    def ready(self, slot: str) -> None:
        del self.starts[slot]
        self.ready_slots.add(slot)

    def any_ready(self) -> bool:
        """Whether a slot takes units."""
        return bool(self.ready_slots)

    def give_up(self, slot: str, node: str, reason: str) -> bool:
        """Note that a slot cannot start on its node; returns whether that is true of all."""
        self.given_up[slot] = node, reason
        return len(self.given_up) >= self.slots

    def given_up_on(self, nodes: Collection[str]) -> list[str]:
        """Why slots on these nodes cannot start."""
        return [reason for node, reason in self.given_up.values() if node in nodes]

    def began(self, stage: UnitStage, part: Part, holder: Holder | None = None) -> None:
        self.running[stage] = part
        self.holders[stage] = holder or Holder()

    def ended(self, stage: UnitStage) -> None:
        self.running.pop(stage, None)
        self.holders.pop(stage, None)

    def leave(self, worker: str) -> None:
        """Note that a Ray worker was asked to end."""
        self.leaving.add(worker)

    def preempted(self, stage: UnitStage, part: Part, reason: str) -> None:
        """Note that a part was dropped because its process was asked to end."""
        share, _ = self.latest.pop(stage[1], (0.0, 0)) if stage[0] == "score" else (0.0, 0)
        self.preemptions.append(
            Preemption(stage=stage[0], unit=stage[1], rows=rows_lost(part.rows, share), reason=reason)
        )
        rows = part.start, part.stop - 1
        self.tell(Event(kind="preempted", unit=stage[1], rows=rows, reason=reason))

    def take_preempted(self, nodes: Collection[str], reason: str) -> dict[UnitStage, Part]:
        """The parts that were run when their Ray workers were lost through no fault of their rows.

        Args:
            nodes: ids of the nodes that are there and are not being drained.
        """
        taken = {
            stage: part
            for stage, part in self.running.items()
            if was_preempted(self.holders[stage], self.leaving, nodes)
        }
        for stage, part in taken.items():
            self.ended(stage)
            self.preempted(stage, part, reason)
        return taken

    def dropped(self) -> list[Preemption]:
        """What was dropped because processes were asked to end or nodes were lost."""
        return self.preemptions

    def died(self, stage: UnitStage, part: Part, reason: str) -> None:
        self.deaths.append(f"unit {stage[1]}, rows {part.start} to {part.stop - 1}: {reason}")

    def tell(self, event: Event) -> None:
        self.events.append(event)

    def events_after(self, number: int) -> list[Event]:
        """All events but the first `number`."""
        return self.events[number:]

    def state(self) -> tuple[dict[UnitStage, Part], list[str], list[str]]:
        """What is being run, the deaths so far, and the reasons of slots that were given up."""
        return self.running, self.deaths, [reason for _, reason in self.given_up.values()]


class RayCoordination:
    """`supervision.Coordination` by a `Coordinator`, from within an actor or a task.

    Args:
        coordinator: the handle.
    """

    def __init__(self, coordinator: Any):
        self.coordinator = coordinator

    @property
    def slot(self) -> str:
        """The actor that this process is of, the same when Ray restarts it."""
        return ray.get_runtime_context().get_actor_id() or ""

    def starting(self) -> int:
        return self.ask(self.coordinator.starting, self.slot)

    def ready(self) -> None:
        self.coordinator.ready.remote(self.slot)

    def give_up(self, reason: str) -> bool:
        node = ray.get_runtime_context().get_node_id()
        return self.ask(self.coordinator.give_up, self.slot, node, reason)

    def unit_at(self, index: int) -> WorkUnit:
        return self.ask(self.coordinator.unit_at, index)

    def wait_for_replica(self) -> None:
        """Returns when a replica takes units, or after a minute: it may wait for the CPUs of this process.

        Ray Data reads on, whatever its policies say, where nothing else runs, as while replicas start.
        """
        end = time.monotonic() + WAIT_SECONDS
        while not self.ask(self.coordinator.any_ready) and time.monotonic() < end:
            time.sleep(POLL_SECONDS)

    def wait_for_end(self) -> None:
        """Never returns: ends the process when the run is over."""
        with contextlib.suppress(RayError):
            while True:
                self.ask(self.coordinator.state)
                time.sleep(POLL_SECONDS)
        os._exit(0)

    def began(self, stage: UnitStage, part: Part) -> None:
        context = ray.get_runtime_context()
        holder = Holder(worker=context.get_worker_id(), node=context.get_node_id())
        self.coordinator.began.remote(stage, part, holder)

    def ended(self, stage: UnitStage) -> None:
        self.coordinator.ended.remote(stage)

    def died(self, stage: UnitStage, part: Part, reason: str) -> None:
        self.coordinator.died.remote(stage, part, reason)

    def tell(self, event: Event) -> None:
        """Have an event counted and logged, with the node and the Ray worker that it was told by."""
        place = {"worker": event.worker or self.slot, "node": event.node or os.uname().nodename}
        self.coordinator.tell.remote(dataclasses.replace(event, **place))

    def preempted(self, stage: UnitStage, part: Part, reason: str) -> None:
        self.coordinator.preempted.remote(stage, part, reason)

    def on_notice(self, leave: Callable[[], None]) -> None:
        """Has SIGTERM call `leave` and tell the coordinator, instead of ending this process at once."""
        if threading.current_thread() is not threading.main_thread():  # the only one that may
            return
        came, worker = threading.Event(), ray.get_runtime_context().get_worker_id()

        def handle(*_: object) -> None:
            leave()
            came.set()

        def tell() -> None:  # a call of Ray may not interrupt another one of the same thread
            came.wait()
            self.coordinator.leave.remote(worker)

        threading.Thread(target=tell, name="notice", daemon=True).start()
        signal.signal(signal.SIGTERM, handle)

    @staticmethod
    def ask(method: Any, *arguments: Any) -> Any:
        return ray.get(method.remote(*arguments))
