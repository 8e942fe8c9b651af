"""JSON objects, one a line or in one list, to tables with one type a column over the whole file.

A column of values that do not go together, or that no file of columns could hold, is kept as text, with a
warning: where it is needed, texts as they are and other values as JSON; else all values as JSON. NaN is null.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from ftfy.fixes import fix_surrogates

from wsdm_ray import storage
from wsdm_ray.errors import DataError
from wsdm_ray.inputs.streams import BYTE_ORDER_MARK, open_text, warn_once

__all__ = ["Limits", "read_objects", "whole_characters"]

ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

EXACT = 2**53
"""Integers up to it are themselves in float64."""

LARGE = 10**76
"""Integers below it are themselves in decimal256."""

WIDEST = 200
"""Keys of objects that become fields; objects with more have keys that are data."""

HOLDERS = ("data", "rows", "train", "test")
"""Keys by which an object holds the rows of a set."""

DEEPEST = 40
"""Levels of lists and objects that Arrow and parquet files can hold for certain."""

KINDS = {
    str: "texts",
    int: "integers",
    float: "fractions",
    bool: "true or false",
    list: "lists",
    dict: "objects",
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How large a table may be: rows, and bytes of the file. Either ends it."""

    rows: int
    bytes: int


def read_objects(
    path: str, needed: Collection[str] | None, limits: Limits, *, may_be_list: bool
) -> Iterator[pa.Table]:
    """The rows of a file of JSON objects in tables of one schema; a large file is parsed twice for it.

    Args:
        needed: columns that keep texts as they are where other values are among them; None: all.
        may_be_list: the file may be one list of objects, which is read whole.

    Raises:
        DataError: the file, or a line of it, is not JSON or not an object.
    """
    columns: dict[str, Seen] = {}
    held: list[list[dict[str, Any]]] | None = []
    size = count = 0
    for rows, batch_bytes in parsed(path, limits, may_be_list):
        look_at(rows, columns)
        count += len(rows)
        size += batch_bytes
        held = [*held, rows] if held is not None and size <= limits.bytes else None
    if count == 1 and may_be_list:
        check_by_rows(columns, path)
    forms = {
        name: form_of(seen, path, name, needed is None or name in needed) for name, seen in columns.items()
    }
    for rows in held if held is not None else (rows for rows, _ in parsed(path, limits, may_be_list)):
        try:
            yield pa.table({name: form.array(row.get(name) for row in rows) for name, form in forms.items()})
        except (pa.ArrowException, OverflowError) as error:
            raise DataError(f"{path}: was changed while it was read ({storage.reason(error)})") from error


def parsed(path: str, limits: Limits, may_be_list: bool) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """The objects of a file in batches, and the bytes of each."""
    parser = Parser(path)
    rows: list[dict[str, Any]] = []
    size = 0
    is_first = True
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
            if not line.strip():
                continue
            if is_first and may_be_list and line.lstrip().startswith(b"["):
                yield from parser.batches_of_list(line + file.read(), limits)
                return
            is_first = False
            rows.append(parser.object_of_line(line, number))
            size += len(line)
            if len(rows) == limits.rows or size >= limits.bytes:
                yield rows, size
                rows, size = [], 0
    if rows:
        yield rows, size


class Parser:
    """JSON of one file to values; whatever is wrong is a `DataError` that names the line."""

    def __init__(self, path: str):
        self.path = path
        self.where = path
        self.has_warned = False
        self.decoder = json.JSONDecoder(
            object_pairs_hook=self.object_of_pairs,
            parse_constant=lambda name: None if name == "NaN" else float(name),
        )

    def object_of_line(self, line: bytes, number: int) -> dict[str, Any]:
        where = f"{self.path}:{number}"
        hint = "`jq -c . FILE` writes an object over several lines as one, `jq -c .[] FILE` a list as lines"
        row = self.value(line, where, f"one object a line is needed ({hint})")
        if not isinstance(row, dict):
            raise DataError(f"{where}: a JSON {type(row).__name__}, but one object a line is needed")
        return row

    def batches_of_list(self, text: bytes, limits: Limits) -> Iterator[tuple[list[dict[str, Any]], int]]:
        rows = self.value(text, self.path, "a list of objects, or one object a line, is needed")
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict):
                kind = type(row).__name__
                raise DataError(f"{self.path}: item {number} is a JSON {kind}, but objects are needed")
        share = len(text) // max(len(rows), 1)
        step = max(1, min(limits.rows, limits.bytes // max(share, 1)))
        for first in range(0, len(rows), step):
            yield rows[first : first + step], step * share

    def value(self, text: bytes, where: str, needed: str) -> Any:
        self.where = where
        try:
            value = self.decoder.decode(text.decode())
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where}: not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8"
            ) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({storage.reason(error)}); {needed}") from error
        # Escapes can spell half a character, which no file can hold: pairs are joined, halves become U+FFFD.
        return whole_characters(value) if ESCAPED_SURROGATE.search(text) else value

    def object_of_pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs) and not self.has_warned:
            self.has_warned = True
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            warn_once(f"{self.where}: an object has the key {twice!r} twice; the last value of a key counts")
        return row


def whole_characters(value: Any) -> Any:
    """A JSON value with the halves of characters in its texts joined, or U+FFFD where one is alone."""
    if isinstance(value, str):
        return fix_surrogates(value)
    if isinstance(value, list):
        return [whole_characters(item) for item in value]
    if isinstance(value, dict):
        return {fix_surrogates(key): whole_characters(item) for key, item in value.items()}
    return value


