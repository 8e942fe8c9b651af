"""What a run shows of its steps while it goes on: metrics.jsonl, events for TensorBoard, Weights & Biases.

All of it stands in the output folder. Every file is written whole, so that it may lie in an object store: the
events of each flush are a file of their own, which TensorBoard reads in the order of their names. A run that
goes on from a checkpoint shows the steps after it once. Not covered: the lines on the screen (`runner`),
the page with the curves (`wsdm_ray.evaluation.curves`).
"""

import importlib.util
import json
import os
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsdm_ray.config import TrainConfig, to_dict
from wsdm_ray.errors import ConfigError, StorageError
from wsdm_ray.runs import names_in
from wsdm_ray.storage import delete_file, exists, is_remote, join, open_read, reason, write_atomic
from wsdm_ray.telemetry import logger

__all__ = ["METRICS", "Tracker", "check_tracking"]

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
WANDB_ID = "_wandb_id"
FLUSH_SECONDS = 30.0


def check_tracking(config: TrainConfig) -> None:
    """Raise `ConfigError` where Weights & Biases was asked for and is not installed."""
    if config.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"--wandb {config.wandb}: the package is not installed; run `pip install wandb` on every node"
        )


class Tracker:
    """Takes the metrics of every step and puts them where people look.

    Args:
        history: the metrics of the steps before this process, a row a step.
    """

    def __init__(self, config: TrainConfig, history: Sequence[dict[str, Any]]):
        self.config, self.rows, self.shown = config, list(history), len(history)
        self.times: list[float] = []
        self.flushed = time.monotonic()
        if config.tensorboard:
            forget_events(config.output, len(history))
        self.wandb = start_wandb(config) if config.wandb is not None else None

    def add(self, row: dict[str, Any]) -> None:
        """Take the metrics of one step; shown within half a minute, or at the next `flush`."""
        self.rows.append(row)
        self.times.append(time.time())
        if self.wandb:
            self.wandb.log(scalars(row), step=row["step"])
        if time.monotonic() - self.flushed >= FLUSH_SECONDS:
            try:
                self.flush()
            except StorageError as error:  # no reason to lose steps: the next flush writes it all
                logger.warning("train: %s", error)

    def flush(self) -> None:
        """Write what there is."""
        self.flushed = time.monotonic()
        fresh = self.rows[self.shown :]
        if not fresh:
            return
        lines = "".join(json.dumps(row) + "\n" for row in self.rows)
        write_atomic(join(self.config.output, METRICS), lambda file: file.write(lines.encode()))
        if self.config.tensorboard:
            data = events(fresh, self.times)
            name = f"events.out.tfevents.{fresh[0]['step']:010d}"
            write_atomic(join(self.config.output, TENSORBOARD, name), lambda file: file.write(data))
        self.shown, self.times = len(self.rows), []

    def close(self) -> None:
        self.flush()
        if self.wandb:
            self.wandb.finish()


def forget_events(output: str, last_step: int) -> None:
    """Delete event files of steps after the checkpoint that a run goes on from: they come once more."""
    folder = join(output, TENSORBOARD)
    for name in names_in(folder):
        if int(name.rpartition(".")[2]) > last_step:
            delete_file(join(folder, name))


def scalars(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row, those of the valid set under `valid/`."""
    return {
        name.replace("valid_", "valid/"): value
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float)
    }


def events(rows: Sequence[dict[str, Any]], times: Sequence[float]) -> bytes:
    """An event file of TensorBoard with the scalars of each row at its step and time (seconds since 1970)."""
    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        writer = SummaryWriter(folder)
        for row, when in zip(rows, times, strict=True):
            for name, value in scalars(row).items():
                writer.add_scalar(name, value, row["step"], walltime=when)
        writer.close()
        [path] = Path(folder).iterdir()
        return path.read_bytes()


def start_wandb(config: TrainConfig) -> Any:
    """A run of Weights & Biases, the same one where the output folder has one already."""
    import wandb

    place = join(config.output, WANDB_ID)
    if exists(place):
        with open_read(place) as file:
            name = file.read().decode().strip()
    else:
        name = uuid.uuid4().hex
        write_atomic(place, lambda file: file.write(name.encode()))
    folder = tempfile.mkdtemp() if is_remote(config.output) else config.output
    try:
        return wandb.init(
            project=config.wandb,
            id=name,
            name=os.path.basename(config.output.rstrip("/")),
            resume="allow",
            dir=folder,
            config=to_dict(config),
            settings=wandb.Settings(silent=True, console="off"),
        )
    except wandb.Error as error:
        raise ConfigError(
            f"--wandb {config.wandb}: {reason(error)}; run `wandb login` or set WANDB_API_KEY on the "
            "node of the first worker, or set WANDB_MODE=offline"
        ) from error
