"""How a job gets its Ray."""

import logging
import os

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
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # equal lines of two workers are two facts
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
    )  # silences a warning about its future default
    own = local and "RAY_ADDRESS" not in os.environ
    try:
        ray.init(address="local" if own else None, logging_level=logging.ERROR if own else logging.WARNING)
    except (ConnectionError, ValueError) as error:
        address = os.environ.get("RAY_ADDRESS", "this machine's cluster")
        raise ClusterError(
            f"{address}: no Ray cluster to join there ({error}); `ray job submit` takes an http:// address, "
            "a job itself HOST:PORT"
        ) from error
