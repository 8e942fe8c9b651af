"""The published formats: each a function from a row in its published columns to one vote, and its columns.

Parquet, JSON lines and CSV hold the same values; in CSV, as in any column of strings, a list is its JSON
text. The columns of each format are

    wsdm           Kaggle "WSDM Cup - Multilingual Chatbot Arena", train.parquet (kaggle.com/competitions/
                   wsdm-cup-multilingual-chatbot-arena/data): id, prompt, response_a, response_b, winner,
                   model_a, model_b, language
    lmsys-57k      Kaggle "LMSYS - Chatbot Arena Human Preference Predictions", train.csv (kaggle.com/
                   competitions/lmsys-chatbot-arena/data; the same as huggingface.co/datasets/lmsys/
                   lmsys-arena-human-preference-55k): id, model_a, model_b, prompt, response_a, response_b
                   (lists of one text or null a turn), winner_model_a, winner_model_b, winner_tie (0 or 1)
    lmsys-33k      huggingface.co/datasets/lmsys/chatbot_arena_conversations: question_id, model_a, model_b,
                   winner (model_a, model_b, tie, tie (bothbad)), judge, conversation_a, conversation_b
                   (messages), turn, anony, language, tstamp, openai_moderation, toxic_chat_tag
    ultrafeedback  huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized, the files *_prefs: prompt,
                   prompt_id, chosen, rejected, messages (messages each), score_chosen, score_rejected
    orpo-dpo-mix   huggingface.co/datasets/mlabonne/orpo-dpo-mix-40k: source, chosen, rejected (messages
                   each), prompt, question
    hh-rlhf        huggingface.co/datasets/Anthropic/hh-rlhf: chosen, rejected, each a whole dialogue
                   written as \\n\\nHuman: ...\\n\\nAssistant: ...
    dpo            preference rows as TRL takes them (huggingface.co/docs/trl/dataset_formats): prompt,
                   chosen, rejected, each a text or messages, with or without id; the messages of chosen and
                   rejected may begin with the prompt

The vote on an arena conversation (lmsys-57k, lmsys-33k) is on the whole: the prompt is all turns of the
user, a response is all turns of one model. The vote on a dialogue (the other formats) is on the last answer:
the prompt is all messages before it.

A row has different prompts where the turns of the user (lmsys-33k) or the messages before the last answer
differ between its two sides. Some rows of hh-rlhf are so (github.com/eric-mitchell/
direct-preference-optimization/pull/86). A dialogue of hh-rlhf that ends without an answer has an empty one. A
row of ultrafeedback with two equal scores is a tie. Not covered: how lists of messages become one text
(`messages`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from wsdm_ray.errors import DataError
from wsdm_ray.inputs.messages import (
    Message,
    begins_with,
    brief,
    dialogue_text,
    messages_before_answer,
    parsed_messages,
    required_messages,
    required_turns,
    same_messages,
    transcript_messages,
    turns_text,
)
from wsdm_ray.schema import MODEL_A, MODEL_B, TEXTS

__all__ = ["FORMATS", "NO_TEXTS", "PublishedFormat", "Vote"]

TIE = "tie"
SIDES = ("chosen", "rejected")
LABELS = ("winner_model_a", "winner_model_b", "winner_tie")


class Vote(NamedTuple):
    """The texts and the winner of one row."""

    prompt: str | None
    response_a: str | None
    response_b: str | None
    winner: str | None


NO_TEXTS = Vote(None, None, None, MODEL_A)
"""A row that is dropped for its texts, whatever its winner."""


@dataclass(frozen=True, kw_only=True)
class PublishedFormat:
    """The columns of a published data set, and how a row of it becomes a vote."""

    vote: Callable[[dict[str, Any]], Vote | None]
    """From a row with the columns `read` and `passed` to its vote; None where its sides' prompts differ."""
    needed: tuple[str, ...]
    """Columns that a file must have, besides the ids."""
    read: tuple[str, ...]
    """Columns that `vote` takes; they are not passed on."""
    passed: tuple[str, ...] = ()
    """Columns that `vote` takes, and that are passed on all the same."""
    repeats: tuple[str, ...] = ()
    """Columns that repeat what others hold; they are not passed on."""
    kept: tuple[str, ...] = ("language", "source")
    """Canonical columns that the file has under their own names."""
    id: str = "id"
    id_needed: bool = False
    """Whether a file without ids is an error. Else its rows get the ids FILESTEM-ROW."""
    id_of_prompt: bool = False
    """Whether several rows may have one id. The later ones get -1, -2, ... added to it."""
    chosen: bool = True
    """Whether `vote` gives the chosen response as response_a, so that the sides are still to be decided."""


