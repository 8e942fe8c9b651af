"""What the Ray cluster can run: replicas that fit beside a reader, and the capability of its GPUs."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wsdm_ray.errors import ClusterError
from wsdm_ray.modeling.precision import BY_CAPABILITY
from wsdm_ray.preflight.checks import CUDA_REMEDY
from wsdm_ray.scoring.check import Cluster
from wsdm_ray.session import connect
from wsdm_ray.waiting import autoscaler_limits, poll_or_wait, wait_limit

__all__ = [
    "READER_CPUS",
    "REPLICA_CPUS",
    "begin_with",
    "check_cluster",
    "fit_readers",
    "fit_replicas",
    "replicas_at_most",
    "replicas_that_fit",
    "waited_for",
    "waits_for_gpu",
]

T = TypeVar("T")

READER_CPUS = 0.5
"""CPUs of a reader. It is a fraction, so that readers fit beside replicas. It differs from a replica's share,
as Ray Data fuses two stages that ask for equal resources."""
REPLICA_CPUS = 1
"""CPUs of a replica, on a GPU or not."""

READERS_A_REPLICA = 4
"""At most so many readers for each replica: they keep up with 1,000 pairs/s at 4 ms of CPU a pair."""


def check_cluster(
    replicas: int | None, precision: str, fewest: int | None = None, wait_seconds: float | None = None
) -> Cluster:
    """What a run takes of the cluster, to which this process is connected from here on.

    Args:
        replicas: how many are asked for; None means as many as the cluster has room for.
        precision: as the option of `score`.
        fewest: as many must fit; None means all that are asked for.
        wait_seconds: how long nodes are waited for; None: by whether the cluster scales by itself.

    Raises:
        ClusterError: the replicas do not fit beside one reader, and nodes for them did not come.
    """
    connect()
    limits = autoscaler_limits()
    seconds = wait_limit(wait_seconds, limits)
    needs_gpu = waits_for_gpu(ray.nodes(), replicas, limits, wait_seconds)

    def poll() -> tuple[int, bool]:
        return begin_with(ray.nodes(), replicas, fewest, needs_gpu)

    number, on_gpu = waited_for(poll, fewest or replicas or 1, needs_gpu, seconds)
    cpus = int(ray.cluster_resources().get("CPU", 1))
    return Cluster(
        replicas=number,
        most=replicas,
        limit=replicas_at_most(limits, replicas, on_gpu),
        wait_seconds=seconds,
        on_gpu=on_gpu,
        threads=None if on_gpu else max(cpus // number, 1),
        capability=least_capability() if on_gpu and precision in BY_CAPABILITY else None,
    )


def replicas_at_most(limits: Mapping[str, float], asked: int | None, on_gpu: bool) -> int:
    """How many replicas a cluster that scales by itself can have room for; 0 where it does not.

    Args:
        limits: of `autoscaler_limits`. asked: None means as many as there is room for; without GPUs that is
            one for each node, and how many of those there can be is not known.
    """
    if on_gpu:
        return int(limits.get("GPU", 0))
    return int(limits.get("CPU", 0) // (REPLICA_CPUS + READER_CPUS)) if asked else 0


def waited_for(poll: Callable[[], T], number: int, on_gpu: bool, seconds: float) -> T:
    """What `poll` gives once the cluster has room for so many replicas, which it is asked for meanwhile.

    Raises:
        ClusterError: it has not, after so many seconds.
    """
    bundle = {"CPU": REPLICA_CPUS + READER_CPUS} | ({"GPU": 1} if on_gpu else {})
    return poll_or_wait(poll, [bundle] * number, job="score", seconds=seconds)


def waits_for_gpu(
    nodes: Sequence[Mapping[str, Any]],
    asked: int | None,
    limits: Mapping[str, float],
    wait_seconds: float | None,
) -> bool:
    """Whether a run is to have GPUs: there are some, a cluster that scales by itself can add some, or its
    user waits for nodes although its replicas fit those that are there.

    Args:
        limits: of `autoscaler_limits`. wait_seconds: `--wait-for-resources-seconds`.
    """
    if any(node["Resources"].get("GPU", 0) for node in alive(nodes)) or limits.get("GPU", 0):
        return True
    if limits or not wait_seconds:
        return False
    with contextlib.suppress(ClusterError):
        fit_replicas(nodes, asked)
        return True
    return False


def begin_with(
    nodes: Sequence[Mapping[str, Any]], asked: int | None, fewest: int | None, needs_gpu: bool
) -> tuple[int, bool]:
    """How many replicas a run begins with, and whether each holds a GPU.

    Args:
        asked: None means as many as there is room for.
        fewest: None means all that are asked for.

    Raises:
        ClusterError: the nodes have no room for the fewest.
    """
    if needs_gpu and not any(node["Resources"].get("GPU", 0) for node in alive(nodes)):
        raise too_small(nodes, fewest or asked or 1, on_gpu=True)
    if fewest is None:
        return fit_replicas(nodes, asked)
    number = replicas_that_fit(nodes, asked, needs_gpu)
    if number < fewest:
        raise too_small(nodes, fewest, needs_gpu, option="--min-replicas")
    return number, needs_gpu


def fit_replicas(nodes: Sequence[Mapping[str, Any]], asked: int | None) -> tuple[int, bool]:
    """How many replicas to run, and whether each holds a GPU.

    Args:
        nodes: as `ray.nodes()` gives them.

    Raises:
        ClusterError: they do not fit the nodes beside one reader: the run would wait for ever.
    """
    on_gpu = any(node["Resources"].get("GPU", 0) for node in alive(nodes))
    wanted = asked or of_its_own(nodes, on_gpu)
    if wanted > room(nodes, on_gpu):
        raise too_small(nodes, wanted, on_gpu)
    return wanted, on_gpu


def replicas_that_fit(
    nodes: Sequence[Mapping[str, Any]], wanted: int | None, on_gpu: bool | None = None
) -> int:
    """How many of the replicas fit nodes of which some may have come or gone since the run began.

    Args:
        wanted: at most; None means as many as there is room for.
        on_gpu: whether each holds a GPU; None: where the nodes have some.

    Raises:
        ClusterError: not even one.
    """
    if on_gpu is None:
        on_gpu = any(node["Resources"].get("GPU", 0) for node in alive(nodes))
    number = min(wanted or of_its_own(nodes, on_gpu), room(nodes, on_gpu))
    if number < 1:
        raise too_small(nodes, 1, on_gpu)
    return number


def alive(nodes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The nodes that are part of the cluster now."""
    return [node for node in nodes if node["Alive"]]


