"""What holds a replica: it starts the replica's process, on its GPU, and another one when that dies.

A slot that was asked to end (SIGTERM) does so after the unit at hand. One whose replica cannot start keeps
its GPU, so that nothing else starts on it, and takes no units. Torch is imported in the child alone.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from wsdm_ray.errors import ClusterError
from wsdm_ray.events import Event
from wsdm_ray.failures import FinalError, pack_error
from wsdm_ray.scoring.child_process import MAX_STARTS, Death, StartError
from wsdm_ray.scoring.crash_records import DEVICE_LOST_STATUS
from wsdm_ray.scoring.encode import table_from_bytes, table_to_bytes
from wsdm_ray.scoring.isolation import Done, Part
from wsdm_ray.scoring.parts import UnitReport, joined_reports
from wsdm_ray.scoring.supervision import Answer, Supervision, Supervisor, answering

if TYPE_CHECKING:
    from wsdm_ray.scoring.replica import Replica, ReplicaOptions

__all__ = ["ReplicaSlot", "replicating"]

DEVICE_LOST = Death(f"process died: exit status {DEVICE_LOST_STATUS}")


def replicating(
    replica_class: "type[Replica]", options: "ReplicaOptions", notify: Callable[[Any], None]
) -> Answer:
    """What the child of a `ReplicaSlot` answers with."""
    from wsdm_ray.errors import ModelError
    from wsdm_ray.scoring.recovery import DeviceLostError

    replica = replica_class(dataclasses.replace(options, report_progress=lambda *report: notify(report)))

    def score_part(number: int, encoded: bytes) -> tuple[pa.Table, UnitReport]:
        try:
            return replica.score(table_from_bytes(encoded), number)
        except (ModelError, DeviceLostError) as error:  # smaller parts show which row it is
            raise RuntimeError(str(error)) from error

    return answering({"score": replica, "score_part": score_part, "commit": replica.commit}, notify)


class ReplicaSlot:
    """A place for a replica, with its GPU. Called with an encoded unit, it has the unit scored and committed.

    Ray Data makes an actor pool of this class: each call takes one row (of `Reader`) and gives one row, a
    `UnitReport`.

    Args:
        report_progress: takes what the replica reports.
        child: in place of a `ChildProcess`. end: ends this process, for Ray to make another one.
    """

    def __init__(
        self,
        supervision: Supervision,
        report_progress: Callable[..., None] = lambda *report: None,
        child: Any = None,
        end: Callable[[int], Any] = os._exit,
    ):
        self.coordination, self.end = supervision.coordination, end
        self.supervisor = Supervisor(supervision, "replica", lambda report: report_progress(*report), child)
        self.failure = ""
        self.coordination.on_notice(self.leave)
        starts = self.coordination.starting()
        try:
            if starts >= MAX_STARTS:
                raise StartError(f"the process that starts it was ended {starts} times")
            self.supervisor.start()
        except StartError as error:
            self.give_up(str(error))
        self.coordination.ready()

    def leave(self) -> None:
        """End when the unit at hand is committed: this process was asked to."""
        self.supervisor.leaving = True

    def give_up(self, reason: str) -> None:
        """Take no units until the run is over; where no other slot is left, end the run at the first one."""
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        place = os.uname().nodename + (f", GPU {gpu}" if gpu else "")
        self.coordination.tell(Event(kind="slot_given_up", node=place, reason=reason))
        if not self.coordination.give_up(f"{place}: {reason}"):
            self.coordination.wait_for_end()
        self.failure = pack_error(
            ClusterError(
                f"no replica can start, the last one on {place}: {reason}; see the log above, and check the "
                "GPU, memory and disk of that node"
            )
        )

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.supervisor.leaving:  # Ray starts another process; the unit, not begun, is run in another pass
            self.end(1)
        number, started = int(batch["unit"][0]), time.monotonic()
        report = UnitReport(unit=number, error=str(batch["error"][0] or self.failure))
        try:
            if not report.error:
                report = self.score(number, batch)
        except FinalError as error:
            report = dataclasses.replace(report, error=str(error))
        except StartError as error:
            print(f"the replica cannot start again: {error}; Ray tries elsewhere", file=sys.stderr)
            sys.stderr.flush()
            self.end(1)
        except Exception as error:  # of this process: Ray Data would go on without the unit
            report = dataclasses.replace(report, error=pack_error(error))
        seconds = time.monotonic() - started
        return dataclasses.replace(report, seconds=seconds, process=os.getpid()).to_row()

    def score(self, number: int, batch: dict[str, np.ndarray]) -> UnitReport:
        """Have a unit scored and committed, as a whole if its process lives, else in parts."""
        rows, encoded = int(batch["rows"][0]), batch["encoded"][0]

        def run(part: Part) -> Any:
            if part.rows == rows:
                return self.score_whole(number, batch)
            return self.score_part(number, table_from_bytes(encoded).slice(part.start, part.rows))

        done = self.supervisor.isolate(("score", number), rows, run)
        if len(done) == 1 and done[0].value is not None:
            return done[0].value
        return self.commit(number, self.scored(number, table_from_bytes(encoded), done))

    def score_whole(self, number: int, batch: dict[str, np.ndarray]) -> UnitReport | Death:
        while (outcome := self.supervisor.call("score", batch)) == DEVICE_LOST:
            # It left a crash record, which says what the next one runs, and how often.
            lost = Event(kind="device_lost", unit=number, process=self.supervisor.last_process)
            self.coordination.tell(lost)
        if isinstance(outcome, Death):
            return outcome
        return UnitReport.from_row({name: values[0] for name, values in outcome.items()})

    def score_part(self, number: int, encoded: pa.Table) -> "tuple[pa.Table, UnitReport] | Death":
        return self.supervisor.call("score_part", number, table_to_bytes(encoded))

    def scored(
        self, number: int, encoded: pa.Table, done: Sequence[Done[Any]]
    ) -> list[tuple[pa.Table, UnitReport]]:
        """Predictions and counts of each part; rows that are given up have the reason as their error."""
        found = []
        for one in done:
            value = one.value
            if value is None:
                rows = with_error(encoded.slice(one.part.start, one.part.rows), one.part.reason)
                value = self.score_part(number, rows)
            if isinstance(value, Death):  # no model ran
                reason = f"unit {number}: a process ends without running a model: {value.reason}"
                raise FinalError(pack_error(ClusterError(f"{reason}; see its log above")))
            found.append(value)
        return found

    def commit(self, number: int, parts: Sequence[tuple[pa.Table, UnitReport]]) -> UnitReport:
        """Have the parts of a unit written as one."""
        table = pa.concat_tables([table for table, _ in parts])
        report = joined_reports(number, [report for _, report in parts])
        outcome = self.supervisor.call("commit", table, report)
        if isinstance(outcome, Death):
            reason = f"unit {number}: the process that writes it ends: {outcome.reason}"
            raise FinalError(pack_error(ClusterError(f"{reason}; see its log above, and run again")))
        return report


def with_error(encoded: pa.Table, error: str) -> pa.Table:
    """Encoded rows that are not run; those that have an error keep it."""
    place = encoded.schema.get_field_index("error")
    return encoded.set_column(place, "error", encoded["error"].fill_null(error))
