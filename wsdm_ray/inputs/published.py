# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import)
"""Published data sets as they are published, to canonical rows: `prepare --format NAME`.

What a row of each format is, and how it becomes a vote, is in `formats`. A row whose two sides have different
prompts is marked, and `prepare` drops and counts it as `different_prompts`.

Of chosen and rejected, a hash of the row's id decides which is response_a: so the label is not constant, and
does not depend on the order of the files. The `prompt_id` of ultrafeedback is that of a prompt; another row
of the file with the same one gets the id PROMPT_ID-1.

`source` is the format's name where the file has none. Columns from which the texts and the winner are made,
and columns that repeat these (`prompt` and `messages` of ultrafeedback, `prompt` of orpo-dpo-mix), are not
passed on. Another column with a canonical name is passed on as `input_NAME`, such as the `source` of
orpo-dpo-mix, which names the set within the mix. Not covered: what the values mean (`cleaning`), which
rows are the same (`splitting`).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wsdm_ray.config import Columns
from wsdm_ray.errors import DataError
from wsdm_ray.inputs.formats import FORMATS, NO_TEXTS, PublishedFormat, Vote
from wsdm_ray.inputs.rows import canonical, made_ids
from wsdm_ray.inputs.tables import read_tables
from wsdm_ray.inputs.values import ids_of
from wsdm_ray.schema import CANONICAL_TYPES, MODEL_A, MODEL_B, PAIR_COLUMNS, TEXTS
from wsdm_ray.text.digests import digests

__all__ = ["chosen_is_a", "read_published"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of one file as they are published, with their ids."""

    table: pa.Table
    path: str
    first_row: int
    """Number of the first row in the file, from 0."""
    ids: list[Any]
    rows: list[dict[str, Any]]
    """What the votes are made of, in the columns that the format reads."""


def read_published(path: str, name: str, *, make_ids: bool = False) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """The rows of one file of a published data set, in order, in tables with canonical names and types.

    Args:
        name: one of `FORMATS`.
        make_ids: give rows ids also where the format has a column for them and the file has none.

    Returns:
        Tables, each with a bool array of one value a row: whether the two sides have different prompts. The
        texts of such rows are null.

    Raises:
        DataError: a column is missing, or a row is not of the format; the message names the row.
        StorageError: the file cannot be read.
    """
    form = FORMATS[name]
    ids_made = False
    seen: Counter[str] = Counter()
    done = 0
    for table in read_tables(path):
        if done == 0:
            check_columns(table.column_names, path, name, make_ids)
            ids_made = form.id not in table.column_names
        ids = made_ids(path, done, len(table)) if ids_made else ids_in_file(table, path, form.id, done)
        if form.id_of_prompt and not ids_made:
            ids = [numbered_id(id, seen) for id in ids]
        names = [name for name in (*form.read, *form.passed) if name in table.column_names]
        rows = table.select(names).to_pylist()
        batch = paired(Batch(table=table, path=path, first_row=done, ids=ids, rows=rows), form)
        votes = votes_of(batch, form)
        canonical_table = canonical_votes(batch, votes, form, id_column="" if ids_made else form.id)
        yield with_source(canonical_table, name), np.array([vote is None for vote in votes], bool)
        done += len(table)


def check_columns(names: list[str], path: str, form_name: str, make_ids: bool) -> None:
    """Raise `DataError` for a column that the format needs and the file does not have, or has twice."""
    form = FORMATS[form_name]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: has the column {twice!r} {names.count(twice)} times")
    wanted = (*form.needed, *form.labels)
    wanted = (form.id, *wanted) if form.id_needed and not make_ids else wanted
    missing = [name for name in wanted if name not in names]
    if missing:
        hint = "; --make-ids makes ids" if missing == [form.id] else ""
        raise DataError(
            f"{path}: no column {', '.join(map(repr, missing))}, which --format {form_name} needs{hint}; "
            f"there are: {', '.join(names)}"
        )


