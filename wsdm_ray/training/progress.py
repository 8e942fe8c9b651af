"""Where a training run is: a bar in a terminal, lines in a log, metrics for Prometheus.

Workers run in other processes. In a log the first of them writes its own lines; a bar is drawn, and metrics
are exported, by the process that started the run, which asks an actor that the workers keep up to date.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from wsdm_ray.events import Event, retry_events
from wsdm_ray.exported_metrics import EventLog, ExportedMetrics
from wsdm_ray.metric_names import TRAIN_METRICS
from wsdm_ray.session import actor_here
from wsdm_ray.telemetry import Display, human, in_terminal, time_left
from wsdm_ray.training.metrics import Row, StepMetrics

__all__ = [
    "Follower",
    "ProgressActor",
    "StepProgress",
    "TrainingStatus",
    "seconds_left",
    "show_progress",
    "step_progress",
    "step_reporter",
]

REFRESH_SECONDS = 0.5
ANSWER_SECONDS = 10.0
"""An actor that does not answer for so long is asked again later."""
RECENT_STEPS = 20
"""Loss, accuracy and speed are means over so many steps."""
FORWARD_SHARE = 1 / 3
"""Of a training step's time, what its forward pass takes: the guess at a validation before the first."""


@dataclass(frozen=True, kw_only=True)
class StepProgress:
    """Where a run is after a step; loss to pairs_per_second are means over the latest steps."""

    step: int
    loss: float
    accuracy: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    pairs_per_second: float
    seconds_left: float
    doing: str = ""
    """What is done instead of steps, such as `validation`."""

    def in_bar(self) -> str:
        """What a bar has room for."""
        figures = f"loss {self.loss:.4f} accuracy {self.accuracy:.3f}"
        return f"{figures} {self.doing or time_left(self.seconds_left)}"

    def in_log(self) -> str:
        """All of it."""
        return (
            f"loss {self.loss:.4f} accuracy {self.accuracy:.3f} lr {self.learning_rate:.2e} "
            f"grad {self.grad_norm:.2f} {human(self.tokens_per_second)} tokens/s "
            f"{human(self.pairs_per_second)} pairs/s {time_left(self.seconds_left)}"
        )


def step_progress(
    steps: Sequence[StepMetrics],
    *,
    total_steps: int,
    checkpoint_steps: int,
    valid_rows: int,
    pauses: Sequence[float],
    doing: str = "",
) -> StepProgress:
    """Where a run is.

    Args:
        steps: those that were taken, at least one.
        valid_rows: of the valid set; 0 without one.
        pauses: seconds of each validation with its checkpoint so far, in this process.
    """
    recent = steps[-RECENT_STEPS:]
    seconds, pairs = (sum(getattr(step, name) for step in recent) for name in ("seconds", "pairs"))
    last = recent[-1]
    pause = pauses[-1] if pauses else FORWARD_SHARE * valid_rows * seconds / pairs
    return StepProgress(
        step=last.step,
        loss=sum(step.loss for step in recent) / len(recent),
        accuracy=sum(step.accuracy for step in recent) / len(recent),
        learning_rate=last.learning_rate,
        grad_norm=last.grad_norm,
        tokens_per_second=sum(step.tokens for step in recent) / seconds,
        pairs_per_second=pairs / seconds,
        seconds_left=seconds_left(last.step, total_steps, checkpoint_steps, seconds / len(recent), pause),
        doing=doing,
    )


def seconds_left(
    step: int, total_steps: int, checkpoint_steps: int, step_seconds: float, pause_seconds: float
) -> float:
    """Seconds to the end of a run: the steps that are left, and the pauses for validation and checkpoint.

    Args:
        step: how many were taken; the pause that may follow the last of them is still to come.
    """
    later = step - 1
    pauses = total_steps // checkpoint_steps - later // checkpoint_steps
    pauses += total_steps % checkpoint_steps > 0  # after the last step there is always one
    return (total_steps - step) * step_seconds + pauses * pause_seconds


