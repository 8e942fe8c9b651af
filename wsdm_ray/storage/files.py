"""Read a file; write it whole or not at all, also only where there is none yet; delete it."""

import contextlib
import errno
import io
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from wsdm_ray.errors import DataError
from wsdm_ray.storage.stores import errors_for, filesystem, is_remote, reason

__all__ = [
    "STREAM_BYTES",
    "WHOLE_BYTES",
    "delete_file",
    "is_damage",
    "is_leftover",
    "open_parquet",
    "open_read",
    "read_json",
    "write_atomic",
    "write_json",
    "write_parquet",
]

WHOLE_BYTES = 32 << 20
"""Parts of parquet files that are no larger than this on the disk are read at once."""

STREAM_BYTES = 4 << 20
"""How much of each column of larger ones is read at a time."""

PRECONDITION_FAILED, CONFLICT, UNSUPPORTED = 412, 409, 501
"""How S3 answers a put with `If-None-Match: *` that it does not do."""

CREATE_TRIES = 8

NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@contextlib.contextmanager
def open_read(path: str, **options: Any) -> Iterator[IO[bytes]]:
    """A binary file open for reading.

    Args:
        options: for the file system's own way to open a file.
    """
    fs, inner = filesystem(path)
    with errors_for(path), fs.open(inner, "rb", **options) as file:
        yield cast(IO[bytes], file)


@contextlib.contextmanager
def open_parquet(path: str, *, buffer_bytes: int = 0) -> Iterator[pq.ParquetFile]:
    """A parquet file open for reading; a page whose checksum is wrong is an error when it is read.

    Args:
        buffer_bytes: how much of a column is read at a time; 0: its whole part of a row group.

    Raises:
        DataError: the file is not parquet, or has a column of a type that cannot be read.
        StorageError: it cannot be read.
    """
    # Parquet says what it reads next: a cache between it and a store would only read more.
    with open_read(path, **({"cache_type": "none"} if is_remote(path) else {})) as file:
        try:
            opened = pq.ParquetFile(
                file,
                memory_map=False,
                buffer_size=buffer_bytes,
                # All columns by few requests: of use in a store, and where whole columns are wanted.
                pre_buffer=is_remote(path) and not buffer_bytes,
                page_checksum_verification=True,
                # In nanoseconds, years before 1678 and after 2261 would become others, such as 9999.
                coerce_int96_timestamp_unit="us",
            )
        except pa.ArrowNotImplementedError as error:
            raise DataError(
                f"{path}: a column has a type that is not read ({reason(error)}); write the file without it, "
                "or as another type, such as 64-bit integers or text"
            ) from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: the name of a column is not UTF-8 ({error.object!r}); write the file with another"
            ) from error
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and "deserialize thrift" not in str(error):
                raise  # of the store; a damaged footer is an OSError too
            remedy = (
                "it is damaged or another kind of file: copy or make it anew"
                if path.lower().endswith(".parquet")
                else "other kinds are known by their endings, such as .jsonl or .csv; rename, unpack or "
                "convert it"
            )
            raise DataError(f"{path}: not a parquet file ({reason(error)}); {remedy}") from error
        with opened:
            yield opened


def is_damage(error: Exception) -> bool:
    """Whether an error is of a file's content; those of a disk or store have a number or another class."""
    of_arrow = isinstance(error, pa.ArrowException) and not isinstance(error, MemoryError)
    return of_arrow or (type(error) is OSError and error.errno is None)


def read_json(path: str) -> Any:
    """The value of a JSON file. Raises `DataError` where it is not JSON."""
    with open_read(path) as file:
        data = file.read()
    try:
        return json.loads(data)
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({reason(error)})") from error


def write_atomic(path: str, write: Callable[[IO[bytes]], object], *, only_new: bool = False) -> bool:
    """Write the file at `path` by `write(file)`: it is there whole or not at all, also after a power cut.

    Args:
        only_new: leave a file that is there as it is. Of several callers at the same instant one writes.
            Where a store cannot do that (it answers 501), a caller looks first and then writes: two at the
            same instant may both take themselves for the one, and the file is the last one's.

    Returns:
        Whether the file holds what was written: False where another was there already.
    """
    fs, inner = filesystem(path)
    with errors_for(path):
        if is_remote(path):
            buffer = io.BytesIO()
            write(buffer)
            if only_new:
                return create_object(fs, inner, buffer.getvalue())
            fs.pipe_file(inner, buffer.getvalue())
            return True
        folder = os.path.dirname(inner)
        make_folder(folder)
        beside = os.path.join(folder, f".{os.path.basename(inner)}.{uuid.uuid4().hex}.tmp")
        try:
            with Path(beside).open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            if only_new and not link(beside, inner):
                return False
            if not only_new:
                os.replace(beside, inner)
            sync_folder(folder)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside)
        return True


def make_folder(folder: str) -> None:
    """Make a folder and those above it, so that they survive a power cut."""
    if folder and not os.path.isdir(folder):
        above = os.path.dirname(folder)
        make_folder(above)
        os.makedirs(folder, exist_ok=True)
        sync_folder(above)


def link(source: str, target: str) -> bool:
    """Whether `source` got the name `target`, which nothing had. The file is whole when it has it."""
    try:
        os.link(source, target)
    except FileExistsError:
        return os.stat(source).st_nlink == 2  # a network file system may lose its answer and try again
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
    else:
        return True
    try:  # a file system without links: a process that is killed now leaves an empty file
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    os.replace(source, target)
    return True


def create_object(fs: AbstractFileSystem, inner: str, data: bytes) -> bool:
    """Whether the object holds `data`, which nothing but this call, or one with the same data, wrote."""
    for _ in range(CREATE_TRIES):
        try:
            fs.pipe_file(inner, data, mode="create")
            return True
        except FileExistsError:  # GCS, and stores in memory
            pass
        except OSError as error:
            status = http_status(error)
            if status == CONFLICT:  # with a request of the same instant: one of them is let through
                continue
            if status == UNSUPPORTED:
                if not fs.exists(inner):
                    fs.pipe_file(inner, data)
            elif status != PRECONDITION_FAILED:
                raise
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile: try again
            return bool(fs.cat_file(inner) == data)  # our own, where the first answer was lost
    return False


def http_status(error: OSError) -> int:
    """The status of S3's answer that an error of s3fs is made of; 0 where there is none."""
    answer = getattr(error.__cause__, "response", None) or {}
    return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


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


def write_json(path: str, value: Any, *, only_new: bool = False) -> bool:
    """Write `value` as indented JSON, atomically; returns what `write_atomic` does.

    Args:
        only_new: as of `write_atomic`; `value` is then one that no other caller writes.
    """
    data = json.dumps(value, indent=2, ensure_ascii=False, default=str).encode() + b"\n"
    return write_atomic(path, lambda file: file.write(data), only_new=only_new)


def write_parquet(path: str, table: pa.Table, *, row_group_rows: int = 2_000, only_new: bool = False) -> bool:
    """Write `table` as one zstd parquet file, atomically: the same table gives the same bytes.

    Args:
        only_new: as of `write_atomic`, whose answer is returned.
    """
    return write_atomic(
        path,
        lambda file: pq.write_table(table, file, compression="zstd", row_group_size=row_group_rows),
        only_new=only_new,
    )


def delete_file(path: str) -> None:
    """Delete a file; nothing happens where there is none."""
    fs, inner = filesystem(path)
    with errors_for(path), contextlib.suppress(FileNotFoundError):
        fs.rm_file(inner)
