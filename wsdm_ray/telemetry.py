"""Progress for people: a bar in a terminal, plain lines in a log."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["RowProgress", "human", "in_terminal", "logger", "set_up_logging", "track_rows"]

logger = logging.getLogger("wsdm_ray")

LINE_SECONDS = 10.0
"""Without a terminal, progress is logged at most about every so many seconds."""


def set_up_logging() -> None:
    """Send the package's log lines to standard error, with the time; calling it again changes nothing."""
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def in_terminal() -> bool:
    """Whether this process's standard error is a terminal."""
    return Console(stderr=True).is_terminal


def human(number: float) -> str:
    """A number as three figures and a unit: `12.3M` for 12,345,678."""
    for unit in ("", "k", "M", "G"):
        if abs(number) < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}T"


class RowProgress:
    """Counts finished rows, and shows them with pairs/s, tokens/s and the time that is left.

    Args:
        name: of what is done, at the start of each line.
        total: rows in all.
        done: rows that an earlier run finished; they count for the position, not for the speed.
    """

    def __init__(self, name: str, total: int, done: int = 0, console: Console | None = None):
        self.name, self.total, self.done, self.new_rows, self.tokens = name, total, done, 0, 0
        self.start = self.last_line = time.monotonic()
        console = console or Console(stderr=True)
        self.bar: Progress | None = None
        if console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"),
                TextColumn("{task.fields[speed]}"), TextColumn("ETA"), TimeRemainingColumn(), console=console,
            )  # fmt: skip
            self.task = self.bar.add_task(name, total=total, completed=done, speed="")
            self.bar.start()

    def speed(self) -> str:
        seconds = max(time.monotonic() - self.start, 1e-9)
        return f"{human(self.new_rows / seconds)} pairs/s, {human(self.tokens / seconds)} tokens/s"

    def advance(self, rows: int, tokens: int) -> None:
        """Count `rows` more rows, whose micro-batches had `tokens` tokens."""
        self.done += rows
        self.new_rows += rows
        self.tokens += tokens
        if self.bar:
            self.bar.update(self.task, completed=self.done, speed=self.speed())
        elif time.monotonic() - self.last_line >= LINE_SECONDS or self.done == self.total:
            self.last_line = time.monotonic()
            left = (self.total - self.done) * (self.last_line - self.start) / max(self.new_rows, 1)
            logger.info(
                "%s: %d/%d rows, %s, ETA %.0f s", self.name, self.done, self.total, self.speed(), left
            )

    def close(self) -> None:
        if self.bar:
            self.bar.stop()


@contextmanager
def track_rows(name: str, total: int, done: int = 0) -> Iterator[RowProgress]:
    """A `RowProgress` that is closed when the block ends, also by an error."""
    progress = RowProgress(name, total, done)
    try:
        yield progress
    finally:
        progress.close()
