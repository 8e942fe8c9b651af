# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import)
"""What an id, a text and a number are: columns of any type that a tool writes, to the canonical types.

How a tool stores a column does not matter: dictionaries (pandas' category, polars' Categorical), run-end
encodings, views, wide offsets and extension types are undone first. Not covered: what a label means
(`data.cleaning`), lists of turns or messages as texts (`messages`).
"""

from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from wsdm_ray import storage
from wsdm_ray.errors import DataError
from wsdm_ray.schema import CANONICAL_TYPES

__all__ = [
    "Unreadable",
    "common_id_type",
    "holds_text",
    "id_type",
    "ids_of",
    "is_bytes",
    "is_text",
    "plain",
    "plain_type",
    "texts_of",
    "type_of_both",
    "typed",
    "with_common_ids",
]

Unreadable = list[tuple[int, str]]
"""Rows whose text cannot be read, and why."""


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is of strings, with offsets of any width or as views."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def holds_text(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold texts, or lists that are joined to texts."""
    kind = plain_type(kind)
    return is_text(kind) or is_bytes(kind) or pa.types.is_null(kind) or pa.types.is_nested(kind)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type that `plain` gives to a column of `kind`."""
    if isinstance(kind, pa.UuidType):
        return pa.string()
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if is_text(kind):
        return pa.large_string() if pa.types.is_large_string(kind) else pa.string()
    if is_bytes(kind):
        return pa.large_binary() if pa.types.is_large_binary(kind) else pa.binary()
    return kind


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column with a value stored for each row: strings and bytes without views, UUIDs as text."""
    return pa.chunked_array([plain_array(chunk) for chunk in column.chunks], plain_type(column.type))


def plain_array(array: pa.Array) -> pa.Array:
    kind = array.type
    if isinstance(kind, pa.UuidType):
        return pa.array([value and str(value) for value in array.to_pylist()], pa.string())
    if isinstance(kind, pa.BaseExtensionType):
        return plain_array(array.storage)
    if pa.types.is_run_end_encoded(kind):
        return plain_array(pc.run_end_decode(array))
    if pa.types.is_dictionary(kind):
        return plain_array(array.dictionary).take(array.indices)
    return array.cast(plain_type(kind)) if is_text(kind) or is_bytes(kind) else array


def type_of_both(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds every value of both exactly; None where there is none."""
    if one == other:
        return one
    numbers = [kind for kind in (one, other) if pa.types.is_integer(kind) or pa.types.is_floating(kind)]
    if len(numbers) == 2:
        exact = [kind for kind in (pa.int64(), pa.float64()) if all(holds(kind, part) for part in numbers)]
        return exact[0] if exact else None
    if numbers and pa.types.is_floating(numbers[0]) and any(map(pa.types.is_decimal, (one, other))):
        return None
    try:
        schemas = [pa.schema([("column", kind)]) for kind in (one, other)]
        return pa.unify_schemas(schemas, promote_options="permissive").field("column").type
    except pa.ArrowException:
        return None


def holds(kind: pa.DataType, part: pa.DataType) -> bool:
    """Whether int64 or float64 holds every value of a type of numbers."""
    if pa.types.is_floating(part):
        return pa.types.is_floating(kind)
    whole = part.bit_width - pa.types.is_signed_integer(part)
    return whole <= (63 if pa.types.is_integer(kind) else 53)


def id_type(kind: pa.DataType, path: str, name: str = "id") -> pa.DataType:
    """The type of ids that a column of `kind` holds: int64 or string.

    Raises:
        DataError: such a column cannot hold ids.
    """
    kind = plain_type(kind)
    if pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0):
        return pa.int64()
    if is_text(kind) or is_bytes(kind):
        return pa.string()
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        raise DataError(
            f"{path}: ids are {kind} (column {name!r}), which may be rounded; write them as integers or "
            f'text: in pandas, df["{name}"].astype("Int64")'
        )
    raise DataError(f"{path}: ids are {kind} (column {name!r}); they must be integers or strings")


def common_id_type(types: Iterable[pa.DataType]) -> pa.DataType:
    """The type of ids from several files: int64 where all have it, else string.

    Args:
        types: as `id_type` gives them.
    """
    return pa.int64() if set(types) == {pa.int64()} else pa.string()


def with_common_ids(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """Tables whose columns `id` have one type: text where any of them is."""
    kind = common_id_type(table["id"].type for table in tables)
    return [
        table.set_column(table.column_names.index("id"), "id", table["id"].cast(kind)) for table in tables
    ]


def ids_of(column: pa.ChunkedArray, path: str, first_row: int, name: str = "id") -> pa.ChunkedArray:
    """Ids of rows from `first_row` on as int64 or string.

    Raises:
        DataError: an id is null, empty, not UTF-8 or beyond 64 bits, or such a column cannot hold ids.
    """
    if pa.types.is_null(column.type) and len(column):
        raise DataError(f"{path}: row {first_row} (counted from 0) has no id")
    kind = id_type(column.type, path, name) if len(column) else pa.string()
    try:
        column = plain(column).cast(kind)
        column.validate(full=True)  # a file may call bytes text
    except pa.ArrowInvalid as error:
        what = "is not UTF-8" if kind == pa.string() else "does not fit 64 bits"
        raise DataError(
            f"{path}: an id {what} ({storage.reason(error)}); write ids as 64-bit integers or text"
        ) from error
    missing = pc.is_null(column)
    if kind == pa.string():  # an empty field is how CSV writes null
        missing = pc.or_kleene(missing, pc.equal(column, "").fill_null(False))
    row = pc.index(missing, True).as_py()
    if row >= 0:
        raise DataError(f"{path}: row {first_row + row} (counted from 0) has no id")
    return column


def texts_of(column: pa.ChunkedArray, name: str, path: str) -> tuple[pa.ChunkedArray, Unreadable]:
    """The texts of a column as string, and the rows whose bytes are not UTF-8, whose text is then null.

    Raises:
        DataError: the column holds something else than text.
    """
    kind = plain_type(column.type)
    if not (is_text(kind) or is_bytes(kind) or pa.types.is_null(kind)):
        raise DataError(f"{path}: column {name!r} holds {kind}, but text is needed")
    column = plain(column)
    try:
        texts = column.cast(pa.string())
        texts.validate(full=True)  # a file may call bytes text
        return texts, []
    except pa.ArrowInvalid:
        values: list[str | None] = []
        unreadable: Unreadable = []
        for row, data in enumerate(column.cast(pa.large_binary()).to_pylist()):
            try:
                values.append(None if data is None else data.decode())
            except UnicodeDecodeError:
                values.append(None)
                unreadable.append((row, "is not UTF-8"))
        return pa.chunked_array([pa.array(values, pa.string())]), unreadable


def typed(column: pa.ChunkedArray, name: str, path: str) -> pa.ChunkedArray:
    """A column of `CANONICAL_TYPES` that is no text of a pair, in its type; a blank number is null.

    Args:
        name: the canonical one.

    Raises:
        DataError: a value is not of that type.
    """
    kind = CANONICAL_TYPES[name]
    column = plain(column)
    if kind == pa.float64() and is_text(column.type):
        blank = pc.equal(pc.utf8_trim_whitespace(column), "")
        column = pc.if_else(blank, pa.scalar(None, column.type), column)
    try:
        column = column.cast(kind)
        column.validate(full=True)
        return column
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{path}: column {name!r} is not {kind} ({storage.reason(error)})") from error
