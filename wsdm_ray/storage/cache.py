"""The folder in which remote model folders are kept on this machine: the user's own, and nobody else's.

A model that somebody else could have put there would run as the user's own. Not covered: models of the Hub,
which are in the cache of the Hub's library (`hf cache ls`).
"""

import contextlib
import hashlib
import os
import re
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from wsdm_ray.errors import StorageError
from wsdm_ray.storage.stores import errors_for

__all__ = [
    "UNFINISHED",
    "CachedFolder",
    "cache_folder",
    "cached_folders",
    "clear_cache",
    "entry_name",
    "mark_used",
]

UNFINISHED = ".fetching-"
"""How the name of a folder begins that is not whole yet, or never will be."""


@dataclass(frozen=True, kw_only=True)
class CachedFolder:
    """The copy of a remote folder."""

    name: str
    """In the cache."""
    bytes: int
    last_used: float
    """Unix time, in seconds."""


def cache_folder() -> str:
    """The cache, made where there is none, with a mode of 0700.

    `$WSDM_RAY_CACHE`, else `wsdm_ray` in `$XDG_CACHE_HOME` or `~/.cache`; where that cannot be written, a
    folder of the user's in the system's folder for temporary files.

    Raises:
        StorageError: the folder is somebody else's, or everybody may write into it.
    """
    own = os.environ.get("WSDM_RAY_CACHE")
    if own:
        folder = os.path.abspath(os.path.expanduser(own))
    else:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        folder = os.path.join(home, "wsdm_ray")
    try:
        make(folder)
    except StorageError:
        if own:
            raise
        folder = os.path.join(tempfile.gettempdir(), f"wsdm_ray-{os.geteuid()}")
        make(folder)
    check_owner(folder)
    return folder


def make(folder: str) -> None:
    """Make a folder that its user alone may open, unless it is there. Raises where it cannot be written."""
    with errors_for(folder):
        Path(folder).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            if not os.path.isdir(folder):
                raise
        if not os.access(folder, os.W_OK | os.X_OK):
            check_owner(folder)
            raise PermissionError(13, "not writable", folder)


def check_owner(folder: str) -> None:
    """Raise `StorageError` where somebody else could have put a model into the folder."""
    remedy = "set WSDM_RAY_CACHE to a folder of your own"
    for status in (os.lstat(folder), os.stat(folder)):  # a link, and what it leads to
        if status.st_uid != os.geteuid():
            raise StorageError(f"{folder}: belongs to another user (id {status.st_uid}); {remedy}")
    if os.stat(folder).st_mode & stat.S_IWOTH:
        raise StorageError(f"{folder}: everybody may write into it; `chmod 700 {folder}`, or {remedy}")


def entry_name(folder: str, identity: str) -> str:
    """The name in the cache of one version of a remote folder: readable, and of this version alone."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", folder).strip("-.")[-80:].lstrip("-.")
    return f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:32]}"


def mark_used(folder: str) -> None:
    """Note that a copy was used now."""
    with contextlib.suppress(OSError):
        os.utime(folder)


def cached_folders() -> list[CachedFolder]:
    """What the cache holds, also what was never whole; the last used first."""
    return sorted(map(measure, Path(cache_folder()).iterdir()), key=lambda folder: -folder.last_used)


def measure(folder: Path) -> CachedFolder:
    """What a folder of the cache holds; it may be deleted meanwhile."""
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            size += path.lstat().st_size
    return CachedFolder(name=folder.name, bytes=size, last_used=folder.lstat().st_mtime)


def clear_cache() -> list[CachedFolder]:
    """Delete all that the cache holds, and return what that was.

    Raises:
        StorageError: something cannot be deleted, or the cache is not the user's own.
    """
    found, cache = cached_folders(), cache_folder()
    for folder in found:
        path = os.path.join(cache, folder.name)
        with errors_for(path):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
    return found