def ids_in_file(table: pa.Table, path: str, name: str, first_row: int) -> list[int | str]:
    """The ids of the rows. Raises `DataError` where a row has none."""
    column = (
        table[name] if name in table.column_names else pa.chunked_array([pa.nulls(len(table), pa.string())])
    )
    return ids_of(column, path, first_row).to_pylist()


def numbered_id(id: int | str, seen: Counter[str]) -> str:
    """The id itself for the first row that has it, ID-1, ID-2, ... for the others."""
    id = str(id)
    number = seen[id]
    seen[id] += 1
    return f"{id}-{number}" if number else id


def paired(batch: Batch, form: PublishedFormat) -> Batch:
    """The batch with one row a pair: the pairs of a row that has several get the ids ID-1, ID-2, ..."""
    pairs = [form.pairs(row) for row in batch.rows]
    if all(len(several) == 1 for several in pairs):
        return replace(batch, rows=[row for several in pairs for row in several])
    places = [place for place, several in enumerate(pairs) for _ in several]
    ids = [
        f"{id}-{number}" if len(several) > 1 else str(id)
        for id, several in zip(batch.ids, pairs, strict=True)
        for number in range(1, len(several) + 1)
    ]
    rows = [row for several in pairs for row in several]
    return replace(batch, table=batch.table.take(places), ids=ids, rows=rows)


def votes_of(batch: Batch, form: PublishedFormat) -> list[Vote | None]:
    """The vote of each row, None where its two sides have different prompts, with its sides decided."""
    votes: list[Vote | None] = []
    for place, row in enumerate(batch.rows):
        try:
            votes.append(form.vote(row))
        except DataError as error:
            number = batch.first_row + place
            raise DataError(
                f"{batch.path}: row {number} (counted from 0; id {batch.ids[place]}): {error}"
            ) from error
    if not form.chosen:
        return votes
    return [
        vote if first or vote is None else swapped(vote)
        for vote, first in zip(votes, chosen_is_a(batch.ids).tolist(), strict=True)
    ]


def chosen_is_a(ids: list[Any]) -> np.ndarray:
    """Whether the chosen response is response_a in rows of these ids (N, bool): by a hash, for about half."""
    return np.array([name[0] & 1 == 1 for name in digests([f"chosen {name}" for name in ids]).tolist()], bool)


def swapped(vote: Vote) -> Vote:
    """The same vote with the two responses the other way round."""
    winner = {MODEL_A: MODEL_B, MODEL_B: MODEL_A}.get(vote.winner or "", vote.winner)
    return Vote(vote.prompt, vote.response_b, vote.response_a, winner)


def canonical_votes(
    batch: Batch, votes: list[Vote | None], form: PublishedFormat, *, id_column: str
) -> pa.Table:
    """The canonical table of the votes with the file's other columns; a row without a vote has no texts."""
    columns = {"id": pa.chunked_array([pa.array(batch.ids)])}
    for place, name in enumerate((*TEXTS, "winner")):
        column = pa.array([(NO_TEXTS if vote is None else vote)[place] for vote in votes])
        columns[name] = pa.chunked_array([column])
    for name in batch.table.column_names:
        if name in form.kept:
            columns[name] = batch.table[name]
        elif name not in (*form.read, *form.repeats, id_column):
            is_canonical = name in CANONICAL_TYPES or name in PAIR_COLUMNS
            columns[f"input_{name}" if is_canonical else name] = batch.table[name]
    return canonical(pa.table(columns), batch.path, Columns(), batch.first_row)


def with_source(table: pa.Table, name: str) -> pa.Table:
    """The table with `name` as the source of every row that has none."""
    if "source" not in table.column_names:
        # Beside the other canonical columns, where a file's own would be.
        place = sum(column in CANONICAL_TYPES for column in table.column_names) + 1
        return table.add_column(place, "source", pa.array([name] * len(table), pa.string()))
    source = pc.if_else(pc.equal(table["source"], ""), None, table["source"]).fill_null(name)
    return table.set_column(table.column_names.index("source"), "source", source)
