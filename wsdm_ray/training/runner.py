"""Training on Ray Train: check everything, start the workers, keep the checkpoints, publish the classifier.

Ray Train keeps its own records under OUTPUT/_checkpoints; a run that is started again goes on from the latest
there. The classifier itself stands in OUTPUT, as a checkpoint folder. Not covered: what a step does (`loop`).
"""

import contextlib
import dataclasses
import logging
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs
import ray
import ray.train
import ray.train.torch
from ray.exceptions import RayActorError

from wsdm_ray import errors
from wsdm_ray.config import TrainConfig, to_dict
from wsdm_ray.data.mixing import apply_mixture, check_leakage, read_teachers, sample_weights
from wsdm_ray.data.votes import read_votes
from wsdm_ray.errors import ClusterError, ConfigError, DataError, ModelError, WsdmRayError
from wsdm_ray.modeling.adapter_io import ADAPTER_WEIGHTS
from wsdm_ray.modeling.manifest import MANIFEST, Manifest, folder_digest
from wsdm_ray.modeling.quantization_config import stored_quantization
from wsdm_ray.runs import check_no_overlap, file_versions, finish_run, names_in, open_run, options
from wsdm_ray.storage import (
    absolute,
    file_identity,
    filesystem,
    is_leftover,
    is_remote,
    join,
    list_files,
    local_copy,
    upload_folder,
)
from wsdm_ray.telemetry import human, in_terminal, logger, set_up_logging, track_rows
from wsdm_ray.training.batches import num_steps, pairs_in_steps
from wsdm_ray.training.loop import STATE, STATE_TENSORS, Trainer, TrainingDivergedError
from wsdm_ray.training.tracking import METRICS, Tracker, check_tracking

__all__ = ["train"]

NOT_OF_THE_CLASSIFIER = (STATE, STATE_TENSORS, METRICS)
CHECKPOINTS = "_checkpoints"
RUN_NAME = "run"
SHOWN = ("pairs", "tokens")
"""What a bar counts."""
ETA_STEPS = 20
"""The time that is left is told by the latest so many steps."""


@dataclass(frozen=True)
class WorkerTask:
    """What each worker is told."""

    config: TrainConfig
    manifest: Manifest
    progress: Any = None
    """An actor that takes the progress of rank 0, where somebody looks at a bar."""


def train(config: TrainConfig) -> dict[str, Any]:
    """Train a classifier; returns what run.json holds.

    Raises:
        DataError, ModelError, ConfigError: what was asked for cannot be done, found before anything runs.
        RunMismatchError: the output folder belongs to another run.
        ClusterError: the workers do not fit the cluster, or died too often.
    """
    files = {"train": list_files(config.train), "valid": list_files(config.valid) if config.valid else []}
    check_no_overlap(
        config.output,
        [
            *(*config.train, *config.valid, *files["train"], *files["valid"]),
            *(config.base, *config.objective.teachers),
        ],
    )
    base = local_copy(config.base)
    manifest = Manifest(
        kind="adapter",
        base=absolute(config.base),
        base_digest=folder_digest(base),
        quantization=stored_quantization(base, config.quantization),
        head=config.head,
        text=config.text,
        orders=config.orders,
    )
    if config.int8_activations and manifest.quantization != "bnb-int8":
        raise ConfigError(
            f"--int8-activations: the base is held as {manifest.quantization}; leave it out, or give "
            "--quantization bnb-int8 and a base that is bnb-int8 or unquantized"
        )
    # Workers run in other folders, maybe on other machines.
    told_workers = dataclasses.replace(
        config,
        base=absolute(config.base),
        train=tuple(files["train"]),
        valid=tuple(files["valid"]),
        output=absolute(config.output),
        objective=dataclasses.replace(
            config.objective, teachers=tuple(map(absolute, config.objective.teachers))
        ),
    )
    check_tracking(config)
    counts = check_data(config, files)
    on_gpu = fit_cluster(config.num_workers)
    unnamed = dataclasses.replace(config, objective=dataclasses.replace(config.objective, teachers=()))
    fingerprint = {
        "options": options(
            unnamed,  # teachers are told by their files, below
            leave_out=(
                "output",
                "restart",
                "base",
                "train",
                "valid",
                "max_failures",
                "num_workers",
                "micro_batches",
                "loss_spike",
                "allow_leakage",
                "tensorboard",
                "wandb",
            ),
        ),
        "base": manifest.base_digest,
        "passes": config.micro_batches or config.num_workers,  # they decide dropout
        "gpu": on_gpu,
        "inputs": {name: file_versions(paths) for name, paths in files.items()},
        "teachers": [file_versions(list_files(folder)) for folder in config.objective.teachers],
    }
    earlier = open_run(config.output, "train", fingerprint, config.restart)
    if earlier:
        check_published(config.output, earlier.get("published", dict.fromkeys((MANIFEST, ADAPTER_WEIGHTS))))
        logger.info("train: %s is complete already", config.output)
        return earlier
    with show_bar(pairs_in_steps(counts["steps"], counts["epoch_rows"], config.pairs_per_step)) as board:
        result = fit(WorkerTask(told_workers, manifest, board), on_gpu)
    best, metrics = best_checkpoint(result, bool(config.valid))
    published = publish(best, config.output)
    told_run = {
        "config": to_dict(config),
        "resolved": result.return_value,
        "counts": counts,
        "metrics": metrics,
        "published": published,
    }
    run = finish_run(config.output, "train", fingerprint, told_run)
    logger.info(
        "train: %s holds the classifier of step %d%s", config.output, metrics["step"], format_metrics(metrics)
    )
    return run


