"""Canonical votes in memory: what training and its evaluation read."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from wsdm_ray.errors import DataError
from wsdm_ray.schema import MODEL_A, MODEL_B, TEXTS
from wsdm_ray.storage import list_files, open_parquet

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
    """All votes of canonical shards, in file order.

    Raises:
        DataError: a column is missing or of a wrong type, a text is null, a vote is neither model_a, model_b
            nor a soft label in 0..1, or there are no rows. The first row at fault is named by its id.
    """
    tables, labels, files = [], [], list_files(paths)
    for path in files:
        with open_parquet(path) as file:
            names = file.schema_arrow.names
            missing = [name for name in ("id", *TEXTS) if name not in names]
            if missing or not {"winner", "prob_a"} & set(names):
                what = ", ".join(missing) or "winner or prob_a"
                raise DataError(
                    f"{path}: no column {what}; make canonical shards with `python -m jobs.prepare`"
                )
            wanted = ("id", *TEXTS, "winner", "prob_a", "source")
            table = file.read([name for name in wanted if name in names])
        check_types(path, table)
        for name in TEXTS:
            if table.column(name).null_count:
                row = int(np.argmax(table.column(name).is_null().to_numpy()))
                raise DataError(
                    f"{path}: {name} of id {table['id'][row]} is null; run `python -m jobs.prepare`"
                )
        labels.append(prob_a_of(path, table))
        tables.append(table.select([name for name in ("id", *TEXTS, "source") if name in names]))
    if not sum(len(table) for table in tables):
        raise DataError(f"{paths[0]}: holds no votes")
    check_unique(files, tables)
    try:
        # One chunk with 64-bit offsets: a step's rows are then taken without copying the rest.
        table = pa.concat_tables(
            [wide(table) for table in like_ids(tables)], promote_options="permissive"
        ).combine_chunks()
        return Votes(table, np.concatenate(labels))
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"{paths[0]}: files of different types ({error}); prepare them in one run") from error


def like_ids(tables: list[pa.Table]) -> list[pa.Table]:
    """The tables with their ids as text, where some sets have text and others numbers."""
    if len({table.schema.field("id").type for table in tables}) == 1:
        return tables
    return [table.set_column(0, "id", table["id"].cast(pa.string())) for table in tables]


def check_unique(files: Sequence[str], tables: Sequence[pa.Table]) -> None:
    """Raise `DataError` for an id of two rows: a join by id would take the wrong row."""
    first_file: dict[str, str] = {}
    for path, table in zip(files, tables, strict=True):
        for name in table["id"].cast(pa.string()).to_pylist():
            if name in first_file:
                where = f"in {first_file[name]} too" if first_file[name] != path else "there twice"
                raise DataError(
                    f"{path}: id {name} stands {where}; ids must be unique over all sets: give one of them "
                    "other ids and prepare it again"
                )
            first_file[name] = path


def check_types(path: str, table: pa.Table) -> None:
    """Raise `DataError` where a text is no string or a soft label no number."""
    number, text = (pa.types.is_integer, pa.types.is_floating), (pa.types.is_string, pa.types.is_large_string)
    for name, fits, wanted in [*((name, text, "strings") for name in TEXTS), ("prob_a", number, "numbers")]:
        kind = table.schema.field(name).type if name in table.column_names else pa.null()
        if not (pa.types.is_null(kind) or any(of_kind(kind) for of_kind in fits)):
            raise DataError(f"{path}: {name} holds {kind}, not {wanted}; run `python -m jobs.prepare`")


def wide(table: pa.Table) -> pa.Table:
    """The table with its text columns as large strings."""
    for name in TEXTS:
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, table.column(name).cast(pa.large_string()))
    return table


def prob_a_of(path: str, table: pa.Table) -> np.ndarray:
    """The label of each row: float64 [N] in 0..1. A soft label wins over a winner."""
    labels = np.full(len(table), np.nan)
    if "winner" in table.column_names:
        winners = np.asarray(table.column("winner").to_pylist(), object)
        labels = np.select([winners == MODEL_A, winners == MODEL_B], [1.0, 0.0], np.nan)
    if "prob_a" in table.column_names:
        soft = table.column("prob_a").to_numpy().astype(np.float64)
        given = table.column("prob_a").is_valid().to_numpy()
        labels = np.where(given, soft, labels)
    wrong = np.flatnonzero(~((labels >= 0) & (labels <= 1)))
    if len(wrong):
        row = table.slice(int(wrong[0]), 1).to_pylist()[0]
        label = ", ".join(f"{name} {row[name]!r}" for name in ("winner", "prob_a") if name in row)
        raise DataError(
            f"{path}: id {row['id']} has {label}; winner must be {MODEL_A} or {MODEL_B}, prob_a in 0..1 "
            "(run `python -m jobs.prepare`)"
        )
    return labels
