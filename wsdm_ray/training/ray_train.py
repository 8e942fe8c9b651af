"""The workers of a run on Ray Train, from the start to the last step, whatever dies on the way.

A worker, or a controller, that is lost is replaced, and the run goes on from its last checkpoint. Workers
that are asked to end write one before, and others go on (`preemption`). An error that another try would meet
again ends the run at once.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow.fs
import ray
import ray.train
import ray.train.torch
from ray.exceptions import RayActorError
from ray.train import ControllerError, TrainingFailedError, UserCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RunningState

from wsdm_ray.config import TrainConfig
from wsdm_ray.errors import ClusterError, StorageError
from wsdm_ray.events import Event
from wsdm_ray.failures import FinalError, pack_error, unpack_error
from wsdm_ray.noise import quiet_libraries
from wsdm_ray.session import connect
from wsdm_ray.storage import filesystem, is_remote, join, read_json, reason
from wsdm_ray.telemetry import in_terminal, logger, set_up_logging
from wsdm_ray.training.check import UNKNOWN_GPU, CheckedTraining, ClusterResources, fit_cluster
from wsdm_ray.training.preemption import HandleNotices, ask_to_stop, step_of
from wsdm_ray.training.progress import show_progress
from wsdm_ray.training.worker import CHECKPOINTS_FOLDER, RUN_NAME, WorkerResult, WorkerTask, left_name, work
from wsdm_ray.waiting import autoscaler_limits, nodes_that_stay, poll_or_wait, wait_limit

__all__ = ["cluster_resources", "execute"]

STOP_SECONDS = 60.0
"""A run that is stopped waits so long for the checkpoint of the step at hand."""

POLL_SECONDS = 0.2
RECORDS = "checkpoint_manager_snapshot.json"
"""Ray Train's record of the checkpoints that there are."""

GPU_TYPE = "accelerator_type:"
"""Ray's resources that name the kind of a node's GPUs begin so."""

LINE_SECONDS = 60.0
"""So often a line says what the run waits for."""


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


class SayWhatIsWaitedFor(ControllerCallback):
    """Has Ray Train's controller say which workers it waits for, and give up after a while.

    Args:
        what: the workers, in words. seconds: to wait; None: without end.
    """

    def __init__(self, what: str, seconds: float | None, clock: Callable[[], float] = time.monotonic):
        self.what, self.seconds, self.clock = what, seconds, clock
        self.since: float | None = None
        self.said = float("-inf")

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        quiet_libraries()  # in the controller, before it begins

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if isinstance(current_state, RunningState):
            self.since = None
        if not (isinstance(current_state, ReschedulingState) and found_no_place(current_state)):
            return
        now = self.clock()
        self.since = now if self.since is None else self.since
        if self.seconds is not None and now - self.since >= self.seconds:
            error = ClusterError(
                f"no nodes for {self.what} after {self.seconds:g} s (--wait-for-resources-seconds); run the "
                "same command again to go on from the last checkpoint"
            )
            raise ControllerError(FinalError(pack_error(error)))
        if now - self.said >= LINE_SECONDS:
            self.said = now
            set_up_logging()
            logger.warning("train: waits for %s; the nodes that are there have no place for them", self.what)


def found_no_place(state: ReschedulingState) -> bool:
    """Whether workers could not be started for want of nodes, and of nothing else."""
    failure = getattr(state.training_failed_error, "controller_failure", None)
    return isinstance(failure, WorkerGroupStartupTimeoutError)


def cluster_resources(config: TrainConfig) -> ClusterResources:
    """What the cluster has, to which this process is connected from here on, once the workers fit it.

    Raises:
        ClusterError: they do not, and nodes for them did not come.
    """
    connect()
    limits = autoscaler_limits()
    seconds = wait_limit(config.wait_for_resources_seconds, limits)
    number = config.min_workers or config.num_workers

    def poll() -> ClusterResources:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        resources = resources_of(nodes)
        if limits.get("GPU", 0) and not resources.gpus:
            raise ClusterError(f"the cluster has no GPU yet: too small for {number} workers of 1 GPU each")
        fit_cluster(config, resources)
        return resources

    bundle = {"CPU": 1.0} | ({"GPU": 1.0} if limits.get("GPU", 0) else {})
    return poll_or_wait(poll, [bundle] * number, job="train", seconds=seconds)


def resources_of(nodes: Sequence[Mapping[str, float]]) -> ClusterResources:
    """The sum of what nodes have. nodes: the resources of each, as Ray has them."""
    cpus, gpus = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    types: set[str] = set()
    for node in nodes:
        if node.get("GPU", 0):
            named = [name.removeprefix(GPU_TYPE) for name in node if name.startswith(GPU_TYPE)]
            types.update(named or [UNKNOWN_GPU])
    return ClusterResources(cpus=cpus, gpus=int(gpus), gpu_types=frozenset(types))


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
        ask_to_stop(task.config.output, False)
        controllers_left = task.config.max_failures
        while True:
            try:
                with stopping_in_order(task.config.output):
                    result = trainer_of(task, checked.on_gpu).fit()
                left_after = result.return_value.left_after  # pyright: ignore[reportOptionalMemberAccess]
                if left_after is None:
                    break
                go_on(task.config, left_after, progress)
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


def go_on(config: TrainConfig, step: int, progress: Any) -> None:
    """Say that the workers were asked to end, and wait for the place of others.

    Raises:
        ClusterError: the node of this process is taken away, or other nodes did not come.
    """
    said = f"workers were asked to end; the checkpoint of step {step} is written, others go on from it"
    progress.tell.remote(Event(kind="preempted", reason=said))
    if ray.get_runtime_context().get_node_id() not in nodes_that_stay():
        raise ClusterError(
            f"the node of this process is being drained; the checkpoint of step {step} is written: run the "
            "same command on another node to go on"
        )
    cluster_resources(config)


@contextlib.contextmanager
def stopping_in_order(output: str) -> Iterator[None]:
    """Where this process is asked to end, the workers write a checkpoint of the step at hand before."""
    try:
        yield
    except SystemExit:
        if step_of(output) is not None:
            logger.warning("train: asked to end; waits for a checkpoint, %g s at most", STOP_SECONDS)
            ask_to_stop(output)
            step = checkpoint_written(output)
            kept = "an earlier step is kept" if step is None else f"step {step} is kept"
            logger.warning("train: stopped; the checkpoint of %s, run the same command to go on", kept)
        raise


def checkpoint_written(output: str) -> int | None:
    """The step of the checkpoint that workers write as they end, once it is; None where that takes long."""
    folder, end = join(output, CHECKPOINTS_FOLDER, RUN_NAME), time.monotonic() + STOP_SECONDS
    while time.monotonic() < end:
        step = step_of(output, left=True)
        with contextlib.suppress(StorageError):
            if step is not None and left_name(step) in str(read_json(join(folder, RECORDS))):
                return step
        time.sleep(POLL_SECONDS)
    return None


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
    waiting = SayWhatIsWaitedFor(workers_of(task.config, on_gpu), task.config.wait_for_resources_seconds)
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
            callbacks=[EndAtFinalErrors(task.progress), HandleNotices(), waiting],  # pyright: ignore[reportArgumentType]
            **storage,
        ),
    )


def workers_of(config: TrainConfig, on_gpu: bool) -> str:
    """The workers that a run needs at least, in words."""
    number = config.min_workers or config.num_workers
    return f"{number} worker{'s' * (number > 1)} of 1 {'GPU' if on_gpu else 'CPU'} each"


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