def fit_cluster(num_workers: int) -> bool:
    """Whether workers run on GPUs. Raises `ClusterError` where so many do not fit the cluster."""
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 0)
    if num_workers > (gpus or cpus):
        raise ClusterError(
            f"the cluster has {cpus:g} CPUs and {gpus} GPUs: too small for {num_workers} workers of 1 "
            f"{'GPU' if gpus else 'CPU'} each; add nodes or lower --num-workers"
        )
    return gpus > 0


def check_data(config: TrainConfig, files: dict[str, list[str]]) -> dict[str, Any]:
    """Counts of what there is to train on. Raises where the sets do not fit each other or the options."""
    votes = read_votes(files["train"])
    epoch = apply_mixture(votes, config.mix, config.seed)
    sample_weights(epoch.sources_N, config.objective.source_weights)
    steps = num_steps(len(epoch), config.pairs_per_step, config.epochs, config.max_steps)
    counts: dict[str, Any] = {"train": len(votes), "epoch_rows": len(epoch), "steps": steps}
    by_source = Counter(epoch.sources_N.tolist())
    if len(by_source) > 1 or config.mix:
        counts["epoch_rows_by_source"] = dict(sorted(by_source.items()))
        logger.info("train: rows of an epoch: %s", ", ".join(f"{k} {v:,}" for k, v in by_source.items()))
    if config.objective.teachers:
        teacher_N = read_teachers(config.objective.teachers, epoch.table["id"])
        counts["taught_rows"] = int(np.count_nonzero(~np.isnan(teacher_N)))
        logger.info("train: teachers have %d of %d rows of an epoch", counts["taught_rows"], len(epoch))
    if files["valid"]:
        valid = read_votes(files["valid"])
        counts["valid"] = len(valid)
        if not config.allow_leakage:
            check_leakage(epoch, valid)
    return counts


def fit(task: WorkerTask, on_gpu: bool) -> ray.train.Result:
    """Run the workers to the last step, replacing those that die, and the controller if it does."""
    left = task.config.max_failures
    while True:
        try:
            result = trainer_of(task, on_gpu).fit()
            break
        except ray.train.v2.api.exceptions.TrainingFailedError as error:  # pyright: ignore[reportAttributeAccessIssue]
            raise own_error(error) or given_up(task, error) from error
        except RayActorError as error:
            if not left:
                raise given_up(task, error) from error
            left -= 1
            logger.warning("train: the controller died; another goes on from the last checkpoint")
    if isinstance(result.return_value, tuple):
        kind, text = result.return_value
        raise getattr(errors, kind, TrainingDivergedError)(text)
    return result


def given_up(task: WorkerTask, error: BaseException) -> ClusterError:
    return ClusterError(
        f"training failed more than {task.config.max_failures} times ({first_line(error)}); mend that, see "
        f"that no other run writes to {task.config.output}, and run the same command again to go on from the "
        "last checkpoint"
    )


