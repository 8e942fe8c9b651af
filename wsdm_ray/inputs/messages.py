"""Lists of messages, lists of turns and written dialogues: parsed, compared, and laid out as one text.

A message is `{"role": ..., "content": ...}`, or as ShareGPT has it `{"from": ..., "value": ...}`. In a column
of strings, as in CSV, a list is its JSON text, or its text as Python shows it. One message may stand for a
list of one.

- Roles: any. `human` and its like are `user`, `gpt` and its like are `assistant` (`ROLE_NAMES`).
- Content: a text, or a list of parts. The texts of parts are joined, each on a line of its own; an image,
  audio, video or file is `[image]`, `[audio]`, `[video]`, `[file]` in its place, so that they are counted;
  other parts (calls and results of tools) are their JSON text.
- Calls of tools (`tool_calls`, `function_call`) are their JSON text, on a line after the content if there is
  any. JSON text has its keys in alphabetical order, and none that are null.

As one text:

- A conversation of several turns: all turns of one side are one text, each under a line `[turn 1]`,
  `[turn 2]`, ..., with a blank line between them, so that a prompt and its answers have the same number. A
  turn that is null is empty there. A single turn stays as it is.
- A dialogue: each message is `role: content`, with a blank line between them. A single message of the user
  stays as it is.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard

from wsdm_ray.inputs.cells import MalformedRowError, brief, is_numpy_text, list_hint, parsed_list

__all__ = [
    "ANSWER_ROLES",
    "Message",
    "begins_with",
    "count_media",
    "dialogue_text",
    "holds_messages",
    "looks_like_lists",
    "messages_before_answer",
    "messages_text",
    "required_messages",
    "required_turns",
    "same_messages",
    "text_of",
    "transcript_messages",
    "turns_text",
]

ROLE_NAMES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "claude", "llm"), "assistant"),
    **dict.fromkeys(("model", "ai", "bot", "chatbot"), "assistant"),
    **{name: name for name in ("system", "developer", "tool", "function", "function_call", "observation")},
}
"""Roles by what sets call them, in lower case. Any other keeps its name."""
ANSWER_ROLES = ("assistant", "function_call")
"""Roles whose message can be an answer. ShareGPT calls a message that calls a tool `function_call`."""
ROLE_KEYS, CONTENT_KEYS, CALL_KEYS = ("role", "from"), ("content", "value"), ("tool_calls", "function_call")
MEDIA = ("image", "audio", "video", "file")
SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


class Message(NamedTuple):
    """One message of a dialogue."""

    role: str
    content: str | None


def required_messages(value: Any, name: str) -> list[Message] | None:
    """The messages of a cell; None where it is null, or empty as CSV writes null.

    Raises:
        MalformedRowError: the cell `name` holds something else.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    items = message_items(value)
    if items is None:
        raise MalformedRowError(
            f"{name} is {brief(value)}, but a list of messages with role and content is needed (JSON in CSV)"
            f"{list_hint(value)}",
            "not a list of messages",
        )
    return [message_of(item, name) for item in items]


def holds_messages(value: Any) -> bool:
    """Whether a cell is a list of messages, or one message.

    Text is only if a role is one of `ROLE_NAMES`: `{"from": "EUR", "value": "5"}` may be an answer in JSON.
    """
    items = message_items(value)
    if items is None or not isinstance(value, str):
        return items is not None
    return any(str(first_of(item, ROLE_KEYS)).strip().casefold() in ROLE_NAMES for item in items)


def message_items(value: Any) -> list[dict[str, Any]] | None:
    """The messages of a list, of one message, or of the text of these; None where it is something else."""
    items = parsed_list(value) if isinstance(value, str) else value
    items = [items] if isinstance(items, dict) else items
    if not isinstance(items, list) or not all(is_message(item) for item in items):
        return None
    return None if not items and isinstance(value, str) else items  # the text "[]" may be a text


def is_message(item: Any) -> bool:
    return (
        isinstance(item, dict)
        and any(key in item for key in ROLE_KEYS)
        and any(key in item for key in (*CONTENT_KEYS, *CALL_KEYS))
    )


def message_of(item: dict[str, Any], name: str) -> Message:
    role, content, calls = (first_of(item, keys) for keys in (ROLE_KEYS, CONTENT_KEYS, CALL_KEYS))
    if not isinstance(role, str) or not role.strip():
        raise MalformedRowError(
            f"{name} has the message {brief(item)} without a role", "a message without a role"
        )
    role = ROLE_NAMES.get(role.strip().casefold(), role.strip())
    try:
        text = content_text(content)
    except TypeError as error:
        raise MalformedRowError(
            f"{name} has the message {brief(item)}; its content must be text, or a list of parts",
            "content that is no text",
        ) from error
    if calls:
        called = calls if isinstance(calls, str) else json_text(calls)
        text = f"{text}\n{called}" if text and text.strip() else called
    return Message(role, text)


def first_of(item: dict[str, Any], keys: Sequence[str]) -> Any:
    """The first value that is not null. Arrow gives every message the keys of all."""
    return next((item[key] for key in keys if item.get(key) is not None), None)


