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

from wsdm_ray.errors import StorageError
from wsdm_ray.events import Event, retry_events
from wsdm_ray.exported_metrics import EventLog, ExportedMetrics
from wsdm_ray.metric_names import SCORE_METRICS
from wsdm_ray.scoring.parts import UnitReport
from wsdm_ray.scoring.run_status import PROGRESS_FILE, RunStatus
from wsdm_ray.storage import join, write_json
from wsdm_ray.telemetry import RowProgress

__all__ = ["Follower", "ProgressActor", "Reporter", "following", "rows_ahead"]

FILE_SECONDS = 60.0
"""progress.json is written so often."""

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


class Follower:
    """Shows where a run is, as often as it is asked to.

    Args:
        actor: handle of a `Coordinator`.
        progress: is shown.
        rows: of each unit.
        finished: reports of units that the run counts as done; it grows.
        folder: for progress.json, which is written every minute.
        gpu_price: of all GPUs of the run for a second; None where the cost is not shown.
    """

    def __init__(
        self,
        actor: Any,
        progress: RowProgress,
        rows: Mapping[int, int],
        finished: Mapping[int, UnitReport],
        folder: str,
        gpu_price: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.actor, self.progress, self.rows, self.finished = actor, progress, rows, finished
        self.folder, self.gpu_price, self.clock = folder, gpu_price, clock
        self.started, self.written = clock(), float("-inf")
        self.spent, self.priced = 0.0, self.started
        self.metrics = ExportedMetrics(SCORE_METRICS, {"rows": progress.done})
        self.log = EventLog("score")
        self.events_seen = self.reports_seen = 0

    def show(self) -> None:
        """Ask the actor and show what it says. Where the actor is lost, the run goes on all the same."""
        self.note_events()
        with contextlib.suppress(RayError):
            latest: Any = ray.get(self.actor.read.remote(list(self.finished)), timeout=ANSWER_SECONDS)
            state: Any = ray.get(self.actor.state.remote(), timeout=ANSWER_SECONDS)
            if latest:
                self.progress.begin()
            self.progress.look_ahead(*rows_ahead(latest, self.rows, self.finished))
            status = self.status(*state)
            self.progress.details = status.details()
            self.metrics.update(vars(status))
            if self.clock() - self.written >= FILE_SECONDS:
                self.written = self.clock()
                with contextlib.suppress(StorageError):  # the next one may be written
                    write_json(join(self.folder, PROGRESS_FILE), status.to_json())
        self.progress.refresh()

    def note_events(self) -> None:
        """Count and log what came up since the last call."""
        events: Any = [*retry_events(), *self.report_events()]
        with contextlib.suppress(RayError):
            told: Any = ray.get(self.actor.events_after.remote(self.events_seen), timeout=ANSWER_SECONDS)
            self.events_seen += len(told)
            events += told
        for event in events:
            self.log.note(event)

    def report_events(self) -> list[Event]:
        """What the reports that came since the last call tell of."""
        new = list(self.finished.values())[self.reports_seen :]
        self.reports_seen += len(new)
        return [
            Event(
                kind="memory_ran_out",
                count=report.halvings,
                unit=report.unit,
                process=report.process,
                reason=f"the token budget is {report.token_budget} now",
            )
            for report in new
            if report.halvings
        ]

    def status(
        self, running: Collection[tuple[str, int]], deaths: Collection[str], given_up: Collection[str]
    ) -> RunStatus:
        """Where the run is, by what a `Coordinator` says."""
        reports, progress = list(self.finished.values()), self.progress
        pairs, tokens, left = progress.rates() or (None, None, None)
        return RunStatus(
            rows=progress.done,
            total_rows=progress.total,
            tokens=progress.tokens,
            units=len(reports),
            errors=sum(report.errors for report in reports),
            retries=len(deaths),
            replicas_at_work=sum(kind == "score" for kind, _ in running),
            replicas_given_up=len(given_up),
            store_retries=self.log.counts.get("store_retried", 0),
            peak_memory_bytes=max((report.peak_memory_bytes for report in reports), default=None),
            pairs_per_second=pairs,
            tokens_per_second=tokens,
            seconds_left=left,
            cost=None if self.gpu_price is None else self.cost(self.gpu_price),
        )

    def set_gpu_price(self, price: float | None) -> None:
        """The run has other GPUs from now on, at this price for a second of all of them."""
        if price is not None:
            self.spent, self.priced = self.cost(self.gpu_price or 0.0), self.clock()
        self.gpu_price = price

    def cost(self, price: float) -> float:
        """What the GPUs cost so far, at the price since it was last set."""
        return self.spent + price * (self.clock() - self.priced)


@contextlib.contextmanager
def following(follower: Follower) -> Iterator[Reporter]:
    """What replicas report to, while a thread shows it as the progress of the run."""
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(REFRESH_SECONDS):
            follower.show()

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    with contextlib.closing(follower.progress):
        try:
            yield Reporter(follower.actor)
        finally:  # a run that fails has its last events in the log, too
            ended.set()
            thread.join(2 * ANSWER_SECONDS)
            follower.note_events()
        follower.show()
