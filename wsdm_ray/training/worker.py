"""What each worker of a training run does: steps, metrics, checkpoints, reported to Ray Train."""

import contextlib
import dataclasses
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray.train
from ray.train import CheckpointUploadMode

from wsdm_ray.config import TrainConfig
from wsdm_ray.data.mixing import apply_mixture
from wsdm_ray.data.votes import read_votes
from wsdm_ray.events import Event, retry_events
from wsdm_ray.failures import FinalError, is_deterministic, pack_error
from wsdm_ray.modeling.manifest import MANIFEST, Manifest
from wsdm_ray.storage import join, local_copy, set_store_timeout, upload_folder
from wsdm_ray.telemetry import counted, logger, set_up_logging
from wsdm_ray.training.health import TrainingDivergedError
from wsdm_ray.training.loop import Trainer
from wsdm_ray.training.metrics import StepMetrics, format_metrics
from wsdm_ray.training.policy import ResolvedOptions
from wsdm_ray.training.preemption import Journal, Notices
from wsdm_ray.training.progress import StepProgress, step_progress, step_reporter
from wsdm_ray.training.sinks import SinkGroup, open_sinks
from wsdm_ray.training.snapshot import Snapshot

__all__ = ["CHECKPOINTS_FOLDER", "RUN_NAME", "WorkerResult", "WorkerTask", "left_name", "work"]

CHECKPOINTS_FOLDER = "_checkpoints"
NOT_VALIDATED = 1e300
"""In place of the loss of a checkpoint that is not validated; JSON has no infinity."""

RUN_NAME = "run"
"""Ray Train keeps its records and the checkpoints in OUTPUT/_checkpoints/run."""


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """What each worker gets."""

    config: TrainConfig
    """With absolute paths."""
    manifest: Manifest
    progress: Any = None
    """The `ProgressActor`."""
    logs_steps: bool = True
    """The first worker logs its steps, as there is no bar."""


@dataclass(frozen=True, kw_only=True)
class WorkerResult:
    """What each worker returns."""

    resolved: ResolvedOptions | None = None
    """None after an error."""
    error: str = ""
    """`pack_error` of an error that another try would meet again."""
    left_after: int | None = None
    """The step after which the workers ended as they were asked to; None of a run that is done."""


def work(arguments: dict[str, WorkerTask]) -> WorkerResult:
    """Run one worker to the last step. An error that another try would meet again is returned.

    Args:
        arguments: the `WorkerTask`, as `task`.

    Raises:
        FinalError: such an error of one among several workers: the others may wait for this one.
    """
    task = arguments["task"]
    try:
        return run_worker(task)
    except Exception as error:
        if not is_deterministic(error):
            raise
        every_worker_has_it = task.config.num_workers == 1 or isinstance(error, TrainingDivergedError)
        if not every_worker_has_it:
            raise FinalError(pack_error(error)) from None
        return WorkerResult(error=pack_error(error))


def run_worker(task: WorkerTask) -> WorkerResult:
    """Take the steps that are left, or those until the workers are asked to end."""
    set_up_logging()
    set_store_timeout(task.config.store_timeout_seconds, reached=True)
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train would log every report of ours again
    trainer = make_trainer(task)
    bar = None if task.logs_steps else task.progress
    report_step = step_reporter(trainer.total_steps, bar) if trainer.group.is_first else None
    pauses: list[float] = []
    saver = CheckpointSaver(trainer, task.progress)
    tell_events = event_teller(trainer, task.progress)
    notices = Notices(task.config.output, trainer.group.is_first)
    journal = open_journal(trainer)
    left_after = None
    with sinks_of(trainer, task.progress) as sinks:
        if owes_validation(trainer):
            validated = trainer.evaluate_step()
            if sinks:
                sinks.log(validated.late_row())
                sinks.flush()
            saver.report(validated)
        for metrics in trainer.steps():
            is_due = is_checkpoint_due(trainer)
            tell_events()
            reason = notices.reason()
            leaves = trainer.group.any(bool(reason), trainer.device) and trainer.step < trainer.total_steps
            if journal:
                journal.write(trainer.step, left=leaves)
            if leaves:
                if sinks:
                    sinks.log(metrics.to_row())
                saver.report_left(metrics)
                left_after = trainer.step
                break
            if report_step:
                report_step(progress_of(trainer, pauses, "validation" if is_due else ""))
            started = time.monotonic()
            try:
                if is_due:
                    metrics = trainer.evaluate_step()
            finally:  # also of a step that spoilt the weights
                if sinks:
                    sinks.log(metrics.to_row())
            if is_due:
                if sinks:
                    sinks.flush()
                saver.report(metrics)
                pauses.append(time.monotonic() - started)
    return WorkerResult(resolved=trainer.resolved, left_after=left_after)


def open_journal(trainer: Trainer) -> Journal | None:
    """The run's journal on the first worker, which says what was lost; else None."""
    if not trainer.group.is_first:
        return None
    journal = Journal(trainer.config.output, trainer.step)
    if journal.last:
        logger.info(
            "train: %s had been taken, %d of them are taken again%s",
            counted(journal.last.reached, "step"), journal.last.steps_lost,
            "; the workers were asked to end" if journal.last.noticed else "",
        )  # fmt: skip
    return journal


def owes_validation(trainer: Trainer) -> bool:
    """Whether the last step was to be followed by validation, but its workers had to end before.

    So the checkpoints to choose from are those of a run that nobody interrupted.
    """
    return bool(
        trainer.valid and trainer.metrics and trainer.metrics[-1].valid is None and is_checkpoint_due(trainer)
    )


