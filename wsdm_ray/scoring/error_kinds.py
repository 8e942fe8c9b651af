"""Why rows have no probability: kinds of errors, each with a count and the id of a row.

Errors of one kind differ in what they say of a row: numbers, paths and values are left out of a kind. There
is a limit to the kinds of a unit and of a run, so that texts of any number take bounded memory.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa

__all__ = [
    "ErrorKind",
    "by_process",
    "count_kinds",
    "kind_of",
    "kinds_from_json",
    "kinds_to_json",
    "merge_kinds",
]

UNIT_KINDS = 20
RUN_KINDS = 200
"""Kinds that are told apart in a unit and in a run; the others are counted as `OTHERS` or `OTHER_DEATHS`."""

KIND_CHARACTERS = 100
LOOKED_AT = 400
"""Characters of a kind, and of the text that it is made of."""

OTHERS = "other errors"
OTHER_DEATHS = "process died: in other ways"

PROCESS = re.compile(r"process (died|failed): |timed out after ")
"""What errors of rows begin with that ended their process, or did not end (`child_process`)."""

DAMAGED = "cannot be read from row "
"""What follows the path that an error of a damaged file begins with, which may hold any character."""

VALUE = re.compile(r"(?<!\w)b?['\"\[{]")
"""Where a value begins that is quoted as Python shows it: a text, a list, a dict. It may be cut off."""

LISTED = re.compile(r" is [^,]+(, (?!but |not )[^,]+)+$")
"""What a message has of several words, such as roles."""

PATH = re.compile(r"\S*/\S*")

NUMBER = re.compile(
    r"(?<![\w.])(?<!\w-)(?<!signal )(?<!status )-?(0x[0-9a-f]+|\d+([.,_]\d+)*(e[+-]?\d+)?)", re.IGNORECASE
)
"""Not `UTF-8`, nor `signal 9` or `exit status 1`, which are few and say what happened."""


@dataclass(frozen=True)
class ErrorKind:
    """How many rows have errors of a kind, and the id of one of them."""

    rows: int
    example: str


Kinds = Mapping[str, ErrorKind]


def kind_of(error: str) -> str:
    """The text of an error up to the first `;` or `(`, with `N` for numbers and `...` for paths and values.

    The kind of a kind is itself.
    """
    path, damaged, rest = error.partition(f": {DAMAGED}")
    text = DAMAGED + rest if damaged else path
    if value := VALUE.search(text):
        expected = text.rfind(", but ")  # what is needed in its place
        text = f"{text[: value.start()]}...{text[expected:] if expected > value.start() else ''}"
    text = re.split(r"[;(]", text, maxsplit=1)[0][:LOOKED_AT].strip()
    text = NUMBER.sub("N", PATH.sub("...", LISTED.sub(" is ...", text)))
    return text[:KIND_CHARACTERS].strip() or OTHERS


def count_kinds(predictions: pa.Table) -> dict[str, ErrorKind]:
    """The kinds of the errors in the predictions of a unit."""
    found: dict[str, ErrorKind] = {}
    with_error = predictions.select(["id", "error"]).filter(predictions["error"].is_valid())
    for row in with_error.to_pylist():
        add(found, kind_of(row["error"]), ErrorKind(1, str(row["id"])), UNIT_KINDS)
    return found


def merge_kinds(parts: Iterable[Kinds]) -> dict[str, ErrorKind]:
    """The kinds of all parts, the most frequent first; the example is that of the first part."""
    found: dict[str, ErrorKind] = {}
    for part in parts:
        for name, kind in part.items():
            add(found, kind_of(name), kind, RUN_KINDS)  # earlier versions left numbers in
    return dict(sorted(found.items(), key=lambda item: -item[1].rows))


def add(found: dict[str, ErrorKind], name: str, kind: ErrorKind, most: int) -> None:
    """Add rows to the kinds that were found, of which there are at most so many, besides the two others."""
    if name not in found and len(found.keys() - {OTHERS, OTHER_DEATHS}) >= most:
        name = OTHER_DEATHS if PROCESS.match(name) else OTHERS  # `by_process` still counts them
    seen = found.get(name, ErrorKind(0, kind.example))
    found[name] = ErrorKind(seen.rows + kind.rows, seen.example)


def by_process(kinds: Kinds) -> int:
    """Rows that ended their process, or did not end in time."""
    return sum(kind.rows for name, kind in kinds.items() if PROCESS.match(name))


def kinds_to_json(kinds: Kinds) -> str:
    """The kinds as text; "" where there are none."""
    return json.dumps({name: [kind.rows, kind.example] for name, kind in kinds.items()}) if kinds else ""


def kinds_from_json(text: str) -> dict[str, ErrorKind]:
    """The kinds of `kinds_to_json`."""
    return {name: ErrorKind(*kind) for name, kind in json.loads(text or "{}").items()}
