"""Checkpoints are written beside the steps: one at a time, by the first worker, reported by all."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import Checkpoint, CheckpointUploadMode

from wsdm_ray.errors import DataError, StorageError
from wsdm_ray.failures import FinalError, unpack_error
from wsdm_ray.training import worker
from wsdm_ray.training.publish import best_checkpoint
from wsdm_ray.training.worker import CheckpointSaver, event_teller


class FakeTrainer:
    def __init__(self, is_first: bool = True):
        self.group = SimpleNamespace(is_first=is_first)
        self.config = SimpleNamespace(output="/output")
        self.step = 0
        self.gathered = 0

    def optimizer_state(self) -> int:
        self.gathered += 1
        return self.step

    def snapshot(self, step: int) -> Any:
        assert self.group.is_first
        return SimpleNamespace(write=lambda folder: Path(folder, "step").write_text(str(step)))


@pytest.fixture
def reports(monkeypatch) -> list[dict[str, Any]]:
    """What Ray Train was told; uploads are calls that the test makes."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "ray.train.report", lambda metrics, **given: found.append({"metrics": metrics} | given)
    )
    return found


METRICS: Any = SimpleNamespace(summary=lambda: {"step": 1})


def test_other_workers_report_their_metrics_alone(reports):
    trainer = FakeTrainer(is_first=False)
    CheckpointSaver(trainer).report(METRICS)  # pyright: ignore[reportArgumentType]
    assert trainer.gathered == 1, "by all workers together"
    assert reports == [{"metrics": {"step": 1}, "checkpoint_upload_mode": CheckpointUploadMode.ASYNC}]


def test_a_checkpoint_without_validation_is_not_taken_for_the_best(reports, monkeypatch):
    """Ray Train keeps the one with the lowest loss, and a name of its own keeps them apart."""
    trainer = FakeTrainer()
    trainer.step = 4
    CheckpointSaver(trainer).report_left(METRICS)  # pyright: ignore[reportArgumentType]
    [left] = reports
    assert left["checkpoint_dir_name"] == "step-000004-left"
    assert left["metrics"] == {"step": 1, "valid_log_loss": 1e300}
    kept = [("best", {"valid_log_loss": 0.7}), ("left", left["metrics"])]
    assert best_checkpoint(kept, True)[0] == "best"


def test_steps_go_on_while_one_checkpoint_is_written(reports, monkeypatch):
    uploaded: list[tuple[str, str, str]] = []
    monkeypatch.setattr(
        worker,
        "upload",
        lambda local, output, name: uploaded.append((output, name, Path(local.path, "step").read_text())),
    )
    trainer = FakeTrainer()
    seconds: list[float] = []
    progress = SimpleNamespace(add_checkpoint=SimpleNamespace(remote=seconds.append))
    saver = CheckpointSaver(trainer, progress)  # pyright: ignore[reportArgumentType]
    trainer.step = 1
    saver.report(METRICS)
    trainer.step = 2
    [first] = reports
    assert first["checkpoint_upload_mode"] == CheckpointUploadMode.ASYNC
    assert not uploaded, "the report does not wait for it"
    assert not saver.idle.is_set()

    def finish_first() -> None:
        assert trainer.gathered == 2, "others would wait for this worker"
        first["checkpoint_upload_fn"](first["checkpoint"], first["checkpoint_dir_name"])
        assert saver.idle.is_set()

    monkeypatch.setattr(saver.idle, "wait", finish_first)
    saver.report(METRICS)
    assert len(reports) == 2, "a second waits for the first"
    assert uploaded == [("/output", "step-000001", "1")]
    assert len(seconds) == 1
    assert not Path(first["checkpoint"].path).exists()


def test_every_worker_tells_of_memory_and_of_stores_once(monkeypatch):
    told: list[str] = []
    progress = SimpleNamespace(tell=SimpleNamespace(remote=lambda event: told.append(str(event))))
    retried = {"s3": 0}
    monkeypatch.setattr("wsdm_ray.events.retries", lambda: retried)
    monkeypatch.setattr("wsdm_ray.events.TOLD", {"retries": 0})
    monkeypatch.setattr(worker.os, "getpid", lambda: 17)
    monkeypatch.setattr(worker.os, "uname", lambda: SimpleNamespace(nodename="n1"))
    trainer: Any = SimpleNamespace(group=SimpleNamespace(rank=1), memory_ran_out=0)
    trainer.model = SimpleNamespace(token_budget=64)
    tell = event_teller(trainer, progress)
    tell()
    assert not told
    trainer.memory_ran_out, retried["s3"] = 2, 5
    tell()
    tell()
    assert told == [
        "memory_ran_out 2 times: process 17, worker of rank 1, on n1: the token budget is 64 now",
        "store_retried 5 times: process 17, worker of rank 1, on n1",
    ]


@pytest.mark.parametrize(("error", "is_final"), [(DataError("no rows"), True), (StorageError("slow"), False)])
def test_an_error_of_the_upload_is_raised_and_the_next_one_may_begin(reports, monkeypatch, error, is_final):
    def fail(*arguments: Any) -> Checkpoint:
        raise error

    monkeypatch.setattr(worker, "upload", fail)
    saver = CheckpointSaver(FakeTrainer())  # pyright: ignore[reportArgumentType]
    saver.report(METRICS)
    with pytest.raises(FinalError if is_final else StorageError) as caught:
        reports[0]["checkpoint_upload_fn"](reports[0]["checkpoint"], "step-000000")
    if is_final:
        assert str(unpack_error(str(caught.value))) == "no rows"
    assert not Path(reports[0]["checkpoint"].path).exists()
    saver.report(METRICS)
