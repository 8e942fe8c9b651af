"""Which rows of a unit are run next after processes died over it, and which are given up: pure functions.

A unit is tried three times as a whole. A third death halves it, and every death over a part of several rows
halves that part. A row that twice ends its process alone is given up. So k rows that kill cost a unit of n
rows at most about 3 + k * (log2(n) + 1) processes, and all other rows are run.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from wsdm_ray.scoring.child_process import Death

__all__ = ["Part", "PartDeath", "isolate", "parts_of"]

UNIT_TRIES, PART_TRIES, ROW_TRIES = 3, 1, 2
"""How many processes may die over a whole unit, over a part of it, and over a single row."""

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """Rows `start` to `stop` of a unit, counted from its first.

    reason: why they are given up, else "".
    """

    start: int
    stop: int
    reason: str = ""

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True)
class PartDeath:
    """A process that ended while it ran rows `start` to `stop` of a unit."""

    start: int
    stop: int
    reason: str


@dataclass(frozen=True)
class Done(Generic[T]):
    """What became of a part; value: None where its rows are given up."""

    part: Part
    value: T | None


def parts_of(rows: int, deaths: Sequence[PartDeath]) -> tuple[Part, ...]:
    """The parts in which a unit of `rows` rows is run, in order, by the deaths so far.

    They cover every row once.
    """
    return tuple(split(0, rows, rows, deaths))


def split(start: int, stop: int, rows: int, deaths: Sequence[PartDeath]) -> Iterator[Part]:
    died = [death for death in deaths if (death.start, death.stop) == (start, stop)]
    alone = stop - start <= 1
    tries = UNIT_TRIES if stop - start == rows else ROW_TRIES if alone else PART_TRIES
    if len(died) < tries:
        yield Part(start, stop)
    elif alone:
        yield Part(start, stop, died[-1].reason)
    else:
        middle = (start + stop) // 2
        yield from split(start, middle, rows, deaths)
        yield from split(middle, stop, rows, deaths)


def isolate(
    rows: int,
    deaths: list[PartDeath],
    run: Callable[[Part], "T | Death"],
    record: Callable[[Sequence[PartDeath]], None],
) -> list[Done[T]]:
    """What became of each part of a unit, in order: every row is in one that was run, or is given up.

    Args:
        deaths: of earlier processes; it grows.
        run: runs a part in a process.
        record: keeps the deaths, after each.
    """
    values: dict[Part, T] = {}
    while True:
        parts = parts_of(rows, deaths)
        part = next((part for part in parts if not part.reason and part not in values), None)
        if part is None:
            return [Done(part, values.get(part)) for part in parts]
        outcome = run(part)
        if isinstance(outcome, Death):
            deaths.append(PartDeath(start=part.start, stop=part.stop, reason=outcome.reason))
            record(deaths)
        else:
            values[part] = outcome