def trainer_of(task: WorkerTask, on_gpu: bool) -> ray.train.torch.TorchTrainer:
    path = join(task.config.output, CHECKPOINTS)
    storage: dict[str, Any] = {"storage_path": path}
    if is_remote(path):
        fs, inner = filesystem(path)
        storage = {
            "storage_path": inner,
            "storage_filesystem": pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)),
        }
    kept: dict[str, Any] = {"num_to_keep": 1}  # and the latest, always
    if task.config.valid:
        kept |= {"checkpoint_score_attribute": "valid_log_loss", "checkpoint_score_order": "min"}
    return ray.train.torch.TorchTrainer(
        work,
        train_loop_config={"task": task},
        scaling_config=ray.train.ScalingConfig(num_workers=task.config.num_workers, use_gpu=on_gpu),
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if on_gpu else "gloo"),
        run_config=ray.train.RunConfig(
            name=RUN_NAME,
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            failure_config=ray.train.FailureConfig(max_failures=task.config.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(**kept),
            **storage,
        ),
    )


class ProgressActor:
    """Where rank 0 leaves how far it is, for the bar of the process that started the run."""

    def __init__(self) -> None:
        self.done = self.tokens = 0

    def update(self, pairs: int, tokens: int) -> None:
        self.done, self.tokens = pairs, tokens

    def read(self) -> tuple[int, int]:
        return self.done, self.tokens


@contextlib.contextmanager
def show_bar(pairs: int) -> Iterator[Any]:
    """In a terminal, a bar of the run's pairs, and the board that it reads; else None."""
    if not in_terminal():
        yield None
        return
    board: Any = ray.remote(num_cpus=0)(ProgressActor).remote()
    over = threading.Event()

    def follow() -> None:
        seen = (0, 0)
        with track_rows("train", pairs) as progress:
            while not over.wait(0.5):
                found = ray.get(board.read.remote())
                if found != seen:
                    progress.advance(found[0] - seen[0], found[1] - seen[1])
                    seen = found

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield board
    finally:
        over.set()
        thread.join(5)


def own_error(error: BaseException) -> WsdmRayError | None:
    """The error of ours that a worker raised, where there is one."""
    for cause in getattr(error, "worker_failures", {}).values():
        while cause is not None:
            if isinstance(cause, WsdmRayError):
                return cause
            cause = getattr(cause, "cause", None) or cause.__cause__
    return None


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


def work(config: dict[str, Any]) -> dict[str, str] | tuple[str, str]:
    """What each worker runs; returns what options of `auto` were, or the kind and text of an error that no
    other try would mend.
    """
    task: WorkerTask = config["task"]
    try:
        return run_worker(task)
    except TrainingDivergedError as error:  # every worker has it
        return type(error).__name__, str(error)
    except (ConfigError, DataError, ModelError) as error:
        if task.config.num_workers > 1:
            raise  # the others may wait for this one
        return type(error).__name__, str(error)


def run_worker(task: WorkerTask) -> dict[str, str]:
    set_up_logging()
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train would tell every report of ours once more
    options = task.config
    train = apply_mixture(read_votes(options.train), options.mix, options.seed)
    valid = read_votes(options.valid) if options.valid else None
    trainer = Trainer(options, local_copy(options.base), task.manifest, train, valid)
    latest = ray.train.get_checkpoint()
    if latest:
        with latest.as_directory() as folder:
            trainer.restore(folder)
    first = trainer.rank == 0
    if first:
        logger.info(
            "train: %d rows, %d parameters, steps %d to %d of %d pairs on %d workers",
            len(train), sum(parameter.numel() for parameter in trainer.parameters.values()),
            trainer.step + 1, trainer.total_steps, options.pairs_per_step, trainer.num_workers,
        )  # fmt: skip
    shown = [sum(row[name] for row in trainer.metrics) for name in SHOWN]
    with tracking(trainer) as tracker:
        for metrics in trainer.steps():
            if first:
                logger.info(step_line(metrics, trainer))
                if task.progress:
                    shown = [total + metrics[name] for total, name in zip(shown, SHOWN, strict=True)]
                    task.progress.update.remote(*shown)
            last = trainer.step == trainer.total_steps
            is_due = last or trainer.step % options.checkpoint_steps == 0
            try:
                if is_due:
                    metrics |= trainer.evaluate()
            finally:  # also of a step that spoilt the weights
                if tracker:
                    tracker.add(metrics)
            if is_due:
                if tracker:
                    tracker.flush()
                checkpoint(trainer, metrics)
    return trainer.resolved


