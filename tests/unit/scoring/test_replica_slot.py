"""A slot whose replica's process dies: over a row, over its time, or before it is ready."""

import functools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.unit.scoring.conftest import random_rows
from tests.unit.scoring.fakes import plan_of
from tests.unit.scoring.supervised import (
    AskedToEnd,
    FakeChild,
    Killed,
    NotedCoordination,
    supervision_of,
)
from wsdm_ray.errors import ModelError
from wsdm_ray.scoring.crash_records import read_deaths
from wsdm_ray.scoring.encode import encode_unit, table_from_bytes, table_to_bytes
from wsdm_ray.scoring.error_kinds import kinds_from_json
from wsdm_ray.scoring.parts import UnitReport, read_footer
from wsdm_ray.scoring.replica import Replica
from wsdm_ray.scoring.replica_slot import DEVICE_LOST, ReplicaSlot, replicating

TIMED_OUT = "timed out after 7 s"


def functions_of(replica, dies):
    """What the child answers with; it dies over encoded rows of which `dies` is true."""

    def score(batch):
        if dies(table_from_bytes(batch["encoded"][0])):
            raise Killed(TIMED_OUT)
        return replica(batch)

    def score_part(number, encoded):
        table = table_from_bytes(encoded)
        if dies(table):
            raise Killed(TIMED_OUT)
        return replica.score(table, number)

    return {"score": score, "score_part": score_part, "commit": replica.commit}


def to_run(table, rows) -> bool:
    """Whether one of the rows, by id, is to be run with the model."""
    errors = dict(zip(table["id"].to_pylist(), table["error"].to_pylist(), strict=True))
    return any(row in errors and errors[row] is None for row in rows)


@pytest.fixture
def encoded(write, classifiers):
    [unit] = plan_of([write(random_rows(12, seed=4))], 20).units
    return encode_unit(unit, classifiers[:1])


def batch_of(encoded, error=""):
    values = {"unit": 0, "rows": len(encoded), "encoded": table_to_bytes(encoded), "error": error}
    return {name: np.array([value], object) for name, value in values.items()}


def report_of(row) -> UnitReport:
    return UnitReport.from_row({name: values[0] for name, values in row.items()})


def test_rows_that_end_their_process_get_the_error_and_all_others_are_scored(encoded, tmp_path, replica_of):
    output = str(tmp_path / "out")
    expected, _ = replica_of().score(encoded)
    poison = {3, 8}
    child = FakeChild(functions_of(replica_of(output=output), functools.partial(to_run, rows=poison)))
    row = ReplicaSlot(supervision_of(output), child=child)(batch_of(encoded))
    report = report_of(row)
    found = pq.read_table(f"{output}/part-000000.parquet")
    assert found["id"].equals(expected["id"])
    assert found["error"].to_pylist() == [TIMED_OUT if id in poison else None for id in range(12)]
    good = np.array([id not in poison for id in range(12)])
    probabilities = (table["prob_a"].to_numpy() for table in (found, expected))
    np.testing.assert_allclose(*(values[good] for values in probabilities), rtol=0, atol=1e-5)
    assert found["prob_a"].null_count == 2
    assert (report.rows, report.errors, report.error) == (12, 2, "")
    kept, _ = read_footer(f"{output}/part-000000.parquet")
    assert kept
    assert kinds_from_json(kept.kinds) == kinds_from_json(report.kinds)
    assert {name: kind.rows for name, kind in kinds_from_json(report.kinds).items()} == {
        "timed out after N s": 2
    }
    assert len(read_deaths(output)[("score", 0)]) <= 3 + 2 * (4 + 1)
    assert found.schema.metadata.keys() == pq.read_schema(f"{output}/part-000000.parquet").metadata.keys()


def test_a_process_that_lives_scores_the_unit_as_it_is(encoded, tmp_path, replica_of):
    output, alone = str(tmp_path / "out"), str(tmp_path / "alone")
    coordination = NotedCoordination()
    replica_of(output=alone)(batch_of(encoded))
    child = FakeChild(functions_of(replica_of(output=output), lambda table: False))
    slot = ReplicaSlot(supervision_of(output, coordination), child=child)
    report = report_of(slot(batch_of(encoded)))
    assert report.rows == 12
    assert report.seconds > 0
    parts = [(tmp_path / name / "part-000000.parquet").read_bytes() for name in ("out", "alone")]
    assert parts[0] == parts[1]
    assert coordination.told == ["ready", ("began", ("score", 0), 0, 12), ("ended", ("score", 0))]
    assert child.timeouts == [7.0]


def test_a_process_that_lost_its_gpu_is_not_counted_against_the_unit(encoded, tmp_path, replica_of):
    """It leaves a crash record of its own, which says which rows the next one runs alone."""
    replica, lost = replica_of(output=str(tmp_path / "out")), iter(range(5))

    def score(batch):
        if next(lost, None) is not None:
            raise Killed(DEVICE_LOST.reason)
        return replica(batch)

    child, coordination = FakeChild({"score": score}), NotedCoordination()
    slot = ReplicaSlot(supervision_of(tmp_path / "out", coordination), child=child)
    report = report_of(slot(batch_of(encoded)))
    assert (report.rows, report.error) == (12, "")
    assert child.started == 6
    assert [str(event) for event in coordination.events] == ["device_lost: unit 0"] * 5
    assert not read_deaths(str(tmp_path / "out"))


