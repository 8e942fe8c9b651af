"""Votes of rows that say which response was chosen, and which rejected or scored lower.

The vote is for response_a, which is the chosen or best one; the id decides which side it has in the end.
"""

import math
from typing import Any, TypeGuard

from wsdm_ray.inputs.cells import MalformedRowError, brief, cell, is_numpy_text, list_hint, parsed_list
from wsdm_ray.inputs.messages import (
    ANSWER_ROLES,
    Message,
    begins_with,
    dialogue_text,
    holds_messages,
    messages_before_answer,
    required_messages,
    same_messages,
    transcript_messages,
)
from wsdm_ray.inputs.side_by_side import NO_TEXTS, TIE, Row, Vote, optional_number, text_in
from wsdm_ray.schema import MODEL_A, MODEL_B

__all__ = [
    "COUNT",
    "SIDES",
    "answer_pairs",
    "completion_pairs",
    "dialogue_vote",
    "dpo_vote",
    "hh_rlhf_vote",
    "ultrafeedback_raw_vote",
    "ultrafeedback_vote",
]

SIDES = ("chosen", "rejected")
COUNT = "total_completions"
"""A column that reward-bench-2 has, and hardly another set."""
SCORES = ("fine-grained_score", "overall_score")
"""Scores of a completion, the finest first: of 1 to 5, and up to 10."""


def ultrafeedback_vote(row: Row) -> Vote | None:
    """The vote of two dialogues, a tie where their scores are equal; None where their prompts differ."""
    vote = dialogue_vote(row)
    scores = [optional_number(cell(row, name), name) for name in ("score_chosen", "score_rejected")]
    tie = None not in scores and scores[0] == scores[1]
    return vote._replace(winner=TIE) if vote and tie else vote


def completion_pairs(row: Row) -> list[Row]:
    """The best completion, the first of several, with each other one."""
    completions = completions_of(row)
    if completions is None or len(completions) < 2:
        return [row]
    scores = [-math.inf if score is None else score for score in scores_of(completions)]
    best = completions.pop(scores.index(max(scores)))
    return [{**row, "completions": [best, other]} for other in completions]


def ultrafeedback_raw_vote(row: Row) -> Vote:
    """The vote of a row of two completions, by the finest scores that both have.

    Raises:
        MalformedRowError: its completions are not two, or lack a response.
    """
    if cell(row, "completions") in (None, ""):
        return NO_TEXTS
    completions = completions_of(row)
    if completions is None or len(completions) != 2:
        raise MalformedRowError(
            f"completions is {brief(row['completions'])}, but a list of two or more, each with a response, "
            "is needed (JSON in CSV)",
            "not a list of completions",
        )
    best, other = scores_of(completions)
    winner = None
    if best is not None and other is not None:
        winner = TIE if best == other else MODEL_A if best > other else MODEL_B
    first, second = (text_in(completion, "response") for completion in completions)
    return Vote(text_in(row, "instruction"), first, second, winner)


def completions_of(row: Row) -> list[Row] | None:
    value = cell(row, "completions")
    items = parsed_list(value) if isinstance(value, str) else value
    if not isinstance(items, list):
        return None
    return list(items) if all(isinstance(item, dict) and "response" in item for item in items) else None


def scores_of(completions: list[Row]) -> list[float | None]:
    """The scores of completions on one scale: the first that all have, else that most have.

    None for one that has none that is a number, such as N/A.
    """
    scales = [[number_of(completion, name) for completion in completions] for name in SCORES]
    return min(scales, key=lambda scores: scores.count(None))


def number_of(completion: Row, name: str) -> float | None:
    try:
        return optional_number(cell(completion, name), name)
    except MalformedRowError:
        return None


def dialogue_vote(row: Row) -> Vote | None:
    """The vote of two dialogues of messages, whose prompt is all messages before the last answer."""
    chosen, rejected = (required_messages(cell(row, name), name) for name in SIDES)
    return NO_TEXTS if chosen is None or rejected is None else preference_vote(chosen, rejected)


def hh_rlhf_vote(row: Row) -> Vote | None:
    """The vote of two written dialogues; None where they differ before the last answer.

    Raises:
        MalformedRowError: a side is no such dialogue, or has no turn of the assistant.
    """
    sides = []
    for name in SIDES:
        text = cell(row, name)
        if text is None:
            return NO_TEXTS
        messages = transcript_messages(text, name)
        if not any(message.role == "assistant" for message in messages):
            raise MalformedRowError(
                f"{name} has no assistant's turn ('\\n\\nAssistant:'): {brief(text)}", "no assistant's turn"
            )
        # A dialogue that ends with the human's turn has an empty answer, as one with a last "Assistant:" has.
        sides.append(messages if messages[-1].role == "assistant" else [*messages, Message("assistant", "")])
    return preference_vote(*sides)