@contextlib.contextmanager
def tracking(trainer: Trainer) -> Iterator[Tracker | None]:
    """The run's tracker on rank 0, which shows what it has also where a step fails."""
    tracker = Tracker(trainer.config, trainer.metrics) if trainer.rank == 0 else None
    try:
        yield tracker
    finally:
        if tracker:
            tracker.close()


def step_line(metrics: dict[str, Any], trainer: Trainer) -> str:
    recent = [row["seconds"] for row in trainer.metrics[-ETA_STEPS:]]
    left = (trainer.total_steps - trainer.step) * sum(recent) / len(recent)
    return (
        f"step {metrics['step']}/{trainer.total_steps} loss {metrics['loss']:.4f} "
        f"accuracy {metrics['accuracy']:.3f} lr {metrics['learning_rate']:.2e} "
        f"grad {metrics['grad_norm']:.2f} "
        f"{human(metrics['tokens_per_second'])} tokens/s {human(metrics['pairs_per_second'])} pairs/s "
        f"ETA {left:.0f} s"
    )


def checkpoint(trainer: Trainer, metrics: dict[str, Any]) -> None:
    """Report; every rank reports, rank 0 with the folder."""
    metrics = {name: value for name, value in metrics.items() if name in ("step", "loss") or "valid_" in name}
    if trainer.rank != 0:
        ray.train.report(metrics)
        return
    logger.info("checkpoint at step %d%s", trainer.step, format_metrics(metrics))
    with tempfile.TemporaryDirectory() as folder:
        trainer.save(folder, metrics)
        ray.train.report(
            metrics,
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=f"step-{trainer.step:06d}",
            checkpoint_upload_fn=lambda local, name: upload(local, trainer.config.output, name),
        )


def upload(local: ray.train.Checkpoint, output: str, name: str) -> ray.train.Checkpoint:
    """Put a checkpoint where Ray Train expects it, its manifest last: a folder that has one is whole."""
    upload_folder(local.path, join(output, CHECKPOINTS, RUN_NAME, name), last=MANIFEST)
    storage: Any = ray.train.get_context().get_storage()
    return ray.train.Checkpoint(
        os.path.join(storage.experiment_fs_path, name), filesystem=storage.storage_filesystem
    )


def format_metrics(metrics: dict[str, Any]) -> str:
    if "valid_accuracy" not in metrics:
        return ""
    low, high = metrics["valid_accuracy_ci95"]
    return (
        f": valid accuracy {metrics['valid_accuracy']:.4f} ({low:.4f} to {high:.4f}), "
        f"log loss {metrics['valid_log_loss']:.4f} on {metrics['valid_rows']} rows"
    )


def best_checkpoint(result: ray.train.Result, has_valid: bool) -> tuple[ray.train.Checkpoint, dict[str, Any]]:
    """The checkpoint with the lowest valid log loss, or the last where nothing was held out."""
    assert result.best_checkpoints
    key = (lambda metrics: metrics["valid_log_loss"]) if has_valid else (lambda metrics: -metrics["step"])
    return min(result.best_checkpoints, key=lambda pair: key(pair[1]))


def check_published(output: str, published: dict[str, int | None]) -> None:
    """Raise `ModelError` where a finished run's folder no longer has what `publish` put there."""
    names = names_in(output)
    for name, size in published.items():
        lost = "" if name in names else "gone"
        if size is not None and not lost:
            there = file_identity(join(output, name))["bytes"]
            lost = f"of {there} bytes instead of {size}" if there != size else ""
        if lost:
            raise ModelError(
                f"{output}: is of a finished run, but {name} is {lost}; copy it back, or train anew with "
                "--restart"
            )


def publish(checkpoint: ray.train.Checkpoint, output: str) -> dict[str, int | None]:
    """Put the classifier of a checkpoint into the output folder, its manifest last.

    Returns the names, each with its bytes where they are weights; other files people may edit.
    """
    published = {}
    with checkpoint.as_directory() as source, tempfile.TemporaryDirectory() as work:
        for path in Path(source).iterdir():
            if path.name not in NOT_OF_THE_CLASSIFIER and not is_leftover(path.name):
                os.symlink(path, Path(work) / path.name)
                published[path.name] = path.stat().st_size if path.suffix == ".safetensors" else None
        upload_folder(work, output, last=MANIFEST)
    return published
