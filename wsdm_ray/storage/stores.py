"""Which store a path is in, how it is reached, and what its errors become.

Not covered: the files (`listing`, `files`, `folders`).
"""

import contextlib
import errno
import logging
import os
import posixpath
import traceback
from collections.abc import Iterator
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from wsdm_ray.errors import StorageError, WsdmRayError
from wsdm_ray.plain_text import one_line
from wsdm_ray.storage.hub import HUB, local_file
from wsdm_ray.storage.patience import PatientStore, StoreAwayError, count_retries_of_client

__all__ = ["absolute", "errors_for", "filesystem", "is_remote", "join", "reason", "with_scheme"]

SCHEMES = ("s3://", "gs://", "gcs://")

CLIENTS = ("fsspec", "gcsfs", "s3fs")

S3_OPTIONS = {"config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": 3}}}
"""botocore tries a request again within seconds, after pauses at random; `patience` goes on. Its adaptive
mode measures by the wall clock: once a request was throttled, a clock that is set back stops all others."""

SILENT_SECONDS = 30
"""A store of Google's that says nothing for so long is asked again. s3fs waits 15 s."""

AWAY = "run the same command again when the store answers, or give it longer with --store-timeout-seconds"

LOCAL_REMEDIES = {
    errno.ENOSPC: "free space on its disk, and run the same command again",
    errno.EDQUOT: "free space of your quota, and run the same command again",
    errno.EROFS: "choose another folder",
    errno.EISDIR: "give a file, not a folder",
    errno.ENOTDIR: "choose another, as a folder in it is a file",
    errno.EEXIST: "choose another, as a folder in it is a file",
    errno.ENAMETOOLONG: "choose a shorter name",
    None: "it may be damaged: copy or make it anew",
}


def is_remote(path: str) -> bool:
    """Whether `path` is a URL of an object store or the Hub. Raises `StorageError` for an unknown scheme."""
    if "://" not in path:
        return False
    if not path.startswith((*SCHEMES, HUB, "file://", "memory://")):
        raise StorageError(f"{path}: unknown scheme; use a local path, s3:// or gs://")
    return not path.startswith("file://")


def filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of `path` and the path within it; listings are not cached: others write beside us.

    What fails in passing in a store is done again for a while (`patience`). A file of the Hub is a local one,
    which is fetched where the cache of this machine lacks it.
    """
    if path.startswith(HUB):
        return LocalFileSystem(), local_file(path)
    if not is_remote(path):
        return LocalFileSystem(), os.path.abspath(path.removeprefix("file://"))
    options: dict[str, Any] = {} if path.startswith("memory://") else {"use_listings_cache": False}
    if path.startswith("s3://"):
        options |= S3_OPTIONS
    if path.startswith(("gs://", "gcs://")):
        import aiohttp

        options["requests_timeout"] = aiohttp.ClientTimeout(sock_connect=5, sock_read=SILENT_SECONDS)
    # gcsfs logs a traceback of every error that it also raises, which `errors_for` puts on one line.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    # And google.auth warns of each kind of credentials that it tried, also where none is needed.
    logging.getLogger("google.auth").setLevel(logging.ERROR)
    with errors_for(path):
        fs, inner = fsspec.core.url_to_fs(path, **options)
        count_retries_of_client(fs, scheme_of(path))
    store: Any = PatientStore(fs, scheme_of(path))
    return store, inner


def absolute(path: str) -> str:
    """`path` independent of the working directory; a remote path is so already."""
    return path if is_remote(path) else filesystem(path)[1]


def join(folder: str, *names: str) -> str:
    """`folder/name/...`, for any of the three kinds of path."""
    return posixpath.join(folder, *names)


def with_scheme(name: str, path: str) -> str:
    """`name`, as the file system of `path` lists it, with the scheme of `path`."""
    if not is_remote(path):
        return name
    if path.startswith(HUB):
        return path  # of one file, which lies elsewhere here
    scheme = path.split("://", 1)[0] + "://"
    return scheme + name.removeprefix(scheme).lstrip("/")


@contextlib.contextmanager
def errors_for(path: str) -> Iterator[None]:
    """Turn what a store raises into a `StorageError` of one line that names `path` and the remedy."""
    try:
        yield
    except WsdmRayError:
        raise
    except FileNotFoundError as error:
        raise StorageError(
            f"{path}: not found; check the path" + (" and the bucket" if is_remote(path) else "")
        ) from error
    except PermissionError as error:
        remedy = denied_remedy(path) if is_remote(path) else "check the file's owner and mode"
        raise StorageError(f"{path}: permission denied; {remedy}") from error
    except StoreAwayError as error:
        remedy = AWAY if error.has_answered else store_remedy(path, error)
        raise StorageError(f"{path}: {error}; {remedy}") from error
    except OSError as error:
        if not is_remote(path) or error.errno == errno.ENOSPC:  # where a remote one is kept
            remedy = LOCAL_REMEDIES.get(error.errno, "check the disk")
        else:
            remedy = store_remedy(path, error)
        raise StorageError(f"{path}: {reason(error)}; {remedy}") from error
    except Exception as error:
        if not raised_by_store(error):
            raise  # a defect of the caller keeps its traceback
        remedy = f"; {store_remedy(path, error)}" if is_remote(path) else ""
        raise StorageError(f"{path}: {reason(error)}{remedy}") from error


PUBLIC = {
    "s3": "FSSPEC_S3_ANON=true reads a public bucket, FSSPEC_S3_REQUESTER_PAYS=true one whose user pays",
    "gs": "FSSPEC_GS_TOKEN=anon reads a public bucket, FSSPEC_GS_REQUESTER_PAYS=PROJECT one whose user pays",
}
"""How a store is read without credentials of one's own, or at one's own cost, by scheme."""

HINTS = {
    "s3": {
        "credential": f"set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; {PUBLIC['s3']}",
        "requester": PUBLIC["s3"],
        "redirect": "set AWS_REGION to the bucket's region, and AWS_ENDPOINT_URL where it is not Amazon's",
        "region": "set AWS_REGION to the bucket's region, and AWS_ENDPOINT_URL where it is not Amazon's",
        "authorizationheader": "set AWS_REGION to the bucket's region",
        "connect": "AWS_ENDPOINT_URL is the endpoint",
        "timeout": "AWS_ENDPOINT_URL is the endpoint",
    },
    "gs": {
        "credential": f"run `gcloud auth application-default login`; {PUBLIC['gs']}",
        "requester": PUBLIC["gs"],
        "userproject": PUBLIC["gs"],
        "anonymous caller": f"run `gcloud auth application-default login`; {PUBLIC['gs']}",
    },
}
"""What to do, by a word in an error of a store."""


def scheme_of(path: str) -> str:
    return path.split("://", 1)[0].replace("gcs", "gs")


def denied_remedy(path: str) -> str:
    """What to do where a store refuses a request."""
    public = PUBLIC.get(scheme_of(path))
    return "check the credentials" + (f"; {public}" if public else "")


def store_remedy(path: str, error: BaseException) -> str:
    """What to do about an error of a store, by its words."""
    said = f"{type(error).__name__} {error} {type(error.__cause__).__name__} {error.__cause__}".lower()
    hints = HINTS.get(scheme_of(path), {})
    hint = next((hint for word, hint in hints.items() if word in said), None)
    return (f"{hint}; " if hint else "") + "check the bucket, the credentials and the endpoint"


def raised_by_store(error: BaseException) -> bool:
    """Whether `error` comes out of a store's client, whose types for a wrong bucket are of many kinds."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").split(".")[0] in CLIENTS for frame, _ in frames)


def reason(error: BaseException) -> str:
    """The first line of an error's own words; never longer than 200 characters."""
    text = one_line((str(error).strip() or type(error).__name__).splitlines()[0])
    return f"{type(error).__name__}: {text[:200]}"
