"""What the Ray cluster can run: replicas that fit beside a reader, and the capability of its GPUs."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wsdm_ray.errors import ClusterError
from wsdm_ray.modeling.precision import BY_CAPABILITY
from wsdm_ray.scoring.check import Cluster
from wsdm_ray.session import connect

__all__ = [
    "READER_CPUS",
    "REPLICA_CPUS",
    "check_cluster",
    "fit_readers",
    "fit_replicas",
    "replicas_that_fit",
]

READER_CPUS = 0.5
"""CPUs of a reader. It is a fraction, so that readers fit beside replicas. It differs from a replica's share,
as Ray Data fuses two stages that ask for equal resources."""
REPLICA_CPUS = 1
"""CPUs of a replica, on a GPU or not."""

READERS_A_REPLICA = 4
"""At most so many readers for each replica: they keep up with 1,000 pairs/s at 4 ms of CPU a pair."""


def check_cluster(replicas: int | None, precision: str) -> Cluster:
    """What a run takes of the cluster, to which this process is connected from here on.

    Args:
        replicas: how many are asked for; None means one a GPU, or one on a machine without.
        precision: as the option of `score`.

    Raises:
        ClusterError: the replicas do not fit beside one reader.
    """
    connect()
    number, on_gpu = fit_replicas(ray.nodes(), replicas)
    cpus = int(ray.cluster_resources().get("CPU", 1))
    return Cluster(
        replicas=number,
        on_gpu=on_gpu,
        threads=None if on_gpu else max(cpus // number, 1),
        capability=least_capability() if on_gpu and precision in BY_CAPABILITY else None,
    )


def fit_replicas(nodes: Sequence[Mapping[str, Any]], asked: int | None) -> tuple[int, bool]:
    """How many replicas to run, and whether each holds a GPU.

    Args:
        nodes: as `ray.nodes()` gives them.

    Raises:
        ClusterError: they do not fit the nodes beside one reader: the run would wait for ever.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = sum(int(node.get("GPU", 0)) for node in alive)
    cpus = sum(node.get("CPU", 0) for node in alive)
    # A machine without GPU runs one replica over all of its cores: GEMMs in one process share a cache.
    wanted = asked or max(gpus, 1)
    fits = [
        int(min(node.get("CPU", 0) // REPLICA_CPUS, node.get("GPU", 0) if gpus else np.inf)) for node in alive
    ]
    left = [node.get("CPU", 0) - fit * REPLICA_CPUS for node, fit in zip(alive, fits, strict=True)]
    # Where replicas can fill every node, one of them gives way to a reader.
    if wanted > sum(fits) - (not any(cpu >= READER_CPUS for cpu in left)):
        kind = f"{REPLICA_CPUS} CPU and 1 GPU" if gpus else f"{REPLICA_CPUS} CPU"
        raise ClusterError(
            f"the cluster has {cpus:g} CPUs and {gpus} GPUs: too small for {wanted} replicas of {kind} "
            f"beside one reader of {READER_CPUS} CPU; add nodes"
            + (" or lower --replicas" if wanted > 1 else "")
        )
    return wanted, gpus > 0


def replicas_that_fit(nodes: Sequence[Mapping[str, Any]], wanted: int) -> int:
    """How many of the replicas fit nodes of which some may be gone since the run began.

    Raises:
        ClusterError: not even one.
    """
    for number in range(wanted, 1, -1):
        with contextlib.suppress(ClusterError):
            return fit_replicas(nodes, number)[0]
    return fit_replicas(nodes, 1)[0]


def fit_readers(cpus: float, replicas: int) -> int:
    """How many readers run beside the replicas at once.

    Args:
        cpus: of the cluster.
    """
    beside = int((cpus - replicas * REPLICA_CPUS) / READER_CPUS)
    return max(min(beside, replicas * READERS_A_REPLICA), 1)


def least_capability() -> tuple[int, int]:
    """The least compute capability of the cluster's GPUs, so that every replica has what it takes.

    A task on each node asks: a driver that was submitted as a job sees no GPU, and may be on a node without.
    """
    ask = ray.remote(num_gpus=0.01, num_cpus=0)(torch.cuda.get_device_capability)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    if len(nodes) == 1 and torch.cuda.is_available():  # its own
        return torch.cuda.get_device_capability()
    there = (NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes)
    return min(ray.get([ask.options(scheduling_strategy=strategy).remote() for strategy in there]))
