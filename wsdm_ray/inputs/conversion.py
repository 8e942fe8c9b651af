"""Files that are not canonical parquet, converted to it: rows can then be read from anywhere in a file."""

import atexit
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from wsdm_ray.config import Columns
from wsdm_ray.inputs.faults import MALFORMED, Fault, FaultCounts
from wsdm_ray.inputs.files import InputFile
from wsdm_ray.inputs.rows import Reading, Rows, read_rows
from wsdm_ray.inputs.tables import is_parquet
from wsdm_ray.schema import CANONICAL_TYPES
from wsdm_ray.storage import errors_for
from wsdm_ray.telemetry import logger

__all__ = ["FAULT", "ParquetInput", "faults_in", "parquet_inputs"]

FAULT = "_wsdm_ray_fault"
"""Column of converted files: why a row cannot be scored, or null."""


@dataclass(frozen=True, kw_only=True)
class ParquetInput:
    """A parquet file of canonical rows.

    columns: the names that it gives to its columns. make_ids: it may have no column of ids. converted: the
    path is of a temporary copy; `file.name` is still that of the file it was made of.
    """

    file: InputFile
    columns: Columns
    make_ids: bool = False
    converted: bool = False


def parquet_inputs(files: Sequence[InputFile], reading: Reading) -> list[ParquetInput]:
    """Each file as canonical parquet: itself, or a temporary copy that lives as long as this process.

    Raises:
        DataError: a file cannot be read, or most rows of all files are malformed.
    """
    counts = FaultCounts()
    inputs = []
    folder = ""
    for number, file in enumerate(files):
        if reading.format == "canonical" and is_parquet(file.path):
            inputs.append(ParquetInput(file=file, columns=reading.columns, make_ids=reading.make_ids))
            continue
        folder = folder or scratch_folder()
        target = os.path.join(folder, f"{number:06d}.parquet")
        with errors_for(folder):
            write(counted(read_rows(file, reading), file.path, counts), target)
        copy = dataclasses.replace(file, path=target, partitions=())
        inputs.append(ParquetInput(file=copy, columns=Columns(), converted=True))
    if counts.rows:
        logger.info("%d rows converted to parquet", counts.rows)
    counts.check()
    return inputs


def scratch_folder() -> str:
    """A new folder for temporary files of this process, which deletes it when it ends."""
    folder = tempfile.mkdtemp(prefix="wsdm_ray_inputs_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def counted(tables: Iterator[Rows], path: str, counts: FaultCounts) -> Iterator[pa.Table]:
    """The tables of one file with the column `FAULT`; malformed rows are counted."""
    done = 0
    for table, faults in tables:
        counts.add(len(table), faults, path, done, table["id"])
        texts = [str(faults[row]) if row in faults else None for row in range(len(table))]
        yield table.append_column(FAULT, pa.array(texts, pa.string()))
        done += len(table)


def write(tables: Iterator[pa.Table], path: str) -> None:
    """Write the tables of one file, whose other columns have the types of the first table."""
    writer: pq.ParquetWriter | None = None
    schema = pa.schema([("id", pa.string()), *CANONICAL_TYPES.items(), (FAULT, pa.string())])
    try:
        for table in tables:
            if writer is None:
                schema = schema_of(table)
                writer = pq.ParquetWriter(path, schema, compression="zstd")
            writer.write_table(in_schema(table, schema))
        if writer is None:  # a file without rows
            pq.write_table(schema.empty_table(), path)
    finally:
        if writer is not None:
            writer.close()


def schema_of(table: pa.Table) -> pa.Schema:
    """The schema of a table with every canonical column, which a later table may have."""
    missing = [
        pa.field(name, kind) for name, kind in CANONICAL_TYPES.items() if name not in table.column_names
    ]
    return pa.schema([*table.schema.remove_metadata(), *missing])


def in_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with exactly the columns of `schema`; one that it lacks is null."""
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def faults_in(table: pa.Table) -> dict[int, Fault]:
    """The faults that a converted file keeps of its rows, by row; none of another file."""
    if FAULT not in table.column_names:
        return {}
    texts = table[FAULT].to_pylist()
    return {row: Fault(MALFORMED, text) for row, text in enumerate(texts) if text is not None}
