"""Rows `start` to `start + rows` of a parquet file, in memory that its row groups do not decide.

A large row group is read as a stream, a few pages at a time. The stream stays open for the next rows of the
same file, which the same process usually reads next: so neighbours read a row group once between them, and
not each from its start. Not covered: what the columns mean (`rows`).
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wsdm_ray import storage
from wsdm_ray.errors import DataError
from wsdm_ray.inputs.files import InputFile

__all__ = [
    "check_version",
    "compare_versions",
    "damage_named",
    "read_slice",
    "row_groups_of",
    "unchanged",
]

BATCH_ROWS = 2_000
BATCH_BYTES = 16 << 20
"""Rows and bytes that are decoded at a time; of very long rows, one."""

ROWS_ALONE = pa.schema([("", pa.null())])
"""What rows are of which no column is read; a table without columns would lose their number."""

KEPT_STREAMS = 2
"""Streams that a process keeps open."""


@contextlib.contextmanager
def damage_named(path: str, first_row: int = 0) -> Iterator[None]:
    """Turn what the parquet library says of damaged content into a `DataError` that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if not storage.is_damage(error):
            raise
        raise DataError(
            f"{path}: cannot be read from row {first_row} on ({storage.reason(error)}); "
            "it is damaged: copy or make it anew"
        ) from error


@contextlib.contextmanager
def unchanged(file: InputFile) -> Iterator[None]:
    """Reads of a file that must still be the one that was listed, when they begin and when they end.

    A version never comes back, so that the one at the end tells of both; it also says what an error within
    is due to.

    Raises:
        DataError: the file was replaced, changed or deleted.
    """
    try:
        yield
    except Exception:
        check_version(file)
        raise
    check_version(file)


def check_version(file: InputFile) -> None:
    """Raise `DataError` where a file is not what it was when the input was listed; our own copies may be."""
    if file.version:
        compare_versions(file.path, file.version, storage.file_versions_now([file.path])[file.path])


def compare_versions(path: str, planned: storage.FileVersion, now: storage.FileVersion | None) -> None:
    """Raise `DataError` where the two versions of a file differ."""
    if now == planned:
        return
    what = "is gone" if now is None else "has changed"
    sizes = f" from {planned.size:,} to {now.size:,} bytes" if now and now.size != planned.size else ""
    raise DataError(
        f"{path}: {what}{sizes} since the run was planned; restore it, or score what is there now into "
        "another --output"
    )


def read_slice(file: InputFile, names: Sequence[str], start: int, rows: int) -> pa.Table:
    """Rows `start` to `start + rows` with those of the columns `names` that the file has.

    Of a file with none of them, `ROWS_ALONE`: no page is read, since the footer has the number of rows.
    There are fewer rows where the file ends before.

    Raises:
        DataError: the file is not parquet, or is damaged.
        StorageError: it cannot be read.
    """
    tables: list[pa.Table] = []
    done = 0
    while done < rows or not tables:
        first = start + done
        stream = taken_stream(file, names, first) or RowStream(file, names, first, rows - done)
        with stream.errors():
            tables.append(stream.take(first, rows - done))
        if file.version and stream.is_within_group():
            keep_stream(stream)
        else:
            stream.close()
        if not len(tables[-1]):
            break  # the file ends here
        done += len(tables[-1])
    return pa.concat_tables(tables)


class RowStream:
    """The row groups of a parquet file that hold some rows, read forward only."""

    def __init__(self, source: InputFile, names: Sequence[str], start: int, rows: int):
        self.source = source
        self.names = tuple(names)
        self.position = 0
        self.rest: pa.RecordBatch | None = None
        self.stack = contextlib.ExitStack()
        with self.errors():
            file = self.stack.enter_context(storage.open_parquet(source.path))
            there = file.schema_arrow.empty_table()
            columns = [name for name in dict.fromkeys(names) if name in there.column_names]
            groups, skipped = row_groups_of(file.metadata, start, rows)
            reads = reads_of(file.metadata, groups, columns)
            self.none = there.select(columns) if columns else ROWS_ALONE.empty_table()
            self.ends = group_ends(file.metadata)
            self.position = start - skipped
            if any(read.stored > storage.WHOLE_BYTES for read in reads):
                self.close()
                opened = storage.open_parquet(source.path, buffer_bytes=storage.STREAM_BYTES)
                file = self.stack.enter_context(opened)
            self.batches = batches(file, reads, columns)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Errors that name the file; the stream is closed with them."""
        try:
            with storage.errors_for(self.source.path), damage_named(self.source.path, self.position):
                yield
        except BaseException:
            self.close()
            raise

    def take(self, start: int, rows: int) -> pa.Table:
        """Rows `start` to `start + rows`, or to the file's end; what lies before is skipped."""
        found: list[pa.RecordBatch] = []
        while self.position < start + rows:
            batch = self.rest if self.rest is not None else next(self.batches, None)
            if batch is None:
                break
            skip = min(max(start - self.position, 0), len(batch))
            part = batch.slice(skip, start + rows - self.position - skip)
            if len(part):  # an empty slice would keep its batch in memory
                found.append(part)
            used = skip + len(part)
            self.rest = batch.slice(used) if used < len(batch) else None
            self.position += used
        return pa.Table.from_batches(found) if found else self.none

    def is_within_group(self) -> bool:
        """Whether the row group that was read last has more rows."""
        return self.position not in self.ends

    def serves(self, source: InputFile, names: Sequence[str], start: int) -> bool:
        """Whether rows from `start` on come next, in the same row group of the same version of a file."""
        if (self.source, self.names) != (source, tuple(names)) or start < self.position:
            return False
        same = np.searchsorted(self.ends, [self.position, start], side="right")
        return bool(same[0] == same[1])

    def close(self) -> None:
        self.stack.close()


