"""Files of pairs to a stream of Arrow tables with the canonical columns.

Every table has `id`, the three texts and `winner`, `prob_a`, the model names, `language` and `source` where
the file has them, then the file's other columns as they are. Not covered: published data sets of other
shapes (`published`), what values mean.
"""

import dataclasses
import posixpath
from collections.abc import Iterator

import pyarrow as pa

from wsdm_ray.config import Columns
from wsdm_ray.errors import DataError
from wsdm_ray.inputs.tables import read_tables
from wsdm_ray.inputs.values import ids_of, typed
from wsdm_ray.schema import CANONICAL_TYPES, PAIR_COLUMNS, TEXTS

__all__ = ["canonical", "made_ids", "read_rows"]


def read_rows(path: str, columns: Columns, *, make_ids: bool = False) -> Iterator[pa.Table]:
    """The rows of one file, in order, in tables with canonical names and types.

    Args:
        columns: the names that the file gives to the canonical columns.
        make_ids: give each row the id FILESTEM-ROW (counted from 0) where the file has no id column.

    Raises:
        DataError: the file cannot be parsed; a column is missing or of a wrong type; an id is null.
        StorageError: the file cannot be read.
    """
    done = 0
    for table in read_tables(path):
        if done == 0:
            check_columns(table.column_names, path, columns, make_ids)
        elif not make_ids and columns.id not in table.column_names:  # a key that no object of this batch has
            raise DataError(f"{path}: row {done} (counted from 0) has no id")
        yield canonical(table, path, columns, done)
        done += len(table)


def check_columns(names: list[str], path: str, columns: Columns, make_ids: bool) -> None:
    """Raise `DataError` for a column that is needed, or was named on the command line, and is not there."""
    there = f"there are: {', '.join(names)}"
    defaults = Columns()
    for field in dataclasses.fields(columns):
        name = getattr(columns, field.name)
        option = f"--columns.{field.name.replace('_', '-')}=NAME"
        if names.count(name) > 1:
            raise DataError(f"{path}: has the column {name!r} {names.count(name)} times")
        if name in names:
            continue
        if field.name == "id":
            if not make_ids:
                raise DataError(
                    f"{path}: no column {name!r} for the ids; give {option} or --make-ids; {there}"
                )
        elif field.name in TEXTS or name != getattr(defaults, field.name):
            raise DataError(f"{path}: no column {name!r}; give {option}; {there}")
    if columns.winner not in names and columns.prob_a not in names:
        raise DataError(
            f"{path}: no column {columns.winner!r} or {columns.prob_a!r} with the votes; "
            f"give --columns.winner=NAME or --columns.prob-a=NAME; {there}"
        )


def canonical(table: pa.Table, path: str, columns: Columns, first_row: int) -> pa.Table:
    """The same rows with the canonical columns first, in canonical types, then the others.

    A column that bears a canonical name but was not chosen for it passes through as `input_NAME`. Rows of a
    table without the column of ids get FILESTEM-ROW, counted from `first_row`.
    """
    chosen = {getattr(columns, name): name for name in (*PAIR_COLUMNS, *CANONICAL_TYPES)}
    columns_by_name = {}
    for name in table.column_names:
        if name in chosen:
            columns_by_name[chosen[name]] = table[name]
    if "id" not in columns_by_name:
        columns_by_name["id"] = pa.chunked_array([made_ids(path, first_row, len(table))], pa.string())
    out = {"id": ids_of(columns_by_name["id"], path, first_row)}
    for name, kind in CANONICAL_TYPES.items():
        if name in columns_by_name:
            out[name] = typed(columns_by_name[name], name, kind, path)
        elif name in TEXTS:  # a key that no object of this batch has
            out[name] = pa.chunked_array([pa.nulls(len(table), kind)])
    for name in table.column_names:
        if name not in chosen:
            out[f"input_{name}" if name in out or name in CANONICAL_TYPES else name] = table[name]
    return pa.table(out)


def made_ids(path: str, first_row: int, rows: int) -> list[str]:
    """FILESTEM-ROW for `rows` rows from `first_row` on."""
    stem = posixpath.splitext(posixpath.basename(path))[0]
    return [f"{stem}-{row}" for row in range(first_row, first_row + rows)]
