"""What a run shows of its steps: files that can be read back, whole, also when it is done in two parts."""

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import wandb
from tensorboardX.proto.event_pb2 import Event

from wsdm_ray.config import TrainConfig
from wsdm_ray.errors import ConfigError, StorageError
from wsdm_ray.presets import tiny
from wsdm_ray.training import tracking
from wsdm_ray.training.tracking import Tracker, check_tracking


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return tiny("base", ("train",), str(tmp_path / "output"))


def row(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": 1 / step, "accuracy": 0.5, **more}


def events_in(path: Path) -> dict[tuple[int, str], float]:
    """Values by step and name; a record is its length, a checksum, the data, a checksum."""
    found, data = {}, path.read_bytes()
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + size])
        for value in event.summary.value:
            found[event.step, value.tag] = value.simple_value
        data = data[16 + size :]
    return found


def test_rows_and_events(config):
    tracker = Tracker(config, [])
    tracker.add(row(1))
    tracker.add(row(2, valid_log_loss=0.25, valid_accuracy_ci95=[0.1, 0.2]))
    tracker.flush()
    tracker.flush()  # nothing new
    tracker.add(row(3))
    tracker.close()
    output = Path(config.output)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [each["step"] for each in rows] == [1, 2, 3]
    assert rows[1]["valid_accuracy_ci95"] == [0.1, 0.2]
    first, second = sorted((output / "tensorboard").iterdir())
    assert first.name == "events.out.tfevents.0000000001"
    assert second.name == "events.out.tfevents.0000000003"
    assert events_in(first) == {
        (1, "loss"): 1.0, (1, "accuracy"): 0.5, (2, "loss"): 0.5, (2, "accuracy"): 0.5,
        (2, "valid/log_loss"): 0.25,
    }  # fmt: skip
    assert set(events_in(second)) == {(3, "loss"), (3, "accuracy")}


def test_a_run_that_goes_on_shows_its_whole_history(config):
    first = Tracker(config, [])
    for step in (1, 2, 3):
        first.add(row(step))
    first.close()
    second = Tracker(config, [row(1), row(2)])  # the checkpoint was of step 2
    second.add(row(3))
    second.add(row(4))
    second.close()
    lines = (Path(config.output) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    names = [path.name[-2:] for path in sorted((Path(config.output) / "tensorboard").iterdir())]
    assert names == ["01", "03"]


def test_rows_are_shown_while_the_run_goes_on(config, monkeypatch):
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.0)
    tracker = Tracker(config, [])
    tracker.add(row(1))
    assert (Path(config.output) / "metrics.jsonl").exists()


def test_no_tensorboard(config):
    tracker = Tracker(dataclasses.replace(config, tensorboard=False), [])
    tracker.add(row(1))
    tracker.close()
    assert [path.name for path in Path(config.output).iterdir()] == ["metrics.jsonl"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_weights_and_biases_offline(config, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = dataclasses.replace(config, wandb="votes")
    check_tracking(config)
    for steps in ((1, 2), (3,)):  # in two parts
        tracker = Tracker(config, [row(step) for step in range(1, steps[0])])
        for step in steps:
            tracker.add(row(step, valid_log_loss=0.5))
        tracker.close()
    name = (Path(config.output) / "_wandb_id").read_text()
    runs = list((Path(config.output) / "wandb").glob("offline-run-*"))
    assert runs
    assert all(name in run.name for run in runs), "one run of Weights & Biases, to be synced as one"
    data = b"".join(path.read_bytes() for run in runs for path in run.glob("*.wandb"))
    assert b"valid/log_loss" in data
    assert b"learning_rate" in data, "the config"


def test_weights_and_biases_not_installed(config, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--wandb votes: .*pip install wandb"):
        check_tracking(dataclasses.replace(config, wandb="votes"))
    check_tracking(config)


def test_events_after_the_checkpoint_are_forgotten(config):
    first = Tracker(config, [])
    for step in range(1, 7):
        first.add(row(step))
        first.flush()
    first.close()
    second = Tracker(config, [row(step) for step in (1, 2, 3, 4)])  # the checkpoint was of step 4
    second.add(row(5))
    second.close()
    names = [path.name[-2:] for path in sorted((Path(config.output) / "tensorboard").iterdir())]
    assert names == ["01", "02", "03", "04", "05"]


def test_a_store_that_fails_costs_no_step(config, monkeypatch):
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.0)

    def fail(path: str, write: Any) -> None:
        raise StorageError(f"{path}: no")

    tracker = Tracker(config, [])
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "write_atomic", fail)
        tracker.add(row(1))
    tracker.add(row(2))
    lines = (Path(config.output) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_weights_and_biases_without_a_key(config, monkeypatch):
    def refuse(**_: Any) -> None:
        raise wandb.Error("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ConfigError, match=r"--wandb votes: .*No API key.*wandb login.*WANDB_MODE=offline"):
        Tracker(dataclasses.replace(config, wandb="votes"), [])