@dataclass(frozen=True, kw_only=True)
class Read:
    """Row groups that are read together: their rows, and bytes of the columns, stored and decoded."""

    groups: tuple[int, ...]
    rows: int
    stored: int
    decoded: int

    def with_next(self, other: "Read") -> "Read":
        return Read(
            groups=self.groups + other.groups,
            rows=self.rows + other.rows,
            stored=self.stored + other.stored,
            decoded=self.decoded + other.decoded,
        )


def reads_of(metadata: pq.FileMetaData, groups: Sequence[int], columns: Sequence[str]) -> list[Read]:
    """Row groups as they are read: together while they are small, so that a store is asked seldom."""
    reads: list[Read] = []
    for number in groups:
        group = metadata.row_group(number)
        parts = [group.column(place) for place in range(metadata.num_columns)]
        parts = [part for part in parts if is_part_of(part.path_in_schema, columns)]
        read = Read(
            groups=(number,),
            rows=group.num_rows,
            stored=sum(part.total_compressed_size for part in parts),
            decoded=sum(part.total_uncompressed_size for part in parts),
        )
        if reads and reads[-1].stored + read.stored <= storage.WHOLE_BYTES:
            read = reads.pop().with_next(read)
        reads.append(read)
    return reads


def is_part_of(path: str, columns: Sequence[str]) -> bool:
    """Whether a path in a parquet schema is of one of the columns, whose own names may have dots."""
    return any(path == name or path.startswith(f"{name}.") for name in columns)


def batches(file: pq.ParquetFile, reads: Sequence[Read], columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The rows of row groups, so many at a time that they take about `BATCH_BYTES`."""
    for read in reads:
        if not columns:
            yield pa.record_batch([pa.nulls(read.rows)], schema=ROWS_ALONE)
            continue
        at_once = max(min(BATCH_ROWS, BATCH_BYTES * read.rows // max(read.decoded, 1)), 1)
        yield from file.iter_batches(
            at_once, row_groups=list(read.groups), columns=columns, use_threads=False
        )


def group_ends(metadata: pq.FileMetaData) -> np.ndarray:
    """The row after the last one of each row group, int64 [groups]."""
    return np.cumsum(
        [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)], dtype=np.int64
    )


def row_groups_of(metadata: pq.FileMetaData, start: int, rows: int) -> tuple[list[int], int]:
    """Row groups that hold rows `start` to `start + rows`, and rows of the first that come before `start`."""
    ends = group_ends(metadata)
    first = int(np.searchsorted(ends, start, side="right"))
    last = int(np.searchsorted(ends, start + rows, side="left"))
    before = int(ends[first - 1]) if first else 0
    return list(range(first, min(last, len(ends) - 1) + 1)), start - before


kept: list[RowStream] = []
kept_lock = threading.Lock()


def taken_stream(file: InputFile, names: Sequence[str], start: int) -> RowStream | None:
    """A stream that this process kept, from which rows from `start` on come next; it is the caller's now."""
    with kept_lock:
        for stream in kept:
            if stream.serves(file, names, start):
                kept.remove(stream)
                return stream
    return None


def keep_stream(stream: RowStream) -> None:
    """Keep a stream open for the rows that follow, and close the one that was kept longest."""
    with kept_lock:
        kept.append(stream)
        old = kept.pop(0) if len(kept) > KEPT_STREAMS else None
    if old:
        old.close()
