# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import)
"""What is to be scored, cut into work units before anything runs.

A work unit is a run of rows of one file; unit k makes `part-k`. The same input and options always give the
same units.
"""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wsdm_ray.errors import DataError
from wsdm_ray.inputs.conversion import FAULT, ParquetInput, faults_in
from wsdm_ray.inputs.files import with_partitions
from wsdm_ray.inputs.rows import (
    Reading,
    Rows,
    canonical,
    check_columns,
    holds_lists,
    made_ids,
    own_columns,
    warn_of_lists,
)
from wsdm_ray.inputs.values import common_id_type, holds_text, ids_of
from wsdm_ray.schema import PAIR_COLUMNS, TEXTS
from wsdm_ray.storage import open_parquet

__all__ = [
    "CARRIED",
    "ScorePlan",
    "WorkUnit",
    "canonical_unit",
    "make_plan",
    "own_names",
    "part_name",
    "read_columns",
    "read_unit",
    "read_unit_ids",
    "rows_of",
]

READ_ROWS = 2_000

SAMPLE_ROWS = 100
"""Rows of the input that are looked at for lists."""

CARRIED = ("model_a", "model_b", "language")
"""Canonical columns that a unit has where its input has them, besides those of the pair."""


@dataclass(frozen=True)
class WorkUnit:
    """Rows `start` to `start + rows` of one parquet file; they become the file `part_name(number)`."""

    number: int
    source: ParquetInput
    start: int
    rows: int

    @property
    def path(self) -> str:
        return self.source.file.path


@dataclass(frozen=True)
class ScorePlan:
    """All work units of a run, in input order."""

    units: tuple[WorkUnit, ...]
    id_type: pa.DataType
    """int64 or string."""

    @property
    def rows(self) -> int:
        return sum(unit.rows for unit in self.units)


def rows_of(unit: WorkUnit, start: int, stop: int) -> WorkUnit:
    """Rows `start` to `stop` of a unit, counted from its first, as a unit of the same number."""
    return dataclasses.replace(unit, start=unit.start + start, rows=stop - start)


def part_name(number: int) -> str:
    """The file name of part `number`, counted from 0."""
    return f"part-{number:06d}.parquet"


def make_plan(sources: Sequence[ParquetInput], unit_rows: int) -> ScorePlan:
    """The units of `sources`; reads footers and the id column.

    Raises:
        DataError: a file is not parquet, lacks a column, or has none of the right type; an id is null or
            there twice; there are no rows.
    """
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(read_ids, sources))
    sources, ids = [source for source, _ in found], [column for _, column in found]
    units: list[WorkUnit] = []
    for source, column in zip(sources, ids, strict=True):
        for start in range(0, len(column), unit_rows):
            units.append(WorkUnit(len(units), source, start, min(unit_rows, len(column) - start)))
    if not units:
        raise DataError(
            f"{sources[0].shown}: no rows to score" + (f" in any of {len(ids)} files" if ids[1:] else "")
        )
    plan = ScorePlan(tuple(units), check_ids([source.shown for source in sources], ids))
    check_first_rows(units[0])
    return plan


def check_first_rows(unit: WorkUnit) -> None:
    """Warn where the first rows hold lists: each unit joins its own, where nobody sees a warning."""
    columns = unit.source.columns
    names = [getattr(columns, name) for name in TEXTS]
    with open_parquet(unit.path, buffer_bytes=1 << 16) as file:  # not whole columns of a row group
        there = [name for name in names if name in file.schema_arrow.names]
        batch = next(file.iter_batches(SAMPLE_ROWS, columns=there, use_threads=False))
    table = with_partitions(pa.Table.from_batches([batch]), unit.source.file)
    if holds_lists(table, columns):
        warn_of_lists(unit.path)


def read_ids(source: ParquetInput) -> tuple[ParquetInput, pa.ChunkedArray]:
    """The file with the names of its columns as it spells them, which are checked, and its ids.

    A file without rows may have any columns.
    """
    path = source.shown
    with open_parquet(source.file.path) as file:
        if not file.metadata.num_rows:
            return source, pa.chunked_array([], pa.int64())
        source = checked(source, file.schema_arrow)
        name = source.columns.id
        if name in file.schema_arrow.names:
            return source, ids_of(file.read([name], use_threads=False).column(0), path, 0, name)
        rows = pa.table({"": pa.nulls(file.metadata.num_rows)})
    partitions = with_partitions(rows, source.file)
    if name in partitions.column_names:
        return source, ids_of(partitions[name], path, 0, name)
    return source, pa.chunked_array([made_ids(source.file, 0, len(rows))])


