"""The one place that touches files: list, read and write atomically, on a disk, S3 or GCS.

Every path is a plain path, `s3://bucket/key` or `gs://bucket/key`. A file that has its final name is whole:
a local one is written beside it and renamed, an object appears with the last byte of its put. Not covered:
what the bytes mean.
"""

import contextlib
import errno
import functools
import hashlib
import io
import json
import logging
import os
import posixpath
import re
import shutil
import tempfile
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from wsdm_ray.errors import DataError, StorageError, WsdmRayError

__all__ = [
    "absolute",
    "delete_file",
    "delete_folder",
    "exists",
    "file_identity",
    "filesystem",
    "is_leftover",
    "is_remote",
    "join",
    "list_files",
    "local_copy",
    "open_parquet",
    "open_read",
    "read_json",
    "reason",
    "sha256_of_files",
    "upload_folder",
    "write_atomic",
    "write_json",
    "write_parquet",
]

logger = logging.getLogger(__name__)

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
SCHEMES = ("s3://", "gs://", "gcs://")

CLIENTS = ("fsspec", "gcsfs", "s3fs")

LIKE_DATA = re.compile(
    r"(?<!/run)\.(parquet|pq|arrow|feather|jsonl?|csv|tsv)(\.(gz|bz2|xz|zst|zip))?$", re.IGNORECASE
)
"""Names that a user would want to be read; run.json is ours."""

S3_OPTIONS = {"config_kwargs": {"retries": {"mode": "standard", "max_attempts": 3}}}
"""s3fs tries a request five times itself, so that botocore's own five attempts would make 25 of them."""


def is_remote(path: str) -> bool:
    """Whether `path` is an object store's URL. Raises `StorageError` for a scheme that is not supported."""
    if "://" not in path:
        return False
    if not path.startswith((*SCHEMES, "file://", "memory://")):
        raise StorageError(f"{path}: unknown scheme; use a local path, s3:// or gs://")
    return not path.startswith("file://")


def filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of `path` and the path within it; listings are not cached: others write beside us."""
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
    """`path` as any process of this machine understands it; a remote one is so already."""
    return path if is_remote(path) else filesystem(path)[1]


def join(folder: str, *names: str) -> str:
    """`folder/name/...`, for any of the three kinds of path."""
    return posixpath.join(folder, *names)


@contextlib.contextmanager
def errors_for(path: str) -> Iterator[None]:
    """Turn whatever a store raises into one `StorageError` line that names `path` and the remedy."""
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
            raise  # a defect of whoever uses the file, which keeps its traceback
        raise StorageError(f"{path}: {reason(error)}{remedy}") from error


def raised_by_store(error: BaseException) -> bool:
    """Whether `error` comes out of a store's client, whose types for a wrong bucket are of many kinds."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").split(".")[0] in CLIENTS for frame, _ in frames)


def reason(error: BaseException) -> str:
    """The first line of an error's own words; never longer than 200 characters."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{type(error).__name__}: {text[:200]}"


def exists(path: str) -> bool:
    """Whether a file or a folder stands at `path`."""
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
    found: list[str] = []
    for path in [paths] if isinstance(paths, str) else paths:
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
        found += [with_scheme(name, path) for name in sorted(map(str, names))]
    return list(dict.fromkeys(found))


def within(fs: Any, folder: str, suffixes: tuple[str, ...]) -> list[str]:
    """Files of a folder, to any depth, that end with one of `suffixes`."""
    names = [name for name in map(str, fs.find(folder)) if not hidden(name, folder)]
    found = [name for name in names if name.lower().endswith(suffixes)]
    unread = sorted(name for name in set(names) - set(found) if LIKE_DATA.search(name))
    warn_of_unread(folder, suffixes, *unread)
    return found


@functools.cache
def warn_of_unread(folder: str, suffixes: tuple[str, ...], *names: str) -> None:
    """Once for a folder, however often it is listed."""
    if names:
        logger.warning(
            "%s: holds %d files that are left out, as they do not end with %s, such as %s",
            folder, len(names), " or ".join(suffixes), posixpath.relpath(names[0], folder),
        )  # fmt: skip


def with_scheme(name: str, path: str) -> str:
    """`name`, as the file system of `path` lists it, with the scheme of `path`."""
    if not is_remote(path):
        return name
    scheme = path.split("://", 1)[0] + "://"
    return scheme + name.removeprefix(scheme).lstrip("/")


def hidden(name: str, root: str) -> bool:
    return any(part.startswith(("_", ".")) for part in posixpath.relpath(name, root).split("/"))


def file_identity(path: str) -> dict[str, Any]:
    """What tells one version of a file from another unread: size, and ETag or modification time."""
    fs, inner = filesystem(path)
    with errors_for(path):
        info = fs.info(inner)
    stamp = next(
        (info[key] for key in ("ETag", "etag", "md5Hash", "mtime", "created") if info.get(key)), None
    )
    return {"path": path, "bytes": info["size"], "version": str(stamp)}


@contextlib.contextmanager
def open_read(path: str) -> Iterator[IO[bytes]]:
    """A binary file open for reading."""
    fs, inner = filesystem(path)
    with errors_for(path), fs.open(inner, "rb") as file:
        yield cast(IO[bytes], file)


@contextlib.contextmanager
def open_parquet(path: str) -> Iterator[pq.ParquetFile]:
    """A parquet file open for reading.

    Raises:
        DataError: the file is not parquet.
        StorageError: it cannot be read.
    """
    with open_read(path) as file:
        try:
            opened = pq.ParquetFile(file, memory_map=False)
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and "deserialize thrift" not in str(error):
                raise  # of the store; a damaged footer is an OSError too
            remedy = (
                "it is damaged or another kind of file: copy or make it anew"
                if path.lower().endswith(".parquet")
                else "`prepare` also reads .jsonl, .json and .csv; unpack or convert others"
            )
            raise DataError(f"{path}: not a parquet file ({reason(error)}); {remedy}") from error
        with opened:
            yield opened


def read_json(path: str) -> Any:
    """The value of a JSON file. Raises `DataError` where it is not JSON."""
    with open_read(path) as file:
        data = file.read()
    try:
        return json.loads(data)
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({reason(error)})") from error


def write_atomic(path: str, write: Callable[[IO[bytes]], object]) -> None:
    """Write the file at `path` by `write(file)`: it is there whole or not at all, also after a power cut."""
    fs, inner = filesystem(path)
    with errors_for(path):
        if is_remote(path):
            buffer = io.BytesIO()
            write(buffer)
            fs.pipe_file(inner, buffer.getvalue())
            return
        os.makedirs(os.path.dirname(inner), exist_ok=True)
        beside = os.path.join(os.path.dirname(inner), f".{os.path.basename(inner)}.{uuid.uuid4().hex}.tmp")
        try:
            with Path(beside).open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, inner)
            sync_folder(os.path.dirname(inner))
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside)


def is_leftover(name: str) -> bool:
    """Whether a file of this name is what `write_atomic` leaves when its process is killed."""
    return re.fullmatch(r"\..*\.[0-9a-f]{32}\.tmp", name) is not None


def sync_folder(folder: str) -> None:
    """Make a rename in `folder` survive a power cut; some network file systems have no such call."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    data = json.dumps(value, indent=2, ensure_ascii=False, default=str).encode() + b"\n"
    write_atomic(path, lambda file: file.write(data))


