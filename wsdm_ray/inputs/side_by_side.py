"""Votes of rows that have two responses side by side, and how a label names the better one."""

import math
from typing import Any, NamedTuple

from wsdm_ray.inputs.cells import MalformedRowError, brief, cell
from wsdm_ray.inputs.messages import (
    ANSWER_ROLES,
    Message,
    dialogue_text,
    messages_text,
    required_messages,
    required_turns,
    same_messages,
    turns_text,
)
from wsdm_ray.schema import MODEL_A, MODEL_B, TEXTS

__all__ = [
    "LABELS",
    "NO_TEXTS",
    "TIE",
    "Row",
    "Vote",
    "arena_vote",
    "helpsteer2_vote",
    "helpsteer3_vote",
    "lmsys_57k_vote",
    "optional_number",
    "text_in",
    "winner_of_labels",
    "wsdm_vote",
]

Row = dict[str, Any]

TIE = "tie"
LABELS = ("winner_model_a", "winner_model_b", "winner_tie")
"""Columns of which one is 1 and the others 0."""
ASKING_ROLES = ("user", "system", "developer")
"""Roles that begin a turn of an arena conversation."""
STRONGEST = 3
"""Strongest preference of helpsteer2 and helpsteer3."""


class Vote(NamedTuple):
    """The texts and the winner of one row."""

    prompt: str | None
    response_a: str | None
    response_b: str | None
    winner: str | None


NO_TEXTS = Vote(None, None, None, MODEL_A)
"""A row that is dropped for its texts, whatever its winner."""


def wsdm_vote(row: Row) -> Vote:
    """The vote of a row whose texts and winner are as they are."""
    return Vote(*(cell(row, name) for name in (*TEXTS, "winner")))


def lmsys_57k_vote(row: Row) -> Vote:
    """The vote of three lists of turns, each joined to one text.

    Raises:
        MalformedRowError: a text is no list of turns, their numbers differ, or there is not one winner.
    """
    turns = [required_turns(cell(row, name), name) for name in TEXTS]
    counts = {name: len(texts) for name, texts in zip(TEXTS, turns, strict=True) if texts is not None}
    if len(set(counts.values())) > 1:
        counted = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise MalformedRowError(
            f"the numbers of turns differ ({counted}); each turn has a prompt and two responses",
            "different numbers of turns",
        )
    prompt, a, b = map(turns_text, turns)
    return Vote(prompt, a, b, winner_of_labels(row))


def winner_of_labels(row: Row) -> str | None:
    """The winner of a row: the one of its three columns `LABELS` that is 1; None where all three are null.

    Raises:
        MalformedRowError: none of them is 1, or several are.
    """
    if all(cell(row, name) in (None, "") for name in LABELS):
        return None
    marks = {name: str(row.get(name)).strip().casefold() for name in LABELS}
    won = [name for name, mark in marks.items() if mark in ("1", "1.0", "true")]
    lost = [name for name, mark in marks.items() if mark in ("0", "0.0", "false")]
    if len(won) != 1 or len(lost) != 2:
        marked = ", ".join(f"{name} {row.get(name)!r}" for name in LABELS)
        raise MalformedRowError(f"{marked}; one of them must be 1, the others 0", "not one winner")
    return {LABELS[0]: MODEL_A, LABELS[1]: MODEL_B, LABELS[2]: TIE}[won[0]]


def arena_vote(row: Row) -> Vote | None:
    """The vote of two conversations; None where what they were asked differs.

    Raises:
        MalformedRowError: a side is no conversation, or they differ in their number of turns.
    """
    sides = []
    for name in ("conversation_a", "conversation_b"):
        messages = required_messages(cell(row, name), name)
        if messages is None:
            return NO_TEXTS
        sides.append(turns_of(messages, name))
    a, b = sides
    if len(a) != len(b):
        raise MalformedRowError(
            f"conversation_a has {len(a)} turns, but conversation_b {len(b)}; they must be as many",
            "different numbers of turns",
        )
    if not all(same_messages(one.asked, other.asked) for one, other in zip(a, b, strict=True)):
        return None
    prompt, first, second = (
        turns_text([messages_text(said) for said in turns])
        for turns in ([turn.asked for turn in a], *([turn.answered for turn in side] for side in sides))
    )
    return Vote(prompt, first, second, cell(row, "winner"))


class Turn(NamedTuple):
    """What is said to a model, one message of the user among it, and what the model then says and does."""

    asked: list[Message]
    answered: list[Message]


def turns_of(messages: list[Message], name: str) -> list[Turn]:
    """The turns of a conversation.

    Raises:
        MalformedRowError: a turn has no message of the user or two, or no answer.
    """
    turns: list[Turn] = []
    for role, content in messages:
        asks = role in ASKING_ROLES or (role not in ANSWER_ROLES and not (turns and turns[-1].answered))
        if not turns or (asks and turns[-1].answered):
            turns.append(Turn([], []))
        (turns[-1].asked if asks else turns[-1].answered).append(Message(role, content))
    sound = [
        [message.role for message in asked].count("user") == 1
        and answered
        and answered[-1].role in ANSWER_ROLES
        for asked, answered in turns
    ]
    if not sound or not all(sound):
        roles = ", ".join(message.role for message in messages)
        raise MalformedRowError(
            f"{name} is {roles or 'empty'}; user and assistant must take turns, the user first",
            "turns out of order",
        )
    return turns


def helpsteer2_vote(row: Row) -> Vote:
    """The vote of two texts, by a strength of preference. Raises `MalformedRowError` of a wrong value."""
    prompt, first, second = (text_in(row, name) for name in ("prompt", "response_1", "response_2"))
    return Vote(prompt, first, second, winner_of_strength(row, "preference_strength"))


def helpsteer3_vote(row: Row) -> Vote:
    """The vote of two answers to a dialogue, by a strength of preference. Raises as `helpsteer2_vote`."""
    context = required_messages(cell(row, "context"), "context")
    first, second = (text_in(row, name) for name in ("response1", "response2"))
    return Vote(dialogue_text(context or []), first, second, winner_of_strength(row, "overall_preference"))


def winner_of_strength(row: Row, name: str) -> str | None:
    """The winner by a strength of preference for the second response."""
    strength = optional_number(cell(row, name), name)
    if strength is None:
        return None
    if abs(strength) > STRONGEST:
        raise MalformedRowError(f"{name} is {strength:g}, not within -3 to 3", "not a strength of preference")
    return TIE if strength == 0 else MODEL_A if strength < 0 else MODEL_B


def text_in(row: Row, name: str) -> str | None:
    """The text of a cell, or None. Raises `MalformedRowError` for another value."""
    value = cell(row, name)
    if not isinstance(value, str | None):
        raise MalformedRowError(f"{name} is {brief(value)}, but text is needed", "not a text")
    return value


def optional_number(value: Any, name: str) -> float | None:
    """The number of a cell; None for null, blank and NaN. Raises `MalformedRowError` for another value."""
    if value is None or value == "":
        return None
    try:
        return None if math.isnan(float(value)) else float(value)
    except (TypeError, ValueError) as error:
        raise MalformedRowError(
            f"{name} is {brief(value)}, but a number is needed", "not a number"
        ) from error
