"""Child processes that are none, and a run's coordination that only notes, for tests of who supervises."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wsdm_ray.events import Event
from wsdm_ray.scoring.child_process import Death
from wsdm_ray.scoring.crash_records import UnitStage
from wsdm_ray.scoring.isolation import Part, PartDeath
from wsdm_ray.scoring.plan import WorkUnit
from wsdm_ray.scoring.supervision import Supervision, answering

__all__ = ["AskedToEnd", "FakeChild", "Killed", "NotedCoordination", "supervision_of"]


class Killed(BaseException):
    """In place of the end of a process; its text is the reason."""


class AskedToEnd(Killed):
    """In place of the end of a process that got SIGTERM."""


class FakeChild:
    """Answers within this process. A function that raises `Killed` is a process that died.

    Args:
        starts: the deaths of the first starts.
    """

    def __init__(self, functions: Mapping[str, Callable[..., Any]], starts: Sequence[str] = ()):
        self.answer, self.alive, self.deaths_at_start = answering(functions), False, list(starts)
        self.started = 0
        self.timeouts: list[float | None] = []

    def start(self) -> Death | None:
        self.started += 1
        if self.deaths_at_start:
            return Death(self.deaths_at_start.pop(0))
        self.alive = True
        return None

    def call(self, payload: Any, timeout_seconds: float | None = None) -> Any:
        assert self.alive
        self.timeouts.append(timeout_seconds)
        try:
            return self.answer(payload)
        except Killed as death:
            self.alive = False
            return Death(str(death), isinstance(death, AskedToEnd))


class NotedCoordination:
    """Notes what a process tells; `left` other slots can still start."""

    def __init__(self, starts: int = 0, left: int = 0):
        self.starts, self.left = starts, left
        self.told: list[Any] = []
        self.events: list[Event] = []

    def starting(self) -> int:
        return self.starts

    def ready(self) -> None:
        self.told.append("ready")

    def give_up(self, reason: str) -> bool:
        self.told.append(("give up", reason))
        return not self.left

    def unit_at(self, index: int) -> WorkUnit:
        raise AssertionError(f"no process of these tests asks for unit {index}")

    def wait_for_replica(self) -> None:
        self.told.append("wait for replica")

    def wait_for_end(self) -> None:
        self.told.append("wait")

    def began(self, stage: UnitStage, part: Part) -> None:
        self.told.append(("began", stage, part.start, part.stop))

    def ended(self, stage: UnitStage) -> None:
        self.told.append(("ended", stage))

    def died(self, stage: UnitStage, part: Part, reason: str) -> None:
        self.told.append(("died", stage, part.start, part.stop, reason))

    def tell(self, event: Event) -> None:
        self.events.append(event)

    def preempted(self, stage: UnitStage, part: Part, reason: str) -> None:
        self.told.append(("preempted", stage, part.start, part.stop, reason))

    def on_notice(self, leave: Callable[[], None]) -> None:
        self.leave = leave


def supervision_of(
    output: Any,
    coordination: NotedCoordination | None = None,
    deaths: Mapping[UnitStage, Sequence[PartDeath]] | None = None,
) -> Supervision:
    """How units are run in a test."""
    return Supervision(
        target=b"",
        output=str(output),
        coordination=coordination or NotedCoordination(),
        timeout_seconds=7.0,
        deaths=deaths or {},
    )
