"""Columns of parquet and Arrow files as later steps can use them: whole texts, in types that parquet has."""

import json

import pyarrow as pa

from wsdm_ray.inputs.streams import warn_once

__all__ = ["repaired", "usual", "whole_texts"]


def repaired(column: pa.Array, name: str, path: str) -> pa.Array:
    """A column with U+FFFD for bytes that are not UTF-8; of lists and the like, nulls. A warning says so."""
    whole = whole_texts(column)
    how = "it is left out" if whole is None else "its wrong bytes are read as U+FFFD"
    warn_once(f"{path}: the column {name!r} holds text that is not UTF-8: {how}")
    return pa.nulls(len(column), column.type) if whole is None else whole


def whole_texts(column: pa.Array) -> pa.Array | None:
    """The texts of a column with U+FFFD for bytes that are not UTF-8; None where it holds something else."""
    if isinstance(column, pa.DictionaryArray):
        texts = whole_texts(column.dictionary)
        return None if texts is None else pa.DictionaryArray.from_arrays(column.indices, texts)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return None
    raw = column.cast(pa.large_binary()).to_pylist()
    texts = [None if value is None else value.decode(errors="replace") for value in raw]
    return pa.array(texts, column.type)


def usual(column: pa.Array, name: str, path: str) -> pa.Array:
    """The column without views and runs, which few functions take.

    It is JSON text, with a warning, where parquet has no such type.
    """
    kind = usual_type(column.type)
    if kind == column.type:
        return column
    if kind is not None and not pa.types.is_nested(column.type):
        return column.cast(kind)
    values = column.to_pylist()
    if kind is not None:  # not by a cast, which makes broken lists of views
        return pa.array(values, kind)
    what = f"is {column.type}, which parquet does not have"
    warn_once(f"{path}: the column {name!r} {what}: it is kept as JSON text")
    texts = [
        None if value is None else json.dumps(value, ensure_ascii=False, default=str) for value in values
    ]
    return pa.array(texts, pa.string())


def usual_type(kind: pa.DataType) -> pa.DataType | None:
    """The type with the same values and without views and runs; None where parquet has none."""
    types = pa.types
    if types.is_union(kind) or types.is_interval(kind) or (types.is_struct(kind) and not kind.num_fields):
        return None
    if types.is_string_view(kind) or types.is_binary_view(kind):
        return pa.string() if types.is_string_view(kind) else pa.binary()
    if types.is_run_end_encoded(kind):
        return usual_type(kind.value_type)
    if types.is_dictionary(kind):
        values = usual_type(kind.value_type)
        return None if values is None else pa.dictionary(kind.index_type, values, kind.ordered)
    fields = [kind.field(place) for place in range(kind.num_fields)]
    inner = [usual_type(field.type) for field in fields]
    if any(item is None for item in inner):
        return None
    fields = [field.with_type(item) for field, item in zip(fields, inner, strict=True)]
    if types.is_struct(kind):
        return pa.struct(fields)
    if types.is_map(kind):
        return pa.map_(*fields[0].type)
    if types.is_fixed_size_list(kind):
        return pa.list_(fields[0], kind.list_size)
    if types.is_large_list(kind) or types.is_large_list_view(kind):
        return pa.large_list(fields[0])
    return pa.list_(fields[0]) if fields else kind
