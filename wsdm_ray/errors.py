"""What can go wrong, by whose hand.

    WsdmRayError                 the jobs print it on one line and leave with status 1
    ├── ConfigError              an option has a wrong value (status 2)
    ├── DataError                an input row, column or file is not what was promised
    ├── StorageError             a path is missing, unreadable or not writable
    ├── ModelError               a model folder lacks a part, or its parts do not fit each other
    ├── RunBusyError             another process is at work on the same run
    ├── RunMismatchError         an output folder, or a node, does not fit the run
    └── ClusterError             the cluster cannot run what was asked

A message names what, where and the remedy, on one line, and no secret. Anything else that is raised is a
defect of this package and keeps its traceback.
"""

from wsdm_ray.plain_text import one_line

__all__ = [
    "ClusterError",
    "ConfigError",
    "DataError",
    "ModelError",
    "RunBusyError",
    "RunMismatchError",
    "StorageError",
    "WsdmRayError",
]


class WsdmRayError(Exception):
    """Base of every error that a user can cause; its text is one line."""

    exit_status = 1

    def __init__(self, message: str):
        super().__init__(one_line(message))


class ConfigError(WsdmRayError, ValueError):
    """An option has a wrong value."""

    exit_status = 2


class DataError(WsdmRayError, ValueError):
    """An input row, column or file is not what was promised."""


class StorageError(WsdmRayError, OSError):
    """A path is missing, unreadable or not writable."""


class ModelError(WsdmRayError, ValueError):
    """A model folder lacks a part, or its parts do not fit each other."""


class RunBusyError(WsdmRayError):
    """Another process is at work on the same run."""


class RunMismatchError(WsdmRayError):
    """An output folder belongs to another run, or a node has other versions than a run was started with."""


class ClusterError(WsdmRayError, RuntimeError):
    """The cluster cannot run what was asked."""
