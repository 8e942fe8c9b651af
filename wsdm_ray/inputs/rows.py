# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import)
"""Files of pairs to a stream of Arrow tables with the canonical columns: the one reader of every job.

Every table has `id`, the three texts and `winner`, `prob_a`, the model names, `language` and `source` where
the file or its folders have them, then the file's other columns as they are. Rows are never left out here:
one that is not of its format has null texts and a fault, and what follows from it is the job's to say. Not
covered: what labels mean (`data.cleaning`).
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from wsdm_ray.config import Columns, VoteFormat
from wsdm_ray.errors import DataError
from wsdm_ray.inputs.cells import MalformedRowError
from wsdm_ray.inputs.faults import MALFORMED, Fault
from wsdm_ray.inputs.files import InputFile, with_partitions
from wsdm_ray.inputs.formats import LABELS, formats_that_fit, winner_of_labels
from wsdm_ray.inputs.messages import count_media, looks_like_lists, text_of
from wsdm_ray.inputs.published import published_rows, warn_of_media
from wsdm_ray.inputs.streams import warn_once
from wsdm_ray.inputs.tables import read_tables
from wsdm_ray.inputs.values import Unreadable, ids_of, is_bytes, is_text, plain, plain_type, texts_of, typed
from wsdm_ray.schema import CANONICAL_TYPES, PAIR_COLUMNS, TEXTS
from wsdm_ray.telemetry import logger

__all__ = [
    "SAMPLE_ROWS",
    "Reading",
    "Rows",
    "canonical",
    "check_columns",
    "holds_lists",
    "lists_in",
    "made_ids",
    "own_columns",
    "read_rows",
    "warn_of_lists",
]


SAMPLE_ROWS = 100
"""First rows of a file by which it is decided whether its texts are lists."""

NAMES = ("model_a", "model_b", "language", "source")
"""Columns that some reports group by, and no job needs."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the files of an input are read.

    format: the published data set whose columns the files have, or canonical. columns: the names that a
    canonical file gives to its columns, in any case where that is clear. make_ids: rows get the ids NAME-ROW
    (counted from 0) where a file has no column of ids, NAME being its path below the input. labels: every
    file must have votes. others: the columns to pass on besides the canonical ones; None passes on all.
    """

    format: VoteFormat = "canonical"
    columns: Columns = dataclasses.field(default_factory=Columns)
    make_ids: bool = False
    labels: bool = True
    others: tuple[str, ...] | None = None

    def passed_on(self, table: pa.Table) -> pa.Table:
        """A canonical table without the other columns that are not asked for."""
        if self.others is None:
            return table
        aside = (f"input_{name}" for name in self.others)
        names = {"id", *CANONICAL_TYPES, *self.others, *aside}
        return table.select([name for name in table.column_names if name in names])


class Rows(NamedTuple):
    """Rows of one file: a table in canonical columns, and the fault of each row that has one, by row."""

    table: pa.Table
    faults: dict[int, Fault]


def read_rows(file: InputFile, reading: Reading) -> Iterator[Rows]:
    """The rows of one file, in order, with canonical names and types.

    Raises:
        DataError: the file cannot be parsed; a column is missing or of a wrong type; an id is null.
        StorageError: the file cannot be read.
    """
    read = canonical_rows if reading.format == "canonical" else rows_of_format
    for table, faults in read(file, reading):
        yield Rows(reading.passed_on(table), faults)


def rows_of_format(file: InputFile, reading: Reading) -> Iterator[Rows]:
    done = 0
    for table, faults in published_rows(
        file, reading.format, reading.make_ids, reading.labels, reading.others
    ):
        rows = canonical(table, file.path, Columns(), done)
        yield Rows(rows.table, faults | rows.faults)
        done += len(table)


def canonical_rows(file: InputFile, reading: Reading) -> Iterator[Rows]:
    columns, done, lists = reading.columns, 0, False
    media: Counter[str] = Counter()
    needed = spellings(columns)
    only = None if reading.others is None else {*needed, *LABELS, *reading.others}
    for part in read_tables(file.path, needed, only):
        table = with_partitions(part, file)
        if done == 0:
            columns = own_columns(table.column_names, columns)
            check_own(table.column_names, file, dataclasses.replace(reading, columns=columns), only)
            lists = holds_lists(table, columns)
            if lists:
                warn_of_lists(file.path)
        if columns.id not in table.column_names:
            if not reading.make_ids:  # a key that no object of this batch has
                raise DataError(f"{file.path}: row {done} (counted from 0) has no id")
            table = table.append_column(columns.id, made_ids(file, done, len(table)))
        if lists:
            for name in TEXTS:
                own = getattr(columns, name)
                count_media(values_of(table[own], own, file.path)[0], media)
        yield canonical(table, file.path, columns, done, lists)
        done += len(table)
    warn_of_media(file.path, media)


def check_own(names: list[str], file: InputFile, reading: Reading, only: Collection[str] | None) -> None:
    """`check_columns` of a file that was read for the columns `only`: an error names all that it has."""
    try:
        check_columns(names, file.path, reading)
    except DataError:
        if only is not None:
            whole = next(read_tables(file.path, set()), pa.table({}))
            check_columns(with_partitions(whole, file).column_names, file.path, reading)
        raise


def warn_of_lists(path: str) -> None:
    """Say that the texts of a file are not read as they are."""
    logger.warning(
        "%s: prompt and responses hold lists; their texts are joined as by --format lmsys-57k", path
    )


def own_columns(names: Sequence[str], columns: Columns) -> Columns:
    """The names of `columns` as a file with the columns `names` spells them: case decides only among several.

    Snowflake writes PROMPT for prompt; by hand, a header has spaces after its commas.
    """
    wanted = dataclasses.asdict(columns)
    free = [name for name in names if name not in wanted.values()]
    for field, name in wanted.items():
        alike = [other for other in free if other.strip().casefold() == name.strip().casefold()]
        if name not in names and len(alike) == 1:
            wanted[field] = alike[0]
    return Columns(**wanted)


def own_labels(names: Sequence[str]) -> list[str]:
    """The names of `LABELS` as a file spells them, by the rule of `own_columns`; all, or none."""
    own = []
    for label in LABELS:
        alike = [name for name in names if name.strip().casefold() == label]
        if label not in names and len(alike) != 1:
            return []
        own.append(label if label in names else alike[0])
    return own


def spellings(columns: Columns) -> set[str]:
    """The names of the columns, and how they are usually spelled where case means nothing."""
    names = dataclasses.asdict(columns).values()
    return {own for name in names for own in (name, name.lower(), name.upper(), name.title())}


def made_ids(file: InputFile, first_row: int, rows: int) -> pa.Array:
    """Ids for `rows` rows of a file from `first_row` on: its name and the number of the row."""
    return pa.array([f"{file.name}-{row}" for row in range(first_row, first_row + rows)], pa.string())


def check_columns(names: list[str], path: str, reading: Reading) -> None:
    """Raise `DataError` for a column that is needed, or was named on the command line, and is not there."""
    columns = reading.columns
    there = f"there are: {', '.join(names)}{formats_that_fit(names)}"
    defaults = Columns()
    for field in dataclasses.fields(columns):
        name = getattr(columns, field.name)
        option = f"--columns.{field.name.replace('_', '-')}=NAME"
        if names.count(name) > 1:
            raise DataError(f"{path}: has the column {name!r} {names.count(name)} times")
        if name in names or not (reading.labels or field.name in PAIR_COLUMNS):
            continue
        if field.name == "id":
            if not reading.make_ids:
                raise DataError(
                    f"{path}: no column {name!r} for the ids; give {option} or --make-ids; {there}"
                )
        elif field.name in TEXTS or name != getattr(defaults, field.name):
            hint = "" if field.name not in TEXTS else " or, for a published data set, --format"
            raise DataError(f"{path}: no column {name!r}; give {option}{hint}; {there}")
    labels = {columns.winner, columns.prob_a}
    if reading.labels and not labels & set(names) and not own_labels(names):
        raise DataError(
            f"{path}: no column {columns.winner!r} or {columns.prob_a!r} with the votes; "
            f"give --columns.winner=NAME or --columns.prob-a=NAME; {there}"
        )


def holds_lists(table: pa.Table, columns: Columns) -> bool:
    """Whether all three texts of a file's pairs are lists of turns or messages, as Arrow lists or JSON text.

    By the first rows of the file, which are those of the table: so a row is read alike with any others.
    """
    names = [getattr(columns, name) for name in TEXTS]
    return all(lists_in([table[name].slice(0, SAMPLE_ROWS)], name) for name in names)


def lists_in(parts: Iterable[pa.ChunkedArray], name: str) -> bool:
    """Whether a column that begins with `parts` holds lists; no part is taken after a text that is none."""
    texts: list[str | None] = []
    for part in parts:
        kind = plain_type(part.type)
        if pa.types.is_nested(kind):
            return True
        if not (is_text(kind) or is_bytes(kind)):
            return False
        new = texts_of(part, name, "")[0].to_pylist()
        if any(new) and not looks_like_lists([*texts, *new]):
            return False
        texts += new
    return looks_like_lists(texts)


def canonical(table: pa.Table, path: str, columns: Columns, first_row: int, lists: bool = False) -> Rows:
    """The same rows with the canonical columns first, in canonical types, then the others.

    A column that bears a canonical name but was not chosen for it passes through as `input_NAME`.

    Args:
        lists: the texts are lists of turns, as text or not.
    """
    own_names = {name: getattr(columns, name) for name in ("id", *CANONICAL_TYPES)}
    if columns.winner == columns.prob_a:
        del own_names["winner"]  # the column was named as one of probabilities
    chosen = set(own_names.values())
    given = {name: table[own] for name, own in own_names.items() if own in table.column_names}
    out = {"id": ids_of(given["id"], path, first_row, columns.id)}
    faults: dict[int, Fault] = {}
    for name in TEXTS:
        column = given.get(name, pa.chunked_array([pa.nulls(len(table))]))  # no object of this batch has it
        own = getattr(columns, name)
        if lists or pa.types.is_nested(plain_type(column.type)):
            values, unreadable = values_of(column, own, path)
            out[name], bad = each(text_of, values)
        else:
            out[name], unreadable = texts_of(column, own, path)
            bad = {}
        faults = {row: Fault(MALFORMED, f"{own} {why}", why) for row, why in unreadable} | bad | faults
    for name in CANONICAL_TYPES:
        if name not in TEXTS and name in given:
            out[name] = (named if name in NAMES else typed)(given[name], name, path)
    labels = own_labels(table.column_names)
    if labels and not {"winner", "prob_a"} & out.keys():
        marks = table.select(labels).rename_columns(list(LABELS))
        out["winner"], bad = each(winner_of_labels, marks.to_pylist())
        faults = bad | faults
    for name in table.column_names:
        if name not in chosen:
            free = name
            while free in out or free in CANONICAL_TYPES or (free != name and free in table.column_names):
                free = f"input_{free}"
            out[free] = table[name]
    return Rows(without_texts(pa.table(out), faults), faults)


def values_of(column: pa.ChunkedArray, name: str, path: str) -> tuple[list[Any], Unreadable]:
    """Lists of turns, as Arrow lists or JSON text, and the rows whose text cannot be read, which are null."""
    if pa.types.is_nested(plain_type(column.type)):
        return column.to_pylist(), []
    texts, unreadable = texts_of(column, name, path)
    return texts.to_pylist(), unreadable


def named(column: pa.ChunkedArray, name: str, path: str) -> pa.ChunkedArray:
    """A column of names as text; where it holds something else, as JSON, since no job stops for it."""
    try:
        return typed(column, name, path)
    except DataError as error:
        warn_once(f"{error}; it is read as text all the same, lists and objects as JSON")
    column = plain(column)
    values = (column.cast(pa.large_binary()) if is_text(column.type) else column).to_pylist()
    return pa.chunked_array([pa.array(map(name_text, values), pa.string())])


def name_text(value: Any) -> str | None:
    if value is None or isinstance(value, bytes):
        return None if value is None else value.decode(errors="replace")
    return json.dumps(value, ensure_ascii=False, default=str)


def each(
    read: Callable[[Any], str | None], values: Sequence[Any]
) -> tuple[pa.ChunkedArray, dict[int, Fault]]:
    """`read(value)` of each value as a column, null where it raises, and the faults of these rows."""
    texts: list[str | None] = []
    faults: dict[int, Fault] = {}
    for row, value in enumerate(values):
        try:
            texts.append(read(value))
        except MalformedRowError as error:
            texts.append(None)
            faults[row] = Fault(MALFORMED, str(error), error.reason)
    return pa.chunked_array([pa.array(texts, pa.string())]), faults


def without_texts(table: pa.Table, faults: dict[int, Fault]) -> pa.Table:
    """The table with null texts in rows that have a fault."""
    if not faults:
        return table
    sound = pa.array([row not in faults for row in range(len(table))])
    for name in TEXTS:
        texts = pc.if_else(sound, table[name].combine_chunks(), pa.scalar(None, pa.string()))
        table = table.set_column(table.column_names.index(name), name, texts)
    return table
