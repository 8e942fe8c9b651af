"""What each worker of a training run does: steps, metrics, checkpoints, reported to Ray Train."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray.train

from wsdm_ray.config import TrainConfig
from wsdm_ray.data.mixing import apply_mixture
from wsdm_ray.data.votes import read_votes
from wsdm_ray.errors import ConfigError, DataError, ModelError
from wsdm_ray.modeling.manifest import MANIFEST, Manifest
from wsdm_ray.storage import join, local_copy, upload_folder
from wsdm_ray.telemetry import human, logger, set_up_logging
from wsdm_ray.training.health import TrainingDivergedError
from wsdm_ray.training.loop import Trainer
from wsdm_ray.training.metrics import StepMetrics
from wsdm_ray.training.policy import ResolvedOptions
from wsdm_ray.training.sinks import SinkGroup, open_sinks

__all__ = ["CHECKPOINTS_FOLDER", "RUN_NAME", "WorkerResult", "WorkerTask", "format_metrics", "work"]

CHECKPOINTS_FOLDER = "_checkpoints"
RUN_NAME = "run"
"""Ray Train keeps its records and the checkpoints in OUTPUT/_checkpoints/run."""
ETA_STEPS = 20
"""The time that is left is estimated from this many latest steps."""


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """What each worker gets."""

    config: TrainConfig
    """With absolute paths."""
    manifest: Manifest
    progress: Any = None
    """The `ProgressActor` of a bar, if there is one."""


@dataclass(frozen=True, kw_only=True)
class WorkerResult:
    """What each worker returns."""

    resolved: ResolvedOptions | None = None
    """None after an error."""
    error: tuple[str, str] | None = None
    """Kind and text of an error that another try would meet again."""


def work(arguments: dict[str, WorkerTask]) -> WorkerResult:
    """Run one worker to the last step. An error that another try would meet again is returned.

    Args:
        arguments: the `WorkerTask`, as `task`.
    """
    task = arguments["task"]
    try:
        return WorkerResult(resolved=run_worker(task))
    except TrainingDivergedError as error:  # every worker has it
        return WorkerResult(error=(type(error).__name__, str(error)))
    except (ConfigError, DataError, ModelError) as error:
        if task.config.num_workers > 1:
            raise  # the others may wait for this one
        return WorkerResult(error=(type(error).__name__, str(error)))


def run_worker(task: WorkerTask) -> ResolvedOptions:
    """Take the steps that are left; returns what options of `auto` were."""
    set_up_logging()
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train would log every report of ours again
    trainer = make_trainer(task)
    first = trainer.group.is_first
    with sinks_of(trainer) as sinks:
        for metrics in trainer.steps():
            if first:
                show_step(metrics, trainer, task.progress)
            is_last = trainer.step == trainer.total_steps
            is_due = is_last or trainer.step % task.config.checkpoint_steps == 0
            try:
                if is_due:
                    metrics = trainer.evaluate_step()
            finally:  # also of a step that spoilt the weights
                if sinks:
                    sinks.log(metrics.to_row())
            if is_due:
                if sinks:
                    sinks.flush()
                report_checkpoint(trainer, metrics)
    return trainer.resolved


def make_trainer(task: WorkerTask) -> Trainer:
    """A trainer at the latest checkpoint, or at the start where there is none."""
    config = task.config
    train = apply_mixture(read_votes(config.train), config.mix, config.seed)
    valid = read_votes(config.valid) if config.valid else None
    trainer = Trainer(config, local_copy(config.base), task.manifest, train, valid)
    latest = ray.train.get_checkpoint()
    if latest:
        with latest.as_directory() as folder:
            trainer.restore(folder)
    if trainer.group.is_first:
        logger.info(
            "train: %d rows, %d parameters, steps %d to %d of %d pairs on %d workers",
            len(train), sum(parameter.numel() for parameter in trainer.parameters.values()),
            trainer.step + 1, trainer.total_steps, config.pairs_per_step, trainer.group.size,
        )  # fmt: skip
    return trainer


@contextlib.contextmanager
def sinks_of(trainer: Trainer) -> Iterator[SinkGroup | None]:
    """The run's sinks on the first worker, closed at the end also where a step fails; else None."""
    if not trainer.group.is_first:
        yield None
        return
    sinks = open_sinks(trainer.config, [metrics.to_row() for metrics in trainer.metrics])
    try:
        yield sinks
    finally:
        sinks.close()


def show_step(metrics: StepMetrics, trainer: Trainer, progress: Any) -> None:
    """Log the line of a step, and advance the bar, if there is one."""
    recent = [step.seconds for step in trainer.metrics[-ETA_STEPS:]]
    seconds_left = (trainer.total_steps - trainer.step) * sum(recent) / len(recent)
    logger.info(
        f"step {metrics.step}/{trainer.total_steps} loss {metrics.loss:.4f} "
        f"accuracy {metrics.accuracy:.3f} lr {metrics.learning_rate:.2e} grad {metrics.grad_norm:.2f} "
        f"{human(metrics.tokens_per_second)} tokens/s {human(metrics.pairs_per_second)} pairs/s "
        f"ETA {seconds_left:.0f} s"
    )
    if progress:
        steps = trainer.metrics
        progress.update.remote(sum(step.pairs for step in steps), sum(step.tokens for step in steps))


def report_checkpoint(trainer: Trainer, metrics: StepMetrics) -> None:
    """Report to Ray Train: every worker its metrics, the first one also the checkpoint."""
    summary = metrics.summary()
    if not trainer.group.is_first:
        ray.train.report(summary)
        return
    logger.info("checkpoint at step %d%s", trainer.step, format_metrics(summary))
    with tempfile.TemporaryDirectory() as folder:
        trainer.save(folder)
        ray.train.report(
            summary,
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=f"step-{trainer.step:06d}",
            checkpoint_upload_fn=lambda local, name: upload(local, trainer.config.output, name),
        )


def upload(local: ray.train.Checkpoint, output: str, name: str) -> ray.train.Checkpoint:
    """Put a checkpoint where Ray Train expects it, its manifest last: a folder that has one is whole."""
    upload_folder(local.path, join(output, CHECKPOINTS_FOLDER, RUN_NAME, name), last=MANIFEST)
    storage: Any = ray.train.get_context().get_storage()
    return ray.train.Checkpoint(
        os.path.join(storage.experiment_fs_path, name), filesystem=storage.storage_filesystem
    )


def format_metrics(summary: dict[str, Any]) -> str:
    """The valid metrics of a checkpoint as the end of a log line; empty where there are none."""
    if "valid_accuracy" not in summary:
        return ""
    low, high = summary["valid_accuracy_ci95"]
    return (
        f": valid accuracy {summary['valid_accuracy']:.4f} ({low:.4f} to {high:.4f}), "
        f"log loss {summary['valid_log_loss']:.4f} on {summary['valid_rows']} rows"
    )
