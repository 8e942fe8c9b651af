"""Rows that are not what their format asks for: counted, named, and refused only where most rows are so."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from wsdm_ray.errors import DataError
from wsdm_ray.telemetry import logger

__all__ = ["DIFFERENT_PROMPTS", "MALFORMED", "Fault", "FaultCounts"]

MALFORMED = "malformed"
"""The row is not of its format."""
DIFFERENT_PROMPTS = "different_prompts"
"""The two responses answer different prompts."""


class Fault(NamedTuple):
    """Why a row cannot be used: one of the reasons above, the detail, and a constant phrase for its kind."""

    reason: str
    detail: str
    kind: str = ""

    def __str__(self) -> str:
        return self.detail or self.reason.replace("_", " ")


class FaultCounts:
    """Counts malformed rows over all files of an input, and keeps the first for the message."""

    def __init__(self) -> None:
        self.rows = self.malformed = 0
        self.kinds: Counter[str] = Counter()
        self.first = ""

    def add(self, rows: int, faults: Mapping[int, Fault], path: str, first_row: int, ids: Any) -> None:
        """Count the rows of one table.

        Args:
            rows: how many it has.
            faults: by row of the table.
            first_row: number of its first row in the file, from 0.
            ids: of its rows, by row.
        """
        self.rows += rows
        bad = [row for row, fault in faults.items() if fault.reason == MALFORMED]
        if bad and not self.malformed:
            row = min(bad)
            self.first = (
                f"{path}: row {first_row + row} (counted from 0; id {ids[row]}): {faults[row].detail}"
            )
        self.malformed += len(bad)
        self.kinds.update(faults[row].kind or "malformed" for row in bad)

    def check(self) -> None:
        """Warn of malformed rows. Raises `DataError` where most rows are malformed."""
        if self.malformed > self.rows / 2:
            raise DataError(f"{self.first}; {self.malformed:,} of {self.rows:,} rows are malformed")
        if self.malformed:
            kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.kinds.most_common())
            logger.warning(
                "%d of %d rows are malformed (%s), first %s", self.malformed, self.rows, kinds, self.first
            )
