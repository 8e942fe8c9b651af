"""What is wrong with an input: rows that are not of its format, and files that cannot be read.

Rows are counted, named, and refused only where most rows are so. Files are all looked at before one is.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from wsdm_ray.errors import DataError
from wsdm_ray.telemetry import counted, logger

__all__ = [
    "DIFFERENT_PROMPTS",
    "MALFORMED",
    "BadFile",
    "BadFiles",
    "Fault",
    "FaultCounts",
    "ends_the_process",
]

NAMED_FILES = 20
"""Bad files whose errors a message has; of others, it says how many there are."""

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

    def include(self, counts: "FaultCounts") -> None:
        """Count the rows of a further file, or files."""
        self.first = self.first or counts.first
        self.rows += counts.rows
        self.malformed += counts.malformed
        self.kinds += counts.kinds

    def check(self) -> None:
        """Warn of malformed rows. Raises `DataError` where most rows are malformed."""
        if self.malformed > self.rows / 2:
            raise DataError(f"{self.first}; {self.malformed:,} of {self.rows:,} rows are malformed")
        if self.malformed:
            kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.kinds.most_common())
            logger.warning(
                "%d of %d rows are malformed (%s), first %s", self.malformed, self.rows, kinds, self.first
            )


def ends_the_process(path: str, reason: str) -> DataError:
    """What is wrong with a file that ends the processes which read it. reason: how they end."""
    cause = "it is damaged, or takes more memory than there is" if "signal 9" in reason else "it is damaged"
    return DataError(f"{path}: reading it ends the process ({reason}); {cause}: copy or make it anew")


@dataclass(frozen=True, kw_only=True)
class BadFile:
    """A file that is left out, and why. rows: how many it has, None where that is not known."""

    file: str
    reason: str
    rows: int | None = None


class BadFiles:
    """Takes the files of an input that cannot be read, until all have been looked at.

    Args:
        skip: leave them out, with a warning, where else they are an error.
    """

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self.found: list[tuple[BadFile, DataError]] = []

    @property
    def skipped(self) -> list[BadFile]:
        return [file for file, _ in self.found]

    def add(self, path: str, error: DataError, rows: int | None = None) -> None:
        """Take what is wrong with a file.

        Args:
            rows: that it has, where that is known.
        """
        self.found.append((BadFile(file=path, reason=str(error), rows=rows), error))

    def check(self, files: int) -> None:
        """Warn of bad files that are left out.

        Args:
            files: how many the input has, bad ones included.

        Raises:
            DataError: there are bad files, and they are not to be left out, or all are bad.
        """
        if not self.found:
            return
        if self.skip and len(self.found) < files:
            known = sum(file.rows or 0 for file in self.skipped)
            unknown = sum(file.rows is None for file in self.skipped)
            logger.warning(
                "%d of %d input files are left out (--on-bad-file skip), with %d rows%s: %s",
                len(self.found), files, known,
                f" and those of {counted(unknown, 'file')} whose rows are not known" if unknown else "",
                self.named(),
            )  # fmt: skip
            return
        if len(self.found) == 1:
            raise self.found[0][1]
        raise DataError(
            f"{len(self.found):,} of {files:,} input files cannot be scored: {self.named()}; mend or remove "
            "them, or leave them out with --on-bad-file skip"
        )

    def named(self) -> str:
        more = len(self.found) - NAMED_FILES
        shown = [file.reason for file in self.skipped[:NAMED_FILES]]
        return "; ".join(shown) + (f"; and {more:,} more" if more > 0 else "")
