"""The rows of a work unit, read and in canonical columns.

A file must be what it was when the run was planned, before and after it is read. Not covered: which units
there are (`plan`), and tokens (`encode`).
"""

from collections.abc import Sequence

import pyarrow as pa

from wsdm_ray.errors import DataError
from wsdm_ray.inputs.conversion import FAULT, ParquetInput, faults_in
from wsdm_ray.inputs.faults import MALFORMED, Fault
from wsdm_ray.inputs.files import with_partitions
from wsdm_ray.inputs.parquet_rows import read_slice, unchanged
from wsdm_ray.inputs.rows import Rows, canonical, made_ids
from wsdm_ray.inputs.values import common_id_type, ids_of, with_common_ids
from wsdm_ray.schema import PAIR_COLUMNS
from wsdm_ray.scoring.kept_columns import NO_COLUMNS, encoded_kept, kept_names
from wsdm_ray.scoring.plan import Slice, WorkUnit

__all__ = ["read_ids", "read_unit", "read_with_kept"]


def read_unit(unit: WorkUnit, extra: Sequence[str] = ()) -> Rows:
    """The rows of a unit in canonical columns, and the faults of those that cannot be scored.

    Args:
        extra: canonical columns besides those of the pair, where a file has them.

    Raises:
        DataError: a file is not what it was when the plan was made, or is damaged.
    """
    return joined([rows_of_slice(part, extra, NO_COLUMNS)[0] for part in unit.slices])


def read_with_kept(unit: WorkUnit, keep: pa.Schema) -> tuple[Rows, pa.Table]:
    """The same, and the columns that go through to the predictions, named as in an encoded unit."""
    parts = [rows_of_slice(part, (), keep) for part in unit.slices]
    return joined([rows for rows, _ in parts]), pa.concat_tables([kept for _, kept in parts])


def read_ids(unit: WorkUnit) -> pa.ChunkedArray:
    """The ids of a unit; no other column is read, where a file has one of ids."""
    columns = [ids_of_slice(part) for part in unit.slices]
    kind = common_id_type(column.type for column in columns)
    return pa.chunked_array([chunk for column in columns for chunk in column.cast(kind).chunks], kind)


def ids_of_slice(part: Slice) -> pa.ChunkedArray:
    name, source = part.source.columns.id, part.source
    with unchanged(source.file):
        table = with_ids(read_columns(part, [name]), part)
    return ids_of(table[name], source.shown, part.start, name)


def joined(parts: Sequence[Rows]) -> Rows:
    """The rows of several slices, one after the other; ids are text where any of them is."""
    if len(parts) == 1:
        return parts[0]
    tables = with_common_ids([part.table for part in parts])
    faults: dict[int, Fault] = {}
    done = 0
    for part in parts:
        faults |= {done + row: fault for row, fault in part.faults.items()}
        done += len(part.table)
    return Rows(pa.concat_tables(tables, promote_options="default").combine_chunks(), faults)


def rows_of_slice(part: Slice, extra: Sequence[str], keep: pa.Schema) -> tuple[Rows, pa.Table]:
    """The rows of one file in canonical columns with their faults, and the columns that are kept."""
    source = part.source
    pair = [*(getattr(source.columns, name) for name in (*PAIR_COLUMNS, *extra)), FAULT]
    kept = kept_names(source, keep)
    with unchanged(source.file):
        try:
            table = read_columns(part, [*pair, *kept])
            rows = canonical_slice(part, table.select([name for name in pair if name in table.column_names]))
        except DataError as error:
            if not source.errors_in_rows:
                raise
            table = read_columns(part, [source.columns.id])
            rows = damaged_rows(part, table, str(error))
    return rows, pa.table(dict(encoded_kept(table, kept, keep))) if kept else pa.table({})


def read_columns(part: Slice, names: Sequence[str]) -> pa.Table:
    """The rows of a slice, with those of the columns that its file or its folders have.

    Raises:
        DataError: the file has fewer rows than when the plan was made.
    """
    file = part.source.file
    table = read_slice(file, names, part.start, part.rows)
    missing = part.rows - len(table)
    if missing:
        raise DataError(
            f"{part.source.shown}: {missing} rows fewer than when the run was planned; restore the file"
        )
    table = with_partitions(table, file)
    return table.select([name for name in dict.fromkeys(names) if name in table.column_names])


def canonical_slice(part: Slice, table: pa.Table) -> Rows:
    """The rows of a slice, as `read_columns` gives them, in canonical columns, and their faults."""
    source = part.source
    table = with_ids(table, part)
    rows = canonical(table, source.shown, source.columns, part.start, source.lists)
    return Rows(rows.table, faults_in(table, source) | rows.faults)


def with_ids(table: pa.Table, part: Slice) -> pa.Table:
    """The table with ids made of file and row, where it has none."""
    name = part.source.columns.id
    if name in table.column_names:
        return table
    return table.append_column(name, made_ids(part.source.file, part.start, part.rows))


def damaged_rows(part: Slice, table: pa.Table, reason: str) -> Rows:
    """The rows of a slice whose texts cannot be read: their ids, and the reason as the fault of each.

    Args:
        table: of the ids, where the file has them.
    """
    source: ParquetInput = part.source
    rows = canonical(with_ids(table, part), source.shown, source.columns, part.start)
    return Rows(rows.table, {row: Fault(MALFORMED, reason) for row in range(part.rows)})
