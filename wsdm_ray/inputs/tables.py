"""One file to a stream of Arrow tables, in the file's own columns and order.

Parquet, Arrow (files and streams), JSON (`objects`) and CSV, of which the last two may be compressed.
Whatever is wrong with a file is a `DataError` that names the file, the line where there are lines, and the
column. Not covered: what the columns mean (`rows`, `values`), and which files there are (`files`).
"""

import contextlib
import csv
import re
from collections.abc import Collection, Iterator
from typing import IO

import pyarrow as pa

from wsdm_ray import storage
from wsdm_ray.errors import DataError
from wsdm_ray.inputs.columns import repaired, usual, whole_texts
from wsdm_ray.inputs.objects import Limits, read_objects
from wsdm_ray.inputs.streams import open_text, warn_once

__all__ = ["is_json", "is_parquet", "is_table", "read_tables"]

TABLE = re.compile(
    r"\.(parquet|pq|arrow|feather|ipc|(jsonl|ndjson|csv|tsv)(\.(gz|bz2|xz|zst))?)$", re.IGNORECASE
)
JSON = re.compile(r"\.json(\.(gz|bz2|xz|zst))?$", re.IGNORECASE)

NOT_READ = (
    (r"\.(zip|7z|rar|tar|tgz|tar\.\w+)$", "an archive; unpack it, and give the files in it"),
    (r"\.xlsx?$", "a workbook; save it as CSV in UTF-8"),
    (r"\.(orc|avro)$", "a format that is not read; convert it to parquet"),
    (r"\.(pkl|pickle)$", "a pickle, which is not read, as it can run code; write it as parquet"),
    (r"\.(parquet|pq|arrow|feather|ipc)\.(gz|bz2|xz|zst)$", "compressed as a whole; unpack it first"),
    (
        r"\.(gz|bz2|xz|zst)$",
        "compressed, but its name does not say what is in it; rename it, as to NAME.jsonl.gz or NAME.csv.gz",
    ),
)
"""Names of files that are not read, with what they are and the remedy."""

NULL_FIELD = r"\N"
"""How Snowflake, Hive and MySQL write null in CSV."""

BATCH_ROWS = 1_000
BATCH_BYTES = 32 << 20


def is_table(name: str) -> bool:
    """Whether a file of this name is one of rows, and nothing else."""
    return TABLE.search(name) is not None


def is_json(name: str) -> bool:
    """Whether it is a `.json` file, which may also hold something else than rows."""
    return JSON.search(name) is not None


def is_parquet(path: str) -> bool:
    """Whether `read_tables` reads a file as parquet: by its ending, or where that says nothing, its start."""
    if is_table(path):
        return path.lower().endswith((".parquet", ".pq"))
    named_otherwise = is_json(path) or any(re.search(name, path, re.IGNORECASE) for name, _ in NOT_READ)
    return not named_otherwise and not starts_as_arrow(path)


def read_tables(
    path: str, needed: Collection[str] | None = None, only: Collection[str] | None = None
) -> Iterator[pa.Table]:
    """The rows of one file as it is, in tables of bounded size that are never empty.

    All tables of a file have one schema. A column that is not needed never stops a file: values of it that do
    not go together become JSON text, and bytes that are no UTF-8 become U+FFFD, each with a warning.

    Args:
        needed: columns of the file whose values the caller judges itself: in JSON, integers among texts are
            spelled as texts, integers beyond 64 bits are decimals, and fractions among integers make all
            float64. None: all columns.
        only: names, in any case, of the columns that the caller uses: parquet and Arrow files are read for
            these alone. None: all columns.

    Raises:
        DataError: the file is not what its name says, is damaged, or a needed column is not UTF-8.
        StorageError: it cannot be read.
    """
    for table in tables_of(path, needed, only):
        if len(table):
            yield table


def tables_of(path: str, needed: Collection[str] | None, only: Collection[str] | None) -> Iterator[pa.Table]:
    kind = re.sub(r"\.(gz|bz2|xz|zst)$", "", path.lower()).rpartition(".")[2]
    if is_json(path) or kind in ("jsonl", "ndjson"):
        limits = Limits(rows=BATCH_ROWS, bytes=BATCH_BYTES)
        return read_objects(path, needed, limits, may_be_list=is_json(path))
    if is_table(path) and kind in ("csv", "tsv"):
        return read_csv(path, needed, "," if kind == "csv" else "\t")
    for pattern, what in NOT_READ:
        if re.search(pattern, path, re.IGNORECASE):
            raise DataError(f"{path}: {what}")
    if kind in ("arrow", "feather", "ipc") or (not is_table(path) and starts_as_arrow(path)):
        return read_arrow(path, needed, only)
    return read_parquet(path, needed, only)


def used(names: list[str], only: Collection[str] | None) -> list[str]:
    """The names that are among `only` as `own_columns` compares them; all where none is, or it is None."""
    wanted = {name.strip().casefold() for name in only or ()}
    return [name for name in names if name.strip().casefold() in wanted] or names


