"""Where a run is, in figures: for people, for progress.json, and for metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from wsdm_ray.scoring.parts import UnitReport
from wsdm_ray.telemetry import counted

__all__ = ["PROGRESS_FILE", "RunStatus", "slowest_units"]

PROGRESS_FILE = "_progress.json"
"""Beside run.json of a run that is not finished: its `RunStatus`, a minute old at most."""

SLOWEST = 3
"""So many units are named at the end of a run."""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Where a run is.

    rows, total_rows: that have their result, with those of earlier runs; of the input.
    pairs_per_second, tokens_per_second, seconds_left: of this run; None until something was scored.
    errors: rows with an error, of this run. units: that this run finished.
    replicas_at_work, replicas_given_up: that score a unit now, and that cannot start.
    retries: processes that died, or ran out of time. store_retries: requests to stores that were sent again.
    peak_memory_bytes: the most that any replica took so far; None until one has scored a unit.
    cost: so far, in the currency of `--gpu-hour-price`; None where that or a GPU is missing.
    """

    rows: int
    total_rows: int
    tokens: int
    units: int
    errors: int
    retries: int
    replicas_at_work: int
    replicas_given_up: int
    store_retries: int = 0
    peak_memory_bytes: int | None = None
    pairs_per_second: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    cost: float | None = None

    def details(self) -> list[str]:
        """What is shown behind the speed: no zeros, but for the replicas at work."""
        shown = [f"{counted(self.replicas_at_work, 'replica')} at work"]
        shown += [f"{self.replicas_given_up} given up"] if self.replicas_given_up else []
        shown += [counted(self.errors, "error")] if self.errors else []
        shown += [counted(self.retries, "retry", "retries")] if self.retries else []
        shown += [counted(self.store_retries, "store retry", "store retries")] if self.store_retries else []
        shown += [f"cost {self.cost:,.2f}"] if self.cost is not None else []
        return shown

    def to_json(self) -> dict[str, Any]:
        """What progress.json holds, with figures rounded."""
        return {
            name: round(value, 2) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


def slowest_units(reports: Sequence[UnitReport]) -> list[Mapping[str, Any]]:
    """The units that took longest, the slowest first: number, seconds and rows."""
    longest = sorted(reports, key=lambda report: -report.seconds)[:SLOWEST]
    return [
        {"unit": report.unit, "seconds": round(report.seconds, 1), "rows": report.rows} for report in longest
    ]
