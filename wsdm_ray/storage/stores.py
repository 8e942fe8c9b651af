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
from wsdm_ray.storage.hub import HUB, local_file

__all__ = ["absolute", "errors_for", "filesystem", "is_remote", "join", "reason", "with_scheme"]

SCHEMES = ("s3://", "gs://", "gcs://")

CLIENTS = ("fsspec", "gcsfs", "s3fs")

S3_OPTIONS = {"config_kwargs": {"retries": {"mode": "standard", "max_attempts": 3}}}
"""s3fs tries a request five times itself, so that botocore's own five attempts would make 25 of them."""

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

    A file of the Hub is a local one, which is fetched where the cache of this machine lacks it.
    """
    if path.startswith(HUB):
        return LocalFileSystem(), local_file(path)
    if not is_remote(path):
        return LocalFileSystem(), os.path.abspath(path.removeprefix("file://"))
    options: dict[str, Any] = {} if path.startswith("memory://") else {"use_listings_cache": False}
    if path.startswith("s3://"):
        options |= S3_OPTIONS
    # gcsfs logs a traceback of every error that it also raises, which `errors_for` puts on one line.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    with errors_for(path):
        return fsspec.core.url_to_fs(path, **options)


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
    remedy = "; check the bucket, the credentials and the endpoint" if is_remote(path) else ""
    try:
        yield
    except WsdmRayError:
        raise
    except FileNotFoundError as error:
        raise StorageError(
            f"{path}: not found; check the path" + (" and the bucket" if is_remote(path) else "")
        ) from error
    except PermissionError as error:
        remedy = "credentials" if is_remote(path) else "file's owner and mode"
        raise StorageError(f"{path}: permission denied; check the {remedy}") from error
    except OSError as error:
        if not is_remote(path) or error.errno == errno.ENOSPC:  # where a remote one is kept
            remedy = f"; {LOCAL_REMEDIES.get(error.errno, 'check the disk')}"
        raise StorageError(f"{path}: {reason(error)}{remedy}") from error
    except Exception as error:
        if not raised_by_store(error):
            raise  # a defect of the caller keeps its traceback
        raise StorageError(f"{path}: {reason(error)}{remedy}") from error


def raised_by_store(error: BaseException) -> bool:
    """Whether `error` comes out of a store's client, whose types for a wrong bucket are of many kinds."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").split(".")[0] in CLIENTS for frame, _ in frames)


def reason(error: BaseException) -> str:
    """The first line of an error's own words; never longer than 200 characters."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{type(error).__name__}: {text[:200]}"