def of_its_own(nodes: Sequence[Mapping[str, Any]], on_gpu: bool) -> int:
    """How many replicas the nodes are made for: one a GPU, else one a node, on nodes without GPU.

    A machine without GPU runs one replica over all of its cores: GEMMs in one process share a cache.
    """
    there = [node["Resources"] for node in alive(nodes)]
    if on_gpu:
        return max(sum(int(node.get("GPU", 0)) for node in there), 1)
    number = sum(node.get("CPU", 0) >= REPLICA_CPUS for node in there)
    return max(min(number, room(nodes, on_gpu)), 1)


def room(nodes: Sequence[Mapping[str, Any]], on_gpu: bool) -> int:
    """How many replicas fit beside one reader; where they can fill every node, one gives way to a reader."""
    there = [node["Resources"] for node in alive(nodes)]
    fits = [
        int(min(node.get("CPU", 0) // REPLICA_CPUS, node.get("GPU", 0) if on_gpu else np.inf))
        for node in there
    ]
    left = [node.get("CPU", 0) - fit * REPLICA_CPUS for node, fit in zip(there, fits, strict=True)]
    return sum(fits) - (not any(cpu >= READER_CPUS for cpu in left))


def too_small(
    nodes: Sequence[Mapping[str, Any]], wanted: int, on_gpu: bool, option: str = "--replicas"
) -> ClusterError:
    """The error of a cluster without room for so many replicas.

    Args:
        option: that asked for them.
    """
    there = [node["Resources"] for node in alive(nodes)]
    cpus, gpus = (sum(node.get(kind, 0) for node in there) for kind in ("CPU", "GPU"))
    kind = f"{REPLICA_CPUS} CPU and 1 GPU" if on_gpu else f"{REPLICA_CPUS} CPU"
    return ClusterError(
        f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs: too small for {wanted} replicas of {kind} "
        f"beside one reader of {READER_CPUS} CPU; add nodes" + (f" or lower {option}" if wanted > 1 else "")
    )


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

    Raises:
        ClusterError: PyTorch finds no GPU where Ray has one.
    """
    ask = ray.remote(num_gpus=0.01, num_cpus=0)(capability_here)
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if has_gpu(node)}
    if len(nodes) == 1 and torch.cuda.is_available():  # its own
        return torch.cuda.get_device_capability()
    there = (NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes)
    found = ray.get([ask.options(scheduling_strategy=strategy).remote() for strategy in there])
    return least_of(dict(zip(nodes.values(), found, strict=True)))


def has_gpu(node: Mapping[str, Any]) -> bool:
    return bool(node["Alive"] and node["Resources"].get("GPU"))


def capability_here() -> tuple[int, int] | None:
    """The compute capability of this process's GPU; None where PyTorch finds none."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def least_of(found: Mapping[str, tuple[int, int] | None]) -> tuple[int, int]:
    """The least capability, by node. Raises `ClusterError` where PyTorch found no GPU on one."""
    blind = [node for node, capability in found.items() if capability is None]
    if blind:
        raise ClusterError(f"PyTorch: {', '.join(blind)}: it finds none of the GPUs; {CUDA_REMEDY}")
    return min(capability for capability in found.values() if capability)
