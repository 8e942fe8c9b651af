"""Where the metrics of every step go: metrics.jsonl, TensorBoard, Weights & Biases, Prometheus.

A sink is a class with the three methods of `MetricSink`; `open_sinks` says which ones a run has. All files
are in the output folder. Every file is written whole, so that it may be in an object store. A run that is
resumed from a checkpoint shows each step once. Not covered: the log lines (`worker`), the page with the
curves (`wsdm_ray.evaluation.curves`).
"""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from wsdm_ray.config import TrainConfig, to_dict
from wsdm_ray.errors import ClusterError, ConfigError, StorageError
from wsdm_ray.runs import names_in
from wsdm_ray.storage import delete_file, exists, is_remote, join, open_read, reason, write_atomic
from wsdm_ray.telemetry import logger
from wsdm_ray.training.metrics import METRICS_FILE, Row

__all__ = [
    "JsonLinesSink",
    "MetricSink",
    "ProgressSink",
    "SinkGroup",
    "TensorBoardSink",
    "WandbSink",
    "check_sinks",
    "open_sinks",
]

TENSORBOARD_FOLDER = "tensorboard"
EVENT_FILE = re.compile(r"events\.out\.tfevents\.(\d{10,})(\.late)?")
WANDB_ID_FILE = "_wandb_id"
FLUSH_SECONDS = 30.0
"""A row is written at most about this many seconds after its step."""


class MetricSink(Protocol):
    """Takes the row of every step, and puts it where people look."""

    def log(self, row: Row) -> None:
        """Take the row of one step, or what a late validation adds to the last one (`late_row`).

        Called between steps, so slow work belongs in `flush`.
        """
        ...

    def flush(self) -> None:
        """Write every row so far. After a `StorageError` the next call writes the same rows again."""
        ...

    def close(self) -> None:
        """Release what the sink holds, after a last `flush`."""
        ...


def open_sinks(config: TrainConfig, history: Sequence[Row], progress: Any = None) -> "SinkGroup":
    """The sinks that `config` asks for, as one.

    Args:
        history: the rows of the steps before this process, one a step.
        progress: the `ProgressActor`, by which rows get to Prometheus.
    """
    sinks: list[MetricSink] = [JsonLinesSink(config.output, history)]
    if config.tensorboard:
        sinks.append(TensorBoardSink(config.output, len(history)))
    if config.wandb is not None:
        sinks.append(WandbSink(config))
    if progress is not None:
        sinks.append(ProgressSink(progress))
    return SinkGroup(sinks)


def check_sinks(config: TrainConfig) -> None:
    """Raise `ConfigError` where a sink needs a package that is not installed."""
    if config.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"--wandb {config.wandb}: the package is not installed; run `pip install wandb` on every node"
        )


class SinkGroup:
    """Several sinks as one, which are flushed at intervals while rows come."""

    def __init__(self, sinks: Sequence[MetricSink], flush_seconds: float = FLUSH_SECONDS):
        self.sinks, self.flush_seconds, self.flushed = sinks, flush_seconds, time.monotonic()

    def log(self, row: Row) -> None:
        for sink in self.sinks:
            sink.log(row)
        if time.monotonic() - self.flushed >= self.flush_seconds:
            try:
                self.flush()
            except StorageError as error:  # the next flush writes the same rows: no step is lost
                logger.warning("train: %s", error)

    def flush(self) -> None:
        self.flushed = time.monotonic()
        for sink in self.sinks:
            sink.flush()

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # each is closed, even if another fails
            for sink in reversed(self.sinks):
                stack.callback(sink.close)
                stack.callback(sink.flush)


class JsonLinesSink:
    """metrics.jsonl: all rows of the run, one a line."""

    def __init__(self, output: str, history: Sequence[Row]):
        self.path, self.rows, self.is_written = join(output, METRICS_FILE), list(history), True

    def log(self, row: Row) -> None:
        earlier = self.rows.pop() if self.rows and self.rows[-1]["step"] == row["step"] else {}
        self.rows.append({**earlier, **row})
        self.is_written = False

    def flush(self) -> None:
        if not self.is_written:
            lines = "".join(json.dumps(row) + "\n" for row in self.rows)
            write_atomic(self.path, lambda file: file.write(lines.encode()))
            self.is_written = True

    def close(self) -> None:
        pass


