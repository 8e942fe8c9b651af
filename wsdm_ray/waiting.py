"""Waiting until the cluster has what a job needs: a line says for what, another one that the time is over.

While a job waits, a pending placement group shows a cluster that scales by itself what to add. It goes with
the process that waits, so that nothing is added for a job that is gone.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import ray
from ray._private import worker
from ray._private.state import GlobalState, state
from ray.core.generated import autoscaler_pb2
from ray.util.placement_group import placement_group, remove_placement_group

from wsdm_ray.errors import ClusterError
from wsdm_ray.telemetry import logger

__all__ = ["autoscaler_limits", "nodes_that_stay", "poll_or_wait", "wait_for_resources", "wait_limit"]

AUTOSCALER_SECONDS = 1_800.0
"""So long a job waits by default where the cluster scales by itself: new GPU nodes take minutes."""

ANSWER_SECONDS = 30.0
"""The cluster's head has so long to answer."""

POLL_SECONDS, LINE_SECONDS = 1.0, 60.0
"""The cluster is looked at, and a line is shown, so often."""

T = TypeVar("T")


def autoscaler_limits() -> Mapping[str, float]:
    """What the cluster may have at most, by resource; empty where it does not scale by itself.

    As Ray's `GlobalState` works it out, which may wait for an answer of the head without end.
    """
    connected, whole, messages = cast(Any, (worker.global_worker, ray, autoscaler_pb2))
    raylet = whole._raylet
    key, namespace = raylet.GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, raylet.GCS_AUTOSCALER_STATE_NAMESPACE
    stored = connected.gcs_client.internal_kv_get(key.encode(), namespace.encode(), ANSWER_SECONDS)
    config = messages.ClusterConfig.FromString(stored or b"")
    names = {name for group in config.node_group_configs for name in group.resources}
    limits = {name: GlobalState._calculate_max_resource_from_cluster_config(config, name) for name in names}
    return {name: limit for name, limit in limits.items() if limit}


def nodes_that_stay() -> set[str]:
    """Ids of the nodes that are there and are not being drained."""
    leaving = state.get_draining_nodes()
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]} - set(leaving)


def wait_limit(asked: float | None, limits: Mapping[str, float]) -> float:
    """Seconds that a job waits for nodes.

    Args:
        asked: `--wait-for-resources-seconds`; None where it was not given.
        limits: of `autoscaler_limits`.
    """
    if asked is not None:
        return asked
    return AUTOSCALER_SECONDS if limits else 0.0


def poll_or_wait(
    poll: Callable[[], T], bundles: Sequence[Mapping[str, float]], *, job: str, seconds: float
) -> T:
    """What `poll` returns, at once, or by `wait_for_resources` while the cluster is asked for bundles."""
    with contextlib.suppress(ClusterError):
        return poll()
    with asking_for(bundles) if seconds else contextlib.nullcontext():
        return wait_for_resources(poll, job=job, seconds=seconds)


def wait_for_resources(
    poll: Callable[[], T],
    *,
    job: str,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """What `poll` returns, as soon as it raises no `ClusterError`.

    Args:
        poll: asks the cluster; its error says what is there and what is missing.
        job: name of the job, for the lines.
        seconds: is the limit; 0: `poll` is called once.

    Raises:
        ClusterError: of `poll`, when the time is over.
    """
    started, said = clock(), float("-inf")
    while True:
        try:
            return poll()
        except ClusterError as error:
            waited = clock() - started
            if waited >= seconds:
                if not seconds:
                    raise
                raise ClusterError(f"{error}; waited {seconds:g} s (--wait-for-resources-seconds)") from error
            if clock() - said >= LINE_SECONDS:
                said = clock()
                logger.warning("%s: waits for nodes, %.0f s more at most: %s", job, seconds - waited, error)
        sleep(POLL_SECONDS)


@contextlib.contextmanager
def asking_for(bundles: Sequence[Mapping[str, float]]) -> Iterator[None]:
    """A cluster that scales by itself is asked for the bundles until the end of the context."""
    group = placement_group([dict(bundle) for bundle in bundles], strategy="PACK")
    try:
        yield
    finally:
        if ray.is_initialized():
            remove_placement_group(group)
