"""Lists of messages, lists of turns and written dialogues: parsed, compared, and laid out as one text.

A message is `{"role": "system" | "user" | "assistant", "content": text}`. In a column of strings, as in CSV,
a list is its JSON text.

- A conversation of several turns: all turns of one side are one text, each under a line `[turn 1]`,
  `[turn 2]`, ..., with a blank line between them, so that a prompt and its answers have the same number. A
  turn that is null is empty there. A single turn stays as it is.
- A dialogue: each message is `role: content`, with a blank line between them. A single message of the user
  stays as it is.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from wsdm_ray.errors import DataError
from wsdm_ray.inputs.tables import whole_characters

__all__ = [
    "Message",
    "begins_with",
    "brief",
    "dialogue_text",
    "looks_like_lists",
    "messages_before_answer",
    "parsed_messages",
    "required_messages",
    "required_turns",
    "same_messages",
    "text_of",
    "transcript_messages",
    "turns_text",
]

ROLES = ("system", "user", "assistant")
SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


class Message(NamedTuple):
    """One message of a dialogue."""

    role: str
    content: str | None


def required_messages(value: Any, name: str) -> list[Message] | None:
    """The messages of a cell; None where it is null, or empty as CSV writes null.

    Raises:
        DataError: the cell `name` holds something else.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    messages = parsed_messages(value)
    if messages is None:
        raise DataError(
            f"{name} is {brief(value)}, but a list of messages with role and content is needed (JSON in CSV)"
        )
    for message in messages:
        if message.role not in ROLES or not isinstance(message.content, str | None):
            raise DataError(
                f"{name} has the message {brief(message._asdict())}; role must be one of {', '.join(ROLES)}, "
                "content text"
            )
    return messages


def parsed_messages(value: Any) -> list[Message] | None:
    """The messages of a list, or of its JSON text; None where it is something else."""
    items = parsed_json(value) if isinstance(value, str) and value.lstrip().startswith("[") else value
    if not isinstance(items, list) or not all(
        isinstance(item, dict) and {"role", "content"} <= item.keys() for item in items
    ):
        return None
    if not items and isinstance(value, str):  # the text "[]" may be a text
        return None
    return [Message(item["role"], item["content"]) for item in items]


def required_turns(value: Any, name: str) -> list[str | None] | None:
    """The texts of a cell, one a turn; None where it is null, or empty as CSV writes null.

    Raises:
        DataError: the cell `name` holds something else.
    """
    turns = parsed_json(value) if isinstance(value, str) else value
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(turns, list) or not all(isinstance(turn, str | None) for turn in turns):
        raise DataError(f"{name} is {brief(value)}, but a list of texts is needed, one a turn (JSON in CSV)")
    return turns


def looks_like_lists(texts: Sequence[str | None]) -> bool:
    """Whether all texts that are not null are JSON lists of texts or of messages."""
    some = [text for text in texts if text is not None]
    return bool(some) and all(
        text.lstrip().startswith("[") and isinstance(parsed_json(text), list) for text in some
    )


def text_of(value: Any) -> str | None:
    """The text of a list of turns, which may be JSON text."""
    return turns_text(required_turns(value, "the cell"))


def parsed_json(text: str) -> Any:
    """The value of JSON text in whole characters; None where it is not JSON."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return whole_characters(value) if "\\u" in text else value


def transcript_messages(text: Any, name: str) -> list[Message]:
    """The messages of a dialogue that is written as `\\n\\nHuman: ...\\n\\nAssistant: ...`."""
    parts = SPEAKER.split(text) if isinstance(text, str) else [text]
    if len(parts) < 3 or parts[0].strip():
        raise DataError(f"{name} is {brief(text)}, but a dialogue that begins with '\\n\\nHuman:' is needed")
    speakers = {"Human": "user", "Assistant": "assistant"}
    return [
        Message(speakers[speaker], text.strip())
        for speaker, text in zip(parts[1::2], parts[2::2], strict=True)
    ]


def messages_before_answer(messages: list[Message], name: str) -> list[Message]:
    """The messages before the last one.

    Raises:
        DataError: the last message is not the assistant's, or no message before it is the user's.
    """
    if not messages or messages[-1].role != "assistant":
        roles = ", ".join(message.role for message in messages)
        raise DataError(f"{name} is {roles or 'empty'}; the last message must be the assistant's")
    if not any(message.role == "user" for message in messages[:-1]):
        raise DataError(f"{name} has no user's message before the answer")
    return messages[:-1]


def same_messages(one: list[Message], other: list[Message]) -> bool:
    """Whether two dialogues are the same but for white space around a message."""
    return [(role, (text or "").strip()) for role, text in one] == [
        (role, (text or "").strip()) for role, text in other
    ]


def begins_with(context: list[Message], before: list[Message]) -> bool:
    """Whether `context` begins with `before`, or `before` is its whole text or one of its user's messages."""
    if same_messages(context[: len(before)], before):
        return True
    if len(before) != 1:
        return False
    text = (before[0].content or "").strip()
    users = [(message.content or "").strip() for message in context if message.role == "user"]
    return text in (*users, (dialogue_text(context) or "").strip())


def dialogue_text(context: list[Message]) -> str | None:
    """A dialogue as one text: null where every message is, empty where every message is blank."""
    texts = [message.content for message in context]
    if [message.role for message in context] == ["user"] or not any((text or "").strip() for text in texts):
        return texts[0] if len(texts) == 1 else null_or_empty(texts)
    return "\n\n".join(f"{message.role}: {message.content or ''}" for message in context)


def turns_text(turns: list[str | None] | None) -> str | None:
    """All turns of one side as one text: null where every turn is, empty where every turn is blank."""
    if not turns:
        return None
    if len(turns) == 1:
        return turns[0]
    if not any((text or "").strip() for text in turns):
        return null_or_empty(turns)
    return "\n\n".join(f"[turn {place}]\n{text or ''}" for place, text in enumerate(turns, 1))


def null_or_empty(texts: list[str | None]) -> str | None:
    return None if all(text is None for text in texts) else ""


def brief(value: Any) -> str:
    """The repr of a value, of at most 80 characters: for messages of errors."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
