"""When workers write a checkpoint and end, what the run that goes on has lost, and what it waits for."""

import contextlib
import dataclasses
import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import ControllerError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    ReschedulingState,
    RunningState,
)

from wsdm_ray.failures import unpack_error
from wsdm_ray.training import preemption, ray_train, worker
from wsdm_ray.training.metrics import StepMetrics, ValidMetrics
from wsdm_ray.training.preemption import (
    Interruption,
    Interruptions,
    Journal,
    Notices,
    ask_to_stop,
    forget,
    interruptions_of,
    step_of,
)
from wsdm_ray.training.ray_train import SayWhatIsWaitedFor

OUTPUT = "s3://bucket/model"


@pytest.fixture(autouse=True)
def stored(monkeypatch) -> dict[bytes, bytes]:
    """The cluster's key-value store."""
    kept: dict[bytes, bytes] = {}

    def put(key: bytes, value: bytes, overwrite: bool, namespace: bytes) -> None:
        assert overwrite
        kept[key] = value

    for name, function in (
        ("_internal_kv_put", put),
        ("_internal_kv_get", lambda key, namespace: kept.get(key)),
        ("_internal_kv_del", lambda key, namespace: kept.pop(key, None)),
    ):
        monkeypatch.setattr(preemption.internal_kv, name, function)
    return kept


def test_what_was_lost_is_known_to_the_worker_that_goes_on(stored):
    journal = Journal(OUTPUT, 0)
    assert journal.last is None
    for step in range(1, 6):
        journal.write(step, left=False)
    assert step_of(OUTPUT) == 5
    assert step_of(OUTPUT, left=True) is None
    killed = Journal(OUTPUT, 4)
    assert killed.last == Interruption(reached=5, resumed_from=4, noticed=False)
    killed.write(5, left=False)
    killed.write(6, left=True)
    assert step_of(OUTPUT, left=True) == 6
    asked = Journal(OUTPUT, 6)
    assert asked.last == Interruption(reached=6, resumed_from=6, noticed=True)
    assert interruptions_of(OUTPUT).to_dict() == {"times": 2, "noticed": 1, "steps_lost": 1}
    forget(OUTPUT)
    assert not stored
    assert interruptions_of(OUTPUT) == Interruptions()


def test_who_asks_a_worker_to_end(monkeypatch):
    now, drained = iter([0.0, 0.0, 0.5, 1.5, 1.5]), [False]
    monkeypatch.setattr(preemption, "is_node_drained", lambda: drained[0])
    monkeypatch.setattr(preemption.Signals, "came", False)
    first, other = Notices(OUTPUT, True, lambda: next(now)), Notices(OUTPUT, False)
    assert (first.reason(), other.reason()) == ("", "")
    ask_to_stop(OUTPUT)
    assert (first.reason(), other.reason()) == ("", ""), "it asked half a second ago"
    assert (first.reason(), other.reason()) == ("the job is stopped", "")
    ask_to_stop(OUTPUT, False)
    drained[0] = True
    assert other.reason() == "its node is being drained"
    monkeypatch.setattr(preemption.Signals, "came", True)
    assert other.reason() == "SIGTERM"


def test_a_signal_is_noted_whatever_the_main_thread_does(monkeypatch):
    monkeypatch.setattr(preemption.Signals, "came", False)
    earlier = signal.getsignal(signal.SIGTERM)
    try:
        preemption.Signals.handle()
        assert not preemption.Signals.received()
        signal.raise_signal(signal.SIGTERM)
        assert preemption.Signals.received()
        assert preemption.Signals.received(), "from then on"
    finally:
        signal.signal(signal.SIGTERM, earlier)
        os.close(signal.set_wakeup_fd(-1))
        os.close(preemption.Signals.pipe or 0)
        preemption.Signals.pipe = None


def test_in_local_mode_no_node_is_drained():
    assert not preemption.is_node_drained()


VALID = ValidMetrics(rows=8, accuracy=0.5, accuracy_ci95=[0.4, 0.6], log_loss=0.7)


class FakeTrainer:
    """Takes steps that do nothing; another worker of the group is asked to end after step `asked`."""

    device, resolved, valid, total_steps = "cpu", None, [1], 8
    memory_ran_out, model = 0, SimpleNamespace(token_budget=64)

    def __init__(self, step: int = 0, asked: int = 99, metrics: list[StepMetrics] | None = None):
        self.step, self.asked, self.metrics = step, asked, metrics or []
        self.group = SimpleNamespace(
            is_first=True, rank=0, size=2, any=lambda flag, device: self.step == self.asked
        )
        self.config = SimpleNamespace(output=OUTPUT, checkpoint_steps=2)
        self.validated: list[int] = []

    def steps(self) -> Any:
        while self.step < self.total_steps:
            self.step += 1
            self.metrics.append(metrics_of(self.step))
            yield self.metrics[-1]

    def evaluate_step(self) -> StepMetrics:
        self.validated.append(self.step)
        self.metrics[-1] = dataclasses.replace(self.metrics[-1], valid=VALID)
        return self.metrics[-1]


