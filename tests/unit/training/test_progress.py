"""Where a training run is: means over the latest steps, and a time left that counts validation."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.fake_metrics import fake_metrics
from wsdm_ray import telemetry
from wsdm_ray.training import progress as progress_module
from wsdm_ray.training.metrics import StepMetrics, ValidMetrics
from wsdm_ray.training.progress import (
    Follower,
    ProgressActor,
    StepProgress,
    seconds_left,
    step_progress,
    step_reporter,
)
from wsdm_ray.training.ray_train import EndAtFinalErrors
from wsdm_ray.training.sinks import ProgressSink


def step(number: int, **changes) -> StepMetrics:
    return StepMetrics(
        **{
            "step": number, "loss": 0.6, "weight": 1.0, "accuracy": 0.5, "learning_rate": 1e-3,
            "grad_norm": 2.0, "pairs": 8, "tokens": 400, "seconds": 2.0, "padding_share": 0.0,
            "memory_gb": 1.0,
        } | changes
    )  # fmt: skip


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        (1, 99 * 2 + 4 * 30),  # pauses after 25, 50, 75 and 100
        (24, 76 * 2 + 4 * 30),
        (25, 75 * 2 + 4 * 30),  # that of this step is still to come
        (26, 74 * 2 + 3 * 30),
        (100, 30),
    ],
)
def test_the_time_left_has_the_validations_in_it(taken, expected):
    assert seconds_left(taken, 100, 25, 2.0, 30.0) == expected


def test_there_is_a_checkpoint_after_the_last_step_whatever_its_number():
    assert seconds_left(90, 110, 25, 2.0, 30.0) == 20 * 2 + 2 * 30
    assert seconds_left(110, 110, 25, 2.0, 30.0) == 30
    assert seconds_left(3, 5, 100, 1.0, 7.0) == 2 + 7


def test_where_a_run_is():
    steps = [
        step(number, loss=float(number), seconds=9.0 if number <= 10 else 2.0) for number in range(1, 31)
    ]
    known = {"total_steps": 40, "checkpoint_steps": 40}
    now = step_progress(steps, **known, valid_rows=0, pauses=[])
    assert (now.step, now.loss, now.seconds_left) == (30, 20.5, 20.0), "of the latest 20 steps"
    assert (now.pairs_per_second, now.tokens_per_second) == (4.0, 200.0)
    # 24 rows take as long as 3 steps, and a third of that without the backward pass.
    assert step_progress(steps, **known, valid_rows=24, pauses=[]).seconds_left == pytest.approx(22.0)
    assert step_progress(steps, **known, valid_rows=24, pauses=[99.0, 5.0]).seconds_left == 25.0


def shown(number: int, **changes) -> StepProgress:
    return step_progress(
        [step(number)], total_steps=4, checkpoint_steps=4, valid_rows=0, pauses=[], **changes
    )


def test_a_bar_has_loss_and_accuracy_and_a_line_has_all():
    assert shown(1).in_bar() == "loss 0.6000 accuracy 0.500 ETA 6 s"
    assert shown(1, doing="validation").in_bar() == "loss 0.6000 accuracy 0.500 validation"
    assert shown(1).in_log() == (
        "loss 0.6000 accuracy 0.500 lr 1.00e-03 grad 2.00 200 tokens/s 4 pairs/s ETA 6 s"
    )


def test_without_a_bar_lines_come_at_intervals(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(telemetry.logger, "info", lambda text, *values: lines.append(text % values))
    monkeypatch.setattr(telemetry, "Console", lambda stderr: SimpleNamespace(is_terminal=False))
    now = [0.0]
    report = step_reporter(4, None, clock=lambda: now[0])
    for number, seconds in ((1, 4.0), (2, 12.0), (3, 15.0), (4, 16.0)):
        now[0] = seconds
        report(shown(number))
    assert [line.partition(",")[0] for line in lines] == ["train: 2/4 steps", "train: 4/4 steps"]


def test_a_bar_is_told_twice_a_second_and_of_what_takes_long():
    told, now = [], [0.0]
    actor = SimpleNamespace(update=SimpleNamespace(remote=told.append))
    report = step_reporter(4, actor, clock=lambda: now[0])
    for number, seconds, doing in (
        (1, 0.0, ""),
        (2, 0.2, ""),
        (2, 0.3, "validation"),
        (3, 0.5, ""),
        (4, 0.6, ""),
    ):
        now[0] = seconds
        report(shown(number, doing=doing))
    assert [(each.step, each.doing) for each in told] == [(1, ""), (2, "validation"), (4, "")]


def test_the_actor_holds_the_last_word():
    actor = ProgressActor()
    assert actor.read() is None
    actor.update(shown(1))
    actor.update(shown(3))
    assert actor.read() == shown(3)


class Handle:
    """In place of a handle of an actor: what is called is done at once."""

    def __init__(self, actor):
        self.actor = actor

    def __getattr__(self, name):
        return SimpleNamespace(remote=getattr(self.actor, name))


def test_what_workers_tell_is_exported_and_logged_once(monkeypatch):
    """Totals are of all workers: a step that another one takes again counts again."""
    lines: list[str] = []
    monkeypatch.setattr(telemetry.logger, "warning", lambda text, *values: lines.append(text % values))
    monkeypatch.setattr(progress_module.ray, "get", lambda value, timeout: value)
    fake_metrics(monkeypatch)
    monkeypatch.setattr("wsdm_ray.events.retries", dict)
    actor = ProgressActor(3)
    follower: Any = Follower(Handle(actor))
    follower.show()
    sink = ProgressSink(Handle(actor))
    valid = ValidMetrics(rows=9, accuracy=0.75, accuracy_ci95=[0.5, 1.0], log_loss=0.5)
    for number, metrics in ((1, step(1)), (2, dataclasses.replace(step(2), valid=valid)), (2, step(2))):
        sink.log(metrics.to_row())
        if number == 1:
            actor.add_checkpoint(1.5)
    EndAtFinalErrors(Handle(actor)).after_exception(None, {1: RuntimeError("NCCL: closed\nby peer")})
    for _ in range(2):
        follower.show()
    values = {
        name: metric.value for name, metric in (follower.metrics.counters | follower.metrics.gauges).items()
    }
    assert values | {"loss": 0} == {
        "steps": 3, "pairs": 3 * step(1).pairs, "tokens": 3 * step(1).tokens, "checkpoints": 1, "step": 2,
        "total_steps": 3, "loss": 0, "accuracy": step(2).accuracy, "learning_rate": step(2).learning_rate,
        "grad_norm": step(2).grad_norm, "pairs_per_second": step(2).pairs_per_second,
        "tokens_per_second": step(2).tokens_per_second, "peak_memory_bytes": 1e9, "checkpoint_seconds": 1.5,
        "valid_log_loss": 0.5, "valid_accuracy": 0.75,
    }  # fmt: skip
    assert values["loss"] == step(2).loss
    assert lines == ["train: worker_died: worker of rank 1: RuntimeError: NCCL: closed"]
