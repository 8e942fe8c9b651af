# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import)
"""What an id, a text and a number are: columns of any type that a tool writes, to the canonical types."""

import pyarrow as pa
import pyarrow.compute as pc

from wsdm_ray import storage
from wsdm_ray.errors import DataError
from wsdm_ray.schema import TEXTS

__all__ = ["ids_of", "typed"]


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