def wsdm_vote(row: dict[str, Any]) -> Vote:
    return Vote(*(row.get(name) for name in (*TEXTS, "winner")))


def lmsys_57k_vote(row: dict[str, Any]) -> Vote:
    turns = [required_turns(row.get(name), name) for name in TEXTS]
    counts = {name: len(texts) for name, texts in zip(TEXTS, turns, strict=True) if texts is not None}
    if len(set(counts.values())) > 1:
        counted = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DataError(f"the numbers of turns differ ({counted}); each turn has a prompt and two responses")
    prompt, a, b = map(turns_text, turns)
    return Vote(prompt, a, b, winner_of_labels(row))


def winner_of_labels(row: dict[str, Any]) -> str:
    """The winner of a row: the one of its three label columns that is 1."""
    marks = {name: str(row.get(name)).strip().casefold() for name in LABELS}
    won = [name for name, mark in marks.items() if mark in ("1", "1.0", "true")]
    lost = [name for name, mark in marks.items() if mark in ("0", "0.0", "false")]
    if len(won) != 1 or len(lost) != 2:
        marked = ", ".join(f"{name} {row.get(name)!r}" for name in LABELS)
        raise DataError(f"{marked}; one of them must be 1, the others 0")
    return {LABELS[0]: MODEL_A, LABELS[1]: MODEL_B, LABELS[2]: TIE}[won[0]]


def lmsys_33k_vote(row: dict[str, Any]) -> Vote | None:
    sides = []
    for name in ("conversation_a", "conversation_b"):
        messages = required_messages(row.get(name), name)
        if messages is None:
            return NO_TEXTS
        roles = [message.role for message in messages]
        if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
            raise DataError(
                f"{name} is {', '.join(roles) or 'empty'}; user and assistant must take turns, the user first"
            )
        sides.append(messages)
    a, b = sides
    if len(a) != len(b):
        raise DataError(
            f"conversation_a has {len(a) // 2} turns, but conversation_b {len(b) // 2}; they must be as many"
        )
    if not same_messages(a[::2], b[::2]):
        return None
    prompt, first, second = (
        turns_text([message.content for message in messages]) for messages in (a[::2], a[1::2], b[1::2])
    )
    return Vote(prompt, first, second, row.get("winner"))


def ultrafeedback_vote(row: dict[str, Any]) -> Vote | None:
    vote = dialogue_vote(row)
    scores = [optional_number(row.get(name), name) for name in ("score_chosen", "score_rejected")]
    tie = None not in scores and scores[0] == scores[1]
    return vote._replace(winner=TIE) if vote and tie else vote


def optional_number(value: Any, name: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} is {brief(value)}, but a number is needed") from error


def dialogue_vote(row: dict[str, Any]) -> Vote | None:
    """The vote of two dialogues of messages, whose prompt is all messages before the last answer."""
    chosen, rejected = (required_messages(row.get(name), name) for name in SIDES)
    return NO_TEXTS if chosen is None or rejected is None else preference_vote(chosen, rejected)


