"""Errors that come up in other processes: whether another try would help, and how they come back.

is_deterministic   whether another try would meet the same error
pack_error         an error as text: libraries that run workers bring it back wrapped, or as text only
pack_final         the same, of one that another try would meet again; any other is raised
unpack_error       the error again; a defect as the traceback of the process where it came up
"""

import json
import traceback
from collections.abc import Callable, Iterator

from wsdm_ray.errors import (
    ClusterError,
    ConfigError,
    DataError,
    ModelError,
    RunBusyError,
    RunMismatchError,
    StorageError,
    WsdmRayError,
)
from wsdm_ray.plain_text import redact

__all__ = [
    "FinalError",
    "WorkerDefectError",
    "chain",
    "is_deterministic",
    "pack_error",
    "pack_final",
    "unpack_error",
]


class WorkerDefectError(Exception):
    """A defect that came up in another process; its text is the traceback there."""


class FinalError(Exception):
    """An error that another try would meet again; its text is `pack_error` of it."""


DETERMINISTIC = (
    *(AssertionError, AttributeError, ImportError, LookupError, NameError, NotImplementedError),
    *(TypeError, ValueError, ZeroDivisionError),
)
"""What code raises that is wrong, or that meets what it is not made for."""

PASSING = (OSError, MemoryError, RuntimeError)
"""What a machine, a store, a GPU or another process that is lost makes code raise."""


def is_deterministic(error: BaseException) -> bool:
    """Whether another try would meet the same error: of a user, but for stores and clusters, or of our code.

    An error that was raised while a passing one was handled may be gone with it.
    """
    if isinstance(error, WsdmRayError):
        return not isinstance(error, StorageError | ClusterError)
    if not isinstance(error, DETERMINISTIC):
        return False
    return all(isinstance(each, DETERMINISTIC) or not isinstance(each, PASSING) for each in chain(error))


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it was raised from, as Python's tracebacks show them."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def pack_error(error: BaseException) -> str:
    """Kind and text of an error, as JSON; the text of a defect is its traceback."""
    if isinstance(error, WsdmRayError):
        return json.dumps([type(error).__name__, str(error)])
    return json.dumps(
        [WorkerDefectError.__name__, redact("".join(traceback.format_exception(error)).rstrip())]
    )


def pack_final(error: Exception) -> str:
    """An error that a user can cause, or that another try would meet again, packed (`pack_error`).

    Raises:
        Exception: `error` itself, where it is another.
    """
    if isinstance(error, WsdmRayError) or is_deterministic(error):
        return pack_error(error)
    raise error


def unpack_error(packed: str) -> Exception:
    """The error of `pack_error`; a `WsdmRayError` of a class that is not of this module comes as its base."""
    kind, text = json.loads(packed)
    return KINDS.get(kind, WsdmRayError)(text)


KINDS: dict[str, Callable[[str], Exception]] = {
    kind.__name__: kind
    for kind in (
        *(ClusterError, ConfigError, DataError, ModelError),
        *(RunBusyError, RunMismatchError, StorageError),
        WorkerDefectError,
    )
}