def write_parquet(path: str, table: pa.Table, *, row_group_rows: int = 2_000) -> None:
    """Write `table` as one zstd parquet file, atomically: the same table gives the same bytes."""
    write_atomic(
        path, lambda file: pq.write_table(table, file, compression="zstd", row_group_size=row_group_rows)
    )


def delete_file(path: str) -> None:
    """Delete a file; nothing happens where there is none."""
    fs, inner = filesystem(path)
    with errors_for(path), contextlib.suppress(FileNotFoundError):
        fs.rm_file(inner)


def delete_folder(path: str) -> None:
    """Delete a folder and all in it; nothing happens where there is none."""
    fs, inner = filesystem(path)
    with errors_for(path), contextlib.suppress(FileNotFoundError):
        fs.rm(inner, recursive=True)


def upload_folder(local: str, target: str, *, last: str) -> None:
    """Copy the files of the flat folder `local` into `target`, each atomically, the one named `last` last.

    Whoever waits for `last` therefore never sees a folder that is half there, nor one that is half replaced:
    where `target` has a `last` already, that goes first.
    """
    names = sorted(name for name in os.listdir(local) if os.path.isfile(os.path.join(local, name)))
    assert last in names, f"{local} holds no {last}"
    delete_file(join(target, last))
    for name in sorted(names, key=lambda name: name == last):
        source = os.path.join(local, name)
        if is_remote(target):
            fs, inner = filesystem(join(target, name))
            with errors_for(target):
                fs.put_file(source, inner)  # multipart for large files; visible only when complete
        else:
            with Path(source).open("rb") as file:
                write_atomic(
                    join(target, name), lambda out, file=file: shutil.copyfileobj(file, out, 1 << 22)
                )


def local_copy(folder: str) -> str:
    """A local folder with the files of `folder`; a remote one is fetched, once a node and version.

    Folders within a remote folder are left out. It is fetched into `$WSDM_RAY_CACHE`, else into `wsdm_ray` in
    the system's folder for temporary files. Processes of one node that ask at the same time may fetch twice;
    the first to finish wins and nobody sees half a folder.
    """
    if not is_remote(folder):
        if not os.path.isdir(absolute(folder)):
            raise StorageError(f"{folder}: no such folder; check the path")
        return absolute(folder)
    fs, inner = filesystem(folder)
    with errors_for(folder):
        # A key that ends with "/" is what some consoles make for a folder.
        names = sorted(name for name in fs.find(inner, maxdepth=1) if not name.endswith("/"))
    if not names:
        raise StorageError(f"{folder}: not found; check the path and the bucket")
    identity = json.dumps([file_identity(with_scheme(name, folder)) for name in names], sort_keys=True)
    cache = os.environ.get("WSDM_RAY_CACHE") or os.path.join(tempfile.gettempdir(), "wsdm_ray")
    target = os.path.join(cache, hashlib.sha256(identity.encode()).hexdigest()[:32])
    if os.path.isdir(target):
        return target
    with errors_for(cache):
        os.makedirs(cache, exist_ok=True)
        work = tempfile.mkdtemp(dir=cache)
    try:
        with errors_for(folder):
            for name in names:
                fs.get_file(name, os.path.join(work, os.path.basename(name)))
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


def sha256_of_files(paths: Sequence[str]) -> str:
    """One SHA-256 (hexadecimal) over the names and bytes of local files, in the order given."""
    total = hashlib.sha256()
    for path in paths:
        with Path(path).open("rb") as file:
            total.update(
                f"{os.path.basename(path)}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode()
            )
    return total.hexdigest()
