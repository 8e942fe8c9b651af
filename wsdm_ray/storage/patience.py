"""Operations on a store are tried again while it is away or overloaded, for as long as the user allows.

The clients' own retries come first: botocore's standard mode and those of gcsfs, both with jitter. They end
after seconds, so that what fails still is done again from here, until `set_store_timeout` has passed since an
operation failed first. Every operation may be repeated: puts and deletes give the same the second time. What
does not depend on time (a wrong key, a bucket that is not there) is not tried again.

Not covered: puts that fail where an object is there already. Whoever makes one compares what is there.
"""

import functools
import itertools
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from wsdm_ray.errors import StorageError
from wsdm_ray.failures import chain
from wsdm_ray.plain_text import one_line

__all__ = [
    "STORE_TIMEOUT_SECONDS",
    "PatientStore",
    "StoreAwayError",
    "count_retries_of_client",
    "in_words",
    "is_transient",
    "patiently",
    "retries",
    "set_store_timeout",
]

T = TypeVar("T")

logger = logging.getLogger(__name__)

STORE_TIMEOUT_SECONDS = 120.0
"""How long an operation that fails is tried again, unless `set_store_timeout` says otherwise."""

FIRST_CONTACT_SECONDS = 10.0
"""The same for a store that has never answered: its endpoint is rather wrong than away."""

PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 10.0
"""The first pause at most, and any; each may be twice the one before, and is a random half of itself more."""

LOG_SECONDS = 30.0
"""A process logs its retries at most so often."""

TRANSIENT_STATUSES = frozenset({408, 429, 500, 502, 503, 504})

TRANSIENT_CODES = frozenset(
    {
        *("BadDigest", "IncompleteBody", "InternalError", "OperationAborted", "RequestTimeout", "SlowDown"),
        *("ServiceUnavailable", "Throttling", "ThrottlingException", "XAmzContentSHA256Mismatch"),
    }
)
"""What S3 calls failures that pass, or that a body had which did not arrive as it was sent."""

TRANSIENT_KINDS = frozenset(
    {
        *("builtins.ConnectionError", "builtins.TimeoutError"),
        *("aiohttp.ClientConnectionError", "aiohttp.ClientPayloadError"),
        *("botocore.ChecksumError", "botocore.ConnectionError", "botocore.CredentialRetrievalError"),
        *("botocore.FlexibleChecksumError", "botocore.HTTPClientError", "botocore.MetadataRetrievalError"),
        *("botocore.IncompleteReadError", "botocore.ResponseParserError", "botocore.ResponseStreamingError"),
        *("fsspec.FSTimeoutError", "gcsfs.ChecksumError", "urllib3.IncompleteRead"),
        *("google.RefreshError", "google.TransportError"),
        *("requests.ChunkedEncodingError", "requests.ConnectionError", "requests.Timeout"),
    }
)
"""Errors of the clients without an answer of the store, or with a damaged one; by package, as importing
the packages takes long."""


WITH_STATUS = frozenset({"aiohttp.ClientResponseError", "gcsfs.HttpError"})
"""Errors that carry the status of an answer. Others have a `code` too, which means something else."""


class StoreAwayError(OSError):
    """A store was away, or refused because of its load, until the time for it was over.

    Args:
        has_answered: at some time, so that its endpoint is right.
    """

    def __init__(self, message: str, has_answered: bool):
        super().__init__(message)
        self.has_answered = has_answered


@dataclass
class Patience:
    """What this process knows of its stores: how long it may wait, which have answered, failures so far."""

    seconds: float = STORE_TIMEOUT_SECONDS
    first_seconds: float = FIRST_CONTACT_SECONDS
    answered: set[str] = field(default_factory=set)
    failures: Counter[str] = field(default_factory=Counter)
    logged: float = float("-inf")
    lock: threading.Lock = field(default_factory=threading.Lock)


PATIENCE = Patience()


def set_store_timeout(seconds: float, *, reached: bool = False) -> None:
    """Let operations of this process that fail be tried again for `seconds`.

    Args:
        reached: another process has reached the stores, so that one that does not answer is away.
    """
    PATIENCE.seconds = seconds
    PATIENCE.first_seconds = seconds if reached else min(seconds, FIRST_CONTACT_SECONDS)


def retries() -> dict[str, int]:
    """Requests of this process, by the scheme of their store, that failed in passing and were sent again."""
    return dict(PATIENCE.failures)


def store_timeout() -> float:
    """Seconds for which operations of this process that fail are tried again."""
    return PATIENCE.seconds


def count_retry(scheme: str, times: int = 1) -> None:
    """Add to `retries`; from any thread."""
    with PATIENCE.lock:
        PATIENCE.failures[scheme] += times


def count_retries_of_client(fs: Any, scheme: str) -> None:
    """Let the retries that a client makes itself be counted, and leave the longer ones to `patiently`."""
    if scheme == "s3":
        fs.retries = 1  # of s3fs, around those of botocore
        fs.s3.meta.events.register("needs-retry.s3", count_attempt, unique_id="wsdm_ray.retries")
    elif scheme == "gs":
        import gcsfs.retry

        asked = gcsfs.retry.is_retriable
        if not isinstance(asked, functools.partial):
            gcsfs.retry.is_retriable = functools.partial(count_failure, asked)


