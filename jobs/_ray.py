"""How a job gets its Ray."""

import logging
import os
import signal
import socket
import threading

import ray

from wsdm_ray.errors import ClusterError

__all__ = ["connect"]


def connect(*, local: bool = False) -> None:
    """Join the cluster of `RAY_ADDRESS` or of this machine, else start a Ray of our own for this process.

    Args:
        local: start one of our own whatever runs on this machine, unless `RAY_ADDRESS` says otherwise.
    """
    if ray.is_initialized():
        return
    on_termination = signal.getsignal(signal.SIGTERM)
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # equal lines of two workers are two facts
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
    )  # silences a warning about its future default
    try:
        if local and "RAY_ADDRESS" not in os.environ:
            start_own()
        else:
            ray.init(logging_level=logging.WARNING)
    except (ConnectionError, ValueError) as error:
        address = os.environ.get("RAY_ADDRESS", "this machine's cluster")
        raise ClusterError(
            f"{address}: no Ray cluster to join there ({error}); `ray job submit` takes an http:// address, "
            "a job itself HOST:PORT"
        ) from error
    if threading.current_thread() is threading.main_thread():  # the only one that may
        signal.signal(signal.SIGTERM, on_termination)  # Ray puts its own there, which aborts


def start_own() -> None:
    """Start a Ray whose processes find it, and no other, by the address of its dashboard.

    Ray Train asks the state API without an address; beside a second Ray on this machine it finds two, and
    prints a traceback a second. The processes of this Ray inherit the environment as it is here.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    earlier = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
    try:
        ray.init(address="local", dashboard_port=port, logging_level=logging.ERROR)
    finally:
        del os.environ["RAY_API_SERVER_ADDRESS"]
        if earlier is not None:
            os.environ["RAY_API_SERVER_ADDRESS"] = earlier
