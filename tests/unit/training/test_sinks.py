"""Metric sinks: files that can be read back whole, also when a run is done in two parts."""

import dataclasses
import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from tensorboardX.proto.event_pb2 import Event

from wsdm_ray.config import TrainConfig
from wsdm_ray.errors import ClusterError, ConfigError, StorageError
from wsdm_ray.presets import tiny
from wsdm_ray.training import sinks as sinks_module
from wsdm_ray.training.metrics import Row
from wsdm_ray.training.sinks import JsonLinesSink, SinkGroup, TensorBoardSink, check_sinks, open_sinks


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return tiny("base", ("train",), str(tmp_path / "output"))


def row(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": 1 / step, "accuracy": 0.5, **more}


def opened(config: TrainConfig, history: list[dict[str, Any]]) -> SinkGroup:
    """The sinks of a run, which are flushed when the test says so, however slow the machine is."""
    sinks = open_sinks(config, history)
    sinks.flush_seconds = float("inf")
    return sinks


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
    sinks = opened(config, [])
    sinks.log(row(1))
    sinks.log(row(2, valid_log_loss=0.25, valid_accuracy_ci95=[0.1, 0.2]))
    sinks.flush()
    sinks.flush()  # nothing new
    sinks.log(row(3))
    sinks.close()
    output = Path(config.output)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in rows] == [1, 2, 3]
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
    first = opened(config, [])
    for step in (1, 2, 3):
        first.log(row(step))
    first.close()
    second = opened(config, [row(1), row(2)])  # the checkpoint was of step 2
    second.log(row(3))
    second.log(row(4))
    second.close()
    lines = (Path(config.output) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    names = [path.name[-2:] for path in sorted((Path(config.output) / "tensorboard").iterdir())]
    assert names == ["01", "03"]
    (Path(config.output) / "tensorboard" / ".DS_Store").touch()  # left by others, and left alone
    opened(config, [row(1)]).close()
    names = [path.name for path in sorted((Path(config.output) / "tensorboard").iterdir())]
    assert names == [".DS_Store", "events.out.tfevents.0000000001"]


def test_a_late_validation_is_added_to_its_step(config):
    """Of a step after which the workers had to end."""
    first = opened(config, [])
    first.log(row(1))
    first.close()
    second = opened(config, [row(1)])
    second.log({"step": 1, "valid_log_loss": 0.25})
    second.close()
    output = Path(config.output)
    assert json.loads((output / "metrics.jsonl").read_text()) == row(1, valid_log_loss=0.25)
    step, late = sorted((output / "tensorboard").iterdir())
    assert events_in(step) == {(1, "loss"): 1.0, (1, "accuracy"): 0.5}
    assert events_in(late) == {(1, "valid/log_loss"): 0.25}


def test_rows_are_written_while_the_run_goes_on(config):
    sinks = SinkGroup([JsonLinesSink(config.output, [])], flush_seconds=0.0)
    sinks.log(row(1))
    assert (Path(config.output) / "metrics.jsonl").exists()


def test_rows_go_to_the_process_that_exports_them_while_the_run_goes_on(config):
    told: list[Row] = []
    actor = SimpleNamespace(add_row=SimpleNamespace(remote=told.append))
    sinks = open_sinks(config, [row(1)], actor)
    sinks.log(row(2, valid_log_loss=0.5))
    assert told == [row(2, valid_log_loss=0.5)], "each as it comes, and none of an earlier process"
    sinks.close()
    assert len(told) == 1


def test_no_tensorboard(config):
    sinks = opened(dataclasses.replace(config, tensorboard=False), [])
    sinks.log(row(1))
    sinks.close()
    assert [path.name for path in Path(config.output).iterdir()] == ["metrics.jsonl"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_weights_and_biases_offline(config, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = dataclasses.replace(config, wandb="votes")
    check_sinks(config)
    for steps in ((1, 2), (3,)):  # in two parts
        sinks = opened(config, [row(step) for step in range(1, steps[0])])
        for step in steps:
            sinks.log(row(step, valid_log_loss=0.5))
        sinks.close()
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
        check_sinks(dataclasses.replace(config, wandb="votes"))
    check_sinks(config)


def test_events_after_the_checkpoint_are_forgotten(config):
    first = opened(config, [])
    for step in range(1, 7):
        first.log(row(step))
        first.flush()
    first.close()
    second = opened(config, [row(step) for step in (1, 2, 3, 4)])  # the checkpoint was of step 4
    second.log(row(5))
    second.close()
    names = [path.name[-2:] for path in sorted((Path(config.output) / "tensorboard").iterdir())]
    assert names == ["01", "02", "03", "04", "05"]


def test_a_store_that_fails_costs_no_step(config, monkeypatch):
    def fail(path: str, write: Any) -> None:
        raise StorageError(f"{path}: no")

    files = [JsonLinesSink(config.output, []), TensorBoardSink(config.output, 0)]
    sinks = SinkGroup(files, flush_seconds=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(sinks_module, "write_atomic", fail)
        sinks.log(row(1))
        with pytest.raises(StorageError):
            sinks.flush()
    sinks.log(row(2))
    lines = (Path(config.output) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    [events] = (Path(config.output) / "tensorboard").iterdir()
    assert {step for step, _ in events_in(events)} == {1, 2}


class KeepingSink:
    """A sink as anybody may add one: it keeps what it gets, and fails at `close` if told to."""

    def __init__(self, error: Exception | None = None):
        self.steps: list[int] = []
        self.calls: list[str] = []
        self.error = error

    def log(self, row: Row) -> None:
        self.steps.append(row["step"])

    def flush(self) -> None:
        self.calls.append("flush")

    def close(self) -> None:
        self.calls.append("close")
        if self.error:
            raise self.error


def test_every_sink_has_every_row_and_is_closed_even_if_another_fails():
    sinks = [KeepingSink(StorageError("no")), KeepingSink()]
    group = SinkGroup(sinks, flush_seconds=float("inf"))
    group.log(row(1))
    group.log(row(2))
    with pytest.raises(StorageError):
        group.close()
    for sink in sinks:
        assert sink.steps == [1, 2]
        assert sink.calls == ["flush", "close"]


def test_weights_and_biases_without_a_key(config, monkeypatch):
    def refuse(**_: Any) -> None:
        raise error

    monkeypatch.setattr(wandb, "init", refuse)
    error = wandb.errors.CommError("timed out")
    with pytest.raises(ClusterError, match=r"--wandb votes: .*timed out"):  # which another try may not
        opened(dataclasses.replace(config, wandb="votes"), [])
    error = wandb.errors.UsageError("No API key configured.")
    with pytest.raises(ConfigError, match=r"--wandb votes: .*No API key.*wandb login.*WANDB_MODE=offline"):
        opened(dataclasses.replace(config, wandb="votes"), [])
