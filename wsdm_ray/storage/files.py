"""Read a file; write it whole or not at all; delete it."""

import contextlib
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

from wsdm_ray.errors import DataError
from wsdm_ray.storage.stores import errors_for, filesystem, is_remote, reason

__all__ = [
    "delete_file",
    "is_leftover",
    "open_parquet",
    "open_read",
    "read_json",
    "write_atomic",
    "write_json",
    "write_parquet",
]


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
            )
        except pa.ArrowNotImplementedError as error:
            raise DataError(
                f"{path}: a column has a type that is not read ({reason(error)}); write the file without it, "
                "or as another type, such as 64-bit integers or text"
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
