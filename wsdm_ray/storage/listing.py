"""Which files and folders there are, and which version of a file it is."""

import errno
import functools
import glob
import logging
import os
import posixpath
import re
import stat
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from wsdm_ray.errors import StorageError
from wsdm_ray.storage.hub import HUB, parse_repository
from wsdm_ray.storage.hub_datasets import expand_hub
from wsdm_ray.storage.names import is_hidden, looks_like_data
from wsdm_ray.storage.stores import errors_for, filesystem, is_remote, with_scheme

__all__ = [
    "FileVersion",
    "Found",
    "each_once",
    "exists",
    "file_identity",
    "file_version",
    "file_versions_now",
    "find_files",
    "list_files",
]

logger = logging.getLogger(__name__)


def exists(path: str) -> bool:
    """Whether there is a file or a folder at `path`."""
    fs, inner = filesystem(path)
    with errors_for(path):
        return bool(fs.exists(inner))


LISTED_FROM = 8
"""From so many files of a folder of a store on, one listing gives their versions."""


@dataclass(frozen=True, kw_only=True)
class FileVersion:
    """Which content a file has, known without reading it.

    size: in bytes. stamp: ETag in a store, modification time on a disk, commit on the Hub.
    """

    size: int
    stamp: str


@dataclass(frozen=True, kw_only=True)
class Found:
    """Files that a path names: `names` below the folder `root`, sorted.

    itself: those that are the path, or match it; the others are in a folder that does. hidden_too: the path
    is a glob that spells a hidden name, so that none of its matches is hidden. versions: by name, as the
    listing gave them; a link that leads nowhere has none.
    """

    root: str
    names: tuple[str, ...]
    itself: frozenset[str] = frozenset()
    is_file: bool = False
    hidden_too: bool = False
    versions: Mapping[str, FileVersion] = field(default_factory=dict)

    def path_of(self, name: str) -> str:
        """The path of one of the names; in a store it may begin with a slash, which is part of its key."""
        return f"{self.root.rstrip('/')}/{name}"


def find_files(path: str) -> Found:
    """All files that `path` (a file, a folder, a glob) names; folders are searched to any depth.

    Links are followed on a local disk, where each file is found once, by its real path. What a glob matches
    has as root the last folder before its first wildcard.

    Raises:
        StorageError: a path that does not exist; a folder that cannot be listed.
    """
    fs, inner = filesystem(path)
    with errors_for(path):
        if path.startswith(HUB):  # one file, which lies elsewhere here
            return one_file(path, *path.rsplit("/", 1))
        if fs.isfile(inner):
            folder, _, name = inner.rpartition("/")
            return one_file(path, with_scheme(folder or "/", path), name)
        if fs.isdir(inner):
            versions = below(fs, inner)
            return Found(
                root=with_scheme(inner, path), names=tuple(sorted(versions)), versions=known(versions)
            )
        if any(character in inner for character in "*?["):
            return find_matches(fs, inner, path)
        if fs.exists(inner):
            raise StorageError(f"{path}: neither a file nor a folder; write what it gives to a file first")
    raise StorageError(f"{path}: not found; check the path" + (" and the bucket" if is_remote(path) else ""))


def one_file(path: str, root: str, name: str) -> Found:
    """A file that was named itself."""
    versions = {name: file_version(path)}
    return Found(root=root, names=(name,), itself=frozenset([name]), is_file=True, versions=versions)


def known(versions: Mapping[str, FileVersion | None]) -> dict[str, FileVersion]:
    return {name: version for name, version in versions.items() if version}


