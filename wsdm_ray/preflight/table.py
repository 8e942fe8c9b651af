"""The checks of a job before it loads a model: one table of them, and one error where any failed.

A dry run shows the table; any other run what failed or is in doubt, and nothing where all is well.
"""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wsdm_ray.errors import ClusterError, WsdmRayError
from wsdm_ray.telemetry import logger

__all__ = ["Check", "Checks", "Outcome"]

LINE = 110
"""Characters of a line of the table where it is not written to a terminal."""


class Outcome(StrEnum):
    """What came of a check. Only `FAIL` ends a job."""

    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"
    NOT_CHECKED = "not checked"


STYLES = {Outcome.PASS: "green", Outcome.WARN: "yellow", Outcome.FAIL: "bold red", Outcome.NOT_CHECKED: "dim"}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One row of the table. found: what was seen, and where it is not well what to do about it."""

    name: str
    outcome: Outcome
    found: str


class Checks:
    """The checks of one job, in the order in which they were made.

    Args:
        job: its name, for log lines.
        shown: whether the table is shown, as a dry run does.
    """

    def __init__(self, job: str, *, shown: bool):
        self.job, self.shown = job, shown
        self.made: list[Check] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[list[str]]:
        """A check that passes unless a `WsdmRayError` is raised within, which ends the job as itself.

        Yields:
            What was found, to add to.
        """
        found: list[str] = []
        try:
            yield found
        except WsdmRayError as error:
            self.made.append(Check(name=name, outcome=Outcome.FAIL, found=str(error)))
            self.show()
            raise
        self.made.append(Check(name=name, outcome=Outcome.PASS, found="; ".join(found)))

    def settle(self, checks: Iterable[Check]) -> None:
        """Add the last checks and show the table. Warnings go to the log where it is not shown.

        Raises:
            ClusterError: checks failed; it has all of them on one line.
        """
        self.made += checks
        self.show()
        if not self.shown:
            for check in self.made:
                if check.outcome is Outcome.WARN:
                    logger.warning("%s: %s: %s", self.job, check.name, check.found)
        if failed := [f"{check.name}: {check.found}" for check in self.made if check.outcome is Outcome.FAIL]:
            raise ClusterError(". ".join(failed))

    def show(self) -> None:
        """Print the table, if it is to be shown."""
        if not self.shown:
            return
        console = Console(width=None if sys.stdout.isatty() else LINE, highlight=False)
        table = Table("check", "", "found, and what to do", box=box.SIMPLE, pad_edge=False)
        for check in self.made:
            style = STYLES[check.outcome]
            table.add_row(check.name, f"[{style}]{check.outcome}[/]", escape(check.found))
        console.print(table)