def count_attempt(attempts: int, **_: Any) -> None:
    """Takes botocore's event after each attempt."""
    if attempts > 1:
        count_retry("s3")


def count_failure(is_retriable: Callable[[BaseException], bool], error: BaseException) -> bool:
    """What gcsfs asks before it tries again."""
    if again := is_retriable(error):
        count_retry("gs")
    return again


def is_transient(error: BaseException) -> bool:
    """Whether an error of a store's client may be gone at the next try."""
    if isinstance(error, StorageError | StoreAwayError | FileNotFoundError | FileExistsError):
        return False
    for each in chain(error):
        code, status = code_of(each), status_of(each)
        if code in TRANSIENT_CODES or status in TRANSIENT_STATUSES:
            return True
        if status is not None:
            return False
        if not TRANSIENT_KINDS.isdisjoint(kinds_of(each)):
            return True
    return False


def kinds_of(error: BaseException) -> Iterator[str]:
    """`package.Class` of an error and of its bases."""
    for kind in type(error).__mro__:
        yield f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error of a client tells of; None without an answer of the store."""
    response, status = getattr(error, "response", None), ""
    if isinstance(response, dict):  # of botocore
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
    elif not WITH_STATUS.isdisjoint(kinds_of(error)):
        status = getattr(error, "code", getattr(error, "status", ""))
    return int(status) if str(status).isdecimal() else None


def code_of(error: BaseException) -> str | None:
    """The code that S3 gives an error."""
    response = getattr(error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


def patiently(
    scheme: str,
    act: Callable[[], T],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> T:
    """`act()`, which is called again while the store is away and the time for it lasts.

    Raises:
        StoreAwayError: the time is over.
        Exception: what `act` raises otherwise.
    """
    began: float | None = None
    for tries in itertools.count(1):
        try:
            answer = act()
        except Exception as error:
            if any(status_of(each) is not None for each in chain(error)):
                PATIENCE.answered.add(scheme)
            if not is_transient(error):
                raise
            began = clock() if began is None else began
            limit = PATIENCE.seconds if scheme in PATIENCE.answered else PATIENCE.first_seconds
            pause = min(PAUSE_SECONDS * 2 ** min(tries - 1, 9), LONGEST_PAUSE_SECONDS)
            pause *= random.uniform(0.5, 1.0)
            waited = clock() - began
            if waited + pause > limit:
                raise StoreAwayError(
                    f"{in_words(error)} ({tries} tries in {waited:.0f} s)", scheme in PATIENCE.answered
                ) from error
            count_retry(scheme)
            log_retry(scheme, error, limit)
            sleep(pause)
        else:
            PATIENCE.answered.add(scheme)
            return answer
    raise AssertionError


def in_words(error: BaseException) -> str:
    """Kind and first line of an error, at most 200 characters of it."""
    text = one_line((str(error).strip() or "no more is known").splitlines()[0])
    return f"{type(error).__name__}: {text[:200]}"


def log_retry(scheme: str, error: BaseException, limit: float) -> None:
    """Say that a store does not answer as it should, now and then."""
    now = time.monotonic()
    if now - PATIENCE.logged >= LOG_SECONDS:
        PATIENCE.logged = now
        logger.warning(
            "%s://: %s; trying again for up to %.0f s (%d retries so far)",
            scheme, in_words(error), limit, PATIENCE.failures[scheme],
        )  # fmt: skip


REPEATED = frozenset(
    {
        *("cat_file", "cat_ranges", "created", "find", "get_file", "glob", "info", "ls", "modified"),
        *("pipe_file", "put_file", "rm", "rm_file", "size"),
    }
)
"""Operations of a file system that are tried again."""


class PatientStore:
    """A file system of a store whose operations, and the reads of the files that it opens, are tried again.

    Args:
        fs: of fsspec.
        scheme: such as `s3`.
    """

    def __init__(self, fs: Any, scheme: str):
        self.fs, self.scheme = fs, scheme

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("fs", "scheme"):  # asked while it is unpickled
            raise AttributeError(name)
        value = getattr(self.fs, name)
        return functools.partial(self.repeat, value) if name in REPEATED else value

    def repeat(self, operation: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What an operation returns."""
        return patiently(self.scheme, functools.partial(operation, *arguments, **options))

    def kind(self, path: str) -> str | None:
        """`file`, `directory` or None where there is neither.

        fsspec's own `isfile` and `isdir` take every error for a no.
        """
        try:
            return self.repeat(self.fs.info, path)["type"]
        except FileNotFoundError:
            return None

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder."""
        return self.kind(path) is not None

    def isfile(self, path: str) -> bool:
        """Whether there is a file."""
        return self.kind(path) == "file"

    def isdir(self, path: str) -> bool:
        """Whether there is a folder."""
        return self.kind(path) == "directory"

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        """An open file; each read from the store is tried again."""
        if "r" not in mode:
            return self.fs.open(path, mode, **options)
        if self.scheme == "gs":
            # The one that gcsfs takes by itself reads ahead in another thread, which never recovers.
            options.setdefault("cache_type", "readahead")
        file = self.repeat(self.fs.open, path, mode, **options)
        cache: Any = getattr(file, "cache", None)
        if fetcher := getattr(cache, "fetcher", None):
            cache.fetcher = functools.partial(self.repeat, fetcher)
        return file