def find_matches(fs: fsspec.AbstractFileSystem, pattern: str, path: str) -> Found:
    """What a glob matches: files, and all files in the folders."""
    parts = pattern.split("/")
    fixed = next(i for i, part in enumerate(parts) if any(character in part for character in "*?["))
    root = "/".join(parts[:fixed])
    itself: dict[str, FileVersion | None] = {}
    inside: dict[str, FileVersion | None] = {}
    for match, version in matches(fs, pattern).items():
        name = match.rstrip("/").removeprefix(root).removeprefix("/")
        if version is FOLDER:
            within = f"{name}/" if name else ""
            inside |= {within + file: each for file, each in below(fs, match).items()}
        else:
            itself[name] = version
    return Found(
        root=with_scheme(root or "/", path),
        names=tuple(sorted({**itself, **inside})),
        itself=frozenset(itself),
        hidden_too=any(part.startswith(("_", ".")) for part in parts[fixed:]),
        versions=known(inside | itself),
    )


FOLDER = FileVersion(size=-1, stamp="folder")
"""What stands for the version of a folder among matches."""


def matches(fs: fsspec.AbstractFileSystem, pattern: str) -> dict[str, FileVersion | None]:
    """Paths that match, with their versions by the same listing; a folder has `FOLDER`."""
    if isinstance(fs, LocalFileSystem):
        return {match: local_version(match) for match in glob_local(pattern)}
    infos: Any = fs.glob(pattern, detail=True)
    return {
        str(name): FOLDER if info["type"] == "directory" else version_of(info) for name, info in infos.items()
    }


def glob_local(pattern: str) -> list[str]:
    """Local paths that match; `**` goes through links too, and through each folder once."""
    parts = pattern.split("/")
    if "**" not in parts:
        return sorted(glob.glob(pattern, include_hidden=True))
    depth = parts.index("**")
    rest = re.compile(glob_translate("/".join(parts[depth:])))
    folders = glob.glob("/".join(parts[:depth]) + "/", include_hidden=True)
    return sorted(
        f"{folder}{name}" for folder in sorted(folders) for name in walk(folder) if rest.fullmatch(name)
    )


def below(fs: fsspec.AbstractFileSystem, folder: str) -> dict[str, FileVersion | None]:
    """Names of all files below a folder, with their versions, by one listing."""
    if isinstance(fs, LocalFileSystem):
        return walk(folder)
    # A key that ends with "/" is what some consoles make for a folder.
    infos: Any = fs.find(folder, detail=True)
    return {
        name.removeprefix(folder.rstrip("/") + "/"): version_of(info)
        for name, info in infos.items()
        if not name.endswith("/")
    }


def walk(folder: str) -> dict[str, FileVersion | None]:
    """Names of all files below a local folder with their versions, through links too, each by its real path
    once.

    What can be reached without a link is taken there. A link that leads nowhere is a file without a version:
    who reads it says that it is gone.
    """
    root = os.path.join(folder, "")
    seen: set[str] = set()
    found = {}
    ahead = deque([(root, os.path.realpath(root))])
    while ahead:
        path, real = ahead.popleft()
        if real in seen:
            continue
        seen.add(real)
        version = local_version(path)
        if version is not FOLDER:
            found[path.removeprefix(root)] = version
            continue
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_symlink():
                    ahead.append((entry.path, os.path.realpath(entry.path)))
                else:
                    ahead.appendleft((entry.path, os.path.join(real, entry.name)))
    return found


def local_version(path: str) -> FileVersion | None:
    """The version of what a local path leads to; `FOLDER` for a folder, None where there is nothing."""
    try:
        state = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link that leads to itself
            return None
        raise
    if stat.S_ISDIR(state.st_mode):
        return FOLDER
    return FileVersion(size=state.st_size, stamp=str(state.st_mtime))


def each_once(paths: Iterable[str]) -> list[str]:
    """The paths in their order without those that lead to a file that another one is, or leads to."""
    real = {path: path if is_remote(path) else os.path.realpath(path) for path in paths}
    kept: dict[str, str] = {}
    for path in sorted(real, key=lambda path: real[path] != path):  # rather the file than a link to it
        kept.setdefault(real[path], path)
    return [path for path in real if kept[real[path]] == path]


