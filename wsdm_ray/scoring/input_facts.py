"""What a plan must know of each input file, by its footer and its ids: columns, rows, sizes, ids there twice.

Not covered: how the rows are cut into units (`plan`), and the texts, which are not read here.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wsdm_ray.config import Columns
from wsdm_ray.data.splitting import among
from wsdm_ray.errors import DataError
from wsdm_ray.inputs.conversion import ParquetInput
from wsdm_ray.inputs.each_file import EachFile, FileWork, each_here
from wsdm_ray.inputs.faults import BadFiles, ends_the_process
from wsdm_ray.inputs.files import with_partitions
from wsdm_ray.inputs.parquet_rows import damage_named, unchanged
from wsdm_ray.inputs.rows import (
    SAMPLE_ROWS,
    Reading,
    check_columns,
    lists_in,
    made_ids,
    own_columns,
    warn_of_lists,
)
from wsdm_ray.inputs.values import holds_text, ids_of
from wsdm_ray.schema import TEXTS
from wsdm_ray.scoring.unique_ids import IdHashes, first_twice, hash_ids
from wsdm_ray.storage import is_remote, open_parquet
from wsdm_ray.telemetry import logger

__all__ = ["FileFacts", "check_ids", "read_files", "warn_of_lists_in"]

READERS = 16
LOCAL_READERS = 2
"""Files that are read side by side, in a store, where most of the time is waiting, and on a disk, where more
threads take longer: small files are a matter of Python, which runs one at a time."""

ID_ROWS = 16_384
READ_BYTES = 1 << 20
"""Ids that are looked at at a time, and how much of a column is read at a time."""

SAMPLE_BATCH = 4
"""Texts that are looked at for lists at a time: they may be long."""


class FileFacts(NamedTuple):
    """What the plan knows of a file; stored_bytes: by `stored_bytes`; id_type: None where it has no rows."""

    source: ParquetInput
    rows: int
    stored_bytes: int
    id_type: pa.DataType | None


class Unreadable(NamedTuple):
    """What is wrong with a file, and its rows where they are known."""

    error: DataError
    rows: int | None = None


def read_files(
    sources: Sequence[ParquetInput], hashes: IdHashes, bad: BadFiles, each_file: EachFile = each_here
) -> list[FileFacts]:
    """What the plan knows of each file, in order, but of those that cannot be read, which go to `bad`.

    Args:
        hashes: takes those of all ids.
        each_file: calls what reads a file.
    """
    found: dict[int, FileFacts | Unreadable] = {}
    known: dict[Columns, Columns] = {}

    def take(place: int, read: tuple[FileFacts, list[np.ndarray]] | Unreadable) -> None:
        if isinstance(read, Unreadable):
            found[place] = read
            return
        facts, parts = read
        columns = known.setdefault(facts.source.columns, facts.source.columns)
        source = dataclasses.replace(sources[place], columns=columns, lists=facts.source.lists)
        found[place] = facts._replace(source=source)  # a copy from another process would not share its parts
        for part in parts:
            hashes.add(part)

    readers = READERS if any(is_remote(source.file.path) for source in sources) else LOCAL_READERS
    work = FileWork(
        function=FactsReader(),
        died=lambda source, reason: Unreadable(ends_the_process(source.shown, reason)),
        threads=readers,
    )
    each_file(work, sources, take)
    readable = []
    for place, source in enumerate(sources):
        match found[place]:
            case FileFacts() as read:
                readable.append(read)
            case Unreadable(error, rows):
                bad.add(source.shown, error, rows)
    return readable


class FactsReader:
    """Reads what the plan knows of a file, and the hashes of its ids. Threads may share it."""

    def __init__(self) -> None:
        self.known: dict[tuple, Columns] = {}
        """Columns by schema, of files that were checked: most files of an input have one schema."""

    def __call__(self, source: ParquetInput) -> tuple[FileFacts, list[np.ndarray]] | Unreadable:
        rows: list[int] = []
        with unchanged(source.file):  # a file that changes is refused, never left out
            try:
                return read_file(source, rows, self.known)
            except DataError as error:
                return Unreadable(error, rows[0] if rows else None)


def read_file(
    source: ParquetInput, rows: list[int], known: dict[tuple, Columns]
) -> tuple[FileFacts, list[np.ndarray]]:
    """The file with the names of its columns as it spells them, which are checked, and its ids' hashes.

    A file without rows may have any columns.

    Args:
        rows: is given the number of rows once it is known.
        known: of `FactsReader`.
    """
    with open_parquet(source.file.path, buffer_bytes=READ_BYTES) as file:
        total = file.metadata.num_rows
        rows.append(total)
        if not total:
            return FileFacts(source, 0, 0, None), []
        key = (
            file.schema_arrow,
            source.columns,
            source.make_ids,
            *(name for name, _ in source.file.partitions),
        )
        if key not in known:
            known[key] = checked(source, file.schema_arrow)
        columns = known[key]
        lists = begins_with_lists(source, columns, file)
        source = dataclasses.replace(source, columns=columns, lists=lists)
        kinds, hashes = zip(*own_hashes(source, file), strict=True)
        return FileFacts(source, total, stored_bytes(file.metadata), kinds[0]), list(hashes)


def own_hashes(source: ParquetInput, file: pq.ParquetFile) -> Iterator[tuple[pa.DataType, np.ndarray]]:
    """Type and hashes of the ids of a file, some thousand at a time."""
    for _, ids in id_columns(source, file):
        yield ids.type, hash_ids(ids)


def id_columns(source: ParquetInput, file: pq.ParquetFile) -> Iterator[tuple[int, pa.ChunkedArray]]:
    """Ids of a file as int64 or string, some thousand at a time, each with the number of the first row."""
    name, path, total, row = source.columns.id, source.shown, file.metadata.num_rows, 0
    if name in file.schema_arrow.names:
        with damage_named(path):
            for batch in file.iter_batches(ID_ROWS, columns=[name], use_threads=False):
                yield row, ids_of(pa.chunked_array([batch.column(0)]), path, row, name)
                row += len(batch)
        return
    partition = with_partitions(pa.table({"": pa.nulls(1)}), source.file)
    for row in range(0, total, ID_ROWS):
        rows = min(ID_ROWS, total - row)
        if name in partition.column_names:
            repeated = pa.repeat(partition[name][0], rows)
            yield row, ids_of(pa.chunked_array([repeated]), path, row, name)
        else:
            yield row, pa.chunked_array([made_ids(source.file, row, rows)])


def stored_bytes(metadata: pq.FileMetaData) -> int:
    """Bytes of a file's columns, not compressed; repeated texts count once where the file has them so.

    Not by column: what PyArrow reads of a damaged footer for that may end the process.
    """
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return sum(group.total_byte_size for group in groups)


def checked(source: ParquetInput, schema: pa.Schema) -> Columns:
    """The names of a file's columns as it spells them.

    Raises:
        DataError: a column of the pair is missing or cannot hold what it should.
    """
    path = source.shown
    names = [*schema.names, *(name for name, _ in source.file.partitions if name not in schema.names)]
    columns = own_columns(names, source.columns)
    check_columns(names, path, Reading(columns=columns, make_ids=source.make_ids, labels=False))
    for name in (getattr(columns, name) for name in TEXTS):
        kind = schema.field(name).type if name in schema.names else pa.string()
        if not holds_text(kind):
            raise DataError(f"{path}: column {name!r} holds {kind}, but text is needed")
    return columns


def begins_with_lists(source: ParquetInput, columns: Columns, file: pq.ParquetFile) -> bool:
    """`holds_lists` of a file, reading of its texts as little as tells. columns: as it spells them."""
    names = [getattr(columns, name) for name in TEXTS]
    if source.converted or not set(names) <= set(file.schema_arrow.names):
        return False  # a copy has joined texts already; what a folder names is no list
    try:
        return all(lists_in(first_rows(source, file, name), name) for name in names)
    except DataError:
        if source.errors_in_rows:
            return False  # its rows will say so
        raise


def first_rows(source: ParquetInput, file: pq.ParquetFile, name: str) -> Iterator[pa.ChunkedArray]:
    """The first `SAMPLE_ROWS` of a column, a few at a time."""
    with damage_named(source.shown):
        batches = file.iter_batches(SAMPLE_BATCH, columns=[name], use_threads=False)
        for batch in itertools.islice(batches, SAMPLE_ROWS // SAMPLE_BATCH):
            yield pa.chunked_array([batch.column(0)])


def warn_of_lists_in(files: Sequence[FileFacts]) -> None:
    """Say of the first file that holds lists that its texts are joined: units do it where nobody sees it."""
    first = next((file.source for file in files if file.source.lists), None)
    if first is not None:
        warn_of_lists(first.shown)


def check_ids(hashes: IdHashes, sources: Sequence[ParquetInput], keep: bool) -> int:
    """How many rows have an id that an earlier row has, which a warning says.

    Args:
        hashes: of all ids. sources: where they are.
        keep: whether such rows are kept.

    Raises:
        DataError: there are such rows, and they are not to be kept.
    """
    count, repeated = hashes.duplicates()
    twice = first_twice(places_of(sources, repeated)) if count else None
    if twice is None:
        return 0
    value, places = twice
    where = f"id {value} is in {' and '.join(places)}"
    if not keep:
        raise DataError(f"{where}; ids must be unique, drop or rename one")
    logger.warning("score: %s rows have an id that an earlier row has, the first: %s", f"{count:,}", where)
    return count


def places_of(sources: Sequence[ParquetInput], repeated: np.ndarray) -> Iterator[tuple[int | str, str]]:
    """Ids whose hashes are among `repeated`, in order, each with its file and row."""
    for source in sources:
        with (
            unchanged(source.file),
            open_parquet(source.file.path, buffer_bytes=READ_BYTES) as file,
        ):
            for first, ids in id_columns(source, file):
                rows = np.flatnonzero(among(hash_ids(ids), repeated))
                for row, value in zip(rows.tolist(), ids.take(pa.array(rows)).to_pylist(), strict=True):
                    yield value, f"{source.shown} row {first + row}"
