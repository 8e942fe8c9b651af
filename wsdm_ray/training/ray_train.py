"""The workers of a run on Ray Train, from the start to the last step, whatever dies on the way.

A worker, or a controller, that is lost is replaced, and the run goes on from its last checkpoint. An error
that another try would meet again ends the run at once.
"""

from typing import Any

import pyarrow.fs
import ray
import ray.train
import ray.train.torch
from ray.exceptions import RayActorError
from ray.train import ControllerError, TrainingFailedError, UserCallback

from wsdm_ray.config import TrainConfig
from wsdm_ray.errors import ClusterError
from wsdm_ray.events import Event
from wsdm_ray.failures import FinalError, unpack_error
from wsdm_ray.session import connect
from wsdm_ray.storage import filesystem, is_remote, join, reason
from wsdm_ray.telemetry import in_terminal
from wsdm_ray.training.check import CheckedTraining, ClusterResources
from wsdm_ray.training.progress import show_progress
from wsdm_ray.training.worker import CHECKPOINTS_FOLDER, RUN_NAME, WorkerResult, WorkerTask, work

__all__ = ["cluster_resources", "execute"]


class EndAtFinalErrors(UserCallback):
    """Has Ray Train's controller give a run up where new workers would meet the same error.

    Args:
        progress: the `ProgressActor` that is told of all other errors.
    """

    def __init__(self, progress: Any = None):
        self.progress = progress

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        errors = {rank: getattr(error, "_base_exc", error) for rank, error in worker_exceptions.items()}
        for error in errors.values():
            if isinstance(error, FinalError):
                raise ControllerError(error)
        for rank, error in errors.items():
            if self.progress:
                self.progress.tell.remote(
                    Event(kind="worker_died", worker=f"of rank {rank}", reason=reason(error))
                )


def cluster_resources() -> ClusterResources:
    """What the cluster has, to which this process is connected from here on."""
    connect()
    resources = ray.cluster_resources()
    return ClusterResources(cpus=resources.get("CPU", 0), gpus=int(resources.get("GPU", 0)))


def execute(checked: CheckedTraining) -> ray.train.Result:
    """Run the workers to the last step, replacing those that die, and the controller if it does.

    Raises:
        WsdmRayError: what a user caused, in whatever process it came up.
        WorkerDefectError: a defect in a worker.
    """
    with show_progress(checked.counts.steps) as progress:
        task = WorkerTask(
            config=checked.worker_config,
            manifest=checked.manifest,
            progress=progress,
            logs_steps=not in_terminal(),
        )
        controllers_left = task.config.max_failures
        while True:
            try:
                result = trainer_of(task, checked.on_gpu).fit()
                break
            except TrainingFailedError as error:
                raise own_error(error) or too_many_failures(task.config, error) from error
            except RayActorError as error:
                if not controllers_left:
                    raise too_many_failures(task.config, error) from error
                controllers_left -= 1
                died = "another continues from the last checkpoint"
                progress.tell.remote(Event(kind="controller_replaced", reason=died))
    worker: WorkerResult = result.return_value  # pyright: ignore[reportAssignmentType]
    if worker.error:
        raise unpack_error(worker.error)
    return result


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
        scaling_config=ray.train.ScalingConfig(num_workers=num_workers_of(task.config), use_gpu=on_gpu),
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if on_gpu else "gloo"),
        run_config=ray.train.RunConfig(
            name=RUN_NAME,
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            failure_config=ray.train.FailureConfig(max_failures=task.config.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(**kept),
            callbacks=[EndAtFinalErrors(task.progress)],
            **storage,
        ),
    )


def num_workers_of(config: TrainConfig) -> int | tuple[int, int]:
    """The number of workers, or the fewest and the most, as Ray Train takes them."""
    if config.min_workers is None or config.min_workers == config.num_workers:
        return config.num_workers
    return config.min_workers, config.num_workers


def own_error(error: BaseException) -> Exception | None:
    """The error for which a run was given up; None where its workers failed too often."""
    cause = getattr(error, "controller_failure", None)
    return unpack_error(str(cause)) if isinstance(cause, FinalError) else None


def too_many_failures(config: TrainConfig, error: BaseException) -> ClusterError:
    """The error of a run whose workers or controllers died more often than `--max-failures` allows."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = (lines[-1] if lines else type(error).__name__)[:300]
    return ClusterError(
        f"training failed more than {config.max_failures} times ({cause}); remove the cause, check that no "
        f"other run writes to {config.output}, and run the same command again to go on from the last "
        "checkpoint"
    )
