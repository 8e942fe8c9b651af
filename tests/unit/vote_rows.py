"""Twelve votes, and what is known of a tool that wrote them."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

Ids = Callable[[int], int | str]


@dataclass(frozen=True, kw_only=True)
class Writer:
    """One tool and how it wrote.

    write: the votes into a folder; returns what is given as input, below it. ids: the id of each vote as it
    was meant. soft: the label is `prob_a`. options: of the jobs. train: a classifier reads the files as they
    are, else they are prepared first.
    """

    tool: str
    how: str
    write: Callable[[Path], Any]
    path: str
    ids: Ids = int
    soft: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.write.__name__

    @property
    def cell(self) -> str:
        """What docs/inputs.md says of a job with the options of these files."""
        words = {"columns": "--columns...", "make_ids": "--make-ids"}
        needed = [words.get(name, f"--{name} {value}") for name, value in self.options.items()]
        return f"`{' '.join(needed)}`" if needed else "as it is"


def text_id(number: int) -> str:
    return f"vote-{number:02d}"


def uuid_of(number: int) -> str:
    return str(uuid.UUID(int=number << 64 | number))


def made_id(number: int) -> str:
    return f"votes-{number}"


def vote(number: int) -> dict[str, Any]:
    """One vote with an integer id. `prob_a` is its soft label, of which `winner` is the nearer side."""
    return {
        "id": number,
        "prompt": f'Frage {number}: was heißt "日本語", bitte?\nIn one line, 🙂.',
        "response_a": f"It means Japanese, {number}.",
        "response_b": f"[{number}] I don't know; \\ is a backslash",
        "winner": "model_a" if number % 3 else "model_b",
        "language": "de" if number % 2 else "en",
        "turns": number,
        "prob_a": 0.75 if number % 3 else 0.25,
    }


VOTES = [vote(number) for number in range(12)]
CANONICAL = ("id", "prompt", "response_a", "response_b", "winner")
LABELS = ("winner_model_a", "winner_model_b", "winner_tie")


def rows(ids: Ids = int, soft: bool = False) -> list[dict[str, Any]]:
    """The votes with other ids, and with one kind of label."""
    unused = "winner" if soft else "prob_a"
    named = [{**vote, "id": ids(vote["id"])} for vote in VOTES]
    return [{name: value for name, value in row.items() if name != unused} for row in named]


def table(ids: Ids = int, soft: bool = False, **types: pa.DataType) -> pa.Table:
    """The votes as an Arrow table, with some columns of other types."""
    found = pa.Table.from_pylist(rows(ids, soft))
    for name, kind in types.items():
        found = found.set_column(found.column_names.index(name), name, found[name].cast(kind))
    return found


def frame(ids: Ids = int, **dtypes: Any) -> pd.DataFrame:
    return pd.DataFrame(rows(ids)).astype(dtypes)