def read_parquet(
    path: str, needed: Collection[str] | None, only: Collection[str] | None
) -> Iterator[pa.Table]:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(storage.open_parquet(path))
        size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        if size > storage.WHOLE_BYTES:  # else all of it would be in memory, of a store even all row groups
            stack.close()
            file = stack.enter_context(storage.open_parquet(path, buffer_bytes=storage.STREAM_BYTES))
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES * file.metadata.num_rows // max(size, 1)))
        done = 0
        try:
            for batch in file.iter_batches(rows, columns=used(file.schema_arrow.names, only)):
                yield sound(batch, needed, path, done)
                done += len(batch)
        except (pa.ArrowException, OSError) as error:
            if not storage.is_damage(error):
                raise
            raise damaged(error, path, done) from error


def starts_as_arrow(path: str) -> bool:
    with storage.open_read(path) as file:
        return file.read(6) == b"ARROW1"


def read_arrow(path: str, needed: Collection[str] | None, only: Collection[str] | None) -> Iterator[pa.Table]:
    """An Arrow file (Feather too) or stream, a batch of it in memory at a time."""
    done = 0
    with storage.open_read(path) as file:
        try:
            for whole in arrow_batches(file, path):
                own = set(used(whole.schema.names, only))
                # By place: two columns may have one name.
                whole = whole.select([i for i, name in enumerate(whole.schema.names) if name in own])
                rows = max(1, min(BATCH_ROWS, BATCH_BYTES * len(whole) // max(whole.nbytes, 1)))
                for first in range(0, len(whole), rows):
                    batch = whole.slice(first, rows)
                    yield sound(batch, needed, path, done)
                    done += len(batch)
        except (pa.ArrowException, OSError) as error:
            if not storage.is_damage(error):
                raise
            raise damaged(error, path, done) from error


def damaged(error: Exception, path: str, done: int) -> DataError:
    """What to raise of damage after so many rows of a file."""
    return DataError(
        f"{path}: cannot be read after row {done} ({storage.reason(error)}); "
        "it is damaged or another kind of file: copy or make it anew"
    )


def arrow_batches(file: IO[bytes], path: str) -> Iterator[pa.RecordBatch]:
    start = file.read(6)
    file.seek(0)
    if start.startswith(b"FEA1"):
        raise DataError(f"{path}: Feather of version 1, which is not read; write it as parquet")
    if start == b"ARROW1":
        with pa.ipc.open_file(file) as reader:
            for place in range(reader.num_record_batches):
                yield reader.get_batch(place)
    else:
        with pa.ipc.open_stream(file) as reader:
            yield from reader


def sound(batch: pa.RecordBatch, needed: Collection[str] | None, path: str, done: int) -> pa.Table:
    """The rows of a batch in usual types; texts that are not UTF-8 are repaired where they are not needed."""
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowNotImplementedError:
            pass  # there is nothing to check in such a type
        except pa.ArrowInvalid as error:
            if needed is not None and name not in needed:
                column = repaired(column, name, path)
            elif whole_texts(column) is None:  # else it is text for the caller to judge, row by row
                raise DataError(
                    f"{path}: cannot be read after row {done} in column {name!r} ({storage.reason(error)})"
                ) from error
        columns.append(usual(column, name, path))
    return pa.table(columns, names_once(batch.schema.names, needed, path))


def names_once(names: list[str], needed: Collection[str] | None, path: str) -> list[str]:
    """The names with NAME.1 for a second column NAME that is not needed; a needed one stays to be judged."""
    once: list[str] = []
    for name in names:
        new, number = name, 0
        while needed is not None and name not in needed and new in once:
            number += 1
            new = f"{name}.{number}"
        if number:
            warn_once(f"{path}: has the column {name!r} twice; the second is read as {new!r}")
        once.append(new)
    return once


def read_csv(path: str, needed: Collection[str] | None, delimiter: str) -> Iterator[pa.Table]:
    csv.field_size_limit(2**31 - 1)  # the default fails at 128 kB
    with open_text(path) as file:
        # Not strict, a quote that is never closed would take the rest of the file as one field.
        reader = csv.reader(decoded(file, path), strict=True, delimiter=delimiter)
        try:
            header = names_once(next(filter(None, reader), []), needed, path)
            check_separator(header, path)
            if len(set(header)) < len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise DataError(f"{path}: the header names the column {twice!r} twice")
            rows: list[list[str]] = []
            size = 0
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise DataError(
                        f"{path}:{reader.line_num}: {len(row)} fields, but the header has {len(header)}"
                    )
                rows.append(row)
                size += sum(map(len, row))
                if len(rows) == BATCH_ROWS or size >= BATCH_BYTES:
                    yield table_of_fields(rows, header)
                    rows, size = [], 0
            if rows:
                yield table_of_fields(rows, header)
        except csv.Error as error:
            raise DataError(
                f"{path}:{reader.line_num}: not CSV ({error}); within quotes, a quote is two "
                "(Spark writes it so with escape='\"')"
            ) from error


def check_separator(header: list[str], path: str) -> None:
    """Raise `DataError` for a header of one field that other separators would make several."""
    for mark in ";\t|":
        if len(header) == 1 and mark in header[0]:
            raise DataError(
                f"{path}: the fields are separated by {mark!r}; write commas to .csv, or tabs to .tsv"
            )


def table_of_fields(rows: list[list[str]], header: list[str]) -> pa.Table:
    columns = []
    for column in zip(*rows, strict=True):
        columns.append(pa.array([None if field == NULL_FIELD else field for field in column], pa.string()))
    return pa.table(columns, header)


def decoded(lines, path: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8"
            ) from error
