"""Files that are not canonical parquet, converted to it: rows can then be read from anywhere in a file."""

import atexit
import dataclasses
import functools
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from wsdm_ray.config import Columns
from wsdm_ray.errors import DataError
from wsdm_ray.inputs.each_file import EachFile, FileWork, each_here
from wsdm_ray.inputs.faults import MALFORMED, BadFiles, Fault, FaultCounts, ends_the_process
from wsdm_ray.inputs.files import InputFile
from wsdm_ray.inputs.formats import FORMATS
from wsdm_ray.inputs.parquet_rows import unchanged
from wsdm_ray.inputs.rows import Reading, read_rows
from wsdm_ray.inputs.tables import is_parquet
from wsdm_ray.schema import CANONICAL_TYPES
from wsdm_ray.storage import errors_for
from wsdm_ray.telemetry import logger

__all__ = ["FAULT", "ParquetInput", "faults_in", "is_added", "parquet_inputs"]

FAULT = "_wsdm_ray_fault"
"""Column of converted files: why a row cannot be scored, or null."""

ADDED = {b"wsdm_ray": b"added"}
"""Metadata of columns of converted files that the user's own file does not have."""


@dataclass(frozen=True, kw_only=True)
class ParquetInput:
    """A parquet file of canonical rows.

    columns: the names that it gives to its columns. make_ids: it may have no column of ids. converted: the
    path is of a temporary copy; `file.name` is still that of the file it was made of, `given` its path, and
    `renamed` its columns with other names in the copy, each with that name. errors_in_rows: what is damaged
    in it is an error of the rows that cannot be read, and else of the run. lists: its texts are lists of
    turns or messages (`holds_lists`).
    """

    file: InputFile
    columns: Columns
    make_ids: bool = False
    converted: bool = False
    given: str = ""
    renamed: tuple[tuple[str, str], ...] = ()
    errors_in_rows: bool = False
    lists: bool = False

    @property
    def shown(self) -> str:
        """The path for messages: that of the user's own file."""
        return self.given or self.file.path

    def name_of(self, name: str) -> str:
        """The name in the file of a column that the user's own file calls `name`."""
        return dict(self.renamed).get(name, name)

    def own_schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema of the file with the names of the user's own file."""
        own = {new: name for name, new in self.renamed}
        fields = [field for field in schema if not self.converted or not is_added(field)]
        return pa.schema([field.with_name(own.get(field.name, field.name)) for field in fields])


def parquet_inputs(
    files: Sequence[InputFile],
    reading: Reading,
    bad: BadFiles | None = None,
    each_file: EachFile = each_here,
) -> list[ParquetInput]:
    """Each file as canonical parquet: itself, or a temporary copy that lives as long as this process.

    Args:
        bad: takes files that cannot be converted, which are left out here. None: they are raised.
        each_file: calls what converts a file.

    Raises:
        DataError: a file cannot be read, or most rows of all files are malformed.
    """
    skip = bad is not None and bad.skip
    others = [file for file in files if reading.format != "canonical" or not is_parquet(file.path)]
    copies = conversions(others, reading, each_file) if others else {}
    counts = FaultCounts()
    inputs = []
    for file in files:
        made = copies.get(file)
        if made is None:
            as_it_is = ParquetInput(
                file=file, columns=reading.columns, make_ids=reading.make_ids, errors_in_rows=skip
            )
            inputs.append(as_it_is)
        elif isinstance(made, Converted):
            counts.include(made.counts)
            inputs.append(
                ParquetInput(
                    file=dataclasses.replace(file, path=made.path, partitions=(), version=None),
                    columns=Columns(),
                    converted=True,
                    given=file.path,
                    renamed=renamed(reading),
                )
            )
        elif bad is None:
            raise made
        else:
            bad.add(file.path, made)
    if counts.rows:
        logger.info("%d rows converted to parquet", counts.rows)
    counts.check()
    return inputs


class Converted(NamedTuple):
    """The copy of a file, and what is wrong with its rows."""

    path: str
    counts: FaultCounts


