"""Predictions and votes, joined by id and never by position.

Of the texts, read batch by batch, only lengths and a hash of the prompt are kept; `read_pairs` fetches the
few that a report shows. Not covered: metrics.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from wsdm_ray.config import Columns
from wsdm_ray.errors import DataError
from wsdm_ray.schema import MODEL_A, MODEL_B, Ordering, first_ordering, predictions_schema
from wsdm_ray.statistics import Floats
from wsdm_ray.storage import list_files, open_parquet
from wsdm_ray.text.groups import prompt_group_key

__all__ = ["Joined", "join_by_id", "read_pairs", "read_predictions", "read_votes"]

pc: Any = pyarrow.compute  # its functions are made at import, unseen by type checkers

BATCH_ROWS = 2_000
SHOWN = 5
"""A message names at most so many ids."""

NAMES = ("language", "source", "model_a", "model_b")
"""Columns of the votes by which metrics are grouped."""

VOTES_SCHEMA = [
    ("label", pa.float64()),
    ("best_prob_a", pa.float64()),
    ("language", pa.string()),
    ("source", pa.string()),
    ("model_a", pa.string()),
    ("model_b", pa.string()),
    ("characters_a", pa.int64()),
    ("characters_b", pa.int64()),
    ("group", pa.uint64()),
    ("ba_first", pa.bool_()),
]


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
            schema = predictions_schema(id_type(path, file.schema_arrow.field("id").type))
            table = file.read(columns=[name for name in schema.names if name in names])
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


def read_votes(paths: Sequence[str], columns: Columns) -> pa.Table:
    """What the metrics need of the votes: `id`, then the columns of `VOTES_SCHEMA`; ids unique.

    `prob_a` wins over `winner` where a row has both.

    Raises:
        StorageError: a path does not exist or holds no parquet file.
        DataError: a column is missing, a winner is unknown, a label is missing or outside 0..1, an id is null
            or there twice, there are no rows.
    """
    tables = [digest(path, batch, columns) for path, batch in batches(paths, columns)]
    where = ", ".join(paths)
    table = concatenate(where, tables)
    for name in ("label", "best_prob_a"):
        check_probabilities(where, table, name, title=columns.prob_a if name == "label" else name)
    return table


def batches(paths: Sequence[str], columns: Columns) -> Iterator[tuple[str, pa.Table]]:
    for path in list_files(paths):
        with open_parquet(path) as file:
            names = file.schema_arrow.names
            texts = ("prompt", "response_a", "response_b")
            check_columns(path, names, [getattr(columns, name) for name in ("id", *texts)], mapped=True)
            if not {columns.winner, columns.prob_a} & set(names):
                raise DataError(
                    f"{path}: no column {columns.winner!r} nor {columns.prob_a!r}, so no votes (it has"
                    f" {', '.join(names)}); name one with --columns.winner or --columns.prob-a"
                )
            optional = {name: getattr(columns, name) for name in ("winner", "prob_a", *NAMES)}
            wanted = {name: getattr(columns, name) for name in ("id", *texts)} | {
                name: own for name, own in (optional | {"best_prob_a": "best_prob_a"}).items() if own in names
            }
            for batch in file.iter_batches(BATCH_ROWS, columns=list(dict.fromkeys(wanted.values()))):
                yield path, pa.table({name: batch[own] for name, own in wanted.items()})


def digest(path: str, table: pa.Table, columns: Columns) -> pa.Table:
    """One batch of votes without its texts."""
    ids = conform(path, table.select(["id"]), pa.schema([("id", id_type(path, table["id"].type))]))["id"]
    prompts, answers_a, answers_b = (
        texts(cast(path, getattr(columns, name), table[name], pa.large_string()))
        for name in ("prompt", "response_a", "response_b")
    )
    columns_out = {
        "id": ids,
        "label": labels(path, table, columns),
        "characters_a": pa.array([len(text) for text in answers_a], pa.int64()),
        "characters_b": pa.array([len(text) for text in answers_b], pa.int64()),
        "group": pa.array([group_of(text) for text in prompts], pa.uint64()),
        "ba_first": pa.array(
            [first_ordering(*pair) is Ordering.BA for pair in zip(answers_a, answers_b, strict=True)],
            pa.bool_(),
        ),
    } | {name: table[name] for name in ("best_prob_a", *NAMES) if name in table.column_names}
    return conform(path, pa.table(columns_out), pa.schema([("id", ids.type), *VOTES_SCHEMA]))


def texts(column: pa.ChunkedArray) -> list[str]:
    """Strings of a text column: null becomes empty, and bytes that are not UTF-8 a replacement character."""
    return [
        (value or b"").decode("utf-8", errors="replace")
        for value in column.cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
    ]


def group_of(prompt: str) -> int:
    """A hash of the prompt group, uint64: rows of one group are resampled together and share their half."""
    key = prompt_group_key(prompt).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def labels(path: str, table: pa.Table, columns: Columns) -> pa.Array | pa.ChunkedArray:
    """Soft labels where there are any, else 1 and 0 by the winner."""
    label = pa.nulls(table.num_rows, pa.float64())
    if "winner" in table.column_names:
        winner = cast(path, columns.winner, table["winner"], pa.string())
        known = pc.is_in(winner, pa.array([MODEL_A, MODEL_B]))
        label = pc.if_else(known, pc.equal(winner, MODEL_A).cast(pa.float64()), label)
    if "prob_a" in table.column_names:
        label = pc.coalesce(cast(path, columns.prob_a, table["prob_a"], pa.float64()), label)
    unknown = pc.is_null(label)
    if count := pc.sum(unknown).as_py():
        value = table["winner"].filter(unknown)[0].as_py() if "winner" in table.column_names else None
        raise DataError(
            f"{path}: {columns.winner} is {value!r} with no {columns.prob_a} ({count:,} rows of a batch;"
            f" {ids_where(table, unknown)}); must be {MODEL_A} or {MODEL_B}: `python -m jobs.prepare` reads"
            " other spellings and ties"
        )
    return label


def join_by_id(predictions: pa.Table, votes: pa.Table) -> Joined:
    """Each vote with its prediction, in order of the ids, whatever the order of either input.

    Raises:
        DataError: ids of different types, votes without a prediction, predictions without a vote, or no row
            that has a probability.
    """
    if predictions.schema.field("id").type != votes.schema.field("id").type:
        raise DataError(
            f"ids are {predictions.schema.field('id').type} in the predictions"
            f" ({shown(predictions['id'])}) and {votes.schema.field('id').type} in the votes"
            f" ({shown(votes['id'])}), so they cannot be joined; give both the same type"
        )
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
    errors = Counter(both["error"].drop_null().to_pylist())
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
    )


def read_pairs(paths: Sequence[str], columns: Columns, ids: Sequence[Any]) -> dict[Any, dict[str, str]]:
    """`prompt`, `response_a` and `response_b` of a few ids; only row groups that hold one are read."""
    if not ids:
        return {}
    wanted = pa.array(ids)
    names = {name: getattr(columns, name) for name in ("prompt", "response_a", "response_b")}
    pairs_by_id: dict[Any, dict[str, str]] = {}
    for path in list_files(paths):
        with open_parquet(path) as file:
            for group in range(file.num_row_groups):
                own = file.read_row_group(group, columns=[columns.id])[columns.id].cast(wanted.type)
                rows = pc.indices_nonzero(pc.is_in(own, wanted))
                if not len(rows):
                    continue
                table = file.read_row_group(group, columns=list(dict.fromkeys(names.values()))).take(rows)
                pairs = zip(*(texts(table[column]) for column in names.values()), strict=True)
                for key, pair in zip(own.take(rows).to_pylist(), pairs, strict=True):
                    pairs_by_id[key] = dict(zip(names, pair, strict=True))
    return pairs_by_id


def floats(column: pa.ChunkedArray) -> Floats:
    return column.cast(pa.float64()).to_numpy()


def shown(ids: pa.ChunkedArray) -> str:
    first = ", ".join(repr(value) for value in ids.slice(0, SHOWN).to_pylist())
    return f"first ids: {first}" if len(ids) > 1 else f"id {first}"


def ids_where(table: pa.Table, mask: pa.ChunkedArray | pa.Array) -> str:
    return shown(table["id"].filter(mask))


def id_type(path: str, given: pa.DataType) -> pa.DataType:
    """int64 for integers of any width, string for text."""
    if pa.types.is_dictionary(given):
        given = given.value_type
    if pa.types.is_integer(given):
        return pa.int64()
    if pa.types.is_string(given) or pa.types.is_large_string(given) or pa.types.is_string_view(given):
        return pa.string()
    raise DataError(f"{path}: ids are {given}; must be integers or strings")


def check_columns(path: str, names: Sequence[str], needed: Iterable[str], *, mapped: bool = False) -> None:
    if missing := [name for name in needed if name not in names]:
        remedy = "name yours with --columns.NAME" if mapped else "give the output folder of jobs.score"
        raise DataError(
            f"{path}: no column {', '.join(map(repr, missing))} (it has {', '.join(names)}); {remedy}"
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
    types = {str(table.schema.field("id").type) for table in tables}
    if len(types) > 1:
        raise DataError(f"{where}: ids are {' in some files and '.join(sorted(types))} in others")
    table = pa.concat_tables(tables) if tables else None
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


def check_probabilities(where: str, table: pa.Table, name: str, title: str | None = None) -> None:
    column = table[name]
    outside = pc.fill_null(
        pc.invert(pc.and_(pc.greater_equal(column, 0), pc.less_equal(column, 1))), False
    )  # NaN compares as false, so it is outside
    if count := pc.sum(outside).as_py():
        value = column.filter(outside)[0].as_py()
        raise DataError(
            f"{where}: values of {title or name} outside 0..1: {count:,}"
            f" ({value}; {ids_where(table, outside)})"
        )
