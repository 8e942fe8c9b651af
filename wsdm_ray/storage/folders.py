"""Whole folders: upload, fetch, delete, and a digest of their files."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from wsdm_ray.errors import StorageError
from wsdm_ray.storage.cache import UNFINISHED, cache_folder, entry_name, mark_used
from wsdm_ray.storage.files import delete_file, write_atomic
from wsdm_ray.storage.hub import commit_of, fetch, hub_model, list_repository
from wsdm_ray.storage.listing import file_identity, file_version
from wsdm_ray.storage.stores import absolute, errors_for, filesystem, is_remote, join, with_scheme

__all__ = [
    "bytes_to_fetch",
    "check_writable",
    "copy_of_files",
    "delete_folder",
    "folder_identity",
    "local_copy",
    "model_location",
    "names_in_folder",
    "sha256_of_files",
    "upload_file",
    "upload_folder",
]

IN_MEMORY = ("/dev/shm",) if os.path.isdir("/dev/shm") else ()
"""Folders that take no disk."""

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def check_writable(folder: str) -> None:
    """Raise `StorageError` where a folder of a store takes no object, or keeps one that is to be deleted."""
    if is_remote(folder):
        probe = join(folder, f".probe.{uuid.uuid4().hex}.tmp")  # a leftover (`is_leftover`), if we are killed
        fs, inner = filesystem(probe)
        with errors_for(folder):
            fs.pipe_file(inner, b"")
            with contextlib.suppress(FileNotFoundError):  # the second time, where the answer was lost
                fs.rm_file(inner)


def delete_folder(path: str) -> None:
    """Delete a folder and all in it; nothing happens where there is none."""
    fs, inner = filesystem(path)
    with errors_for(path), contextlib.suppress(FileNotFoundError):
        fs.rm(inner, recursive=True)


def upload_folder(local: str, target: str, *, last: str) -> None:
    """Copy the files of the flat folder `local` into `target`, each atomically, the one named `last` last.

    A process that waits for `last` therefore never sees a folder that is incomplete or half replaced. Where
    `target` has a `last` already, that file is deleted first.
    """
    names = sorted(name for name in os.listdir(local) if os.path.isfile(os.path.join(local, name)))
    assert last in names, f"{local} holds no {last}"
    delete_file(join(target, last))
    for name in sorted(names, key=lambda name: name == last):
        upload_file(os.path.join(local, name), join(target, name))


def upload_file(local: str, target: str) -> None:
    """Copy a local file to `target`, which is there whole or not at all."""
    if is_remote(target):
        fs, inner = filesystem(target)
        with errors_for(target):
            fs.put_file(local, inner)  # multipart for large files; visible only when complete
    else:
        with Path(local).open("rb") as file:
            write_atomic(target, lambda out: shutil.copyfileobj(file, out, 1 << 22))


def model_location(folder: str) -> str:
    """Where a model folder is, as it means the same on every node and later on.

    That is an absolute path, the URL of a store, or a model of the Hub at a commit (hf://OWNER/NAME@COMMIT).

    Raises:
        StorageError: it names a model of the Hub that cannot be had.
    """
    model = hub_model(folder)
    return absolute(folder) if model is None else commit_of(model).uri()


def names_in_folder(folder: str) -> set[str]:
    """Names of the files of a model folder, wherever it is; nothing of it is fetched.

    Raises:
        StorageError: there is no such folder.
    """
    model = hub_model(folder)
    if model is not None:
        return {name for name in list_repository(commit_of(model)) if "/" not in name}
    if is_remote(folder):
        return {os.path.basename(name) for name in remote_files(folder)}
    if not os.path.isdir(absolute(folder)):
        raise StorageError(f"{folder}: no such folder; check the path")
    return set(os.listdir(absolute(folder)))


def remote_files(folder: str) -> list[str]:
    """Sorted names of the files right in a folder of a store, as its file system has them."""
    fs, inner = filesystem(folder)
    with errors_for(folder):
        # A key that ends with "/" is what some consoles make for a folder.
        names = sorted(name for name in fs.find(inner, maxdepth=1) if not name.endswith("/"))
    if not names:
        raise StorageError(f"{folder}: not found; check the path and the bucket")
    return names


def local_copy(folder: str, *, only_cached: bool = False) -> str:
    """A local folder with the files of `folder`; a remote one is fetched, once a node and version.

    Folders within a remote folder are left out. It is fetched into `cache_folder()`, a model of the Hub into
    the Hub's own cache. Processes of one node that ask at the same time may fetch twice; the first to finish
    wins and nobody sees half a folder.

    Args:
        only_cached: ask no hub for a model of the Hub.

    Raises:
        StorageError: there is no such folder, or it cannot be fetched.
    """
    model = hub_model(folder)
    if model is not None:
        return fetch(model if only_cached and model.is_pinned else commit_of(model), only_cached=only_cached)
    if not is_remote(folder):
        if not os.path.isdir(absolute(folder)):
            raise StorageError(f"{folder}: no such folder; check the path")
        return absolute(folder)
    names = remote_files(folder)
    cache = cache_folder()
    target = cached_at(folder, names)
    if os.path.isdir(target):
        mark_used(target)
        return target
    with errors_for(cache):
        work = tempfile.mkdtemp(dir=cache, prefix=UNFINISHED)
    try:
        with errors_for(folder):
            get_files(folder, names, work)
        with errors_for(target):
            try:
                os.rename(work, target)
            except OSError:
                if not os.path.isdir(target):
                    raise
                # else another process was first, with the same files
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


@contextlib.contextmanager
def copy_of_files(folder: str, names: Sequence[str]) -> Iterator[str]:
    """A local folder with those of the files `names` that `folder` has, for as long as the context lasts.

    Of a folder in a store they alone are fetched, unless the cache has it: into a temporary folder, or into
    memory where the disk is full.

    Raises:
        StorageError: there is no such folder, or the files cannot be fetched.
    """
    model = hub_model(folder)
    if model is not None:
        yield fetch(commit_of(model), names)
    elif not is_remote(folder):
        yield local_copy(folder)
    else:
        there, cached = remote_files(folder), ""
        with contextlib.suppress(StorageError, FileNotFoundError):  # a full disk takes no cache
            cached = cached_at(folder, there)
        if os.path.isdir(cached):
            mark_used(cached)
            yield cached
            return
        with contextlib.ExitStack() as stack:
            yield fetch_some(folder, [path for path in there if os.path.basename(path) in names], stack)


def fetch_some(folder: str, paths: Sequence[str], stack: contextlib.ExitStack) -> str:
    """A new folder with the files at `paths` of a store, which `stack` deletes.

    Args:
        folder: that they are in, for messages.
    """
    places = [*folders_for_temporary_files(), *IN_MEMORY]
    for place in places:
        with errors_for(folder):
            try:
                work = stack.enter_context(tempfile.TemporaryDirectory(dir=place, prefix="wsdm_ray_files_"))
                get_files(folder, paths, work)
                return work
            except OSError as error:
                if error.errno not in DISK_IS_FULL or place == places[-1]:
                    raise
    raise StorageError(f"{folder}: no folder takes temporary files; free space on the disk, or set TMPDIR")


def get_files(folder: str, paths: Sequence[str], target: str) -> None:
    """Fetch the files at `paths`, of `remote_files`, of the folder of a store into a folder here."""
    fs, _ = filesystem(folder)
    for path in paths:
        fs.get_file(path, os.path.join(target, os.path.basename(path)))


def folders_for_temporary_files() -> list[str]:
    """The system's, or none where no disk takes a file."""
    try:
        return [tempfile.gettempdir()]
    except FileNotFoundError:
        return []


def cached_at(folder: str, names: Sequence[str]) -> str:
    """Where the cache has this version of a remote folder, or would have it.

    Args:
        names: of `remote_files`.
    """
    identity = identity_of(with_scheme(name, folder) for name in names)
    return os.path.join(cache_folder(), entry_name(folder, identity))


def folder_identity(folder: str) -> str:
    """What a model folder's content is known by without being read: another string once a file is written.

    Raises:
        StorageError: there is no such folder, or it cannot be listed.
    """
    model = hub_model(folder)
    if model is not None:
        return commit_of(model).uri()
    if is_remote(folder):
        paths = [with_scheme(name, folder) for name in remote_files(folder)]
    else:
        paths = [join(absolute(folder), name) for name in sorted(names_in_folder(folder))]
        paths = [path for path in paths if os.path.isfile(path)]
    return hashlib.sha256(identity_of(paths).encode()).hexdigest()


def identity_of(paths: Iterable[str]) -> str:
    """The identities of files, as JSON."""
    return json.dumps([file_identity(path) for path in paths], sort_keys=True)


def bytes_to_fetch(folder: str) -> int:
    """Bytes that `local_copy` would fetch into this machine's cache; 0 where there is nothing to fetch.

    No hub is asked: a model of the Hub counts as 0.

    Raises:
        StorageError: there is no such folder, or it cannot be listed.
    """
    if hub_model(folder) is not None:
        return 0
    if not is_remote(folder):
        names_in_folder(folder)
        return 0
    names = remote_files(folder)
    if os.path.isdir(cached_at(folder, names)):
        return 0
    return sum(file_version(with_scheme(name, folder)).size for name in names)


def sha256_of_files(paths: Sequence[str]) -> str:
    """One SHA-256 (hexadecimal) over the names and bytes of local files, in the order given."""
    total = hashlib.sha256()
    for path in paths:
        with Path(path).open("rb") as file:
            total.update(
                f"{os.path.basename(path)}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode()
            )
    return total.hexdigest()
