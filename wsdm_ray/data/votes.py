"""Canonical votes in memory: what training and its evaluation read."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from wsdm_ray.data.cleaning import labels as labels_of
from wsdm_ray.data.cleaning import probability_of_a
from wsdm_ray.errors import DataError
from wsdm_ray.inputs.files import list_inputs
from wsdm_ray.inputs.rows import Reading, Rows, read_rows
from wsdm_ray.inputs.values import with_common_ids
from wsdm_ray.schema import MODEL_A, MODEL_B, TEXTS

__all__ = ["NO_SOURCE", "Votes", "read_votes"]

NO_SOURCE = "(none)"
"""What rows without a source are called, where sources are named."""


@dataclass(frozen=True)
class Votes:
    """N votes: `table` has id, prompt, response_a, response_b and maybe source.

    prob_a_N: float64 [N], a winner being 1 or 0.
    """

    table: pa.Table
    prob_a_N: np.ndarray

    def __len__(self) -> int:
        return len(self.table)

    def take(self, rows: np.ndarray) -> "Votes":
        """The votes of `rows` (int [n]), in that order; a row may be taken more than once."""
        return Votes(self.table.take(pa.array(rows, pa.int64())).combine_chunks(), self.prob_a_N[rows])

    @property
    def sources_N(self) -> np.ndarray:
        """The source of each vote, `NO_SOURCE` where it has none: object [N]."""
        if "source" not in self.table.column_names:
            return np.full(len(self), NO_SOURCE, object)
        return np.array([source or NO_SOURCE for source in self.table["source"].to_pylist()], object)

    def texts(self, rows: np.ndarray) -> tuple[list[str], list[str], list[str]]:
        """Prompts, responses a and responses b of `rows` (int [n]), in that order."""
        taken = self.table.take(pa.array(rows, pa.int64()))
        prompts, a, b = (taken.column(name).to_pylist() for name in TEXTS)
        return prompts, a, b


def read_votes(paths: Sequence[str]) -> Votes:
    """All votes of `paths` (files, folders, globs), in file order.

    Raises:
        DataError: a column is missing or of a wrong type, a text is null, a row has no winner (a tie has
            none) and no soft label, an id is there twice, or there are no rows. The first row at fault is
            named by its id.
    """
    tables: list[pa.Table] = []
    labels: list[np.ndarray] = []
    tables_of: list[str] = []
    for file in list_inputs(paths):
        for rows in read_rows(file, Reading(others=())):
            check_texts(file.path, rows)
            table = rows.table
            labels.append(prob_a_of(file.path, table))
            wanted = [name for name in ("id", *TEXTS, "source") if name in table.column_names]
            tables.append(table.select(wanted))
            tables_of.append(file.path)
    if not tables:
        raise DataError(f"{paths[0]}: holds no votes")
    check_unique(tables_of, tables)
    # One chunk with 64-bit offsets: a step's rows are then taken without copying the rest.
    table = pa.concat_tables([wide(table) for table in with_common_ids(tables)], promote_options="permissive")
    return Votes(table.combine_chunks(), np.concatenate(labels))


def check_unique(files: Sequence[str], tables: Sequence[pa.Table]) -> None:
    """Raise `DataError` for an id of two rows: a join by id would take the wrong row."""
    first_file: dict[str, str] = {}
    for path, table in zip(files, tables, strict=True):
        for name in table["id"].cast(pa.string()).to_pylist():
            if name in first_file:
                where = f"in {first_file[name]} too" if first_file[name] != path else "there twice"
                raise DataError(
                    f"{path}: id {name} is {where}; ids must be unique over all sets: give one of them "
                    "other ids and prepare it again"
                )
            first_file[name] = path


def check_texts(path: str, rows: Rows) -> None:
    """Raise `DataError` for the first row whose text is missing."""
    remedy = "run `python -m jobs.prepare`"
    for row, fault in sorted(rows.faults.items()):
        raise DataError(f"{path}: id {rows.table['id'][row]}: {fault}; {remedy}")
    for name in TEXTS:
        if rows.table[name].null_count:
            row = int(np.argmax(rows.table[name].is_null().to_numpy()))
            raise DataError(f"{path}: {name} of id {rows.table['id'][row]} is null; {remedy}")


def wide(table: pa.Table) -> pa.Table:
    """The table with its text columns as large strings."""
    for name in TEXTS:
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, table.column(name).cast(pa.large_string()))
    return table


def prob_a_of(path: str, table: pa.Table) -> np.ndarray:
    """The label of each row: float64 [N] in 0..1. A soft label wins over a winner."""
    labelled = labels_of(table, path, "drop")
    wrong = np.flatnonzero(labelled.no_label | labelled.tie)
    if len(wrong):
        row = table.slice(int(wrong[0]), 1).to_pylist()[0]
        label = ", ".join(f"{name} {row[name]!r}" for name in ("winner", "prob_a") if name in row)
        raise DataError(
            f"{path}: id {row['id']} has {label}; winner must be {MODEL_A} or {MODEL_B}, prob_a in 0..1 "
            "(run `python -m jobs.prepare`)"
        )
    return probability_of_a(labelled.table)
