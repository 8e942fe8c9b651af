"""Jobs on several nodes of this machine whose processes and nodes are taken away.

Nodes                    a Ray cluster to which nodes are added, and from which they are taken
start_score, start_train jobs in processes of their own, which wait for files that a test makes
"""

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.experimental import internal_kv

__all__ = ["RAY_ENVIRONMENT", "Nodes", "nodes_of", "start_score", "start_train"]

RAY_ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.25",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}

STARTS = 5
"""A node has 30 s to start, which a busy machine exceeds: it is started again then."""


class Nodes:
    """A Ray cluster of nodes of this machine.

    Args:
        cpus: of each node that there is from the start; that of the first one cannot be taken away.
        options: of every node.
    """

    def __init__(self, *cpus: int, **options: Any):
        from ray.cluster_utils import Cluster

        self.options = {"object_store_memory": 80 << 20} | options
        self.cluster: Any = Cluster()
        self.nodes = [self.add(number, include_dashboard=False) for number in cpus]
        self.address: str = self.cluster.address

    def add(self, cpus: int, **options: Any) -> Any:
        """A node that joins the cluster."""
        return started(lambda: self.cluster.add_node(num_cpus=cpus, **self.options, **options))

    def lose(self, node: Any) -> None:
        """End a node as a power cut would."""
        self.cluster.remove_node(node, allow_graceful=False)

    def drain(self, node: Any, seconds: float) -> None:
        """Say that a node will be taken away, as the notice of a cloud does."""
        from ray._raylet import GcsClient
        from ray.core.generated import autoscaler_pb2

        GcsClient(address=self.address).drain_node(
            node.node_id,
            autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
            "a spot machine is taken away",
            int((time.time() + seconds) * 1000),
        )


def started(start: Callable[[], Any]) -> Any:
    """A node of Ray; where it does not start in time, what it left is ended, and it is started again."""
    for _ in range(STARTS - 1):
        before = {process.pid for process in psutil.Process().children(recursive=True)}
        try:
            return start()
        except Exception as error:
            print(f"a node did not start ({error}); another try", flush=True)
            for process in psutil.Process().children(recursive=True):
                if process.pid not in before:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
    return start()


@contextlib.contextmanager
def nodes_of(*cpus: int, **options: Any) -> Iterator[Nodes]:
    """A cluster until the end of the context. Args: as of `Nodes`."""
    nodes = Nodes(*cpus, **options)
    try:
        yield nodes
    finally:
        nodes.cluster.shutdown()
        if ray.is_initialized():  # on another cluster, whose key-value store is forgotten by now
            internal_kv._initialize_internal_kv(ray._private.worker.global_worker.gcs_client)


def start(target: Callable[..., None], *arguments: Any) -> Any:
    """A process that runs a job."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["wsdm_ray.scoring.pipeline", "jobs._main", "tests.integration.preloaded"])
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def start_score(address: str, options: Sequence[str], notes: Path, gate: Path, log: Path) -> Any:
    """`score` with a function of the tokens in place of a network.

    Each replica leaves a file named after its process in `notes` for each unit that it begins, and waits for
    the file `gate` before it scores one.
    """
    return start(drive_score, address, list(options), str(notes), str(gate), str(log))


def start_train(address: str, options: Sequence[str], gates: Mapping[int, str], log: Path) -> Any:
    """`train` that takes the steps of `gates` when their files are there, as `gated_work` does."""
    return start(drive_train, address, list(options), dict(gates), str(log))


def enter(address: str, log: str) -> None:
    """This process runs a job on the cluster of an address, with its lines in a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(RAY_ENVIRONMENT | {"RAY_ADDRESS": address})


def leave(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def drive_score(address: str, options: list[str], notes: str, gate: str, log: str) -> None:
    enter(address, log)
    from jobs._main import main
    from wsdm_ray.config import ScoreConfig
    from wsdm_ray.scoring.pipeline import check, execute

    leave(main(lambda config: execute(check(config), noting_replica(notes, gate)), ScoreConfig, options))


def noting_replica(notes: str, gate: str) -> type:
    """Replicas that leave notes. Ray sends the class by value."""
    from tests.integration.struck_run import Injected, hashing_replica

    hashing: Any = hashing_replica(Injected())

    class NotingReplica(hashing):
        def __call__(self, batch: Any) -> Any:
            import os
            import time
            from pathlib import Path

            Path(notes, f"{os.getpid()}-{int(batch['unit'][0])}").touch()
            while not Path(gate).exists():
                time.sleep(0.05)
            return super().__call__(batch)

    return NotingReplica


def drive_train(address: str, options: list[str], gates: dict[int, str], log: str) -> None:
    enter(address, log)
    from jobs._main import run_job
    from tests.integration.gates import gated_work
    from wsdm_ray.training import ray_train

    ray_train.work = gated_work(gates)
    leave(run_job("train", options))
