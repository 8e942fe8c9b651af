"""Rows on the local disk between the two passes of `prepare`, and the one schema that they are written in."""

import functools
import io
import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from wsdm_ray import storage
from wsdm_ray.inputs.values import common_id_type, plain, plain_type, type_of_both
from wsdm_ray.telemetry import logger

__all__ = ["Spill"]

pc: Any = pyarrow.compute  # its functions are made at import, unseen by type checkers


class Spill:
    """Tables on the local disk, each an Arrow stream of its own, since files may differ in other columns."""

    def __init__(self, path: Path):
        self.path = path
        self.places: list[tuple[int, int]] = []  # where each table begins, and its rows
        self.schemas: dict[pa.Schema, str] = {}  # and the first file that has it
        # By name and type (`has_order`):
        self.extremes: dict[tuple[str, pa.DataType], pa.Array] = {}
        self.path.touch()

    def add(self, table: pa.Table, source: str) -> None:
        """Append a table that came from the file `source`."""
        table = pa.table({name: plain(table[name]) for name in table.column_names})
        self.schemas.setdefault(table.schema, source)
        for field in filter(lambda field: has_order(field.type), table.schema):
            self.note_extremes(field, table[field.name])
        with storage.errors_for(str(self.path)), pa.OSFile(str(self.path), "ab") as file:
            self.places.append((self.path.stat().st_size, len(table)))
            with pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)

    def note_extremes(self, field: pa.Field, column: pa.ChunkedArray) -> None:
        """Remember the least and the greatest value of a column, by which it is seen what holds all."""
        earlier = self.extremes.get((field.name, field.type), pa.array([], field.type))
        found = pc.min_max(pa.chunked_array([earlier, *column.chunks], field.type))
        self.extremes[field.name, field.type] = pa.array([found["min"], found["max"]], field.type)

    @functools.cached_property
    def schema(self) -> pa.Schema:
        """One schema for all rows that were added; a column of types that do not go together is text."""
        types: dict[str, dict[pa.DataType, str]] = {}
        for schema, source in self.schemas.items():
            for field in schema:
                types.setdefault(field.name, {}).setdefault(field.type, source)
        fields = []
        for name, sources in types.items():
            extremes = [self.extremes[name, kind] for kind in sources if (name, kind) in self.extremes]
            kind = common_id_type(sources) if name == "id" else common_type(sources, extremes)
            if kind is None:
                warn_of_text(name, sources)
            fields.append(pa.field(name, kind or pa.string()))
        return pa.schema(fields)

    def rows(self, mask: np.ndarray) -> Iterator[pa.Table]:
        """The rows where `mask` (one value for each row that was added) is true, in order, in one schema."""
        schema = self.schema
        start = 0
        with pa.OSFile(str(self.path), "rb") as file:
            for place, rows in self.places:
                here = mask[start : start + rows]
                start += rows
                if not here.any():
                    continue
                file.seek(place)
                with pa.ipc.open_stream(file) as reader:
                    table = reader.read_all().filter(pa.array(here))
                yield pa.table([column_of(table, field) for field in schema], schema=schema)


def has_order(kind: pa.DataType) -> bool:
    """Whether the extremes of a column tell if another type holds its values exactly."""
    return pa.types.is_integer(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind)


def may_be_rounded(kind: pa.DataType) -> bool:
    """Whether another type may hold other values than this one, in silence."""
    others = (pa.types.is_floating, pa.types.is_decimal, pa.types.is_duration)
    return has_order(kind) or any(is_kind(kind) for is_kind in others)


def leaves(kind: pa.DataType) -> list[pa.DataType]:
    """The types of the values within lists and objects."""
    if not pa.types.is_nested(kind):
        return [kind]
    return [leaf for number in range(kind.num_fields) for leaf in leaves(kind.field(number).type)]


def is_exact(kind: pa.DataType, part: pa.DataType) -> bool:
    """Whether a nested type has a leaf for each leaf of another that is a number or a time, and holds it."""
    wholes = leaves(kind)
    numbers = filter(may_be_rounded, leaves(part))
    return all(
        any(leaf == whole or type_of_both(leaf, whole) == whole for whole in wholes) for leaf in numbers
    )


def common_type(types: Collection[pa.DataType], extremes: Iterable[pa.Array] = ()) -> pa.DataType | None:
    """The type that holds values of all `types` and that parquet can hold; None where there is none.

    Args:
        extremes: values that it must hold exactly.
    """
    if any(map(pa.types.is_floating, types)) and any(map(pa.types.is_decimal, types)):
        return None
    if len(types) > 1 and any(map(pa.types.is_duration, types)):  # they have no extremes in pyarrow
        return None
    try:
        schemas = [pa.schema([("column", plain_type(kind))]) for kind in types]
        kind = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
        pq.write_table(pa.table({"column": pa.nulls(0, kind)}), io.BytesIO())
        for values in extremes:
            values.cast(kind)
        nested = [part for part in types if pa.types.is_nested(part)]
        return kind if all(is_exact(kind, part) for part in nested) else None
    except pa.ArrowException:
        return None


def warn_of_text(name: str, sources: dict[pa.DataType, str]) -> None:
    shown = " and ".join(f"{kind} in {path}" for kind, path in list(sources.items())[:2])
    logger.warning("column %r is %s; it is kept as text", name, shown)


def column_of(table: pa.Table, field: pa.Field) -> pa.Array | pa.ChunkedArray:
    """The column of a table in the type that it has in the output; nulls where the table has none."""
    if field.name not in table.column_names:
        return pa.nulls(len(table), field.type)
    column = table[field.name]
    try:
        return column.cast(field.type)
    except pa.ArrowException:
        if field.type != pa.string():
            raise
    return pa.array(map(json_text, column.to_pylist()), pa.string())


def json_text(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False, default=str)
