"""Where a training run is, for people: a bar in a terminal, lines in a log.

Workers run in other processes. In a log the first of them writes its own lines; a bar is drawn by the process
that started the run, which asks an actor that the worker keeps up to date.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from wsdm_ray.telemetry import Display, human, in_terminal, time_left
from wsdm_ray.training.metrics import StepMetrics

__all__ = ["ProgressActor", "StepProgress", "seconds_left", "show_progress", "step_progress", "step_reporter"]

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


class ProgressActor:
    """Holds where the first worker is, for the bar of the process that started the run."""

    def __init__(self) -> None:
        self.latest: StepProgress | None = None

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
    """In a terminal, a bar of the run's steps, and the `ProgressActor` that it follows; else None."""
    if not in_terminal():
        yield None
        return
    actor: Any = ray.remote(num_cpus=0)(ProgressActor).remote()
    ended = threading.Event()
    thread = threading.Thread(target=follow, args=(actor, total_steps, ended), name="progress", daemon=True)
    thread.start()
    try:
        yield actor
    finally:
        ended.set()
        thread.join(2 * ANSWER_SECONDS)


def follow(actor: Any, total_steps: int, ended: threading.Event) -> None:
    """Show a bar of `total_steps` steps as the actor is updated, until `ended` is set."""
    display = Display("train", total_steps, "steps")
    display.show(0, "starting")
    last = False
    while not last:
        last = ended.wait(REFRESH_SECONDS)
        with contextlib.suppress(RayError):  # of an actor that is lost: the run needs none
            now: Any = ray.get(actor.read.remote(), timeout=ANSWER_SECONDS)
            if now:
                display.show(now.step, now.in_bar())
    display.close()
