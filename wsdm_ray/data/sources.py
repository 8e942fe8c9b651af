# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import)
"""Files of votes to a stream of Arrow tables with the canonical columns.

Parquet, JSON lines (.jsonl, .ndjson, .json) and CSV. Every table has `id`, the three texts and `winner`,
`prob_a`, the model names, `language` and `source` where the file has them, then the file's other columns as
they are. Whatever is wrong with a file is a `DataError` that names the file, the line where there are lines,
and the column. Not covered: published data sets of other shapes (`published`), what values mean (`cleaning`).
"""

import csv
import dataclasses
import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
from ftfy.fixes import fix_surrogates

from wsdm_ray import storage
from wsdm_ray.config import Columns
from wsdm_ray.errors import DataError
from wsdm_ray.schema import CANONICAL_TYPES, PAIR_COLUMNS, TEXTS

__all__ = ["canonical", "ids_of", "list_inputs", "made_ids", "read_rows", "read_tables", "whole_characters"]

FOLDER_SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".csv")
"""What a folder is searched for. Not .json: folders of runs hold run.json."""
LINES_SUFFIXES = (".jsonl", ".ndjson", ".json")

BATCH_ROWS = 1_000
BATCH_BYTES = 32 << 20


def list_inputs(paths: Sequence[str]) -> list[str]:
    """Files that `paths` (files, folders, globs) name. Raises `StorageError` where there are none."""
    return storage.list_files(paths, FOLDER_SUFFIXES)


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


def read_tables(path: str) -> Iterator[pa.Table]:
    """The rows of one file as it is, in tables of bounded size that are never empty."""
    name = path.lower()
    read = (
        read_lines if name.endswith(LINES_SUFFIXES) else read_csv if name.endswith(".csv") else read_parquet
    )
    for table in read(path):
        if len(table):
            yield table


def read_parquet(path: str) -> Iterator[pa.Table]:
    with storage.open_parquet(path) as file:
        size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES * file.metadata.num_rows // max(size, 1)))
        done = 0
        try:
            for batch in file.iter_batches(batch_size=rows):
                batch.validate(full=True)  # among others, that strings are UTF-8
                done += len(batch)
                yield pa.Table.from_batches([batch])
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            raise DataError(f"{path}: cannot be read after row {done} ({storage.reason(error)})") from error


def read_lines(path: str) -> Iterator[pa.Table]:
    """JSON with an object a line, or, in a `.json` file, one list of objects, which is read whole."""
    rows: list[dict[str, Any]] = []
    size = first = number = 0
    with storage.open_read(path) as file:
        if path.lower().endswith(".json") and begins_a_list(file):
            yield from tables_of_list(file.read(), path)
            return
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            first = first if rows else number
            rows.append(parse_line(line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line, path, number))
            size += len(line)
            if len(rows) == BATCH_ROWS or size >= BATCH_BYTES:
                yield table_of(rows, path, f"{first}-{number}")
                rows, size = [], 0
    if rows:
        yield table_of(rows, path, f"{first}-{number}")


BYTE_ORDER_MARK = b"\xef\xbb\xbf"
ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def begins_a_list(file: IO[bytes]) -> bool:
    start = file.read(1024)
    file.seek(0)
    return start.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"[")


def tables_of_list(text: bytes, path: str) -> Iterator[pa.Table]:
    needed = "a list of objects, or one object a line, is needed"
    rows = parse_json(text.removeprefix(BYTE_ORDER_MARK), path, needed)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{path}: item {number} is a JSON {type(row).__name__}, but objects are needed")
    for first in range(0, len(rows), BATCH_ROWS):
        part = rows[first : first + BATCH_ROWS]
        yield table_of(part, path, f"item {first + 1}-{first + len(part)}")


def parse_line(line: bytes, path: str, number: int) -> dict[str, Any]:
    row = parse_json(line, f"{path}:{number}", "one object a line is needed")
    if not isinstance(row, dict):
        raise DataError(f"{path}:{number}: a JSON {type(row).__name__}, but one object a line is needed")
    return row


def parse_json(text: bytes, where: str, needed: str) -> Any:
    try:
        value = json.loads(text.decode())
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({storage.reason(error)}); {needed}") from error
    # Escapes can spell half a character, which no file could hold: pairs are joined, halves become U+FFFD.
    return whole_characters(value) if ESCAPED_SURROGATE.search(text) else value


def whole_characters(value: Any) -> Any:
    """A JSON value with the halves of characters in its texts joined, or U+FFFD where one is alone."""
    if isinstance(value, str):
        return fix_surrogates(value)
    if isinstance(value, list):
        return [whole_characters(item) for item in value]
    if isinstance(value, dict):
        return {fix_surrogates(key): whole_characters(item) for key, item in value.items()}
    return value


def table_of(rows: list[dict[str, Any]], path: str, lines: str) -> pa.Table:
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, OverflowError) as error:
            raise DataError(
                f"{path}:{lines}: column {name!r} mixes types ({storage.reason(error)})"
            ) from error
    return pa.table(columns)


def read_csv(path: str) -> Iterator[pa.Table]:
    csv.field_size_limit(2**31 - 1)  # the default fails at 128 kB
    with storage.open_read(path) as file:
        # Not strict, a quote that is never closed would take the rest of the file as one field.
        reader = csv.reader(decoded(file, path), strict=True)
        try:
            header = next(reader, [])
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
                f"{path}:{reader.line_num}: not CSV ({error}); within quotes, a quote is two"
            ) from error


def table_of_fields(rows: list[list[str]], header: list[str]) -> pa.Table:
    return pa.table([pa.array(column, pa.string()) for column in zip(*rows, strict=True)], header)


def decoded(lines, path: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start})") from error


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


def ids_of(column: pa.ChunkedArray, path: str, first_row: int) -> pa.ChunkedArray:
    """Ids of rows from `first_row` on as int64 or strings. Raises `DataError` for null and other types."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    missing = pc.is_null(column)
    if is_text(kind):  # an empty field is how CSV writes null
        column = column.cast(pa.string())
        missing = pc.or_kleene(missing, pc.equal(column, "").fill_null(False))
    row = pc.index(missing, True).as_py()
    if row >= 0:
        raise DataError(f"{path}: row {first_row + row} (counted from 0) has no id")
    if is_text(kind):
        return column
    if pa.types.is_integer(kind):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise DataError(f"{path}: an id does not fit 64 bits ({storage.reason(error)})") from error
    raise DataError(f"{path}: ids are {kind}; they must be integers or strings")


def typed(column: pa.ChunkedArray, name: str, kind: pa.DataType, path: str) -> pa.ChunkedArray:
    value_type = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if name in TEXTS and not is_text(value_type) and not pa.types.is_null(value_type):
        raise DataError(f"{path}: column {name!r} holds {value_type}, but text is needed")
    if kind == pa.float64() and is_text(value_type):
        blank = pc.equal(pc.utf8_trim_whitespace(column), "")
        column = pc.if_else(blank, pa.scalar(None, column.type), column)
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{path}: column {name!r} is not {kind} ({storage.reason(error)})") from error


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
