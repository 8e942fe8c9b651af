"""Which files and folders there are, and which version of a file it is."""

import functools
import logging
import posixpath
import re
from collections.abc import Sequence
from typing import Any

from wsdm_ray.errors import StorageError
from wsdm_ray.storage.hub import HUB, parse_repository
from wsdm_ray.storage.hub_datasets import expand_hub
from wsdm_ray.storage.stores import errors_for, filesystem, is_remote, with_scheme

__all__ = ["exists", "file_identity", "list_files"]

logger = logging.getLogger(__name__)

LIKE_DATA = re.compile(
    r"(?<!/run)\.(parquet|pq|arrow|feather|jsonl?|csv|tsv)(\.(gz|bz2|xz|zst|zip))?$", re.IGNORECASE
)
"""Names that a user would want to be read; run.json is ours."""


def exists(path: str) -> bool:
    """Whether there is a file or a folder at `path`."""
    fs, inner = filesystem(path)
    with errors_for(path):
        return bool(fs.exists(inner))


def list_files(paths: Sequence[str] | str, suffixes: tuple[str, ...] = (".parquet",)) -> list[str]:
    """Files that `paths` (files, folders or globs) name, each with its scheme, sorted within each path.

    Folders are searched to any depth for names that end with one of `suffixes`, in capitals or not; names
    that begin with `_` or `.` are left out, as Spark and Hadoop do, and so is any other, with a warning where
    it looks like data. A file that is named itself, or matches a glob, is taken whatever its ending.

    Raises:
        StorageError: a path that does not exist, or matches nothing.
    """
    files: list[str] = []
    for path in expand_hub([paths] if isinstance(paths, str) else paths):
        fs, inner = filesystem(path)
        with errors_for(path):
            if fs.isfile(inner):
                names = [inner]
            elif fs.isdir(inner):
                names = within(fs, inner, suffixes)
            elif any(character in inner for character in "*?["):
                names = [
                    name
                    for match in map(str, fs.glob(inner))
                    for name in ([match] if fs.isfile(match) else within(fs, match, suffixes))
                ]
            else:
                raise StorageError(
                    f"{path}: not found; check the path" + (" and the bucket" if is_remote(path) else "")
                )
        if not names:
            raise StorageError(f"{path}: holds no file that ends with {' or '.join(suffixes)}")
        files += [with_scheme(name, path) for name in sorted(map(str, names))]
    return list(dict.fromkeys(files))


def within(fs: Any, folder: str, suffixes: tuple[str, ...]) -> list[str]:
    """Files of a folder, to any depth, that end with one of `suffixes`."""
    names = [name for name in map(str, fs.find(folder)) if not hidden(name, folder)]
    matching = [name for name in names if name.lower().endswith(suffixes)]
    unread = sorted(name for name in set(names) - set(matching) if LIKE_DATA.search(name))
    warn_of_unread(folder, suffixes, *unread)
    return matching


@functools.cache
def warn_of_unread(folder: str, suffixes: tuple[str, ...], *names: str) -> None:
    """Once for a folder, however often it is listed."""
    if names:
        logger.warning(
            "%s: holds %d files that are left out, as they do not end with %s, such as %s",
            folder, len(names), " or ".join(suffixes), posixpath.relpath(names[0], folder),
        )  # fmt: skip


def hidden(name: str, root: str) -> bool:
    return any(part.startswith(("_", ".")) for part in posixpath.relpath(name, root).split("/"))


def file_identity(path: str) -> dict[str, Any]:
    """The version of a file without reading it: its size, and its ETag or modification time."""
    fs, inner = filesystem(path)
    with errors_for(path):
        info = fs.info(inner)
    if path.startswith(HUB):  # known by its commit, wherever and whenever it was fetched
        return {"path": path, "bytes": info["size"], "version": parse_repository(path, path).revision}
    stamp = next(
        (info[key] for key in ("ETag", "etag", "md5Hash", "mtime", "created") if info.get(key)), None
    )
    return {"path": path, "bytes": info["size"], "version": str(stamp)}
