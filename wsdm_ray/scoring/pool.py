"""How many replicas and readers a pass has, as nodes come and go while it runs. No Ray.

A pool grows to what the nodes have room for. It is never made smaller: Ray starts a replica whose node is
gone again, as soon as another node has room, so the pool shrinks and grows by itself.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wsdm_ray.errors import ClusterError
from wsdm_ray.telemetry import logger

__all__ = ["LOST_SECONDS", "Pool", "first_slots"]

LOOK_SECONDS, LINE_SECONDS = 2.0, 60.0
"""The cluster is looked at, and a line says that there is no room, so often."""

LOST_SECONDS = 600.0
"""A run that lost all of its nodes waits so long for others, where `--wait-for-resources-seconds` says no
more."""


UNITS_A_REPLICA = 4
"""A cluster that scales by itself is asked for no replica that would score fewer units."""


def first_slots(room: int, units: int, most: int | None, limit: int) -> int:
    """How many replicas a pass begins with; those without room wait, which shows an autoscaler what to add.

    Args:
        room: how many the cluster has room for. units: of the pass.
        most: `--replicas`; None: as many as there is room for.
        limit: how many the cluster can have room for as it scales by itself; 0: it does not.
    """
    asked = min(most or limit, limit, units // UNITS_A_REPLICA)
    return max(min(room, units), asked)


@dataclass(kw_only=True)
class Pool:
    """The replicas and readers of a pass.

    slots: replicas, working, starting or waiting for a node. readers: at once. units: of the pass.
    poll: gives how many replicas the cluster has room for now, and how many readers beside so many; raises
    `ClusterError` where it has room for none, or for none but those that cannot start.
    resized: is told the slots, and for how many of them there is room, when either changes.
    wait_seconds: how long a cluster without room is waited for.
    """

    slots: int
    readers: int
    units: int
    poll: Callable[[], tuple[int, int]]
    resized: Callable[[int, int], None] = lambda slots, there: None
    wait_seconds: float = LOST_SECONDS
    clock: Callable[[], float] = time.monotonic
    looked: float | None = None
    none_since: float | None = None
    there: int | None = None
    said: float = float("-inf")

    def __getstate__(self) -> dict[str, Any]:
        """Ray Data sends it to its workers with its context; only the driver asks it."""
        return {name: value for name, value in vars(self).items() if name not in ("poll", "resized")}

    def update(self, finished: int) -> int:
        """How many replicas there are to be; looks at the cluster where that is due.

        Args:
            finished: units of the pass that are done: no more replicas than units are started.

        Raises:
            ClusterError: there was room for none for too long.
        """
        now = self.clock()
        if self.looked is None:
            self.looked = now
        if now - self.looked < LOOK_SECONDS:
            return self.slots
        self.looked = now
        try:
            room, readers = self.poll()
        except ClusterError as error:
            self.wait(now, error)
            return self.slots
        self.none_since, self.readers = None, readers
        wanted = min(room, self.units - finished)
        if wanted > self.slots:
            logger.info("score: nodes joined; %d replicas instead of %d", wanted, self.slots)
            self.slots = wanted
        self.note(room)
        return self.slots

    def note(self, room: int) -> None:
        """Tell how many replicas there are, where that changed."""
        before, self.there = self.there, min(room, self.slots)
        if before != self.there:
            self.resized(self.slots, self.there)

    def wait(self, now: float, error: ClusterError) -> None:
        """Say that no node has a replica that can work; raise the error where that has lasted too long."""
        self.note(0)
        self.none_since = now if self.none_since is None else self.none_since
        limit = self.wait_seconds
        if now - self.none_since >= limit:
            raise ClusterError(f"{error}; waited {limit:g} s; run the same command again to go on") from error
        if now - self.said >= LINE_SECONDS:
            self.said = now
            logger.warning("score: no replica can work; waits for nodes, %g s at most: %s", limit, error)