def test_what_ends_the_run_is_passed_on(encoded, tmp_path):
    def score(batch):
        raise ModelError("model: all 12 pairs of a unit fail")

    slot = ReplicaSlot(supervision_of(tmp_path / "out"), child=FakeChild({"score": score}))
    assert json.loads(report_of(slot(batch_of(encoded))).error) == [
        "ModelError", "model: all 12 pairs of a unit fail",
    ]  # fmt: skip
    assert report_of(slot(batch_of(encoded, error="of the reader"))).error == "of the reader"


@pytest.mark.parametrize("left", [0, 2])
def test_a_slot_that_cannot_start_is_given_up_with_its_reason(encoded, tmp_path, left, monkeypatch):
    """While others are left it waits, and takes no units; the last one ends the run."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    coordination = NotedCoordination(left=left)
    child = FakeChild({}, starts=["process failed: RuntimeError: CUDA error: out of resources"] * 3)
    slot = ReplicaSlot(supervision_of(tmp_path / "out", coordination), child=child)
    (what, reason), *rest = coordination.told
    assert what == "give up"
    assert "GPU 3: process failed: RuntimeError: CUDA error: out of resources" in reason
    assert rest == (["wait", "ready"] if left else ["ready"])
    [event] = coordination.events
    assert (event.kind, f"{event.node}: {event.reason}") == ("slot_given_up", reason)
    assert child.started == 3
    kind, text = json.loads(report_of(slot(batch_of(encoded))).error)
    assert kind == "ClusterError"
    assert "no replica can start" in text
    assert "out of resources" in text


def test_a_slot_whose_own_process_is_ended_at_each_start_is_given_up(tmp_path):
    coordination = NotedCoordination(starts=3, left=1)
    child = FakeChild({})
    ReplicaSlot(supervision_of(tmp_path / "out", coordination), child=child)
    assert coordination.told[0][0] == "give up"
    assert "was ended 3 times" in coordination.told[0][1]
    assert child.started == 0


def test_a_slot_that_breaks_later_leaves_its_unit_to_others(encoded, tmp_path):
    """Its process ends, and Ray starts another one: the unit is lost with it, and run in another pass."""

    def score(batch):
        raise Killed("process died: signal 9")

    child = FakeChild({"score": score})
    ended: list[int] = []
    slot = ReplicaSlot(supervision_of(tmp_path / "out"), child=child, end=ended.append)
    child.deaths_at_start = ["process died: exit status 1"] * 3
    slot(batch_of(encoded))
    assert ended == [1]


def test_a_defect_of_the_slot_itself_ends_the_run(encoded, tmp_path):
    """Ray Data would go on without the unit."""

    def score(batch):
        return {"unit": [0]}  # a row that is none

    slot = ReplicaSlot(supervision_of(tmp_path / "out"), child=FakeChild({"score": score}))
    kind, text = json.loads(report_of(slot(batch_of(encoded))).error)
    assert kind == "WorkerDefectError"
    assert "KeyError" in text


def test_the_process_of_a_replica_says_how_far_a_unit_is(encoded, replica_of, tmp_path):
    options = replica_of(output=str(tmp_path / "out"), token_budget=300).options
    reports: list[tuple[int, float, int]] = []
    answer = replicating(Replica, options, reports.append)
    _, error = answer(("score", batch_of(encoded)))
    assert not error
    assert [report[:2] for report in reports][:: len(reports) - 1] == [(0, 0.0), (0, 1.0)]
    assert len(reports) > 2


def test_a_process_that_is_asked_to_end_is_no_death_of_its_unit(encoded, tmp_path, replica_of):
    """However often: the unit is neither halved nor put on record."""
    replica, asked = replica_of(output=str(tmp_path / "out")), iter(range(7))

    def score(batch):
        if next(asked, None) is not None:
            raise AskedToEnd("process died: signal 15")
        return replica(batch)

    coordination, child = NotedCoordination(), FakeChild({"score": score})
    report = report_of(
        ReplicaSlot(supervision_of(tmp_path / "out", coordination), child=child)(batch_of(encoded))
    )
    assert (report.rows, report.error, report.errors) == (12, "", 0)
    assert child.started == 8
    assert not read_deaths(str(tmp_path / "out"))
    told = ("preempted", ("score", 0), 0, 12, "process died: signal 15")
    assert coordination.told[2:] == [told] * 7 + [("ended", ("score", 0))]


def test_a_slot_that_is_asked_to_end_finishes_its_unit(encoded, tmp_path, replica_of):
    output, ended = str(tmp_path / "out"), []
    coordination, replica = NotedCoordination(), replica_of(output=output)

    def score(batch):
        coordination.leave()  # in the midst of it
        return replica(batch)

    child = FakeChild({"score": score})
    slot = ReplicaSlot(supervision_of(output, coordination), child=child, end=ended.append)
    assert report_of(slot(batch_of(encoded))).rows == 12
    assert not ended
    slot(batch_of(encoded))
    assert ended == [1], "before the next one"


def test_a_slot_that_is_asked_to_end_starts_no_other_process(encoded, tmp_path):
    ended = []
    coordination = NotedCoordination()

    def score(batch):
        coordination.leave()
        raise AskedToEnd("process died: signal 15")

    child = FakeChild({"score": score})
    ReplicaSlot(supervision_of(tmp_path / "out", coordination), child=child, end=ended.append)(
        batch_of(encoded)
    )
    assert (ended, child.started) == ([1], 1)
