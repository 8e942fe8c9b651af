# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import)
"""Votes as the metrics need them.

Of the texts, read a few rows at a time, only lengths and a hash of the prompt are kept; `read_pairs` fetches
the few that a report shows.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wsdm_ray.data.cleaning import labels, probability_of_a
from wsdm_ray.evaluation.join import check_probabilities, concatenate, conform
from wsdm_ray.inputs.faults import FaultCounts
from wsdm_ray.inputs.files import list_inputs
from wsdm_ray.inputs.rows import Reading, Rows, read_rows
from wsdm_ray.schema import TEXTS, Ordering, first_ordering
from wsdm_ray.text.groups import prompt_group_key

__all__ = ["read_pairs", "read_votes"]

NAMES = ("language", "source", "model_a", "model_b")
"""Columns of the votes by which metrics are grouped."""

VOTES_SCHEMA = [
    ("label", pa.float64()),
    ("left_out", pa.string()),
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


def read_votes(paths: Sequence[str], reading: Reading) -> pa.Table:
    """What the metrics need of the votes: `id`, then the columns of `VOTES_SCHEMA`; ids unique.

    `prob_a` wins over `winner` where a row has both. `left_out` says why a row has no label: it is a tie, has
    no winner, or is malformed.

    Raises:
        StorageError: a path does not exist or holds no file of votes.
        DataError: a column is missing, a winner is unknown, a label is outside 0..1, an id is null or there
            twice, there are no rows, most rows are malformed.
    """
    reading = dataclasses.replace(reading, others=("best_prob_a",))
    counts = FaultCounts()
    tables = []
    for file in list_inputs(paths):
        done = 0
        for rows in read_rows(file, reading):
            counts.add(len(rows.table), rows.faults, file.path, done, rows.table["id"])
            done += len(rows.table)
            tables.append(digest(file.path, rows))
    counts.check()
    where = ", ".join(paths)
    table = concatenate(where, tables)
    check_probabilities(where, table, "best_prob_a")
    return table


def digest(path: str, rows: Rows) -> pa.Table:
    """One table of votes without its texts."""
    table = rows.table
    prompts, answers_a, answers_b = ([text or "" for text in table[name].to_pylist()] for name in TEXTS)
    label_N, left_out_N = label_of(path, rows)
    columns_out = {
        "id": table["id"],
        "label": pa.array(label_N, mask=np.isnan(label_N)),
        "left_out": pa.array(left_out_N, pa.string()),
        "characters_a": pa.array([len(text) for text in answers_a], pa.int64()),
        "characters_b": pa.array([len(text) for text in answers_b], pa.int64()),
        "group": pa.array([group_of(text) for text in prompts], pa.uint64()),
        "ba_first": pa.array(
            [first_ordering(*pair) is Ordering.BA for pair in zip(answers_a, answers_b, strict=True)],
            pa.bool_(),
        ),
    } | {name: table[name] for name in ("best_prob_a", *NAMES) if name in table.column_names}
    return conform(path, pa.table(columns_out), pa.schema([("id", table["id"].type), *VOTES_SCHEMA]))


def label_of(path: str, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """The label of each row, float64 [N], NaN where it has none; and why it has none: object [N], or None."""
    labelled = labels(rows.table, path, "drop")
    left_out_N = np.full(len(rows.table), None, object)
    left_out_N[labelled.no_label] = "no winner"
    left_out_N[labelled.tie] = "tie"
    for row, fault in rows.faults.items():
        left_out_N[row] = fault.reason.replace("_", " ")
    sound_N = left_out_N == None  # noqa: E711
    return np.where(sound_N, probability_of_a(labelled.table), np.nan), left_out_N


def group_of(prompt: str) -> int:
    """A hash of the prompt group, uint64: rows of one group are resampled together and share their half."""
    key = prompt_group_key(prompt).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def read_pairs(paths: Sequence[str], reading: Reading, ids: Sequence[Any]) -> dict[Any, dict[str, str]]:
    """`prompt`, `response_a` and `response_b` of a few ids, by id; null is an empty text."""
    if not ids:
        return {}
    reading = dataclasses.replace(reading, others=())
    wanted = pa.array(ids)
    pairs_by_id: dict[Any, dict[str, str]] = {}
    for file in list_inputs(paths):
        for table, _ in read_rows(file, reading):
            own = table["id"].cast(wanted.type) if wanted.type == pa.string() else table["id"]
            found = table.set_column(0, "id", own).filter(pc.is_in(own, wanted))
            for row in found.select(["id", *TEXTS]).to_pylist():
                pairs_by_id[row["id"]] = {name: row[name] or "" for name in TEXTS}
    return pairs_by_id
