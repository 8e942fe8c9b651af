"""Progress for people: a bar in a terminal, plain lines in a log, counters where Ray runs."""

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


def set_up_logging() -> None:
    """Send the package's log lines to standard error, with the time; calling it again changes nothing."""
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def in_terminal() -> bool:
    """Whether a person looks at this process's standard error."""
    return Console(stderr=True).is_terminal


def human(number: float) -> str:
    """`12.3M` for 12,345,678: three figures and a unit."""
    for unit in ("", "k", "M", "G"):
        if abs(number) < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}T"


class RowProgress:
    """Counts finished rows and says how it goes: rows, pairs/s, tokens/s and the time that is left.

    Args:
        total: rows in all.
        done: rows that an earlier run had finished; they count for the position, not for the speed.
    """

    def __init__(self, what: str, total: int, done: int = 0, console: Console | None = None):
        self.what, self.total, self.done, self.fresh, self.tokens = what, total, done, 0, 0
        self.start = self.last_line = time.monotonic()
        console = console or Console(stderr=True)
        self.bar: Progress | None = None
        if console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"),
                TextColumn("{task.fields[speed]}"), TextColumn("ETA"), TimeRemainingColumn(), console=console,
            )  # fmt: skip
            self.task = self.bar.add_task(what, total=total, completed=done, speed="")
            self.bar.start()

    def speed(self) -> str:
        seconds = max(time.monotonic() - self.start, 1e-9)
        return f"{human(self.fresh / seconds)} pairs/s, {human(self.tokens / seconds)} tokens/s"

    def advance(self, rows: int, tokens: int) -> None:
        """Count `rows` more rows, which took `tokens` tokens of forward passes."""
        self.done += rows
        self.fresh += rows
        self.tokens += tokens
        if self.bar:
            self.bar.update(self.task, completed=self.done, speed=self.speed())
        elif time.monotonic() - self.last_line >= LINE_SECONDS or self.done == self.total:
            self.last_line = time.monotonic()
            left = (self.total - self.done) * (self.last_line - self.start) / max(self.fresh, 1)
            logger.info(
                "%s: %d/%d rows, %s, ETA %.0f s", self.what, self.done, self.total, self.speed(), left
            )

    def close(self) -> None:
        if self.bar:
            self.bar.stop()


@contextmanager
def track_rows(what: str, total: int, done: int = 0) -> Iterator[RowProgress]:
    """A `RowProgress` that is closed at the end, however it ends."""
    progress = RowProgress(what, total, done)
    try:
        yield progress
    finally:
        progress.close()
