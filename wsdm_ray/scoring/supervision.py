"""Units are read and scored in processes that may die: who starts them, counts their deaths, and goes on.

A Ray worker starts a child for what may end a process, and stays alive itself: it knows how the child ended,
starts another one, and runs the rows of the unit in smaller parts until those that kill are found
(`isolation`). What Ray would do instead is to start the whole unit again, without end.
"""

import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from wsdm_ray.events import Event, retry_events
from wsdm_ray.failures import FinalError, pack_final
from wsdm_ray.scoring.child_process import MAX_PREEMPTED, ChildProcess, Death, StartError, start_ready
from wsdm_ray.scoring.crash_records import UnitStage, write_deaths
from wsdm_ray.scoring.isolation import Done, Part, PartDeath, isolate, parts_of
from wsdm_ray.scoring.plan import WorkUnit
from wsdm_ray.storage import STORE_TIMEOUT_SECONDS, set_store_timeout

__all__ = ["Answer", "Coordination", "Supervision", "Supervisor", "answering"]

Answer = Callable[[tuple[Any, ...]], tuple[Any, str]]
"""What a child answers calls with: takes the name of a function and its arguments, gives what the function
returns and an error that ends the run, packed, or ""."""


class Coordination(Protocol):
    """What the processes of a run tell the process that started it."""

    def starting(self) -> int:
        """How many times this process was started before without being ready since."""
        ...

    def ready(self) -> None: ...

    def give_up(self, reason: str) -> bool:
        """This replica cannot start. Returns whether no other one is left."""
        ...

    def unit_at(self, index: int) -> WorkUnit:
        """A unit of the pass that runs."""
        ...

    def wait_for_replica(self) -> None:
        """Returns when a replica takes units."""
        ...

    def wait_for_end(self) -> None:
        """Returns when the run is over."""
        ...

    def began(self, stage: UnitStage, part: Part) -> None: ...

    def ended(self, stage: UnitStage) -> None: ...

    def died(self, stage: UnitStage, part: Part, reason: str) -> None: ...

    def tell(self, event: Event) -> None: ...

    def preempted(self, stage: UnitStage, part: Part, reason: str) -> None:
        """A process that ran the part was asked to end."""
        ...

    def on_notice(self, leave: Callable[[], None]) -> None:
        """Has `leave` called when this process itself is asked to end."""
        ...


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """How units are run in child processes.

    target: of `ChildProcess`; its function is an `Answer`.
    output: of the run. deaths: on record when the run started.
    timeout_seconds: of a unit, or a part of one; None: no limit. store_timeout_seconds: of
    `set_store_timeout`, for the records that are written here.
    """

    target: bytes
    output: str
    coordination: Coordination
    timeout_seconds: float | None = None
    store_timeout_seconds: float = STORE_TIMEOUT_SECONDS
    deaths: Mapping[UnitStage, Sequence[PartDeath]] = field(default_factory=dict)


class Supervisor:
    """Runs the parts of units in a child process, and starts another when it dies.

    Args:
        name: of the child, in its command line.
        child: has the methods of `ChildProcess`.
    """

    def __init__(
        self,
        supervision: Supervision,
        name: str,
        on_message: Callable[[Any], None] = lambda message: None,
        child: Any = None,
    ):
        set_store_timeout(supervision.store_timeout_seconds, reached=True)
        self.supervision = supervision
        self.last_process: int | None = None

        def take(message: Any) -> None:
            supervision.coordination.tell(message) if isinstance(message, Event) else on_message(message)

        self.child = child or ChildProcess(supervision.target, name, take)
        self.at_hand: tuple[UnitStage, Part] | None = None
        self.leaving = False
        """Whether this process was asked to end: no other child is started then."""

    def start(self) -> None:
        """Start the child. Raises `StartError` where it ended too often."""
        start_ready(self.child, lambda: self.leaving)

    def call(self, function: str, *arguments: Any) -> Any:
        """What a function of the child's returns; a `Death` where the process ends before.

        A process that was asked to end is no such death, unless many are in a row: another one gets the call.

        Raises:
            FinalError: what ends the run, packed.
            StartError: no process can be started.
        """
        outcome: Any = None
        for preempted in itertools.count(1):
            if not self.child.alive:
                self.start()
            outcome = self.child.call((function, *arguments), self.supervision.timeout_seconds)
            if not (isinstance(outcome, Death) and outcome.preempted) or preempted == MAX_PREEMPTED:
                break
            if self.at_hand:
                stage, part = self.at_hand
                print(f"unit {stage[1]}: its process was asked to end; it is run again", file=sys.stderr)
                self.supervision.coordination.preempted(stage, part, outcome.reason)
            if self.leaving:
                raise StartError("it was asked to end, as this process was")
        if isinstance(outcome, Death):
            self.last_process = outcome.process
            return outcome
        value, error = outcome
        if error:
            raise FinalError(error)
        return value

    def isolate(self, stage: UnitStage, rows: int, run: Callable[[Part], Any]) -> list[Done[Any]]:
        """What became of the parts of a unit (`isolation`); deaths are told and put on record.

        Args:
            run: gives what `call` returns for a part.
        """
        supervision = self.supervision

        def record(deaths: Sequence[PartDeath]) -> None:
            last = deaths[-1]
            supervision.coordination.died(stage, Part(last.start, last.stop), last.reason)
            for event in death_events(stage, rows, deaths, self.last_process):
                supervision.coordination.tell(event)
            write_deaths(supervision.output, stage, deaths)

        def run_noted(part: Part) -> Any:
            supervision.coordination.began(stage, part)
            self.at_hand = stage, part
            return run(part)

        try:
            done = isolate(rows, list(supervision.deaths.get(stage, ())), run_noted, record)
        finally:
            self.at_hand = None
        supervision.coordination.ended(stage)
        return done


def death_events(
    stage: UnitStage, rows: int, deaths: Sequence[PartDeath], process: int | None
) -> list[Event]:
    """What the last of the deaths over a unit of `rows` rows means: the death, and what follows from it.

    Args:
        process: that died.
    """
    last, number = deaths[-1], stage[1]
    kind = "replica_died" if stage[0] == "score" else "reader_died"
    part = last.start, last.stop - 1
    events = [Event(kind=kind, unit=number, rows=part, process=process, reason=last.reason)]
    before, after = parts_of(rows, deaths[:-1]), parts_of(rows, deaths)
    if len(after) > len(before):
        events.append(Event(kind="unit_bisected", unit=number, rows=part))
    if sum(bool(each.reason) for each in after) > sum(bool(each.reason) for each in before):
        events.append(Event(kind="row_given_up", unit=number, rows=part, reason=last.reason))
    return events


def answering(
    functions: Mapping[str, Callable[..., Any]], notify: Callable[[Event], None] = lambda event: None
) -> Answer:
    """An `Answer` with these functions. What another try would not meet again ends the process.

    Args:
        notify: takes the events of each call.
    """

    def answer(call: tuple[Any, ...]) -> tuple[Any, str]:
        name, *arguments = call
        try:
            return functions[name](*arguments), ""
        except Exception as error:
            return None, pack_final(error)
        finally:
            for event in retry_events():
                notify(event)

    return answer