def metrics_of(step: int, valid: ValidMetrics | None = None) -> StepMetrics:
    return StepMetrics(
        step=step, loss=0.5, weight=1.0, accuracy=0.5, learning_rate=0.1, grad_norm=1.0, pairs=8, tokens=9,
        seconds=1.0, padding_share=0.0, memory_gb=1.0, valid=valid,
    )  # fmt: skip


def worked(monkeypatch, trainer: FakeTrainer) -> tuple[worker.WorkerResult, list[tuple[int, str, bool]], Any]:
    """What a worker returns, its checkpoints (step, name, validated) and the rows of its sinks."""
    saved: list[tuple[int, str, bool]] = []
    rows: list[Any] = []
    saver = SimpleNamespace(
        report=lambda metrics: saved.append((metrics.step, "", metrics.valid is not None)),
        report_left=lambda metrics: saved.append((metrics.step, "left", metrics.valid is not None)),
    )
    sinks = SimpleNamespace(log=rows.append, flush=lambda: None)
    monkeypatch.setattr(worker, "make_trainer", lambda task: trainer)
    monkeypatch.setattr(worker, "CheckpointSaver", lambda trainer, progress: saver)
    monkeypatch.setattr(worker, "sinks_of", lambda trainer, progress: contextlib.nullcontext(sinks))
    monkeypatch.setattr(worker, "step_reporter", lambda *_: lambda progress: None)
    monkeypatch.setattr(worker, "progress_of", lambda *_: None)
    config: Any = SimpleNamespace(store_timeout_seconds=1.0, output=OUTPUT)
    task: Any = SimpleNamespace(config=config, progress=None, logs_steps=True)
    return worker.run_worker(task), saved, rows


@pytest.mark.parametrize("asked", [3, 4])
def test_workers_that_are_asked_to_end_write_a_checkpoint_of_the_step_at_hand(monkeypatch, asked):
    """At once: validation takes long, and the run that goes on does it where it was due."""
    result, saved, rows = worked(monkeypatch, FakeTrainer(asked=asked))
    assert result.left_after == asked
    assert saved == [(2, "", True), (asked, "left", False)]
    assert [row["step"] for row in rows] == list(range(1, asked + 1))
    assert step_of(OUTPUT, left=True) == asked
    metrics = [metrics_of(step, VALID if step == 2 else None) for step in range(1, asked + 1)]
    resumed = FakeTrainer(step=asked, metrics=metrics)
    result, saved, rows = worked(monkeypatch, resumed)
    assert result.left_after is None
    late = [{"step": 4, "valid_log_loss": VALID.log_loss}] if asked == 4 else []
    assert [{name: row[name] for name in each} for each, row in zip(late, rows, strict=False)] == late
    assert [row["step"] for row in rows[len(late) :]] == list(range(asked + 1, 9)), "and no step twice"
    assert resumed.validated == [4, 6, 8], "as in a run that nobody interrupted"
    assert saved == [(4, "", True), (6, "", True), (8, "", True)]
    assert interruptions_of(OUTPUT).to_dict() == {"times": 1, "noticed": 1, "steps_lost": 0}


def test_a_run_that_is_done_is_not_left(monkeypatch):
    result, saved, _ = worked(monkeypatch, FakeTrainer(asked=8))
    assert result.left_after is None
    assert saved[-1] == (8, "", True)


def test_the_controller_says_what_it_waits_for_and_gives_up(monkeypatch, caplog):
    monkeypatch.setattr(ray_train, "set_up_logging", lambda: None)
    now = iter([0.0, 30.0, 61.0, 90.0, 150.0, 560.0])
    says = SayWhatIsWaitedFor("2 workers of 1 GPU each", 100.0, lambda: next(now))
    says.after_controller_state_update(None, InitializingState())
    waits = ReschedulingState(ControllerError(WorkerGroupStartupTimeoutError(2)))
    for _ in range(3):
        says.after_controller_state_update(None, waits)
    lines = [record.message for record in caplog.records]
    assert (
        lines
        == ["train: waits for 2 workers of 1 GPU each; the nodes that are there have no place for them"] * 2
    )
    says.after_controller_state_update(None, RunningState())
    says.after_controller_state_update(None, waits)
    says.after_controller_state_update(None, waits)
    with pytest.raises(ControllerError) as caught:
        says.after_controller_state_update(None, waits)
    error = unpack_error(str(caught.value.controller_failure))
    assert str(error).startswith("no nodes for 2 workers of 1 GPU each after 100 s")


def test_the_controller_waits_without_end_or_not_at_all(monkeypatch):
    monkeypatch.setattr(ray_train, "set_up_logging", lambda: None)
    waits = ReschedulingState(ControllerError(WorkerGroupStartupTimeoutError(2)))
    now = iter([0.0, 1e9])
    patient = SayWhatIsWaitedFor("a worker", None, lambda: next(now))
    for _ in range(2):
        patient.after_controller_state_update(None, waits)
    hasty = SayWhatIsWaitedFor("a worker", 0.0)
    hasty.after_controller_state_update(
        None, ReschedulingState(ControllerError(RuntimeError("a worker died")))
    )
    with pytest.raises(ControllerError):
        hasty.after_controller_state_update(None, waits)
