# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import)
"""What a row's label means, what its texts are once repaired, and why a row cannot be used.

Texts go through ftfy as the recipe's do: mojibake, line ends, HTML entities, control characters such as NUL
and lone surrogates are repaired; curly quotes, ligatures and characters of full or half width become plain
ones, and letters and their marks one character (NFC). Special-token strings, right-to-left marks and all
scripts stay. Not covered: rows that are duplicates of other rows, or whose prompts are to be left out
(`splitting`).
"""

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wsdm_ray.errors import DataError
from wsdm_ray.inputs.faults import DIFFERENT_PROMPTS, MALFORMED, Fault
from wsdm_ray.schema import MODEL_A, MODEL_B, TEXTS
from wsdm_ray.text.normalize import fix_text

__all__ = ["REASONS", "WINNERS", "Labelled", "clean_texts", "drop_reasons", "labels", "probability_of_a"]

REASONS = (
    "malformed",
    "different_prompts",
    "null_text",
    "empty_prompt",
    "empty_response",
    "no_label",
    "tie",
    "identical_responses",
    "excluded_prompt",
    "duplicate",
    "conflicting_duplicate",
)
"""Why a row is left out; a row has the first reason that applies."""

SPELLINGS = {
    MODEL_A: (
        *("model_a", "a", "response_a", "answer_a", "assistant_a", "output_a", "winner_a", "winner_model_a"),
        *("model_1", "response_1", "first", "left", "leftvote", "a>b", "a>>b"),
    ),
    MODEL_B: (
        *("model_b", "b", "response_b", "answer_b", "assistant_b", "output_b", "winner_b", "winner_model_b"),
        *("model_2", "response_2", "second", "right", "rightvote", "b>a", "b>>a"),
    ),
    "tie": (
        *("tie", "winner_tie", "tievote", "draw", "equal", "neither", "both", "a=b", "both_good", "bothgood"),
        *("both_bad", "bothbad", "bothbad_vote", "tie_bothbad", "tie_both_bad", "tie_both_good"),
    ),
}
"""Spellings of a winner, in lower case; `_` is white space, a hyphen or a bracket too: `Tie (both bad)`."""

PROBABILITIES = {MODEL_A: 1.0, MODEL_B: 0.0, "tie": 0.5}
WINNERS = {spelling: PROBABILITIES[winner] for winner, names in SPELLINGS.items() for spelling in names}
"""The probability of response_a that each spelling means."""

NUMBER = re.compile(r"[+-]?\d+(\.\d*)?|true|false")
"""What different sets use with different meanings: 0 is response_a in one, response_b or a tie in another."""

NOT_PLAIN = "[^\t\n\x0c\x20-\x25\x27-\x7e]"
"""What ftfy might change in ASCII: control characters, line ends with CR, escapes, `&` of HTML entities."""


class Labelled(NamedTuple):
    """Rows with canonical labels, and which of them have none, or are ties to leave out (N, bool each)."""

    table: pa.Table
    no_label: np.ndarray
    tie: np.ndarray


def labels(table: pa.Table, path: str, ties: Literal["drop", "soft"]) -> Labelled:
    """The table with canonical `winner` and `prob_a`.

    A soft label wins over a winner. With `ties="soft"` a tie becomes `prob_a` 0.5.

    Returns:
        The table, whose `winner` is model_a, model_b or null and whose `prob_a` is there if any row needs it.

    Raises:
        DataError: a winner of unknown spelling, or a soft label outside 0..1; it names the first id.
    """
    rows = len(table)
    no_winner, no_prob = pa.nulls(rows, pa.string()), pa.nulls(rows, pa.float64())
    winner = table["winner"].combine_chunks() if "winner" in table.column_names else no_winner
    soft = table["prob_a"].combine_chunks() if "prob_a" in table.column_names else no_prob

    prob = soft.to_numpy(zero_copy_only=False)
    has_soft = ~np.isnan(prob)  # in a table of pandas a missing number is NaN
    bad = has_soft & ~((prob >= 0) & (prob <= 1))
    if bad.any():
        row = int(bad.argmax())
        raise DataError(f"{path}: prob_a {prob[row]} (id {table['id'][row]}) is not within 0..1")

    spelled = plain_spelling(winner)
    names = pc.unique(spelled).to_pylist()
    unknown = [name for name in names if name is not None and name not in WINNERS]
    if unknown:
        row = pc.index(spelled, unknown[0]).as_py()
        raise DataError(
            f"{path}: unknown winner {winner[row].as_py()!r} (id {table['id'][row]}); {remedy(unknown[0])}"
        )
    voted = np.array([np.nan if name is None else WINNERS[name] for name in spelled.to_pylist()])
    tie = ~has_soft & (voted == 0.5)
    table = put(
        table,
        "winner",
        pa.array(np.where(voted == 1, MODEL_A, MODEL_B), mask=np.isin(voted, (0, 1), invert=True)),
    )
    if has_soft.any() or (ties == "soft" and tie.any()):
        table = put(table, "prob_a", pa.array(np.where(tie, 0.5, prob), mask=~(has_soft | tie)))
    return Labelled(table, ~has_soft & np.isnan(voted), tie & (ties == "drop"))