class TensorBoardSink:
    """Event files for TensorBoard: one file a flush, which TensorBoard reads in the order of their names.

    Args:
        last_step: of the checkpoint that the run is resumed from, 0 for a new run. Event files of later
            steps are deleted: those steps are taken again.
    """

    def __init__(self, output: str, last_step: int):
        self.folder = join(output, TENSORBOARD_FOLDER)
        self.rows: list[Row] = []
        self.times: list[float] = []
        for name in names_in(self.folder):
            ours = EVENT_FILE.fullmatch(name)  # a file browser or a network disk may leave others
            if ours and int(ours[1]) > last_step:
                delete_file(join(self.folder, name))

    def log(self, row: Row) -> None:
        self.rows.append(row)
        self.times.append(time.time())

    def flush(self) -> None:
        if self.rows:
            data = tensorboard_events(self.rows, self.times)
            late = "" if "loss" in self.rows[0] else ".late"  # beside the file that begins with the step
            name = f"events.out.tfevents.{self.rows[0]['step']:010d}{late}"
            write_atomic(join(self.folder, name), lambda file: file.write(data))
            self.rows, self.times = [], []

    def close(self) -> None:
        pass


class WandbSink:
    """A run of Weights & Biases, the same one when the training is resumed."""

    def __init__(self, config: TrainConfig):
        self.temporary = tempfile.mkdtemp() if is_remote(config.output) else None
        self.run = start_wandb(config, self.temporary or config.output)

    def log(self, row: Row) -> None:
        if "loss" in row:
            self.run.log(scalars(row), step=row["step"])
        else:  # of a step that the service has already, which takes no more of it
            self.run.summary.update(scalars(row))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.run.finish()
        if self.temporary:
            shutil.rmtree(self.temporary, ignore_errors=True)


class ProgressSink:
    """The process that started the run, which exports metrics for Prometheus (`progress`).

    Args:
        actor: handle of a `ProgressActor`.
    """

    def __init__(self, actor: Any):
        self.actor = actor

    def log(self, row: Row) -> None:
        self.actor.add_row.remote(dict(row))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def scalars(row: Row) -> dict[str, float]:
    """The numbers of a row by name, those of the valid set under `valid/`."""
    return {
        name.replace("valid_", "valid/"): value
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float)
    }


def tensorboard_events(rows: Sequence[Row], times: Sequence[float]) -> bytes:
    """An event file of TensorBoard with the scalars of each row at its step and time (seconds since 1970)."""
    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        writer = SummaryWriter(folder)
        for row, seconds in zip(rows, times, strict=True):
            for name, value in scalars(row).items():
                writer.add_scalar(name, value, row["step"], walltime=seconds)
        writer.close()
        [path] = Path(folder).iterdir()
        return path.read_bytes()


def start_wandb(config: TrainConfig, folder: str) -> Any:
    """Start a run of Weights & Biases, or continue the one that the output folder names.

    Args:
        folder: takes its files, on this machine.

    Raises:
        ConfigError: there is no valid key. ClusterError: another try may reach the service.
    """
    import wandb
    from wandb.errors import AuthenticationError, UsageError

    id_path = join(config.output, WANDB_ID_FILE)
    if exists(id_path):
        with open_read(id_path) as file:
            run_id = file.read().decode().strip()
    else:
        run_id = uuid.uuid4().hex
        write_atomic(id_path, lambda file: file.write(run_id.encode()))
    try:
        return wandb.init(
            project=config.wandb,
            id=run_id,
            name=os.path.basename(config.output.rstrip("/")),
            resume="allow",
            dir=folder,
            config=to_dict(config),
            settings=wandb.Settings(silent=True, console="off"),
        )
    except wandb.Error as error:
        refused = isinstance(error, AuthenticationError | UsageError)
        raise (ConfigError if refused else ClusterError)(
            f"--wandb {config.wandb}: {reason(error)}; run `wandb login` or set WANDB_API_KEY on the "
            "node of the first worker, or set WANDB_MODE=offline"
        ) from error