def content_text(content: Any) -> str | None:
    """The text of a message's content. Raises `TypeError` for what is neither text nor parts."""
    if content is None or isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [part for part in map(part_text, parts) if part is not None]
    return "\n".join(filter(None, texts)) if texts else None


def part_text(part: Any) -> str | None:
    if part is None or isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise TypeError(type(part).__name__)
    kind, medium = str(part.get("type") or "").casefold(), medium_of(part)
    text = part.get("text")
    if medium is not None:
        return f"{text}\n[{medium}]" if text else f"[{medium}]"
    if isinstance(text, str) or "text" in kind:
        return text
    return json_text(part)


def medium_of(part: dict[str, Any]) -> str | None:
    """What of `MEDIA` a part of a content is; None where it is none."""
    kind = str(part.get("type") or "").casefold()
    return next((name for name in MEDIA if name in kind or part.get(name) is not None), None)


def count_media(value: Any, counts: Counter[str]) -> None:
    """Add the images, audios, videos and files of a cell of messages, whose texts have `[image]` for one."""
    if isinstance(value, str):
        if value.lstrip().startswith(("[", "{")) and any(name in value for name in MEDIA):
            count_media(parsed_list(value), counts)
    elif isinstance(value, list):
        for item in value:
            count_media(item, counts)
    elif isinstance(value, dict):
        content = next((value[key] for key in CONTENT_KEYS if key in value), None)
        if isinstance(content, list | dict):
            count_media(content, counts)
        elif content is None and (medium := medium_of(value)):
            counts[medium] += 1


def json_text(value: Any) -> str:
    """JSON of a value, the same whatever other rows a file has: Arrow orders keys and adds null ones."""
    return json.dumps(without_nulls(value), ensure_ascii=False, sort_keys=True, default=str)


def without_nulls(value: Any) -> Any:
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return value


def required_turns(value: Any, name: str) -> list[str | None] | None:
    """The texts of a cell, one a turn; None where it is null, or empty as CSV writes null.

    Raises:
        MalformedRowError: the cell `name` holds something else.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    turns = parsed_list(value) if isinstance(value, str) else value
    if not is_turns(turns):
        raise MalformedRowError(
            f"{name} is {brief(value)}, but a list of texts is needed, one a turn (JSON in CSV)"
            f"{list_hint(value)}",
            "not a list of texts",
        )
    return turns


def is_turns(value: Any) -> TypeGuard[list[str | None]]:
    return isinstance(value, list) and all(isinstance(turn, str | None) for turn in value)


def text_of(value: Any, name: str = "the text") -> str | None:
    """What a value of a text column means where it may be a list: one text; null for null.

    Args:
        value: a text; a list of turns, of messages, or one message; or a text of these. Any other text is
            itself.
        name: of the column, for the message of an error.

    Raises:
        MalformedRowError: it is of another kind, or a numpy array as text.
    """
    items = parsed_list(value) if isinstance(value, str) else value
    if is_turns(items):
        return turns_text(items)
    if items is not None and holds_messages(value):
        return messages_text(required_messages(value, name) or [])
    if value is None or (isinstance(value, str) and not is_numpy_text(value)):
        return value
    raise MalformedRowError(
        f"{name} is {brief(value)}, but text, or a list of texts or messages, is needed{list_hint(value)}",
        "not a text",
    )


def looks_like_lists(texts: Sequence[str | None]) -> bool:
    """Whether all texts of a column that are not null or blank are lists of texts or of messages, as text."""
    some = [text for text in texts if text is not None and text.strip()]
    return bool(some) and all(text.lstrip()[0] == "[" for text in some) and all(map(is_list_text, some))


def is_list_text(text: str) -> bool:
    return is_turns(parsed_list(text)) or holds_messages(text) or is_numpy_text(text)


def transcript_messages(text: Any, name: str) -> list[Message]:
    """The messages of a dialogue that is written as `\\n\\nHuman: ...\\n\\nAssistant: ...`.

    Raises:
        MalformedRowError: the cell `name` does not begin so.
    """
    parts = SPEAKER.split(text) if isinstance(text, str) else [text]
    if len(parts) < 3 or parts[0].strip():
        raise MalformedRowError(
            f"{name} is {brief(text)}, but a dialogue that begins with '\\n\\nHuman:' is needed",
            "not a dialogue",
        )
    speakers = {"Human": "user", "Assistant": "assistant"}
    return [
        Message(speakers[speaker], text.strip())
        for speaker, text in zip(parts[1::2], parts[2::2], strict=True)
    ]


def messages_before_answer(messages: list[Message], name: str) -> list[Message]:
    """The messages before the last one.

    Raises:
        MalformedRowError: the last message is not the assistant's, or no message before it is the user's.
    """
    if not messages or messages[-1].role not in ANSWER_ROLES:
        roles = ", ".join(message.role for message in messages)
        raise MalformedRowError(
            f"{name} is {roles or 'empty'}; the last message must be the assistant's", "no answer at the end"
        )
    if not any(message.role == "user" for message in messages[:-1]):
        raise MalformedRowError(f"{name} has no user's message before the answer", "no user's message")
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


def messages_text(messages: list[Message]) -> str | None:
    """The messages of one side of a turn as one text; a single one stays as it is."""
    return messages[0].content if len(messages) == 1 else dialogue_text(messages)


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
