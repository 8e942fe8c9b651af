"""Events of a run that are counted and logged: what died, was tried again, or was given up.

A process that others outlive only tells of them; the process that started the run counts and logs them
(`exported_metrics`), so that their totals survive.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from wsdm_ray.plain_text import one_line
from wsdm_ray.storage import retries

__all__ = ["EVENTS", "Event", "retry_events"]

EVENTS: Mapping[str, str] = {
    "replica_died": "a process that scores died over a unit, or passed `--unit-timeout-seconds`",
    "reader_died": "a process that reads died over a unit, or passed `--unit-timeout-seconds`",
    "device_lost": "a replica lost its GPU, and another process takes its place",
    "unit_bisected": "a unit whose processes died is run in smaller parts from here on",
    "row_given_up": "a row that ends its process has the reason as its error",
    "slot_given_up": "a replica cannot start on its node, and takes no units",
    "unit_lost": "the Ray worker of a unit was lost, and the unit is run again",
    "worker_replaced": "Ray started the worker of a replica anew",
    "worker_died": "a training worker failed or died; training goes on from the last checkpoint",
    "controller_replaced": "the controller of a training run died, and another goes on",
    "memory_ran_out": "the token budget was halved, or all layers recompute their activations",
    "store_retried": "a request to a store failed in passing and was sent again",
    "preempted": "a node or process was told to end, and left its work for another",
}
"""Values of the label `event`, and their meaning."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that is counted and logged.

    kind: a key of `EVENTS`. count: how many at once.
    unit: that it is about. rows: of the unit, first and last. process: id of the process on its node.
    worker: the Ray worker or actor, or the rank of a training worker; node: its machine. Empty, or None,
    where there is none.
    reason: one line.
    """

    kind: str
    count: int = 1
    unit: int | None = None
    rows: tuple[int, int] | None = None
    process: int | None = None
    worker: str = ""
    node: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        assert self.kind in EVENTS, f"{self.kind} is not in EVENTS"

    def __str__(self) -> str:
        """The event as a line of the log: what, with which ids, and why."""
        rows = self.rows and f"rows {self.rows[0]} to {self.rows[1]}"
        named = {"unit": self.unit, "process": self.process, "worker": self.worker, "on": self.node}
        ids = [f"{name} {value}" for name, value in named.items() if value not in (None, "")]
        times = f" {self.count} times" if self.count > 1 else ""
        where = ", ".join([*ids[:1], *([rows] if rows else []), *ids[1:]] if self.unit is not None else ids)
        said = one_line(self.reason)
        return ": ".join(part for part in (f"{self.kind}{times}", where, said) if part)


def retry_events() -> list[Event]:
    """An event for the requests to stores that this process sent again since the last call, or none."""
    total = sum(retries().values())
    new, TOLD["retries"] = total - TOLD["retries"], total
    return [Event(kind="store_retried", count=new)] if new > 0 else []


TOLD = {"retries": 0}
"""How many this process has told of."""
