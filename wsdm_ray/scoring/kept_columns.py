"""Columns of the input that go through to the predictions unchanged, beside those of `score`.

In the table of an encoded unit each has the prefix `keep_`. Not covered: how the texts are read (`plan`).
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from wsdm_ray.errors import ConfigError, DataError
from wsdm_ray.inputs.conversion import ParquetInput
from wsdm_ray.inputs.files import with_partitions
from wsdm_ray.inputs.values import type_of_both
from wsdm_ray.schema import LOGIT_COLUMNS, predictions_schema
from wsdm_ray.scoring.plan import ScorePlan, sources_of
from wsdm_ray.storage import open_parquet

__all__ = ["NO_COLUMNS", "append_kept", "encoded_kept", "kept_names", "kept_schema"]

PREFIX = "keep_"

NO_COLUMNS = pa.schema([])


def kept_schema(plan: ScorePlan, names: Sequence[str]) -> pa.Schema:
    """The columns `names` with the type that holds the values of every file; a file may lack one.

    Raises:
        ConfigError: a name is that of a column of the predictions.
        DataError: no file has a column, or files have types that no one type holds exactly.
    """
    taken = {*predictions_schema(plan.id_type).names, *LOGIT_COLUMNS} & set(names)
    if taken:
        raise ConfigError(
            f"--keep-columns {min(taken)}: the predictions have a column of that name; rename the input's"
        )
    sources = sources_of(plan.units) if names else []
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(schema_of, sources)
        schemas = {source.shown: schema for source, schema in zip(sources, found, strict=True)}
    fields = [pa.field(name, type_in_all(schemas, name)) for name in dict.fromkeys(names)]
    return pa.schema(fields)


def schema_of(source: ParquetInput) -> pa.Schema:
    """The columns of a file, and those that its folders name, as the user's own file calls them."""
    with open_parquet(source.file.path) as file:
        return source.own_schema(with_partitions(file.schema_arrow.empty_table(), source.file).schema)


def type_in_all(schemas: dict[str, pa.Schema], name: str) -> pa.DataType:
    """The type of a column over all files. Raises `DataError` where there is none."""
    types = {
        path: stored_type(schema.field(name).type) for path, schema in schemas.items() if name in schema.names
    }
    if not types:
        path, schema = next(iter(schemas.items()))
        raise DataError(
            f"{path}: no column {name} in any input file (there are {', '.join(schema.names)}); "
            "correct --keep-columns"
        )
    first = next(iter(types))
    shared = types[first]
    for path, kind in types.items():
        unified = type_of_both(shared, kind)
        if unified is None:
            raise DataError(
                f"{path}: column {name} is {kind}, but {shared} in {first}, which no one type holds exactly; "
                f"give all files one type, or leave {name} out of --keep-columns"
            )
        if unified != shared:
            first = path
        shared = unified
    return shared


def stored_type(kind: pa.DataType) -> pa.DataType:
    """The type without what parquet has no word for: dictionaries and views."""
    if pa.types.is_dictionary(kind):
        return stored_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def kept_names(source: ParquetInput, keep: pa.Schema) -> list[str]:
    """The names that a file gives to the columns that are kept."""
    return [source.name_of(name) for name in keep.names]


def encoded_kept(
    table: pa.Table, own: Sequence[str], keep: pa.Schema
) -> Iterator[tuple[str, pa.ChunkedArray | pa.Array]]:
    """Name in the encoded table, and values, of the columns of a unit that are kept.

    Args:
        table: of a file; a column that it lacks is null.
        own: their names in it, of `kept_names`.
    """
    for name, field in zip(own, keep, strict=True):
        if name in table.column_names:
            column = table[name]
            yield PREFIX + field.name, column.cast(stored_type(column.type)).cast(field.type)
        else:
            yield PREFIX + field.name, pa.nulls(len(table), field.type)


def append_kept(table: pa.Table, encoded: pa.Table) -> pa.Table:
    """The predictions of an encoded unit with the columns that are kept."""
    for name in encoded.column_names:
        if name.startswith(PREFIX):
            kept = encoded.schema.field(name).with_name(name.removeprefix(PREFIX))
            described = kept.with_metadata({"description": "copied from the input (--keep-columns)"})
            table = table.append_column(described, encoded[name])
    return table
