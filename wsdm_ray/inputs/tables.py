"""One file to a stream of Arrow tables, in the file's own columns and order.

Parquet, JSON lines (.jsonl, .ndjson, .json) and CSV. Whatever is wrong with a file is a `DataError` that
names the file, the line where there are lines, and the column. Not covered: what the columns mean (`rows`,
`values`), and which files there are (`files`).
"""

import csv
import json
import re
from collections.abc import Collection, Iterator
from typing import IO, Any

import pyarrow as pa
from ftfy.fixes import fix_surrogates

from wsdm_ray import storage
from wsdm_ray.errors import DataError

__all__ = ["read_tables", "whole_characters"]

LINES_SUFFIXES = (".jsonl", ".ndjson", ".json")

BATCH_ROWS = 1_000
BATCH_BYTES = 32 << 20


def read_tables(path: str, needed: Collection[str] | None = None) -> Iterator[pa.Table]:
    """The rows of one file as it is, in tables of bounded size that are never empty.

    Args:
        needed: columns whose values the caller judges itself; None: all.
    """
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