def list_files(paths: Sequence[str] | str, suffixes: tuple[str, ...] = (".parquet",)) -> list[str]:
    """Files that `paths` (files, folders or globs) name, each with its scheme, sorted within each path.

    Folders are searched to any depth, through links too, for names that end with one of `suffixes`, in
    capitals or not; names that begin with `_` or `.` are left out, as Spark and Hadoop do, and so is any
    other, with a warning where it looks like data. A file that is named itself, or matches a glob, is taken
    whatever its ending.

    Raises:
        StorageError: a path that does not exist, or matches nothing.
    """
    files: list[str] = []
    for path in expand_hub([paths] if isinstance(paths, str) else paths):
        found = find_files(path)
        names = [found.path_of(name) for name in ending_with(found, suffixes)]
        if not names:
            raise StorageError(f"{path}: holds no file that ends with {' or '.join(suffixes)}")
        files += names
    return each_once(files)


def ending_with(found: Found, suffixes: tuple[str, ...]) -> list[str]:
    """Names that were named themselves, or are not hidden and end with one of `suffixes`."""
    shown = [name for name in found.names if found.hidden_too or not is_hidden(name)]
    unread = [name for name in shown if name not in found.itself and not name.lower().endswith(suffixes)]
    warn_of_unread(found.root, suffixes, *filter(looks_like_data, unread))
    taken = found.itself.union(shown).difference(unread)
    return [name for name in found.names if name in taken]


@functools.cache
def warn_of_unread(folder: str, suffixes: tuple[str, ...], *names: str) -> None:
    """Once for a folder, however often it is listed."""
    if names:
        logger.warning(
            "%s: holds %d files that are left out, as they do not end with %s, such as %s",
            folder, len(names), " or ".join(suffixes), names[0],
        )  # fmt: skip


def file_identity(path: str) -> dict[str, Any]:
    """The version of a file without reading it: its size, and its ETag or modification time."""
    version = file_version(path)
    return {"path": path, "bytes": version.size, "version": version.stamp}


def file_version(path: str) -> FileVersion:
    """The version that a file has now. Raises `StorageError` where it is gone."""
    fs, inner = filesystem(path)
    with errors_for(path):
        info = fs.info(inner)
    if path.startswith(HUB):  # known by its commit, wherever and whenever it was fetched
        return FileVersion(size=info["size"], stamp=str(parse_repository(path, path).revision))
    return version_of(info)


def version_of(info: Mapping[str, Any]) -> FileVersion:
    """The version by what a file system says of a file, alone or in a listing."""
    stamp = next(
        (info[key] for key in ("ETag", "etag", "md5Hash", "mtime", "created") if info.get(key) is not None),
        None,
    )
    return FileVersion(size=info["size"], stamp=str(stamp))


def file_versions_now(paths: Sequence[str]) -> dict[str, FileVersion | None]:
    """The version that each file has now, None for one that is gone; of many in a folder by one listing."""
    folders: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        folders[path.rpartition("/")[0]].append(path)
    found: dict[str, FileVersion | None] = {}
    for folder, files in folders.items():
        listed = is_remote(folder) and not folder.startswith(HUB) and len(files) >= LISTED_FROM
        listed = listed and not folder.endswith("/")  # no folder, but an empty segment of keys
        found |= versions_in(folder, files) if listed else {path: version_now(path) for path in files}
    return found


def versions_in(folder: str, files: Sequence[str]) -> dict[str, FileVersion | None]:
    """Versions of files of one folder of a store, by one listing."""
    fs, inner = filesystem(folder)
    try:
        with errors_for(folder):
            infos = fs.ls(inner, detail=True)
    except StorageError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        infos = []
    by_name = {posixpath.basename(str(info["name"])): info for info in infos if info["type"] != "directory"}
    return {
        path: version_of(by_name[name]) if (name := posixpath.basename(path)) in by_name else None
        for path in files
    }


def version_now(path: str) -> FileVersion | None:
    try:
        return file_version(path)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
