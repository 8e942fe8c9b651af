"""Where a run is, in figures: shown, in a file, and as metrics."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.fake_metrics import fake_metrics
from wsdm_ray.events import Event
from wsdm_ray.exported_metrics import ExportedMetrics
from wsdm_ray.metric_names import SCORE_METRICS
from wsdm_ray.scoring import progress as progress_module
from wsdm_ray.scoring.coordinator import Coordinator
from wsdm_ray.scoring.isolation import Part
from wsdm_ray.scoring.parts import UnitReport
from wsdm_ray.scoring.preemption import Holder, Preemption
from wsdm_ray.scoring.progress import Follower
from wsdm_ray.scoring.ray_data import said_at_the_end
from wsdm_ray.scoring.run_status import RunStatus, slowest_units
from wsdm_ray.telemetry import RowProgress


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    """Metrics that are none, and an actor that is called in this process."""
    fake_metrics(monkeypatch)
    monkeypatch.setattr(progress_module.ray, "get", lambda value, timeout=None: value)


def values_of(metrics: Any) -> dict[str, float]:
    return {field: metric.value for field, metric in (metrics.counters | metrics.gauges).items()}


def handle_of(actor):
    names = [name for name in dir(actor) if name[0] != "_" and callable(getattr(actor, name))]
    return SimpleNamespace(**{name: SimpleNamespace(remote=getattr(actor, name)) for name in names})


def test_figures_of_a_run_are_shown_written_and_exported(tmp_path):
    now, actor = [100.0], Coordinator()
    actor.begin_pass(4, ())
    for unit in (3, 4):
        actor.began(("score", unit), Part(0, 100))
    actor.began(("read", 5), Part(0, 100))
    actor.died(("score", 3), Part(0, 100), "process died: signal 9")
    actor.give_up("slot", "node", "no GPU")
    actor.update(3, 0.5, 700)
    actor.tell(Event(kind="store_retried", count=12))
    progress = RowProgress("score", 1_000, done=200, clock=lambda: now[0])
    finished = {2: UnitReport(unit=2, rows=100, errors=7, peak_memory_bytes=5_000)}
    follower = Follower(
        handle_of(actor), progress, {2: 100, 3: 100, 4: 100}, finished, str(tmp_path), gpu_price=0.5,
        clock=lambda: now[0],
    )  # fmt: skip
    progress.begin()
    progress.advance(100, 3_000)
    now[0] = 150.0
    follower.show()
    assert progress.text() == (
        "3 pairs/s, 74 tokens/s, ETA 4 min, 2 replicas at work, 1 given up, 7 errors, 1 retry, "
        "12 store retries, cost 25.00"
    )
    kept = json.loads((tmp_path / "_progress.json").read_text())
    assert kept == {
        "rows": 300, "total_rows": 1_000, "tokens": 3_000, "units": 1, "errors": 7, "retries": 1,
        "store_retries": 12, "replicas_at_work": 2, "replicas_given_up": 1, "pairs_per_second": 3.0,
        "tokens_per_second": 74.0,
        "peak_memory_bytes": 5_000, "seconds_left": pytest.approx(650 / 3, abs=0.01), "cost": 25.0,
    }  # fmt: skip
    metrics = values_of(follower.metrics)
    assert metrics["rows"] == 100, "of this run"
    assert (metrics["errors"], metrics["retries"], metrics["replicas_at_work"]) == (7, 1, 2)
    # A minute later the file is written again, not before.
    actor.ended(("score", 4))
    now[0] = 209.0
    follower.show()
    assert json.loads((tmp_path / "_progress.json").read_text())["replicas_at_work"] == 2
    now[0] = 210.0
    follower.show()
    assert json.loads((tmp_path / "_progress.json").read_text())["replicas_at_work"] == 1


def test_counters_never_go_back():
    fields = {"rows": 30, "total_rows": 90, "tokens": 5, "units": 1, "errors": 0, "retries": 2}
    status = RunStatus(**fields, replicas_at_work=1, replicas_given_up=0)
    metrics = ExportedMetrics(SCORE_METRICS, {"rows": 10})
    metrics.update(vars(status))
    metrics.update(vars(status))
    values = values_of(metrics)
    assert (values["rows"], values["retries"], values["total_rows"]) == (20, 2, 90)


def test_events_are_counted_once_and_logged_with_their_ids(tmp_path, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(
        "wsdm_ray.exported_metrics.logger.warning", lambda *text: lines.append(text[0] % text[1:])
    )
    monkeypatch.setattr("wsdm_ray.events.retries", lambda: {"s3": 3})
    monkeypatch.setattr("wsdm_ray.events.TOLD", {"retries": 0})
    actor = Coordinator()
    finished: dict[int, UnitReport] = {}
    follower = Follower(handle_of(actor), RowProgress("score", 10), {}, finished, str(tmp_path))
    died = {"unit": 3, "rows": (0, 9), "process": 17, "worker": "ab", "node": "n1"}
    actor.tell(Event(kind="replica_died", **died, reason="process died: signal 9"))
    finished[5] = UnitReport(unit=5, halvings=2, token_budget=512, process=18)
    for _ in range(2):
        follower.show()
        actor.tell(Event(kind="preempted", node="n2"))
    follower.note_events()
    assert lines == [
        "score: store_retried 3 times",
        "score: memory_ran_out 2 times: unit 5, process 18: the token budget is 512 now",
        "score: replica_died: unit 3, rows 0 to 9, process 17, worker ab, on n1: process died: signal 9",
        *["score: preempted: on n2"] * 2,
    ]
    counted = {"store_retried": 3, "memory_ran_out": 2, "replica_died": 1, "preempted": 2}
    assert follower.log.counter.by_event == counted  # pyright: ignore[reportAttributeAccessIssue]


def test_the_slowest_units_come_first():
    reports = [
        UnitReport(unit=unit, rows=10, seconds=seconds) for unit, seconds in enumerate((1, 5.06, 2, 9))
    ]
    assert [unit["unit"] for unit in slowest_units(reports)] == [3, 1, 2]
    assert slowest_units(reports)[1] == {"unit": 1, "seconds": 5.1, "rows": 10}


def test_the_coordinator_counts_starts_and_slots():
    actor = Coordinator()
    actor.begin_pass(2, ())
    assert [actor.starting("a") for _ in range(3)] == [0, 1, 2]
    assert not actor.any_ready()
    actor.ready("a")
    assert actor.any_ready()
    assert actor.starting("a") == 0
    assert not actor.any_ready(), "it starts again"
    assert [str(event) for event in actor.events_after(2)] == ["worker_replaced: worker a"]
    assert not actor.give_up("a", "node 1", "no disk")
    assert not actor.give_up("a", "node 1", "no disk")
    assert actor.give_up("b", "node 2", "no GPU"), "all are given up"
    assert actor.state()[2] == ["no disk", "no GPU"]
    assert actor.given_up_on({"node 2", "node 3"}) == ["no GPU"]
    assert actor.starting("a") == 0
    assert actor.state()[2] == ["no GPU"], "its node is gone, and it starts on another"
    actor.begin_pass(1, ())
    assert actor.state() == ({}, [], [])


def test_what_was_lost_with_a_node_or_after_a_notice_is_no_death_of_its_unit():
    actor, part = Coordinator(), Part(0, 100)
    actor.begin_pass(3, ())
    actor.began(("score", 1), part, Holder(worker="w1", node="gone"))
    actor.began(("score", 2), part, Holder(worker="w2", node="there"))
    actor.began(("read", 3), part, Holder(worker="w3", node="there"))
    actor.update(1, 0.25, 10)
    actor.leave("w3")
    taken = actor.take_preempted({"there"}, "taken away")
    assert taken == {("score", 1): part, ("read", 3): part}
    running, deaths, _ = actor.state()
    assert (running, deaths) == ({("score", 2): part}, [])
    assert actor.dropped() == [
        Preemption(stage="score", unit=1, rows=25, reason="taken away"),
        Preemption(stage="read", unit=3, rows=0, reason="taken away"),
    ]


def test_the_cost_counts_the_gpus_that_were_there(tmp_path):
    now = [100.0]
    progress = RowProgress("score", 10, clock=lambda: now[0])
    follower = Follower(None, progress, {}, {}, str(tmp_path), gpu_price=1.0, clock=lambda: now[0])
    now[0] = 110.0
    follower.set_gpu_price(3.0)  # two more joined
    now[0] = 120.0
    assert follower.status((), (), ()).cost == 10 * 1 + 10 * 3


def test_a_run_that_is_stopped_says_how_to_go_on(caplog):
    with pytest.raises(SystemExit), said_at_the_end([None] * 5, {7: None}):  # pyright: ignore[reportArgumentType]
        raise SystemExit(143)
    [line] = [record.message for record in caplog.records]
    assert "of 5 units that were left, 1 are committed" in line
    assert line.endswith("run the same command to go on")


def test_a_unit_that_is_dropped_for_a_notice_is_an_event():
    actor = Coordinator()
    actor.preempted(("score", 4), Part(10, 20), "signal 15")
    assert [str(event) for event in actor.events_after(0)] == ["preempted: unit 4, rows 10 to 19: signal 15"]
