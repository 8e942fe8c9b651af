# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import)
"""What is to be scored, cut into work units before anything runs.

A work unit is a run of rows of one file; unit k makes `part-k`. The same input and options always give the
same units.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wsdm_ray.config import Columns
from wsdm_ray.errors import DataError
from wsdm_ray.schema import PAIR_COLUMNS
from wsdm_ray.storage import open_parquet

__all__ = ["ScorePlan", "WorkUnit", "make_plan", "part_name", "read_columns", "read_unit"]

READ_ROWS = 2_000


@dataclass(frozen=True)
class WorkUnit:
    """Rows `start` to `start + rows` of one parquet file; they become the file `part_name(number)`."""

    number: int
    path: str
    start: int
    rows: int


@dataclass(frozen=True)
class ScorePlan:
    """All work units of a run, in input order."""

    units: tuple[WorkUnit, ...]
    id_type: pa.DataType

    @property
    def rows(self) -> int:
        return sum(unit.rows for unit in self.units)


def part_name(number: int) -> str:
    return f"part-{number:06d}.parquet"


def make_plan(files: Sequence[str], unit_rows: int, columns: Columns) -> ScorePlan:
    """The units of `files`; reads footers and the id column.

    Raises:
        DataError: a file is not parquet, lacks a column, or has none of the right type; an id is null or
            stands twice; there are no rows.
    """
    with ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(lambda path: read_ids(path, columns), files))
    units: list[WorkUnit] = []
    for path, column in zip(files, ids, strict=True):
        for start in range(0, len(column), unit_rows):
            units.append(WorkUnit(len(units), path, start, min(unit_rows, len(column) - start)))
    if not units:
        raise DataError(
            f"{files[0]}: no rows to score" + (f" in any of {len(files)} files" if files[1:] else "")
        )
    return ScorePlan(tuple(units), check_ids(files, ids))


def read_ids(path: str, columns: Columns) -> pa.ChunkedArray:
    """The id column of a file whose columns have been checked."""
    with open_parquet(path) as file:
        schema = file.schema_arrow
        for canonical in PAIR_COLUMNS:
            name = getattr(columns, canonical)
            if name not in schema.names:
                raise DataError(
                    f"{path}: no column {name} (there are {', '.join(schema.names)}); "
                    f"use --columns.{canonical.replace('_', '-')} NAME"
                )
            kind = schema.field(name).type
            text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
            if not (text or (canonical == "id" and pa.types.is_integer(kind)) or pa.types.is_null(kind)):
                wanted = "integers or strings" if canonical == "id" else "strings"
                raise DataError(f"{path}: column {name} holds {kind}, not {wanted}")
        column = file.read([columns.id], use_threads=False).column(0)
    if column.null_count:
        raise DataError(
            f"{path}: id is null in row {pc.index(pc.is_null(column), True).as_py()}; every row needs one"
        )
    return column.cast(pa.string() if pa.types.is_large_string(column.type) else column.type)


def check_ids(files: Sequence[str], ids: Sequence[pa.ChunkedArray]) -> pa.DataType:
    """The type that all id columns share. Raises `DataError` where types differ or an id stands twice."""
    filled = [(path, column) for path, column in zip(files, ids, strict=True) if len(column)]
    kind = filled[0][1].type
    for path, column in filled:
        if column.type != kind:
            raise DataError(f"{path}: ids are {column.type}, but {kind} in {filled[0][0]}; give all one type")
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
            f"id {first} stands in {' and '.join(places[:2])}; ids must be unique, drop or rename one"
        )
    return kind


def read_unit(unit: WorkUnit, columns: Columns, wanted: Sequence[str] = PAIR_COLUMNS) -> pa.Table:
    """The rows of a unit under their canonical names: id, prompt, response_a, response_b, or those `wanted`.

    Raises:
        DataError: the file has fewer rows than when the plan was made.
    """
    return read_columns(unit, [getattr(columns, name) for name in wanted]).rename_columns(list(wanted))


def read_columns(unit: WorkUnit, names: Sequence[str]) -> pa.Table:
    """The rows of a unit, with at least one column of its file.

    Only the row groups that hold them are read, a few thousand rows at a time, so that a file with one large
    row group takes time to skip through, but no memory.

    Raises:
        DataError: the file has fewer rows than when the plan was made.
    """
    with open_parquet(unit.path) as file:
        groups, skip = row_groups_of(file.metadata, unit.start, unit.rows)
        found: list[pa.RecordBatch] = []
        missing = unit.rows
        for batch in file.iter_batches(READ_ROWS, row_groups=groups, columns=names, use_threads=False):
            part = batch.slice(skip, missing)
            skip = max(skip - len(batch), 0)
            missing -= len(part)
            found.append(part)
            if not missing:
                break
    if missing:
        raise DataError(f"{unit.path}: {missing} rows fewer than when the run was planned; restore the file")
    return pa.Table.from_batches(found).select(list(names))


def row_groups_of(metadata: pq.FileMetaData, start: int, rows: int) -> tuple[list[int], int]:
    """Row groups that hold rows `start` to `start + rows`, and rows of the first that come before `start`."""
    ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])
    first = int(np.searchsorted(ends, start, side="right"))
    last = int(np.searchsorted(ends, start + rows, side="left"))
    before = int(ends[first - 1]) if first else 0
    return list(range(first, min(last, len(ends) - 1) + 1)), start - before
