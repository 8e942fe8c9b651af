"""Predictions and votes, joined by id and never by position.

Not covered: how votes are read (`votes`), metrics.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from wsdm_ray.errors import DataError
from wsdm_ray.inputs.values import id_type, ids_of, with_common_ids
from wsdm_ray.schema import predictions_schema
from wsdm_ray.statistics import Floats
from wsdm_ray.storage import list_files, open_parquet

__all__ = ["Joined", "join_by_id", "read_predictions"]

pc: Any = pyarrow.compute  # its functions are made at import, unseen by type checkers

BATCH_ROWS = 2_000
SHOWN = 5
"""A message names at most so many ids."""


class Joined(NamedTuple):
    """Rows that have both a vote and a probability, in order of their ids, and what was left out.

    Arrays are (N,), with NaN or None where an input has no value.
    """

    ids: list[Any]
    prob: Floats
    """Predicted probability that response_a wins."""
    prob_ab: Floats
    prob_ba: Floats
    label: Floats
    """1 where response_a won, 0 where response_b did, or the soft label."""
    best_prob: Floats
    """The true probability, where the votes know it."""
    tokens: Floats
    cut_tokens: Floats
    language: NDArray[np.object_]
    source: NDArray[np.object_]
    model_a: NDArray[np.object_]
    """The name of the model that wrote response_a."""
    model_b: NDArray[np.object_]
    characters_a: NDArray[np.int64]
    """Length of response_a in characters."""
    characters_b: NDArray[np.int64]
    group: NDArray[np.uint64]
    """Hash of the prompt group (`prompt_group_key`)."""
    ba_first: NDArray[np.bool_]
    """Where `ba` is the ordering that scoring runs first."""
    errors: Counter[str]
    """Why rows have no probability, with their number; these rows are in none of the arrays."""
    failed_ids: list[Any]
    """The ids of these rows."""
    left_out: Counter[str]
    """Why votes say nothing of a winner, such as ties, with their number; they are in none of the arrays."""


def read_predictions(folder: str) -> pa.Table:
    """All predictions in `folder`, with the columns of `predictions_schema` and ids unique.

    Raises:
        StorageError: no such folder, or no parquet file in it.
        DataError: `id` or `prob_a` is missing, a row has neither a probability nor an error, a probability is
            outside 0..1, an id is null or there twice.
    """
    tables = []
    for path in list_files(folder):
        with open_parquet(path) as file:
            names = file.schema_arrow.names
            check_columns(path, names, ("id", "prob_a"))
            schema = predictions_schema(id_type(file.schema_arrow.field("id").type, path))
            table = file.read(columns=[name for name in schema.names if name in names])
            table = table.set_column(table.column_names.index("id"), "id", ids_of(table["id"], path, 0))
            tables.append(conform(path, table, schema))
    table = concatenate(folder, tables)
    unexplained = pc.and_(pc.is_null(table["prob_a"], nan_is_null=True), pc.is_null(table["error"]))
    if count := pc.sum(unexplained).as_py():
        raise DataError(
            f"{folder}: rows with neither prob_a nor error: {count:,} ({ids_where(table, unexplained)});"
            " score them again"
        )
    for name in ("prob_a", "prob_a_ab", "prob_a_ba"):
        check_probabilities(folder, table, name)
    return table


def join_by_id(predictions: pa.Table, votes: pa.Table) -> Joined:
    """Each vote with its prediction, in order of the ids, whatever the order of either input.

    Where one has integers for ids and the other text, an integer is its spelling.

    Raises:
        DataError: votes without a prediction, predictions without a vote, no vote that names a winner, or no
            row that has a probability.
    """
    predictions, votes = with_common_ids([predictions, votes])
    missing = votes["id"].filter(pc.invert(pc.is_in(votes["id"], predictions["id"])))
    extra = predictions["id"].filter(pc.invert(pc.is_in(predictions["id"], votes["id"])))
    if len(missing) or len(extra):
        parts = [
            f"{len(ids):,} of {of.num_rows:,} {what} ({shown(ids)})"
            for ids, of, what in (
                (missing, votes, "votes have no prediction"),
                (extra, predictions, "predictions have no vote"),
            )
            if len(ids)
        ]
        raise DataError(f"{' and '.join(parts)}; give the votes of exactly the rows that were scored")
    both = predictions.sort_by("id")
    for name, column in zip(votes.column_names, votes.sort_by("id").columns, strict=True):
        both = both.append_column(name, column) if name != "id" else both
    left_out = Counter(both["left_out"].drop_null().to_pylist())
    both = both.filter(pc.is_null(both["left_out"]))
    if not both.num_rows:
        why = ", ".join(f"{reason} {count:,}" for reason, count in left_out.most_common())
        raise DataError(f"no vote names a winner ({why})")
    errors = Counter(both["error"].drop_null().to_pylist())
    failed_ids = both["id"].filter(pc.is_valid(both["error"])).to_pylist()
    both = both.filter(pc.is_null(both["error"]))
    if not both.num_rows:
        first, _ = errors.most_common(1)[0]
        raise DataError(f"all {errors.total():,} predictions carry an error (most often: {first})")
    return Joined(
        ids=both["id"].to_pylist(),
        prob=floats(both["prob_a"]),
        prob_ab=floats(both["prob_a_ab"]),
        prob_ba=floats(both["prob_a_ba"]),
        label=floats(both["label"]),
        best_prob=floats(both["best_prob_a"]),
        tokens=floats(both["tokens"]),
        cut_tokens=floats(both["cut_tokens"]),
        language=both["language"].to_numpy(),
        source=both["source"].to_numpy(),
        model_a=both["model_a"].to_numpy(),
        model_b=both["model_b"].to_numpy(),
        characters_a=both["characters_a"].to_numpy(),
        characters_b=both["characters_b"].to_numpy(),
        group=both["group"].to_numpy(),
        ba_first=both["ba_first"].to_numpy(),
        errors=errors,
        failed_ids=failed_ids,
        left_out=left_out,
    )


def floats(column: pa.ChunkedArray) -> Floats:
    return column.cast(pa.float64()).to_numpy()


def shown(ids: pa.ChunkedArray) -> str:
    first = ", ".join(repr(value) for value in ids.slice(0, SHOWN).to_pylist())
    return f"first ids: {first}" if len(ids) > 1 else f"id {first}"


def ids_where(table: pa.Table, mask: pa.ChunkedArray | pa.Array) -> str:
    return shown(table["id"].filter(mask))


def check_columns(path: str, names: Sequence[str], needed: Iterable[str]) -> None:
    """Raise `DataError` where predictions lack a column."""
    if missing := [name for name in needed if name not in names]:
        raise DataError(
            f"{path}: no column {', '.join(map(repr, missing))} (it has {', '.join(names)}); "
            "give the output folder of jobs.score"
        )


def cast(path: str, name: str, column: pa.ChunkedArray, to: pa.DataType) -> pa.ChunkedArray:
    try:
        return column.cast(to)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{path}: column {name} is {column.type}, not {to} ({error})") from error


def conform(path: str, table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with exactly the columns and types of `schema`; a column that it lacks is null."""
    return pa.table(
        [
            cast(path, field.name, table[field.name], field.type)
            if field.name in table.column_names
            else pa.nulls(table.num_rows, field.type)
            for field in schema
        ],
        schema=schema,
    )


def concatenate(where: str, tables: list[pa.Table]) -> pa.Table:
    """One table with at least one row and with unique ids."""
    table = pa.concat_tables(with_common_ids(tables)) if tables else None
    if table is None or not table.num_rows:
        raise DataError(f"{where}: no rows")
    if table["id"].null_count:
        raise DataError(f"{where}: null ids: {table['id'].null_count:,}; every row needs its own id")
    counts = pc.value_counts(table["id"])
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        raise DataError(
            f"{where}: ids that appear more than once: {len(repeated):,} ({shown(repeated)});"
            " every row needs its own id"
        )
    return table


def check_probabilities(where: str, table: pa.Table, name: str) -> None:
    """Raise `DataError` where a value of a column is outside 0..1, or NaN."""
    column = table[name]
    outside = pc.fill_null(
        pc.invert(pc.and_(pc.greater_equal(column, 0), pc.less_equal(column, 1))), False
    )  # NaN compares as false, so it is outside
    if count := pc.sum(outside).as_py():
        value = column.filter(outside)[0].as_py()
        raise DataError(
            f"{where}: values of {name} outside 0..1: {count:,} ({value}; {ids_where(table, outside)})"
        )
