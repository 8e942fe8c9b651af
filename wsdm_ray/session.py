"""How a process gets its Ray: the cluster it is sent to, that of this machine, or one of its own.

Jobs connect when all that needs no cluster has been checked, so that a wrong path costs no start of Ray.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray._private.ray_logging import global_worker_stdstream_dispatcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wsdm_ray.errors import ClusterError
from wsdm_ray.noise import filter_native_lines, quiet_environment, quiet_forwarded, quiet_libraries

__all__ = ["actor_here", "connect"]


ADDRESS_REMEDY = "`ray job submit` takes an http:// address, a job itself HOST:PORT"


def check_address(address: str) -> None:
    """Raise `ClusterError` for an address with a scheme: a job is part of a cluster, and no client of it."""
    if "://" in address:
        raise ClusterError(f"RAY_ADDRESS={address}: not the address of a cluster; {ADDRESS_REMEDY}")


def connect(*, local: bool = False) -> None:
    """Join the cluster of `RAY_ADDRESS` or of this machine, else start a Ray of our own for this process.

    A process that is connected stays as it is.

    Args:
        local: start one of our own whatever runs on this machine, unless `RAY_ADDRESS` says otherwise.

    Raises:
        ClusterError: there is no cluster at the address.
    """
    if ray.is_initialized():
        return
    check_address(os.environ.get("RAY_ADDRESS", ""))
    on_termination = signal.getsignal(signal.SIGTERM)
    quiet_environment()
    quiet_libraries()
    filter_native_lines()
    try:
        with own_dashboard() as port:
            # Without an address Ray joins the cluster that `ray start` made here, if there is one.
            address = "local" if local and "RAY_ADDRESS" not in os.environ else None
            ray.init(address=address, dashboard_port=port, logging_level=logging.WARNING)
    except (ConnectionError, ValueError) as error:
        address = os.environ.get("RAY_ADDRESS", "this machine's cluster")
        raise ClusterError(f"{address}: no Ray cluster to join there ({error}); {ADDRESS_REMEDY}") from error
    if threading.current_thread() is threading.main_thread():  # the only one that may
        signal.signal(signal.SIGTERM, on_termination)  # Ray puts its own there, which aborts
    quiet_forwarded(global_worker_stdstream_dispatcher.handlers)


def actor_here(kind: type, *arguments: Any) -> Any:
    """The handle of a new actor on the node of this process: what could end it ends this process, too."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(kind).options(scheduling_strategy=here).remote(*arguments)


@contextlib.contextmanager
def own_dashboard() -> Iterator[int]:
    """A port for the dashboard of a Ray that starts within, whose processes find it, and no other, by it.

    Ray Train asks the state API without an address; beside a second Ray on this machine it finds two, and
    fails. The processes of a Ray that is started inherit the environment as it is here; one that is joined
    takes no note of it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    earlier = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
    try:
        yield port
    finally:
        del os.environ["RAY_API_SERVER_ADDRESS"]
        if earlier is not None:
            os.environ["RAY_API_SERVER_ADDRESS"] = earlier