def hh_rlhf_vote(row: dict[str, Any]) -> Vote | None:
    sides = []
    for name in SIDES:
        text = row.get(name)
        if text is None:
            return NO_TEXTS
        messages = transcript_messages(text, name)
        if not any(message.role == "assistant" for message in messages):
            raise DataError(f"{name} has no assistant's turn ('\\n\\nAssistant:'): {brief(text)}")
        # A dialogue that ends with the human's turn has an empty answer, as one with a last "Assistant:" has.
        sides.append(messages if messages[-1].role == "assistant" else [*messages, Message("assistant", "")])
    return preference_vote(*sides)


def dpo_vote(row: dict[str, Any]) -> Vote | None:
    chosen, rejected = (row.get(name) for name in SIDES)
    if chosen is None or rejected is None:
        return NO_TEXTS
    prompt = row.get("prompt")
    before = required_messages(prompt, "prompt") if parsed_messages(prompt) is not None else None
    if before is None and not isinstance(prompt, str | None):
        raise DataError(f"prompt is {brief(prompt)}, but text or messages are needed")
    sides = [parsed_messages(value) is not None for value in (chosen, rejected)]
    if all(sides):
        return dpo_messages_vote(
            row, [Message("user", prompt)] if before is None and prompt is not None else before
        )
    if not (isinstance(chosen, str) and isinstance(rejected, str)) or any(sides):
        raise DataError(
            f"chosen is {brief(chosen)} and rejected {brief(rejected)}; both must be texts, or both messages"
        )
    if "prompt" not in row:
        raise DataError("no prompt; give a column 'prompt', or messages that have it before the answer")
    return Vote(prompt if before is None else dialogue_text(before), chosen, rejected, MODEL_A)


def dpo_messages_vote(row: dict[str, Any], before: list[Message] | None) -> Vote | None:
    """The vote of two lists of messages, which begin with the prompt, or follow it (`before`)."""
    sides = []
    for name in SIDES:
        messages = required_messages(row[name], name) or []
        if messages and messages[0].role == "assistant":
            messages = [*(before or []), *messages]
        elif before is not None and not begins_with(messages[:-1], before):
            raise DataError(
                f"the prompt {brief(row['prompt'])} is not what the messages of {name} begin with"
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


FORMATS = {
    "wsdm": PublishedFormat(
        vote=wsdm_vote,
        id_needed=True,
        needed=(*TEXTS, "winner"),
        read=(*TEXTS, "winner"),
        kept=("model_a", "model_b", "language", "source"),
        chosen=False,
    ),
    "lmsys-57k": PublishedFormat(
        vote=lmsys_57k_vote,
        id_needed=True,
        needed=(*TEXTS, *LABELS),
        read=(*TEXTS, *LABELS),
        kept=("model_a", "model_b", "language", "source"),
        chosen=False,
    ),
    "lmsys-33k": PublishedFormat(
        vote=lmsys_33k_vote,
        id="question_id",
        id_needed=True,
        needed=("conversation_a", "conversation_b", "winner"),
        read=("conversation_a", "conversation_b", "winner"),
        kept=("model_a", "model_b", "language", "source"),
        chosen=False,
    ),
    "ultrafeedback": PublishedFormat(
        vote=ultrafeedback_vote,
        id="prompt_id",
        id_needed=True,
        id_of_prompt=True,
        needed=SIDES,
        read=SIDES,
        passed=("score_chosen", "score_rejected"),
        repeats=("prompt", "messages"),
    ),
    "orpo-dpo-mix": PublishedFormat(
        vote=dialogue_vote, needed=SIDES, read=SIDES, repeats=("prompt",), kept=("language",)
    ),
    "hh-rlhf": PublishedFormat(vote=hh_rlhf_vote, needed=SIDES, read=SIDES),
    "dpo": PublishedFormat(vote=dpo_vote, needed=SIDES, read=(*SIDES, "prompt")),
}
"""Formats by the names of `--format`."""