def probability_of_a(table: pa.Table) -> np.ndarray:
    """The label of each row as a probability that response_a wins: float64 [N].

    Args:
        table: of `labels`, without rows that have no label.
    """
    won = np.array([winner == MODEL_A for winner in table["winner"].to_pylist()], float)
    if "prob_a" not in table.column_names:
        return won
    soft = table["prob_a"].to_numpy()
    return np.where(np.isnan(soft), won, soft)


def plain_spelling(winner: pa.Array) -> pa.Array:
    """Winners as `WINNERS` spells them; null where one is null or blank."""
    spelled = pc.utf8_lower(pc.utf8_trim_whitespace(winner))
    spelled = pc.if_else(pc.equal(spelled, ""), pa.scalar(None, pa.string()), spelled)
    return pc.utf8_trim(pc.replace_substring_regex(spelled, r"[\s_()\[\]-]+", "_"), characters="_")


def remedy(spelled: str) -> str:
    """What to do about an unknown winner."""
    if NUMBER.fullmatch(spelled):
        return (
            "a number means different things in different sets: write model_a, model_b or tie, or give "
            "--columns.prob-a=NAME where the column holds the probability that response_a wins"
        )
    known = "; ".join(f"{winner}: {', '.join(names[1:])}" for winner, names in SPELLINGS.items())
    return f"give model_a, model_b or tie, or one of their spellings ({known})"


def put(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)


def clean_texts(table: pa.Table) -> tuple[pa.Table, int]:
    """The table with its three texts repaired (null stays null), and how many texts that changed."""
    changed = 0
    for name in TEXTS:
        column = table[name].combine_chunks()
        plain = pc.and_(pc.string_is_ascii(column), pc.invert(pc.match_substring_regex(column, NOT_PLAIN)))
        rows = np.flatnonzero(~plain.fill_null(True).to_numpy(zero_copy_only=False))
        if not len(rows):
            continue
        texts = column.to_pylist()
        before = [texts[row] for row in rows]
        for row in rows:
            texts[row] = fix_text(texts[row])
        changed += sum(texts[row] != old for row, old in zip(rows, before, strict=True))
        table = put(table, name, pa.array(texts, pa.string()))
    return table, changed


def drop_reasons(
    table: pa.Table, labelled: Labelled | None = None, faults: Mapping[int, Fault] | None = None
) -> np.ndarray:
    """Index into `REASONS` of the first reason to drop each row for itself, -1 where there is none (int8).

    Args:
        table: N rows with cleaned texts.
        labelled: what `labels` gave for these rows; None where they need no label.
        faults: of the rows that have one, by row.
    """
    none = np.zeros(len(table), bool)
    faulty = {name: np.zeros(len(table), bool) for name in (MALFORMED, DIFFERENT_PROMPTS)}
    for row, fault in (faults or {}).items():
        faulty[fault.reason][row] = True
    null, blank = {}, {}
    for name in TEXTS:
        null[name] = table[name].is_null().to_numpy()
        blank[name] = pc.equal(pc.utf8_trim_whitespace(table[name]), "").fill_null(False).to_numpy()
    applies = {
        **faulty,
        "null_text": null["prompt"] | null["response_a"] | null["response_b"],
        "empty_prompt": blank["prompt"],
        "empty_response": blank["response_a"] | blank["response_b"],
        "no_label": labelled.no_label if labelled else none,
        "tie": labelled.tie if labelled else none,
        "identical_responses": pc.equal(table["response_a"], table["response_b"]).fill_null(False).to_numpy(),
    }
    codes = [REASONS.index(name) for name in applies]
    return np.select(list(applies.values()), codes, default=-1).astype(np.int8)
