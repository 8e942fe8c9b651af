"""Progress for people: a bar in a terminal, plain lines in a log."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from wsdm_ray.noise import quiet_libraries
from wsdm_ray.plain_text import one_line, redact

__all__ = [
    "Display",
    "RowProgress",
    "counted",
    "human",
    "in_terminal",
    "logger",
    "set_up_logging",
    "time_left",
]

logger = logging.getLogger("wsdm_ray")

Clock = Callable[[], float]
"""Seconds that never go back, such as `time.monotonic`."""

FIRST_LINES_SECONDS, FIRST_LINES_UNTIL_SECONDS, LINE_SECONDS = 10.0, 120.0, 60.0
"""Without a terminal, a line of progress comes so often at first, until when, and so often afterwards."""


class PlainFormatter(logging.Formatter):
    """Makes a message one line without secrets and control characters: ids and libraries' texts are in it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = one_line(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return redact(super().formatException(ei))


class StandardErrorHandler(logging.StreamHandler):
    """Writes to what standard error is when a line comes: it changes where `noise` filters native lines."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        pass


def set_up_logging() -> None:
    """Send the package's log lines to standard error, with the time; calling it again changes nothing.

    What libraries say to nobody is silenced (`noise`).
    """
    quiet_libraries()
    if not logger.handlers:
        handler = StandardErrorHandler()
        handler.setFormatter(PlainFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
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


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 worker`, `2,000 workers`. Args: plural: of a noun that does not take an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def time_left(seconds: float) -> str:
    """`ETA 40 s`, `ETA 12 min` or `ETA 3 h 05 min`."""
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"ETA {seconds:.0f} s"
    return f"ETA {minutes} min" if minutes < 120 else f"ETA {minutes // 60} h {minutes % 60:02d} min"


class Display:
    """Where a job is: a bar in a terminal, else lines in the log, many at first and few later.

    Args:
        name: of what is done, at the start of each line.
        total: how many units there are in all.
        unit: what is counted, such as `rows`.
    """

    def __init__(
        self,
        name: str,
        total: int,
        unit: str = "rows",
        *,
        console: Console | None = None,
        clock: Clock = time.monotonic,
    ):
        self.name, self.total, self.unit, self.clock = name, total, unit, clock
        self.started = self.last_line = clock()
        self.ended = False
        console = console or Console(stderr=True)
        self.bar: Progress | None = None
        if console.is_terminal:
            # In a narrow terminal the text is cut, never the count.
            count = MofNCompleteColumn(table_column=Column(min_width=2 * len(str(total)) + 1, no_wrap=True))
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), count, TextColumn(unit),
                TextColumn("{task.fields[text]}"), console=console,
            )  # fmt: skip
            self.task = self.bar.add_task(name, total=total, text="")
            self.bar.start()

    def show(self, done: int, text: str) -> None:
        """Show the position: at once in a bar, in a log where a line is due, and always at the end."""
        if self.bar:
            self.bar.update(self.task, completed=done, text=text)
        elif self.is_due() or (done >= self.total and not self.ended):
            self.ended = done >= self.total
            self.last_line = self.clock()
            logger.info("%s: %d/%d %s, %s", self.name, done, self.total, self.unit, text)

    def is_due(self) -> bool:
        """Whether it is time for another line."""
        now = self.clock()
        at_first = now - self.started <= FIRST_LINES_UNTIL_SECONDS
        return now - self.last_line >= (FIRST_LINES_SECONDS if at_first else LINE_SECONDS)

    def close(self) -> None:
        """End the bar; its last state stays on the screen."""
        if self.bar:
            self.bar.stop()


class RowProgress:
    """Counts rows, and shows them with pairs/s, tokens/s and the time that is left.

    Rows that are being worked on are shown ahead of those that are done, and never counted as such. Methods
    may be called by several threads.

    Args:
        done: rows that an earlier run finished; they count for the position, not for the speed.
    """

    def __init__(
        self,
        name: str,
        total: int,
        done: int = 0,
        *,
        console: Console | None = None,
        clock: Clock = time.monotonic,
    ):
        self.display = Display(name, total, console=console, clock=clock)
        self.clock, self.total, self.done = clock, total, done
        self.new_rows = self.tokens = self.rows_ahead = self.tokens_ahead = 0
        self.begun: float | None = None
        self.details: Sequence[str] = ()
        """Shown behind speed and time left."""
        self.lock = threading.Lock()

    def begin(self, seconds_ago: float = 0.0) -> None:
        """Start-up is over: speed is measured from the first time that this is called, or before it."""
        if self.begun is None:
            self.begun = self.clock() - seconds_ago

    def advance(self, rows: int, tokens: int) -> None:
        """Count `rows` more rows as done, whose micro-batches had `tokens` tokens."""
        with self.lock:
            self.done += rows
            self.new_rows += rows
            self.tokens += tokens
            self.rows_ahead = min(self.rows_ahead, self.total - self.done)
        self.refresh()

    def look_ahead(self, rows: int, tokens: int) -> None:
        """Show that of what is not done, so many rows are worked on by now, in all."""
        with self.lock:
            self.rows_ahead, self.tokens_ahead = min(rows, self.total - self.done), tokens
        self.refresh()

    def refresh(self) -> None:
        """Show the position as it is."""
        with self.lock:
            self.display.show(self.done + self.rows_ahead, self.text())

    def rates(self) -> tuple[float, float, float | None] | None:
        """Rows and tokens a second, and the seconds that are left; None before the start."""
        if self.begun is None:
            return None
        seconds = max(self.clock() - self.begun, 1e-9)
        rows, tokens = self.new_rows + self.rows_ahead, self.tokens + self.tokens_ahead
        left = self.total - self.done - self.rows_ahead
        return rows / seconds, tokens / seconds, left * seconds / rows if rows else None

    def text(self) -> str:
        rates = self.rates()
        if rates is None:
            return "starting"
        pairs, tokens, left = rates
        speed = [f"{human(pairs)} pairs/s", f"{human(tokens)} tokens/s"]
        return ", ".join([*speed, *([] if left is None else [time_left(left)]), *self.details])

    def close(self) -> None:
        """End the bar."""
        self.display.close()