@dataclass
class TrainingStatus:
    """Where a run is, in figures; None before there is one. `metric_names` says what each is.

    The totals are of all workers that this job had, whichever died.
    """

    total_steps: int
    steps: int = 0
    pairs: int = 0
    tokens: int = 0
    checkpoints: int = 0
    step: int | None = None
    loss: float | None = None
    accuracy: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    pairs_per_second: float | None = None
    tokens_per_second: float | None = None
    peak_memory_bytes: float | None = None
    checkpoint_seconds: float | None = None
    valid_log_loss: float | None = None
    valid_accuracy: float | None = None

    def add(self, row: Row) -> None:
        """Take the row of one more step, or what a late validation adds to the last one."""
        if "pairs" in row:
            self.steps += 1
            self.pairs += row["pairs"]
            self.tokens += row["tokens"]
            self.peak_memory_bytes = row["memory_gb"] * 1e9
        for name in LATEST:
            setattr(self, name, row.get(name, getattr(self, name)))


LATEST = (
    *("step", "loss", "accuracy", "learning_rate", "grad_norm", "pairs_per_second", "tokens_per_second"),
    *("valid_log_loss", "valid_accuracy"),
)
"""Of a row, what the status has as it is."""


class ProgressActor:
    """Holds where the first worker is, and what all workers tell, for the process that started the run."""

    def __init__(self, total_steps: int = 0) -> None:
        self.latest: StepProgress | None = None
        self.status = TrainingStatus(total_steps)
        self.events: list[Event] = []

    def add_row(self, row: Row) -> None:
        """Take the row of one more step."""
        self.status.add(row)

    def add_checkpoint(self, seconds: float) -> None:
        """Note that a checkpoint was written and uploaded, and how long that took."""
        self.status.checkpoints += 1
        self.status.checkpoint_seconds = seconds

    def tell(self, event: Event) -> None:
        """Have an event counted and logged."""
        self.events.append(event)

    def state(self, events_seen: int) -> tuple[TrainingStatus, list[Event]]:
        """Where the run is, and all events but the first `events_seen`."""
        return self.status, self.events[events_seen:]

    def update(self, progress: StepProgress) -> None:
        """Set where the run is."""
        self.latest = progress

    def read(self) -> StepProgress | None:
        """Where the run is; None before the first step."""
        return self.latest


def step_reporter(
    total_steps: int, actor: Any, clock: Callable[[], float] = time.monotonic
) -> Callable[[StepProgress], None]:
    """What the first worker calls after every step: it tells the `actor` of a bar, or else logs lines."""
    if actor is None:
        display = Display("train", total_steps, "steps", clock=clock)
        return lambda progress: display.show(progress.step, progress.in_log())
    sent = float("-inf")

    def tell(progress: StepProgress) -> None:
        nonlocal sent
        if progress.doing or progress.step == total_steps or clock() - sent >= REFRESH_SECONDS:
            sent = clock()
            actor.update.remote(progress)

    return tell


@contextlib.contextmanager
def show_progress(total_steps: int) -> Iterator[Any]:
    """The `ProgressActor` of a run, which a thread follows: for metrics, and in a terminal a bar."""
    actor = actor_here(ProgressActor, total_steps)
    follower = Follower(actor, Display("train", total_steps, "steps") if in_terminal() else None)
    ended = threading.Event()
    thread = threading.Thread(target=follower.follow, args=(ended,), name="progress", daemon=True)
    thread.start()
    try:
        yield actor
    finally:
        ended.set()
        thread.join(2 * ANSWER_SECONDS)
        ray.kill(actor)


class Follower:
    """Shows where a run is, as often as it is asked to.

    Args:
        actor: handle of a `ProgressActor`.
        display: the bar, if there is one.
    """

    def __init__(self, actor: Any, display: Display | None = None):
        self.actor, self.display = actor, display
        self.metrics, self.log, self.events_seen = ExportedMetrics(TRAIN_METRICS), EventLog("train"), 0

    def follow(self, ended: threading.Event) -> None:
        """Show the run until `ended` is set, and once more."""
        if self.display:
            self.display.show(0, "starting")
        last = False
        while not last:
            last = ended.wait(REFRESH_SECONDS)
            self.show()
        if self.display:
            self.display.close()

    def show(self) -> None:
        """Ask the actor and show what it says. Where the actor is lost, the run goes on all the same."""
        for event in retry_events():
            self.log.note(event)
        with contextlib.suppress(RayError):
            state: Any = ray.get(self.actor.state.remote(self.events_seen), timeout=ANSWER_SECONDS)
            status, events = state
            self.events_seen += len(events)
            for event in events:
                self.log.note(event)
            self.metrics.update(dataclasses.asdict(status))
            now: Any = ray.get(self.actor.read.remote(), timeout=ANSWER_SECONDS)
            if now and self.display:
                self.display.show(now.step, now.in_bar())
