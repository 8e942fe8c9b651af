"""What is lost with a process that was asked to end, and whether it was: pure functions.

A spot machine is taken away with a notice: its processes get SIGTERM, or Ray says that its node is drained.
That is no fault of the rows that a process was scoring: it counts for no unit (`isolation`).
"""

import signal
from collections.abc import Collection
from dataclasses import dataclass

__all__ = ["Holder", "Preemption", "died_of_notice", "rows_lost", "was_preempted"]


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The Ray worker that runs a part of a unit, and its node, by their ids."""

    worker: str = ""
    node: str = ""


@dataclass(frozen=True, kw_only=True)
class Preemption:
    """Work that was dropped because its process was asked to end, or its node was lost.

    stage: `read` or `score`. rows: that were scored and are scored again.
    """

    stage: str
    unit: int
    rows: int
    reason: str


def died_of_notice(returncode: int, noticed: bool) -> bool:
    """Whether a process ended because it was asked to: by SIGTERM, or by what came after it.

    Args:
        returncode: of `subprocess`; below 0: the signal.
        noticed: it had said that it was asked to end.
    """
    return noticed or returncode == -signal.SIGTERM


def was_preempted(holder: Holder, leaving: Collection[str], nodes: Collection[str]) -> bool:
    """Whether a Ray worker was lost with its node, or after it was asked to end.

    Args:
        leaving: ids of workers that were asked to end.
        nodes: ids of the nodes that are there, without those that are being drained.
    """
    return holder.worker in leaving or (bool(holder.node) and holder.node not in nodes)


def rows_lost(rows: int, share: float) -> int:
    """How many of the rows of a part had been scored.

    Args:
        share: of the part that was done, 0 to 1.
    """
    return int(rows * share)