def answer_pairs(row: Row) -> list[Row]:
    """Each chosen text with each rejected one, where a row has lists of these.

    As text, as in CSV, they are lists only in a row with `COUNT`: elsewhere an answer may be a list in JSON.
    """
    values = [cell(row, name) for name in SIDES]
    if COUNT in row:
        parsed = [parsed_list(value) if isinstance(value, str) else None for value in values]
        values = [items if is_texts(items) else value for items, value in zip(parsed, values, strict=True)]
    if not any(isinstance(value, list) for value in values):
        return [row]
    chosen, rejected = ([value] if isinstance(value, str) else value for value in values)
    if not (is_texts(chosen) and is_texts(rejected)):
        return [row]
    return [{**row, "chosen": good, "rejected": bad} for good in chosen for bad in rejected]


def is_texts(value: Any) -> TypeGuard[list[str | None]]:
    """Whether a value is a list of texts, and not an empty one."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, str | None) for item in value)


def dpo_vote(row: Row) -> Vote | None:
    """The vote of two texts or two lists of messages; None where they differ before the last answer.

    Raises:
        MalformedRowError: the sides are neither, or there is no prompt, or another than the messages have.
    """
    chosen, rejected = (cell(row, name) for name in SIDES)
    if chosen is None or rejected is None:
        return NO_TEXTS
    if all(isinstance(value, str) and is_numpy_text(value) and "{" in value for value in (chosen, rejected)):
        raise MalformedRowError(f"chosen is {brief(chosen)}{list_hint(chosen)}", "a numpy array as text")
    before = messages_before(row)
    sides = [holds_messages(value) for value in (chosen, rejected)]
    if all(sides):
        return dpo_messages_vote(row, before)
    if not (isinstance(chosen, str) and isinstance(rejected, str)) or any(sides):
        raise MalformedRowError(
            f"chosen is {brief(chosen)} and rejected {brief(rejected)}; both must be texts, or both messages",
            "neither two texts nor two lists of messages",
        )
    if before is None and not {"prompt", "conversations"} & row.keys():
        raise MalformedRowError(
            "no prompt; give a column 'prompt', or messages that have it before the answer", "no prompt"
        )
    return Vote(dialogue_text(before or []), chosen, rejected, MODEL_A)


def messages_before(row: Row) -> list[Message] | None:
    """The prompt as messages, or what ShareGPT calls conversations; None where there is neither."""
    prompt = cell(row, "prompt")
    if prompt is not None:
        if holds_messages(prompt):
            return required_messages(prompt, "prompt")
        if not isinstance(prompt, str):
            raise MalformedRowError(
                f"prompt is {brief(prompt)}, but text or messages are needed", "not a text"
            )
        return [Message("user", prompt)]
    before = required_messages(cell(row, "conversations"), "conversations")
    system = cell(row, "system")
    return [Message("system", system), *before] if before and isinstance(system, str) and system else before


def dpo_messages_vote(row: Row, before: list[Message] | None) -> Vote | None:
    """The vote of two lists of messages, which begin with the prompt, or follow it (`before`)."""
    sides = []
    for name in SIDES:
        messages = required_messages(row[name], name) or []
        if messages and messages[0].role in ANSWER_ROLES:
            messages = [*(before or []), *messages]
        elif before is not None and not begins_with(messages[:-1], before):
            prompt = row.get("prompt") or row.get("conversations")
            raise MalformedRowError(
                f"the prompt {brief(prompt)} is not what the messages of {name} begin with",
                "a prompt that its answers do not begin with",
            )
        sides.append(messages)
    return preference_vote(*sides)


def preference_vote(chosen: list[Message], rejected: list[Message]) -> Vote | None:
    """The vote for one of two dialogues; None where they differ before their last message, the answer."""
    before = [
        messages_before_answer(messages, name)
        for messages, name in zip((chosen, rejected), SIDES, strict=True)
    ]
    if not same_messages(*before):
        return None
    return Vote(dialogue_text(before[0]), chosen[-1].content, rejected[-1].content, MODEL_A)
