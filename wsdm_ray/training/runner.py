"""Training on Ray Train: check everything, run the workers to the last step, publish the classifier.

Ray Train keeps its own records under OUTPUT/_checkpoints; a run that is started again continues from the
latest checkpoint there. The classifier itself is in OUTPUT, as a checkpoint folder. Not covered: what is
checked (`check`), what a worker does (`worker`), what a step does (`loop`).
"""

import dataclasses
from typing import Any

import pyarrow.fs
import ray
import ray.train
import ray.train.torch
from ray.exceptions import RayActorError

from wsdm_ray import errors
from wsdm_ray.config import TrainConfig, to_dict
from wsdm_ray.errors import ClusterError, WsdmRayError
from wsdm_ray.modeling.manifest import read_manifest
from wsdm_ray.runs import finish_run, open_run
from wsdm_ray.storage import filesystem, is_remote, join
from wsdm_ray.telemetry import logger
from wsdm_ray.text.encoding import PairEncoder
from wsdm_ray.training.batches import pairs_in_steps
from wsdm_ray.training.check import CheckedTraining, ClusterResources, check
from wsdm_ray.training.health import TrainingDivergedError
from wsdm_ray.training.model_card import model_card
from wsdm_ray.training.progress import show_progress
from wsdm_ray.training.publish import best_checkpoint, check_published, publish, published_files
from wsdm_ray.training.worker import (
    CHECKPOINTS_FOLDER,
    RUN_NAME,
    WorkerResult,
    WorkerTask,
    format_metrics,
    work,
)

__all__ = ["train"]


def train(config: TrainConfig) -> dict[str, Any]:
    """Train a classifier; returns what run.json holds.

    Raises:
        DataError, ModelError, ConfigError: what was asked for cannot be done, found before anything runs.
        RunMismatchError: the output folder belongs to another run.
        ClusterError: the workers do not fit the cluster, or died too often.
    """
    checked = check(config, cluster_resources())
    finished_run = open_run(config.output, "train", checked.fingerprint, config.restart)
    if finished_run:
        check_published(config.output, published_files(finished_run))
        logger.info("train: %s is complete already", config.output)
        return finished_run
    return report(checked, execute(checked))


def cluster_resources() -> ClusterResources:
    resources = ray.cluster_resources()
    return ClusterResources(cpus=resources.get("CPU", 0), gpus=int(resources.get("GPU", 0)))


def execute(checked: CheckedTraining) -> ray.train.Result:
    """Run the workers to the last step, replacing those that die, and the controller if it does."""
    config, counts = checked.config, checked.counts
    with show_progress(pairs_in_steps(counts.steps, counts.epoch_rows, config.pairs_per_step)) as progress:
        task = WorkerTask(config=checked.worker_config, manifest=checked.manifest, progress=progress)
        controllers_left = task.config.max_failures
        while True:
            try:
                result = trainer_of(task, checked.on_gpu).fit()
                break
            except ray.train.v2.api.exceptions.TrainingFailedError as error:  # pyright: ignore[reportAttributeAccessIssue]
                raise own_error(error) or too_many_failures(task.config, error) from error
            except RayActorError as error:
                if not controllers_left:
                    raise too_many_failures(task.config, error) from error
                controllers_left -= 1
                logger.warning("train: the controller died; another continues from the last checkpoint")
    worker: WorkerResult = result.return_value  # pyright: ignore[reportAssignmentType]
    if worker.error:
        kind, text = worker.error
        raise getattr(errors, kind, TrainingDivergedError)(text)
    return result


def report(checked: CheckedTraining, result: ray.train.Result) -> dict[str, Any]:
    """Publish the best checkpoint and write run.json; returns what it holds."""
    config = checked.config
    assert result.best_checkpoints
    best, metrics = best_checkpoint(result.best_checkpoints, bool(config.valid))
    with best.as_directory() as folder:
        published = publish(folder, config.output, card_of(folder, checked, metrics))
    worker: WorkerResult = result.return_value  # pyright: ignore[reportAssignmentType]
    assert worker.resolved
    content = {
        "config": to_dict(config),
        "resolved": dataclasses.asdict(worker.resolved),
        "counts": checked.counts.to_dict(),
        "metrics": metrics,
        "published": published,
    }
    run = finish_run(config.output, "train", checked.fingerprint, content)
    logger.info(
        "train: %s holds the classifier of step %d%s", config.output, metrics["step"], format_metrics(metrics)
    )
    return run


def card_of(checkpoint: str, checked: CheckedTraining, metrics: dict[str, Any]) -> str:
    """The model card of the classifier in a checkpoint folder."""
    manifest = read_manifest(checkpoint)
    begins_with_bos = bool(len(PairEncoder(checkpoint, manifest.text).bos))
    return model_card(checked.config, manifest, checked.counts, metrics, begins_with_bos=begins_with_bos)


def trainer_of(task: WorkerTask, on_gpu: bool) -> ray.train.torch.TorchTrainer:
    """Ray Train's trainer of `work`, which continues from the checkpoints in the output folder."""
    path = join(task.config.output, CHECKPOINTS_FOLDER)
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


def own_error(error: BaseException) -> WsdmRayError | None:
    """The first `WsdmRayError` that a worker raised; None where there is none."""
    for cause in getattr(error, "worker_failures", {}).values():
        while cause is not None:
            if isinstance(cause, WsdmRayError):
                return cause
            cause = getattr(cause, "cause", None) or cause.__cause__
    return None


def too_many_failures(config: TrainConfig, error: BaseException) -> ClusterError:
    """The error of a run whose workers or controllers died more often than `--max-failures` allows."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = (lines[-1] if lines else type(error).__name__)[:300]
    return ClusterError(
        f"training failed more than {config.max_failures} times ({cause}); remove the cause, check that no "
        f"other run writes to {config.output}, and run the same command again to go on from the last "
        "checkpoint"
    )