def checked(source: ParquetInput, schema: pa.Schema) -> ParquetInput:
    """The file with the names of its columns as it spells them.

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
    return dataclasses.replace(source, columns=columns)


def check_ids(files: Sequence[str], ids: Sequence[pa.ChunkedArray]) -> pa.DataType:
    """The type that all ids have in the output. Raises `DataError` where an id is there twice."""
    filled = [(path, column) for path, column in zip(files, ids, strict=True) if len(column)]
    kind = common_id_type(column.type for _, column in filled)
    filled = [(path, column.cast(kind)) for path, column in filled]
    whole = pa.chunked_array([chunk for _, column in filled for chunk in column.chunks], kind)
    if pc.count_distinct(whole).as_py() < len(whole):
        counts = pc.value_counts(whole.combine_chunks())
        first = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"]
        places = [
            f"{path} row {row}"
            for path, column in filled
            for row in np.flatnonzero(pc.equal(column, first).to_numpy()).tolist()
        ]
        raise DataError(
            f"id {first} is in {' and '.join(places[:2])}; ids must be unique, drop or rename one"
        )
    return kind


def read_unit(unit: WorkUnit, extra: Sequence[str] = ()) -> Rows:
    """The rows of a unit in canonical columns, and the faults of those that cannot be scored.

    Args:
        extra: canonical columns besides those of the pair, where the file has them.

    Raises:
        DataError: the file has fewer rows than when the plan was made.
    """
    return canonical_unit(unit, read_columns(unit, own_names(unit.source, extra)))


def read_unit_ids(unit: WorkUnit) -> pa.ChunkedArray | pa.Array:
    """The ids of a unit; no other column is read, where the file has one of ids."""
    name = unit.source.columns.id
    table = read_columns(unit, [name])
    if name in table.column_names:
        return ids_of(table[name], unit.path, unit.start, name)
    return made_ids(unit.source.file, unit.start, unit.rows)


def own_names(source: ParquetInput, extra: Sequence[str] = ()) -> list[str]:
    """The columns of a file that `canonical_unit` takes: those of the pair, `extra` ones, and its faults."""
    return [*(getattr(source.columns, name) for name in (*PAIR_COLUMNS, *extra)), FAULT]


def canonical_unit(unit: WorkUnit, table: pa.Table) -> Rows:
    """The rows of a unit, as `read_columns` gives them, in canonical columns, and their faults."""
    source = unit.source
    if source.columns.id not in table.column_names:
        table = table.append_column(source.columns.id, made_ids(source.file, unit.start, len(table)))
    rows = canonical(table, unit.path, source.columns, unit.start, holds_lists(table, source.columns))
    return Rows(rows.table, faults_in(table, source) | rows.faults)


def read_columns(unit: WorkUnit, names: Sequence[str]) -> pa.Table:
    """The rows of a unit, with those of the columns that its file or its folders have.

    Only the row groups that hold them are read, a few thousand rows at a time, so that a file with one large
    row group takes time to skip through, but no memory.

    Raises:
        DataError: the file has fewer rows than when the plan was made.
    """
    with open_parquet(unit.path) as file:
        there = [name for name in dict.fromkeys(names) if name in file.schema_arrow.names]
        groups, skip = row_groups_of(file.metadata, unit.start, unit.rows)
        found: list[pa.RecordBatch] = []
        missing = unit.rows
        for batch in file.iter_batches(
            READ_ROWS, row_groups=groups, columns=there or file.schema_arrow.names[:1], use_threads=False
        ):
            part = batch.slice(skip, missing)
            skip = max(skip - len(batch), 0)
            missing -= len(part)
            found.append(part)
            if not missing:
                break
    if missing:
        raise DataError(f"{unit.path}: {missing} rows fewer than when the run was planned; restore the file")
    table = with_partitions(pa.Table.from_batches(found), unit.source.file)
    return table.select([name for name in dict.fromkeys(names) if name in table.column_names])


def row_groups_of(metadata: pq.FileMetaData, start: int, rows: int) -> tuple[list[int], int]:
    """Row groups that hold rows `start` to `start + rows`, and rows of the first that come before `start`."""
    ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])
    first = int(np.searchsorted(ends, start, side="right"))
    last = int(np.searchsorted(ends, start + rows, side="left"))
    before = int(ends[first - 1]) if first else 0
    return list(range(first, min(last, len(ends) - 1) + 1)), start - before
