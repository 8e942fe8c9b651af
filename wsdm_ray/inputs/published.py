# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import)
"""Published data sets as they are published, to canonical rows: `--format NAME`.

What a row of each format is, and how it becomes a vote, is in `formats`. A row whose two sides have different
prompts, or which is not of its format, has a fault.

Of chosen and rejected, a hash of the row's id decides which is response_a: so the label is not constant, and
does not depend on the order of the files. The `prompt_id` of ultrafeedback is that of a prompt; another row
of the file with the same one gets the id PROMPT_ID-1.

`source` is the format's name where the file has none. Columns from which the texts and the winner are made,
and columns that repeat these (`prompt` and `messages` of ultrafeedback, `prompt` of orpo-dpo-mix), are not
passed on. Another column with a canonical name is passed on as `input_NAME`, such as the `source` of
orpo-dpo-mix, which names the set within the mix. Not covered: what a winner means (`data.cleaning`), which
rows are the same (`data.splitting`).
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wsdm_ray.errors import DataError
from wsdm_ray.inputs.cells import MalformedRowError, brief
from wsdm_ray.inputs.faults import DIFFERENT_PROMPTS, MALFORMED, Fault
from wsdm_ray.inputs.files import InputFile, with_partitions
from wsdm_ray.inputs.formats import FORMATS, NO_TEXTS, PublishedFormat, Vote, formats_that_fit
from wsdm_ray.inputs.messages import count_media
from wsdm_ray.inputs.tables import read_tables
from wsdm_ray.inputs.values import ids_of, is_bytes, is_text, plain, plain_type, texts_of
from wsdm_ray.schema import CANONICAL_TYPES, MODEL_A, MODEL_B, PAIR_COLUMNS, TEXTS
from wsdm_ray.telemetry import logger
from wsdm_ray.text.digests import digests

__all__ = ["chosen_is_a", "published_rows", "warn_of_media"]


def published_rows(
    file: InputFile, name: str, make_ids: bool, labels: bool, others: tuple[str, ...] | None = None
) -> Iterator[tuple[pa.Table, dict[int, Fault]]]:
    """The rows of one file of a published data set, in order, in tables with canonical names.

    Args:
        name: one of `FORMATS`.
        make_ids: give rows ids also where the format has a column for them and the file has none.
        labels: the file must have votes.
        others: the columns that are used besides those of the format; None: all.

    Returns:
        Tables, each with the fault of each row that has one, by row; the texts of such rows are null.

    Raises:
        DataError: a column is missing, or a row has no id.
        StorageError: the file cannot be read.
    """
    form = FORMATS[name]
    ids_made = False
    seen: Counter[str] = Counter()
    media: Counter[str] = Counter()
    done = 0
    needed = {form.id, *form.read, *form.passed, *form.kept}
    for part in read_tables(file.path, needed, None if others is None else {*needed, *others}):
        table = with_partitions(part, file)
        if done == 0:
            check_columns(table.column_names, file.path, name, make_ids, labels)
            ids_made = form.id not in table.column_names
        ids = (
            [f"{file.name}-{done + row}" for row in range(len(table))]
            if ids_made
            else ids_in_file(table, file.path, form.id, done)
        )
        if form.id_of_prompt and not ids_made:
            ids = [numbered_id(id, seen) for id in ids]
        rows, faults = readable_rows(table, form, file.path)
        for row in rows:
            count_media(list(row.values()), media)
        rows, places, ids, faults = paired(rows, ids, faults, form)
        votes, faults = votes_of(rows, ids, faults, form)
        table = table.take(pa.array(places, pa.int64()))
        out = canonical_votes(table, ids, votes, form, id_column="" if ids_made else form.id)
        yield with_source(out, name), faults
        done += len(part)
    warn_of_media(file.path, media)


def warn_of_media(path: str, media: Counter[str]) -> None:
    """Say what of a file its texts do not hold."""
    for medium, count in media.items():
        logger.warning("%s: %d parts are no text but %s: [%s] is in their place", path, count, medium, medium)


def check_columns(names: list[str], path: str, form_name: str, make_ids: bool, labels: bool) -> None:
    """Raise `DataError` for a column that the format needs and the file does not have, or has twice."""
    form = FORMATS[form_name]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: has the column {twice!r} {names.count(twice)} times")
    wanted = (*form.needed, *form.labels) if labels else form.needed
    wanted = (form.id, *wanted) if form.id_needed and not make_ids else wanted
    missing = [name for name in wanted if name not in names]
    if missing:
        hint = "; --make-ids makes ids" if missing == [form.id] else ""
        raise DataError(
            f"{path}: no column {', '.join(map(repr, missing))}, which --format {form_name} needs{hint}; "
            f"there are: {', '.join(names)}{'' if hint else formats_that_fit(names)}"
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


def paired(
    rows: list[dict[str, Any]], ids: list[Any], faults: dict[int, Fault], form: PublishedFormat
) -> tuple[list[dict[str, Any]], list[int], list[Any], dict[int, Fault]]:
    """One row a pair: the pairs of a row that has several get the ids ID-1, ID-2, ...

    Returns:
        The rows, the place that each has in the argument, their ids and faults.
    """
    out_rows: list[dict[str, Any]] = []
    places: list[int] = []
    out_ids: list[Any] = []
    out_faults: dict[int, Fault] = {}
    for place, (row, id) in enumerate(zip(rows, ids, strict=True)):
        several = [row] if place in faults else form.pairs(row)
        if place in faults:
            out_faults[len(out_rows)] = faults[place]
        out_ids += [f"{id}-{number}" for number in range(1, len(several) + 1)] if len(several) > 1 else [id]
        out_rows += several
        places += [place] * len(several)
    if places != list(range(len(rows))):
        out_ids = [str(id) for id in out_ids]  # some are text now, so all are
    return out_rows, places, out_ids, out_faults


def votes_of(
    rows: list[dict[str, Any]], ids: list[Any], faults: dict[int, Fault], form: PublishedFormat
) -> tuple[list[Vote], dict[int, Fault]]:
    """The vote of each row with its sides decided, and the faults of rows whose vote has no texts."""
    faults = dict(faults)
    votes: list[Vote] = []
    for place, row in enumerate(rows):
        vote = NO_TEXTS
        try:
            found = checked(form.vote(row)) if place not in faults else NO_TEXTS
        except MalformedRowError as error:
            faults[place] = Fault(MALFORMED, str(error), error.reason)
        else:
            if found is None:
                faults[place] = Fault(DIFFERENT_PROMPTS, "")
            vote = found or NO_TEXTS
        votes.append(vote)
    if not form.chosen:
        return votes, faults
    sides = zip(votes, chosen_is_a(ids).tolist(), strict=True)
    return [vote if first else swapped(vote) for vote, first in sides], faults


def checked(vote: Vote | None) -> Vote | None:
    """The vote itself. Raises `MalformedRowError` where one of its texts is something else."""
    for name, text in zip(TEXTS, vote or (), strict=False):
        if not isinstance(text, str | None):
            raise MalformedRowError(f"{name} is {brief(text)}, but text is needed", "not text")
    return vote


def readable_rows(
    table: pa.Table, form: PublishedFormat, path: str
) -> tuple[list[dict[str, Any]], dict[int, Fault]]:
    """The rows in the columns that a vote is made of, and the faults of those whose bytes are no text."""
    faults: dict[int, Fault] = {}
    columns = {}
    for name in (*form.read, *form.passed):
        if name not in table.column_names:
            continue
        columns[name] = table[name]
        kind = plain_type(table[name].type)
        if is_text(kind) or is_bytes(kind):
            columns[name], bad = texts_of(table[name], name, path)
            faults = {row: Fault(MALFORMED, f"{name} {why}", why) for row, why in bad} | faults
    return pa.table(columns).to_pylist(), faults


def chosen_is_a(ids: list[Any]) -> np.ndarray:
    """Whether the chosen response is response_a in rows of these ids (N, bool): by a hash, for about half."""
    return np.array([name[0] & 1 == 1 for name in digests([f"chosen {name}" for name in ids]).tolist()], bool)


def swapped(vote: Vote) -> Vote:
    """The same vote with the two responses the other way round."""
    winner = {MODEL_A: MODEL_B, MODEL_B: MODEL_A}.get(vote.winner or "", vote.winner)
    return Vote(vote.prompt, vote.response_b, vote.response_a, winner)


def canonical_votes(
    table: pa.Table, ids: list[Any], votes: list[Vote], form: PublishedFormat, *, id_column: str
) -> pa.Table:
    """The votes in canonical columns, then the file's other columns."""
    columns = {"id": pa.chunked_array([pa.array(ids)])}
    for place, name in enumerate(TEXTS):
        columns[name] = pa.chunked_array([pa.array([vote[place] for vote in votes], pa.string())])
    winners = [None if vote.winner is None else str(vote.winner) for vote in votes]
    columns["winner"] = pa.chunked_array([pa.array(winners, pa.string())])
    for name in table.column_names:
        if name in form.kept:
            columns[name] = table[name]
        elif name not in (*form.read, *form.repeats, id_column):
            is_canonical = name in CANONICAL_TYPES or name in PAIR_COLUMNS
            columns[f"input_{name}" if is_canonical else name] = table[name]
    return pa.table(columns)


def with_source(table: pa.Table, name: str) -> pa.Table:
    """The table with `name` as the source of every row that has none."""
    if "source" not in table.column_names:
        # Beside the other canonical columns, where a file's own would be.
        place = sum(column in CANONICAL_TYPES for column in table.column_names) + 1
        return table.add_column(place, "source", pa.array([name] * len(table), pa.string()))
    source = plain(table["source"]).cast(pa.string())
    source = pc.if_else(pc.equal(source, ""), None, source).fill_null(name)
    return table.set_column(table.column_names.index("source"), "source", source)
