"""How far replicas are within their units: they tell an actor, and the process that started the run asks it.

It is for the eye alone: what counts as scored is what a unit's report says.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import ray
from ray.exceptions import RayError

from wsdm_ray.telemetry import RowProgress

__all__ = ["ProgressActor", "Reporter", "follow_replicas", "rows_ahead"]

REPORT_SECONDS = 1.0
"""A replica reports at most so often."""
REFRESH_SECONDS = 0.5
ANSWER_SECONDS = 10.0
"""An actor that does not answer for so long is asked again later."""


class ProgressActor:
    """Holds the last word of each unit that is being scored: the share that is done, and its tokens."""

    def __init__(self) -> None:
        self.latest: dict[int, tuple[float, int]] = {}

    def update(self, unit: int, share: float, tokens: int) -> None:
        """Set how far a unit is."""
        self.latest[unit] = share, tokens

    def read(self, finished: Collection[int]) -> dict[int, tuple[float, int]]:
        """Share and tokens by unit. Those `finished` are forgotten first."""
        for unit in finished:
            self.latest.pop(unit, None)
        return self.latest


class Reporter:
    """Tells a `ProgressActor` how far this process is: of what comes faster than a second, a part."""

    def __init__(self, actor: Any, clock: Callable[[], float] = time.monotonic):
        self.actor, self.clock, self.sent = actor, clock, float("-inf")

    def __call__(self, unit: int, share: float, tokens: int) -> None:
        now = self.clock()
        if now - self.sent >= REPORT_SECONDS:
            self.sent = now
            self.actor.update.remote(unit, share, tokens)


def rows_ahead(
    latest: Mapping[int, tuple[float, int]], rows: Mapping[int, int], finished: Collection[int]
) -> tuple[int, int]:
    """Rows and tokens of units that are being scored.

    Args:
        latest: share and tokens by unit.
        rows: of each unit.
        finished: units that are counted as done already.
    """
    open_units = [unit for unit in latest if unit in rows and unit not in finished]
    return (
        sum(int(latest[unit][0] * rows[unit]) for unit in open_units),
        sum(latest[unit][1] for unit in open_units),
    )


@contextlib.contextmanager
def follow_replicas(
    progress: RowProgress, rows: Mapping[int, int], finished: Collection[int]
) -> Iterator[Reporter]:
    """What replicas report to, while a thread shows it as the progress of the run.

    Args:
        rows: of each unit.
        finished: units that the run counts as done; it grows.
    """
    actor: Any = ray.remote(num_cpus=0)(ProgressActor).remote()
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(REFRESH_SECONDS):
            with contextlib.suppress(RayError):  # of an actor that is lost: the run needs none
                latest: Any = ray.get(actor.read.remote(list(finished)), timeout=ANSWER_SECONDS)
                if latest:
                    progress.begin()
                progress.look_ahead(*rows_ahead(latest, rows, finished))
            progress.refresh()

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield Reporter(actor)
    finally:
        ended.set()
        thread.join(2 * ANSWER_SECONDS)
        ray.kill(actor)  # else its process lives until Python's garbage collection
        progress.close()