def left_name(step: int) -> str:
    """The name of a checkpoint that workers write as they are asked to end: it has no validation."""
    return f"step-{step:06d}-left"


def is_checkpoint_due(trainer: Trainer) -> bool:
    """Whether the step that was just taken is followed by validation and a checkpoint."""
    return trainer.step == trainer.total_steps or trainer.step % trainer.config.checkpoint_steps == 0


def progress_of(trainer: Trainer, pauses: Sequence[float], doing: str) -> StepProgress:
    """Where the trainer is."""
    return step_progress(
        trainer.metrics,
        total_steps=trainer.total_steps,
        checkpoint_steps=trainer.config.checkpoint_steps,
        valid_rows=len(trainer.valid) if trainer.valid else 0,
        pauses=pauses,
        doing=doing,
    )


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
            logger.info("train: resuming from step %d of %d", trainer.step, trainer.total_steps)
    if trainer.group.is_first:
        logger.info(
            "train: %d rows, %d parameters, steps %d to %d of %d pairs on %s",
            len(train), sum(parameter.numel() for parameter in trainer.parameters.values()),
            trainer.step + 1, trainer.total_steps, config.pairs_per_step,
            counted(trainer.group.size, "worker"),
        )  # fmt: skip
    return trainer


@contextlib.contextmanager
def sinks_of(trainer: Trainer, progress: Any) -> Iterator[SinkGroup | None]:
    """The run's sinks on the first worker, closed at the end also where a step fails; else None."""
    if not trainer.group.is_first:
        yield None
        return
    sinks = open_sinks(trainer.config, [metrics.to_row() for metrics in trainer.metrics], progress)
    try:
        yield sinks
    finally:
        sinks.close()


def event_teller(trainer: Trainer, progress: Any) -> Callable[[], None]:
    """What every worker calls after each step: it tells of memory that ran out and of requests sent again."""
    told = 0
    place = {"worker": f"of rank {trainer.group.rank}", "process": os.getpid(), "node": os.uname().nodename}

    def tell() -> None:
        nonlocal told
        new, told = trainer.memory_ran_out - told, trainer.memory_ran_out
        budget = f"the token budget is {trainer.model.token_budget} now"
        memory = [Event(kind="memory_ran_out", count=new, reason=budget)] if new else []
        for event in (*memory, *retry_events()):
            if progress:
                progress.tell.remote(dataclasses.replace(event, **place))

    return tell


class CheckpointSaver:
    """Reports to Ray Train: every worker its metrics, the first one also the checkpoint.

    The first worker copies what a checkpoint holds; a thread of Ray Train's writes and uploads it while steps
    go on, and Ray Train waits for the last one. One is under way at a time, so that memory holds one copy.

    Args:
        progress: the `ProgressActor`, which is told how long each took.
    """

    def __init__(self, trainer: Trainer, progress: Any = None):
        self.trainer, self.progress = trainer, progress
        self.idle = threading.Event()
        self.idle.set()

    def report(self, metrics: StepMetrics) -> None:
        """Report the trainer as it is now. Every worker must call this after the same steps."""
        self.send(metrics.summary(), f"step-{self.trainer.step:06d}")

    def report_left(self, metrics: StepMetrics) -> None:
        """The same of workers that end as they were asked to, without validation.

        Ray Train keeps the checkpoint with the lowest loss, and takes one without any for the best.
        """
        self.send(metrics.summary() | {"valid_log_loss": NOT_VALIDATED}, left_name(self.trainer.step))

    def send(self, summary: dict[str, Any], name: str) -> None:
        state = self.trainer.optimizer_state()  # before the wait: others would time out in it
        if not self.trainer.group.is_first:
            ray.train.report(summary, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
            return
        logger.info("checkpoint at step %d%s", self.trainer.step, format_metrics(summary))
        self.idle.wait()
        snapshot = self.trainer.snapshot(state)
        self.idle.clear()
        ray.train.report(
            summary,
            checkpoint=ray.train.Checkpoint.from_directory(tempfile.mkdtemp()),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=False,  # `save` does, also where it fails
            checkpoint_upload_fn=lambda local, name: self.save(snapshot, local, name),
        )

    def save(self, snapshot: Snapshot, local: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        """Write and upload a checkpoint, in another thread.

        Raises:
            FinalError: what another try would meet again.
        """
        started = time.monotonic()
        try:
            snapshot.write(local.path)
            uploaded = upload(local, self.trainer.config.output, name)
            if self.progress:
                self.progress.add_checkpoint.remote(time.monotonic() - started)
            return uploaded
        except Exception as error:
            if is_deterministic(error):
                raise FinalError(pack_error(error)) from None
            raise
        finally:
            shutil.rmtree(local.path, ignore_errors=True)
            self.idle.set()


def upload(local: ray.train.Checkpoint, output: str, name: str) -> ray.train.Checkpoint:
    """Put a checkpoint where Ray Train expects it, its manifest last: a folder that has one is whole."""
    upload_folder(local.path, join(output, CHECKPOINTS_FOLDER, RUN_NAME, name), last=MANIFEST)
    storage: Any = ray.train.get_context().get_storage()
    return ray.train.Checkpoint(
        os.path.join(storage.experiment_fs_path, name), filesystem=storage.storage_filesystem
    )
