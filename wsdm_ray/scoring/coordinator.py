"""The actor to which the processes of a run tell what they do. It outlives them, and the driver asks it."""

import contextlib
import dataclasses
import os
import time
from collections import Counter
from typing import Any

import ray
from ray.exceptions import RayError

from wsdm_ray.events import Event
from wsdm_ray.scoring.crash_records import UnitStage
from wsdm_ray.scoring.isolation import Part
from wsdm_ray.scoring.progress import ProgressActor

__all__ = ["Coordinator", "RayCoordination"]

POLL_SECONDS = 1.0
"""Who waits for another process asks so often."""

WAIT_SECONDS = 60.0


class Coordinator(ProgressActor):
    """What is being run, what died, and which replicas cannot start.

    slots: of the pool that runs now. starts: by slot, since it was last ready. given_up: reasons by slot.
    running: the part of each unit and stage that is being run, or was when its Ray worker was lost.
    deaths: of child processes, as lines.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begin_pass(0)
        self.deaths: list[str] = []
        self.events: list[Event] = []

    def begin_pass(self, slots: int) -> None:
        """Forget a pool of replicas; the next one has so many slots."""
        self.slots = slots
        self.starts: Counter[str] = Counter()
        self.ready_slots: set[str] = set()
        self.given_up: dict[str, str] = {}
        self.running: dict[UnitStage, Part] = {}

    def starting(self, slot: str) -> int:
        """How many times the slot was starting before without being ready since."""
        if slot in self.starts or slot in self.ready_slots:
            self.events.append(Event(kind="worker_replaced", worker=slot))
        self.starts[slot] += 1
        self.ready_slots.discard(slot)
        return self.starts[slot] - 1

    def ready(self, slot: str) -> None:
        del self.starts[slot]
        self.ready_slots.add(slot)

    def any_ready(self) -> bool:
        """Whether a slot takes units."""
        return bool(self.ready_slots)

    def give_up(self, slot: str, reason: str) -> bool:
        """Note that a slot cannot start; returns whether that is true of all."""
        self.given_up[slot] = reason
        return len(self.given_up) >= self.slots

    def began(self, stage: UnitStage, part: Part) -> None:
        self.running[stage] = part

    def ended(self, stage: UnitStage) -> None:
        self.running.pop(stage, None)

    def died(self, stage: UnitStage, part: Part, reason: str) -> None:
        self.deaths.append(f"unit {stage[1]}, rows {part.start} to {part.stop - 1}: {reason}")

    def tell(self, event: Event) -> None:
        self.events.append(event)

    def events_after(self, number: int) -> list[Event]:
        """All events but the first `number`."""
        return self.events[number:]

    def state(self) -> tuple[dict[UnitStage, Part], list[str], list[str]]:
        """What is being run, the deaths so far, and the reasons of slots that were given up."""
        return self.running, self.deaths, list(self.given_up.values())


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
        return self.ask(self.coordinator.give_up, self.slot, reason)

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
        self.coordinator.began.remote(stage, part)

    def ended(self, stage: UnitStage) -> None:
        self.coordinator.ended.remote(stage)

    def died(self, stage: UnitStage, part: Part, reason: str) -> None:
        self.coordinator.died.remote(stage, part, reason)

    def tell(self, event: Event) -> None:
        """Have an event counted and logged, with the node and the Ray worker that it was told by."""
        place = {"worker": event.worker or self.slot, "node": event.node or os.uname().nodename}
        self.coordinator.tell.remote(dataclasses.replace(event, **place))

    @staticmethod
    def ask(method: Any, *arguments: Any) -> Any:
        return ray.get(method.remote(*arguments))
