"""Where a run is, in figures: shown, in a file, and as metrics."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from wsdm_ray.scoring import progress as progress_module
from wsdm_ray.scoring.coordinator import Coordinator
from wsdm_ray.scoring.isolation import Part
from wsdm_ray.scoring.parts import UnitReport
from wsdm_ray.scoring.preemption import Holder, Preemption
from wsdm_ray.scoring.progress import Follower
from wsdm_ray.scoring.ray_data import said_at_the_end
from wsdm_ray.scoring.run_metrics import COUNTERS, GAUGES, RunMetrics
from wsdm_ray.scoring.run_status import RunStatus, slowest_units
from wsdm_ray.telemetry import RowProgress


class Metric:
    """In place of one of Ray's."""

    def __init__(self, name, description):
        assert name.startswith("wsdm_ray_score_")
        assert description
        self.value = 0.0

    def inc(self, value):
        assert value > 0
        self.value += value

    def set(self, value):
        self.value = value


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    """Metrics that are none, and an actor that is called in this process."""
    monkeypatch.setattr("wsdm_ray.scoring.run_metrics.Counter", Metric)
    monkeypatch.setattr("wsdm_ray.scoring.run_metrics.Gauge", Metric)
    monkeypatch.setattr(progress_module.ray, "get", lambda value, timeout=None: value)


def values_of(metrics: Any) -> dict[str, float]:
    return {field: metric.value for field, metric in (metrics.counters | metrics.gauges).items()}


def handle_of(actor):
    names = [name for name in dir(actor) if name[0] != "_" and callable(getattr(actor, name))]
    return SimpleNamespace(**{name: SimpleNamespace(remote=getattr(actor, name)) for name in names})


def test_figures_of_a_run_are_shown_written_and_exported(tmp_path):
    now, actor = [100.0], Coordinator()
    actor.begin_pass(4)
    for unit in (3, 4):
        actor.began(("score", unit), Part(0, 100))
    actor.began(("read", 5), Part(0, 100))
    actor.died(("score", 3), Part(0, 100), "process died: signal 9")
    actor.give_up("slot", "no GPU")
    actor.update(3, 0.5, 700)
    progress = RowProgress("score", 1_000, done=200, clock=lambda: now[0])
    finished = {2: UnitReport(unit=2, rows=100, errors=7)}
    follower = Follower(
        handle_of(actor), progress, {2: 100, 3: 100, 4: 100}, finished, str(tmp_path), gpu_price=0.5,
        clock=lambda: now[0],
    )  # fmt: skip
    progress.begin()
    progress.advance(100, 3_000)
    now[0] = 150.0
    follower.show()
    assert progress.text() == (
        "3 pairs/s, 74 tokens/s, ETA 4 min, 2 replicas at work, 1 given up, 7 errors, 1 retries, cost 25.00"
    )
    kept = json.loads((tmp_path / "_progress.json").read_text())
    assert kept == {
        "rows": 300, "total_rows": 1_000, "tokens": 3_000, "units": 1, "errors": 7, "retries": 1,
        "replicas_at_work": 2, "replicas_given_up": 1, "pairs_per_second": 3.0, "tokens_per_second": 74.0,
        "seconds_left": pytest.approx(650 / 3, abs=0.01), "cost": 25.0,
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


def test_metrics_have_a_name_each_and_counters_never_go_back():
    names = [name for name, _ in (*COUNTERS.values(), *GAUGES.values())]
    assert len(set(names)) == len(names)
    fields = {"rows": 30, "total_rows": 90, "tokens": 5, "units": 1, "errors": 0, "retries": 2}
    status = RunStatus(**fields, replicas_at_work=1, replicas_given_up=0)
    metrics = RunMetrics(earlier_rows=10)
    metrics.update(status)
    metrics.update(status)
    values = values_of(metrics)
    assert (values["rows"], values["retries"], values["total_rows"]) == (20, 2, 90)


def test_the_slowest_units_come_first():
    reports = [
        UnitReport(unit=unit, rows=10, seconds=seconds) for unit, seconds in enumerate((1, 5.06, 2, 9))
    ]
    assert [unit["unit"] for unit in slowest_units(reports)] == [3, 1, 2]
    assert slowest_units(reports)[1] == {"unit": 1, "seconds": 5.1, "rows": 10}


def test_the_coordinator_counts_starts_and_slots():
    actor = Coordinator()
    actor.begin_pass(2)
    assert [actor.starting("a") for _ in range(3)] == [0, 1, 2]
    assert not actor.any_ready()
    actor.ready("a")
    assert actor.any_ready()
    assert actor.starting("a") == 0
    assert not actor.any_ready(), "it starts again"
    assert not actor.give_up("a", "no disk")
    assert not actor.give_up("a", "no disk")
    assert actor.give_up("b", "no GPU"), "all are given up"
    assert actor.state()[2] == ["no disk", "no GPU"]
    actor.begin_pass(1)
    assert actor.state() == ({}, [], [])


def test_what_was_lost_with_a_node_or_after_a_notice_is_no_death_of_its_unit():
    actor, part = Coordinator(), Part(0, 100)
    actor.begin_pass(3)
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
