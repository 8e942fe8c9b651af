"""Why rows have no probability: kinds of errors, each with a count and the id of a row."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa

__all__ = ["ErrorKind", "by_process", "count_kinds", "kinds_from_json", "kinds_to_json", "merge_kinds"]

MAX_KINDS = 20
"""Kinds that are told apart in a unit; the others are counted as `OTHERS`."""

OTHERS = "other errors"

PROCESS = re.compile(r"process (died|failed): |timed out after ")
"""What errors of rows begin with that ended their process, or did not end (`child_process`)."""


@dataclass(frozen=True)
class ErrorKind:
    """How many rows have errors of a kind, and the id of one of them."""

    rows: int
    example: str


Kinds = Mapping[str, ErrorKind]


def count_kinds(predictions: pa.Table) -> dict[str, ErrorKind]:
    """The kinds of the errors in predictions: their texts up to the first `;` or `(`."""
    found: dict[str, ErrorKind] = {}
    with_error = predictions.select(["id", "error"]).filter(predictions["error"].is_valid())
    for row in with_error.to_pylist():
        kind = re.split(r"[;(]", row["error"])[0].strip()
        if kind not in found and len(found) >= MAX_KINDS:
            kind = OTHERS
        seen = found.get(kind, ErrorKind(0, str(row["id"])))
        found[kind] = ErrorKind(seen.rows + 1, seen.example)
    return found


def merge_kinds(parts: Iterable[Kinds]) -> dict[str, ErrorKind]:
    """The kinds of all parts, the most frequent first; the example is that of the first part."""
    found: dict[str, ErrorKind] = {}
    for part in parts:
        for name, kind in part.items():
            seen = found.get(name, ErrorKind(0, kind.example))
            found[name] = ErrorKind(seen.rows + kind.rows, seen.example)
    return dict(sorted(found.items(), key=lambda item: -item[1].rows))


def by_process(kinds: Kinds) -> int:
    """Rows that ended their process, or did not end in time."""
    return sum(kind.rows for name, kind in kinds.items() if PROCESS.match(name))


def kinds_to_json(kinds: Kinds) -> str:
    """The kinds as text; "" where there are none."""
    return json.dumps({name: [kind.rows, kind.example] for name, kind in kinds.items()}) if kinds else ""


def kinds_from_json(text: str) -> dict[str, ErrorKind]:
    """The kinds of `kinds_to_json`."""
    return {name: ErrorKind(*kind) for name, kind in json.loads(text or "{}").items()}