def conversions(
    files: Sequence[InputFile], reading: Reading, each_file: EachFile
) -> dict[InputFile, Converted | DataError]:
    """The copy of each file, or why there is none."""
    folder = scratch_folder()
    targets = [os.path.join(folder, f"{number:06d}.parquet") for number in range(len(files))]
    found: dict[InputFile, Converted | DataError] = {}

    def take(place: int, made: FaultCounts | DataError) -> None:
        found[files[place]] = made if isinstance(made, DataError) else Converted(targets[place], made)

    work = FileWork(
        function=functools.partial(converted, reading),
        died=lambda given, reason: ends_the_process(given[0].path, reason),
    )
    each_file(work, list(zip(files, targets, strict=True)), take)
    return found


def converted(reading: Reading, given: tuple[InputFile, str]) -> FaultCounts | DataError:
    """Convert a file to one at the path `given` with it; gives what is wrong with its rows, or with it."""
    file, target = given
    with unchanged(file), errors_for(os.path.dirname(target)):
        try:
            return convert(file, reading, target)
        except DataError as error:
            return error


def renamed(reading: Reading) -> tuple[tuple[str, str], ...]:
    """The columns whose names a conversion changes, each with its new name."""
    canonical = ("id", *CANONICAL_TYPES)
    if reading.format == "canonical":
        chosen = {getattr(reading.columns, name): name for name in canonical}
    else:
        form = FORMATS[reading.format]
        chosen = {form.id: "id"} | {name: name for name in form.kept}
    aside = {name: f"input_{name}" for name in canonical if name not in chosen}
    return tuple((name, new) for name, new in (chosen | aside).items() if name != new)


def scratch_folder() -> str:
    """A new folder for temporary files of this process, which deletes it when it ends."""
    folder = tempfile.mkdtemp(prefix="wsdm_ray_inputs_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def convert(file: InputFile, reading: Reading, target: str) -> FaultCounts:
    """Write the rows of one file as parquet; gives the counts of malformed rows."""
    try:
        counts = FaultCounts()
        write(with_faults(read_rows(file, reading), file.path, counts), target)
    except IdsChangeError:
        counts = FaultCounts()
        as_text = (
            (table.set_column(0, "id", table["id"].cast(pa.string())), faults)
            for table, faults in read_rows(file, reading)
        )
        write(with_faults(as_text, file.path, counts), target)
    return counts


class IdsChangeError(Exception):
    """Ids are integers in one table of a file, and text in a later one: both are to be text."""


def with_faults(
    tables: Iterable[tuple[pa.Table, dict[int, Fault]]], path: str, counts: FaultCounts
) -> Iterator[pa.Table]:
    """The tables of one file with the column `FAULT`; malformed rows are counted."""
    done = 0
    for table, faults in tables:
        counts.add(len(table), faults, path, done, table["id"])
        texts = [str(faults[row]) if row in faults else None for row in range(len(table))]
        table = table.rename_columns({FAULT: f"input_{FAULT}"} if FAULT in table.column_names else {})
        yield table.append_column(FAULT, pa.array(texts, pa.string()))
        done += len(table)


def write(tables: Iterator[pa.Table], path: str) -> None:
    """Write the tables of one file, whose other columns have the types of the first table.

    Raises:
        IdsChangeError: the ids of a later table have another type.
    """
    schema = pa.schema([("id", pa.string()), *CANONICAL_TYPES.items(), (FAULT, pa.string())])
    first = next(tables, schema.empty_table())
    schema = schema_of(first)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in itertools.chain([first], tables):
            if table.schema.field("id").type != schema.field("id").type:
                raise IdsChangeError
            writer.write_table(in_schema(table, schema))


def schema_of(table: pa.Table) -> pa.Schema:
    """The schema of a table with every canonical column; those that it lacks are marked (`ADDED`)."""
    missing = [
        pa.field(name, kind, metadata=ADDED)
        for name, kind in CANONICAL_TYPES.items()
        if name not in table.column_names
    ]
    return pa.schema([*table.schema.remove_metadata(), *missing])


def is_added(field: pa.Field) -> bool:
    """Whether a column of a converted file is not the user's."""
    return field.name == FAULT or (field.metadata or {}).items() >= ADDED.items()


def in_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with exactly the columns of `schema`; one that it lacks is null."""
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def faults_in(table: pa.Table, source: ParquetInput) -> dict[int, Fault]:
    """The faults that a converted file keeps of its rows, by row; none of another file."""
    if not source.converted:  # a column of that name is the user's
        return {}
    texts = table[FAULT].to_pylist()
    return {row: Fault(MALFORMED, text) for row, text in enumerate(texts) if text is not None}