@dataclass(kw_only=True)
class Seen:
    """What a column holds in the rows so far.

    kinds: types of its values but null. largest: its largest integer, where -1 is as large as 0. nested: the
    Arrow type of its lists or objects, None where they do not go together.
    """

    kinds: set[type] = field(default_factory=set)
    largest: int = 0
    nested: pa.DataType | None = field(default_factory=pa.null)


def look_at(rows: list[dict[str, Any]], columns: dict[str, Seen]) -> None:
    """Add what the columns of `rows` hold to `columns`."""
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [value for row in rows if (value := row.get(name)) is not None]
        seen = columns.setdefault(name, Seen())
        kinds = set(map(type, values))
        seen.kinds |= kinds
        if int in kinds:
            seen.largest = max(seen.largest, *(max(value, ~value) for value in values if type(value) is int))
        if kinds & {list, dict} and len(seen.kinds) == 1 and seen.nested is not None:
            seen.nested = merged(seen.nested, inferred(values))


def inferred(values: list[Any]) -> pa.DataType | None:
    """The Arrow type of lists or objects; None where they do not go together."""
    try:
        return pa.array(values).type
    except (pa.ArrowException, OverflowError):
        return None


def merged(one: pa.DataType, other: pa.DataType | None) -> pa.DataType | None:
    """The type that holds the values of both as they are; None where there is none."""
    if other is None or one == other or pa.types.is_null(other):
        return None if other is None else one
    if pa.types.is_null(one):
        return other
    if pa.types.is_list(one) and pa.types.is_list(other):
        item = merged(one.value_type, other.value_type)
        return None if item is None else pa.list_(item)
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        fields = {item.name: item.type for item in one}
        for item in other:
            kind = merged(fields.get(item.name, pa.null()), item.type)
            if kind is None:
                return None
            fields[item.name] = kind
        return pa.struct(list(fields.items()))
    return None


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a column becomes: an Arrow type, and how a value is changed for it."""

    type: pa.DataType
    change: Callable[[Any], Any] | None = None

    def array(self, values: Iterable[Any]) -> pa.Array:
        if self.change is None:
            return pa.array(list(values), self.type)
        return pa.array([None if value is None else self.change(value) for value in values], self.type)


def form_of(seen: Seen, path: str, name: str, is_needed: bool) -> Form:
    """What a column of these values becomes; where that is text, a warning says so."""
    form = typed_form(seen, is_needed)
    if form is not None:
        return form
    what = " and ".join(sorted(KINDS[kind] for kind in seen.kinds))
    if len(seen.kinds) == 1:
        what += (
            " beyond 64 bits"
            if seen.kinds == {int}
            else " of different types, of none, of many keys or too deep"
        )
    how = "is read as text, each text as it is" if is_needed else "is kept as JSON text"
    warn_once(f"{path}: the column {name!r} holds {what}: it {how}")
    return Form(type=pa.string(), change=as_text if is_needed else as_json)


def typed_form(seen: Seen, is_needed: bool) -> Form | None:
    """The form that keeps the types of values; None where there is none.

    Integers among fractions are fractions where none is changed by it, and where the column is needed: then
    its reader has to refuse fractions, whatever is among them.
    """
    if not seen.kinds:
        return Form(type=pa.null())
    if seen.kinds == {int} and seen.largest >= 2**63:
        return Form(type=pa.decimal256(76, 0)) if is_needed and seen.largest < LARGE else None
    if seen.kinds == {int, float}:
        if seen.largest <= EXACT or (is_needed and seen.largest < LARGE):
            return Form(type=pa.float64(), change=float)
        return None
    if len(seen.kinds) > 1:
        return None
    (kind,) = seen.kinds
    if kind in (list, dict):
        return Form(type=seen.nested) if seen.nested is not None and is_storable(seen.nested) else None
    return Form(type={str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}[kind])


def is_storable(kind: pa.DataType, level: int = 1) -> bool:
    """Whether no struct in it is empty, which parquet cannot hold, or wider than `WIDEST`; nor too deep."""
    if level > DEEPEST or (pa.types.is_struct(kind) and not 0 < kind.num_fields <= WIDEST):
        return False
    return all(is_storable(kind.field(place).type, level + 1) for place in range(kind.num_fields))


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else as_json(value)


def check_by_rows(columns: dict[str, Seen], path: str) -> None:
    """Raise `DataError` where the only object of a file is a table, written by columns or in parts."""
    names = columns.keys()
    by_columns = all(seen.kinds == {dict} for seen in columns.values()) and names
    if by_columns or names == {"columns", "index", "data"} or names == {"schema", "data"}:
        raise DataError(
            f"{path}: is one object with the keys {', '.join(list(names)[:5])}, not one object a row; pandas "
            "writes such rows by to_json(FILE, orient='records', lines=True)"
        )
    within = [
        name for name in names if columns[name].kinds == {list} and (name in HOLDERS or len(names) == 1)
    ]
    if within:
        raise DataError(
            f"{path}: is one object that holds its rows in the list {within[0]!r}; write the list alone: "
            f"`jq -c '.[\"{within[0]}\"][]' FILE > NEW.jsonl`"
        )
