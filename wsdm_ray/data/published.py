# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import)
"""Published data sets as they are published, to canonical rows: `prepare --format NAME`.

Each format is a function from a row in its published columns to one vote. Parquet, JSON lines and CSV hold
the same values; in CSV, as in any column of strings, a list is its JSON text. The columns are those of

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

where messages are a list of `{"role": "system" | "user" | "assistant", "content": text}`.

One text of several:

- Of an arena conversation of several turns (lmsys-57k, lmsys-33k) the vote is on the whole. All turns of one
  side are kept, each under a line `[turn 1]`, `[turn 2]`, ..., with a blank line between them, so that a
  prompt and its answers bear the same number; a turn that is null is empty there. A single turn stands as it
  is.
- Of a dialogue (the other formats) the vote is on the last answer, and the prompt is all that stands before
  it: each message as `role: content`, with a blank line between them. A single message of the user stands as
  it is.

Where the two sides were asked different things, no prompt is common to them: the turns of the user
(lmsys-33k) or the messages before the last answer differ, as in some rows of hh-rlhf
(github.com/eric-mitchell/direct-preference-optimization/pull/86). Such a row is marked, and `prepare` drops
and counts it as `different_prompts`. A dialogue of hh-rlhf that ends without an answer has an empty one.

Of chosen and rejected, a hash of the row's id decides which is response_a: the label is no constant, and
stays the same whatever the order of the files. Rows of ultrafeedback with two equal scores are ties. Its
`prompt_id` is that of a prompt; should another row of the file have it too, that row's id is PROMPT_ID-1.

`source` is the format's name where the file has none. What the texts and the winner are made of, and what
repeats that (`prompt` and `messages` of ultrafeedback, `prompt` of orpo-dpo-mix), is not passed on. Another
column with a canonical name is passed on as `input_NAME`, such as the `source` of orpo-dpo-mix, which names
the set within the mix. Not covered: what the values mean (`cleaning`), which rows are the same
(`splitting`).
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wsdm_ray.config import Columns
from wsdm_ray.data.sources import canonical, ids_of, made_ids, read_tables, whole_characters
from wsdm_ray.data.splitting import digests
from wsdm_ray.errors import DataError
from wsdm_ray.schema import CANONICAL_TYPES, MODEL_A, MODEL_B, PAIR_COLUMNS, TEXTS

__all__ = ["chosen_is_a", "read_published"]

TIE = "tie"
SIDES = ("chosen", "rejected")
LABELS = ("winner_model_a", "winner_model_b", "winner_tie")
ROLES = ("system", "user", "assistant")


class Vote(NamedTuple):
    """The texts and the winner of one row."""

    prompt: str | None
    response_a: str | None
    response_b: str | None
    winner: str | None


NO_TEXTS = Vote(None, None, None, MODEL_A)
"""A row that is dropped for its texts, whatever its winner."""


class Message(NamedTuple):
    """What one side says in a dialogue."""

    role: str
    content: str | None


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a published data set looks like."""

    vote: Callable[[dict[str, Any]], Vote | None]
    """From a row, which has the columns below; None where the two sides have different prompts."""
    needed: tuple[str, ...]
    """Columns that a file must have, beside that of the ids."""
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
    """Whether rows without ids are an error; else they get FILESTEM-ROW."""
    id_of_prompt: bool = False
    """Whether two rows may have the same id; then the later ones get -1, -2, ... added to it."""
    chosen: bool = True
    """Whether `vote` puts the chosen response first, so that the sides are still to be decided."""


def read_published(path: str, form: str, *, make_ids: bool = False) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """The rows of one file of a published data set, in order, in tables with canonical names and types.

    Args:
        form: name of the format, one of those above but `canonical`.
        make_ids: give rows ids also where the format has a column for them and the file has none.

    Returns:
        Tables, each with a bool array of one value a row: whether the two sides have different prompts. The
        texts of such rows are null.

    Raises:
        DataError: a column is missing, or a row has not the shape of the format; the message names the row.
        StorageError: the file cannot be read.
    """
    published = FORMATS[form]
    ids_made = False
    seen: Counter[str] = Counter()
    done = 0
    for table in read_tables(path):
        names = table.column_names
        if done == 0:
            check_columns(names, path, form, make_ids)
            ids_made = published.id not in names
        ids = made_ids(path, done, len(table)) if ids_made else given_ids(table, path, published.id, done)
        if published.id_of_prompt and not ids_made:
            ids = [numbered(name, seen) for name in ids]
        votes = votes_of(table, ids, path, form, done)
        yield with_votes(table, ids, votes, path, form, done, "" if ids_made else published.id)
        done += len(table)


def check_columns(names: list[str], path: str, form: str, make_ids: bool) -> None:
    """Raise `DataError` for a column that the format needs and the file has not, or has twice."""
    published = FORMATS[form]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: has the column {twice!r} {names.count(twice)} times")
    wanted = (published.id, *published.needed) if published.id_needed and not make_ids else published.needed
    missing = [name for name in wanted if name not in names]
    if missing:
        hint = "; --make-ids makes ids" if missing == [published.id] else ""
        raise DataError(
            f"{path}: no column {', '.join(map(repr, missing))}, which --format {form} needs{hint}; "
            f"there are: {', '.join(names)}"
        )


def given_ids(table: pa.Table, path: str, name: str, first_row: int) -> list[int | str]:
    """The ids of the rows. Raises `DataError` where one has none."""
    column = (
        table[name] if name in table.column_names else pa.chunked_array([pa.nulls(len(table), pa.string())])
    )
    return ids_of(column, path, first_row).to_pylist()


def numbered(name: int | str, seen: Counter[str]) -> str:
    """The id itself for the first row that has it, ID-1, ID-2, ... for the others."""
    name = str(name)
    number = seen[name]
    seen[name] += 1
    return f"{name}-{number}" if number else name


def votes_of(table: pa.Table, ids: list[Any], path: str, form: str, first_row: int) -> list[Vote | None]:
    """The vote of each row, None where its two sides have different prompts, with its sides decided."""
    published = FORMATS[form]
    taken = [name for name in (*published.read, *published.passed) if name in table.column_names]
    rows = table.select(taken).to_pylist()
    votes: list[Vote | None] = []
    for place, row in enumerate(rows):
        try:
            votes.append(published.vote(row))
        except DataError as error:
            raise DataError(
                f"{path}: row {first_row + place} (counted from 0; id {ids[place]}): {error}"
            ) from error
    if not published.chosen:
        return votes
    return [
        vote if first or vote is None else swapped(vote)
        for vote, first in zip(votes, chosen_is_a(ids).tolist(), strict=True)
    ]


def chosen_is_a(ids: list[Any]) -> np.ndarray:
    """Whether the chosen response is response_a in rows of these ids (N, bool): by a hash, for about half."""
    return np.array([name[0] & 1 == 1 for name in digests([f"chosen {name}" for name in ids]).tolist()], bool)


def swapped(vote: Vote) -> Vote:
    """The same vote with the two responses the other way round."""
    winner = {MODEL_A: MODEL_B, MODEL_B: MODEL_A}.get(vote.winner or "", vote.winner)
    return Vote(vote.prompt, vote.response_b, vote.response_a, winner)


def with_votes(
    table: pa.Table,
    ids: list[Any],
    votes: list[Vote | None],
    path: str,
    form: str,
    first_row: int,
    id_column: str,
) -> tuple[pa.Table, np.ndarray]:
    """The canonical table of the votes with the file's other columns, and which rows have no vote."""
    published = FORMATS[form]
    different = np.array([vote is None for vote in votes], bool)
    columns = {"id": pa.chunked_array([pa.array(ids)])}
    for place, name in enumerate((*TEXTS, "winner")):
        column = pa.array([(NO_TEXTS if vote is None else vote)[place] for vote in votes])
        columns[name] = pa.chunked_array([column])
    for name in table.column_names:
        if name in published.kept:
            columns[name] = table[name]
        elif name not in (*published.read, *published.repeats, id_column):
            theirs = name in CANONICAL_TYPES or name in PAIR_COLUMNS
            columns[f"input_{name}" if theirs else name] = table[name]
    out = canonical(pa.table(columns), path, Columns(), first_row)
    if "source" not in out.column_names:
        # Beside the other canonical columns, where a file's own would stand.
        place = sum(name in CANONICAL_TYPES for name in out.column_names) + 1
        source = pa.array([form] * len(out), pa.string())
        return out.add_column(place, "source", source), different
    source = pc.if_else(pc.equal(out["source"], ""), None, out["source"]).fill_null(form)
    return out.set_column(out.column_names.index("source"), "source", source), different


def wsdm(row: dict[str, Any]) -> Vote:
    return Vote(*(row.get(name) for name in (*TEXTS, "winner")))


def lmsys_57k(row: dict[str, Any]) -> Vote:
    turns = [turns_of(row.get(name), name) for name in TEXTS]
    counts = {name: len(found) for name, found in zip(TEXTS, turns, strict=True) if found is not None}
    if len(set(counts.values())) > 1:
        counted = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DataError(f"the numbers of turns differ ({counted}); each turn has a prompt and two responses")
    prompt, a, b = map(joined, turns)
    return Vote(prompt, a, b, one_label(row))


def one_label(row: dict[str, Any]) -> str:
    """The winner of a row that has a 1 in one of three columns."""
    marks = {name: str(row.get(name)).strip().casefold() for name in LABELS}
    won = [name for name, mark in marks.items() if mark in ("1", "1.0", "true")]
    lost = [name for name, mark in marks.items() if mark in ("0", "0.0", "false")]
    if len(won) != 1 or len(lost) != 2:
        marked = ", ".join(f"{name} {row.get(name)!r}" for name in LABELS)
        raise DataError(f"{marked}; one of them must be 1, the others 0")
    return {LABELS[0]: MODEL_A, LABELS[1]: MODEL_B, LABELS[2]: TIE}[won[0]]


def lmsys_33k(row: dict[str, Any]) -> Vote | None:
    sides = []
    for name in ("conversation_a", "conversation_b"):
        said = messages_of(row.get(name), name)
        if said is None:
            return NO_TEXTS
        roles = [message.role for message in said]
        if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
            raise DataError(
                f"{name} is {', '.join(roles) or 'empty'}; user and assistant must take turns, the user first"
            )
        sides.append(said)
    a, b = sides
    if len(a) != len(b):
        raise DataError(
            f"conversation_a has {len(a) // 2} turns, but conversation_b {len(b) // 2}; they must be as many"
        )
    if not same(a[::2], b[::2]):
        return None
    prompt, first, second = (
        joined([message.content for message in said]) for said in (a[::2], a[1::2], b[1::2])
    )
    return Vote(prompt, first, second, row.get("winner"))


def ultrafeedback(row: dict[str, Any]) -> Vote | None:
    vote = dialogues(row)
    scores = [number(row.get(name), name) for name in ("score_chosen", "score_rejected")]
    tie = None not in scores and scores[0] == scores[1]
    return vote._replace(winner=TIE) if vote and tie else vote


def number(value: Any, name: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} is {shown(value)}, but a number is needed") from error


def dialogues(row: dict[str, Any]) -> Vote | None:
    """The vote of two dialogues of messages, whose prompt is all that stands before the last answer."""
    chosen, rejected = (messages_of(row.get(name), name) for name in SIDES)
    return NO_TEXTS if chosen is None or rejected is None else preference(chosen, rejected)


def hh_rlhf(row: dict[str, Any]) -> Vote | None:
    sides = []
    for name in SIDES:
        text = row.get(name)
        if text is None:
            return NO_TEXTS
        said = spoken(text, name)
        if not any(message.role == "assistant" for message in said):
            raise DataError(f"{name} has no assistant's turn ('\\n\\nAssistant:'): {shown(text)}")
        # One that ends with the human's turn lacks its answer, as one that ends with "Assistant:" does.
        sides.append(said if said[-1].role == "assistant" else [*said, Message("assistant", "")])
    return preference(*sides)


SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def spoken(text: Any, name: str) -> list[Message]:
    """The turns of a dialogue that is written as `\\n\\nHuman: ...\\n\\nAssistant: ...`."""
    parts = SPEAKER.split(text) if isinstance(text, str) else [text]
    if len(parts) < 3 or parts[0].strip():
        raise DataError(f"{name} is {shown(text)}, but a dialogue that begins with '\\n\\nHuman:' is needed")
    speakers = {"Human": "user", "Assistant": "assistant"}
    return [
        Message(speakers[speaker], said.strip())
        for speaker, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


def dpo(row: dict[str, Any]) -> Vote | None:
    chosen, rejected = (row.get(name) for name in SIDES)
    if chosen is None or rejected is None:
        return NO_TEXTS
    prompt = row.get("prompt")
    before = messages_of(prompt, "prompt") if messages_in(prompt) is not None else None
    if before is None and not isinstance(prompt, str | None):
        raise DataError(f"prompt is {shown(prompt)}, but text or messages are needed")
    sides = [messages_in(value) is not None for value in (chosen, rejected)]
    if all(sides):
        return dpo_messages(
            row, [Message("user", prompt)] if before is None and prompt is not None else before
        )
    if not (isinstance(chosen, str) and isinstance(rejected, str)) or any(sides):
        raise DataError(
            f"chosen is {shown(chosen)} and rejected {shown(rejected)}; both must be texts, or both messages"
        )
    if "prompt" not in row:
        raise DataError("no prompt; give a column 'prompt', or messages that have it before the answer")
    return Vote(prompt if before is None else told(before), chosen, rejected, MODEL_A)


def dpo_messages(row: dict[str, Any], before: list[Message] | None) -> Vote | None:
    """The vote of two lists of messages, which begin with the prompt, or follow it (`before`)."""
    sides = []
    for name in SIDES:
        said = messages_of(row[name], name) or []
        if said and said[0].role == "assistant":
            said = [*(before or []), *said]
        elif before is not None and not begins_with(said[:-1], before):
            raise DataError(
                f"the prompt {shown(row['prompt'])} is not what the messages of {name} begin with"
            )
        sides.append(said)
    return preference(*sides)


def begins_with(context: list[Message], before: list[Message]) -> bool:
    """Whether `before` is the beginning of a dialogue, or its text, or one of the user's messages."""
    if same(context[: len(before)], before):
        return True
    if len(before) != 1:
        return False
    text = (before[0].content or "").strip()
    users = [(message.content or "").strip() for message in context if message.role == "user"]
    return text in (*users, (told(context) or "").strip())


def preference(chosen: list[Message], rejected: list[Message]) -> Vote | None:
    """The vote for one of two dialogues; None where they differ before their last message, the answer."""
    before = [answered(said, name) for said, name in zip((chosen, rejected), SIDES, strict=True)]
    if not same(*before):
        return None
    return Vote(told(before[0]), chosen[-1].content, rejected[-1].content, MODEL_A)


def answered(said: list[Message], name: str) -> list[Message]:
    """What was said before the last message, which must be the assistant's."""
    if not said or said[-1].role != "assistant":
        roles = ", ".join(message.role for message in said)
        raise DataError(f"{name} is {roles or 'empty'}; the last message must be the assistant's")
    if not any(message.role == "user" for message in said[:-1]):
        raise DataError(f"{name} has no user's message before the answer")
    return said[:-1]


def same(one: list[Message], other: list[Message]) -> bool:
    """Whether two dialogues say the same; white space around a message does not count."""
    return [(role, (text or "").strip()) for role, text in one] == [
        (role, (text or "").strip()) for role, text in other
    ]


def told(context: list[Message]) -> str | None:
    """A dialogue as one text: null where every message is, empty where every message is blank."""
    texts = [message.content for message in context]
    if [message.role for message in context] == ["user"] or not any((text or "").strip() for text in texts):
        return texts[0] if len(texts) == 1 else blank(texts)
    return "\n\n".join(f"{message.role}: {message.content or ''}" for message in context)


def joined(turns: list[str | None] | None) -> str | None:
    """All turns of one side as one text: null where every turn is, empty where every turn is blank."""
    if not turns:
        return None
    if len(turns) == 1:
        return turns[0]
    if not any((text or "").strip() for text in turns):
        return blank(turns)
    return "\n\n".join(f"[turn {place}]\n{text or ''}" for place, text in enumerate(turns, 1))


def blank(texts: list[str | None]) -> str | None:
    return None if all(text is None for text in texts) else ""


def turns_of(value: Any, name: str) -> list[str | None] | None:
    """The texts of a list; null for a cell that is null or empty, as CSV writes it."""
    turns = unpacked(value) if isinstance(value, str) else value
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(turns, list) or not all(isinstance(turn, str | None) for turn in turns):
        raise DataError(f"{name} is {shown(value)}, but a list of texts is needed, one a turn (JSON in CSV)")
    return turns


def messages_of(value: Any, name: str) -> list[Message] | None:
    """The messages of a list; null for a cell that is null or empty, as CSV writes it."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    messages = messages_in(value)
    if messages is None:
        raise DataError(
            f"{name} is {shown(value)}, but a list of messages with role and content is needed (JSON in CSV)"
        )
    for message in messages:
        if message.role not in ROLES or not isinstance(message.content, str | None):
            raise DataError(
                f"{name} has the message {shown(message._asdict())}; role must be one of {', '.join(ROLES)}, "
                "content text"
            )
    return messages


def messages_in(value: Any) -> list[Message] | None:
    """The messages of a list, or of its JSON text; None where it is something else."""
    found = unpacked(value) if isinstance(value, str) and value.lstrip().startswith("[") else value
    if not isinstance(found, list) or not all(
        isinstance(message, dict) and {"role", "content"} <= message.keys() for message in found
    ):
        return None
    # An empty list in brackets is text as well as it is no messages.
    return (
        [Message(message["role"], message["content"]) for message in found]
        if found or found is value
        else None
    )


def unpacked(text: str) -> Any:
    """The value of JSON text in whole characters; None where it is not JSON."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return whole_characters(value) if "\\u" in text else value


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


FORMATS = {
    "wsdm": Published(
        vote=wsdm,
        id_needed=True,
        needed=(*TEXTS, "winner"),
        read=(*TEXTS, "winner"),
        kept=("model_a", "model_b", "language", "source"),
        chosen=False,
    ),
    "lmsys-57k": Published(
        vote=lmsys_57k,
        id_needed=True,
        needed=(*TEXTS, *LABELS),
        read=(*TEXTS, *LABELS),
        kept=("model_a", "model_b", "language", "source"),
        chosen=False,
    ),
    "lmsys-33k": Published(
        vote=lmsys_33k,
        id="question_id",
        id_needed=True,
        needed=("conversation_a", "conversation_b", "winner"),
        read=("conversation_a", "conversation_b", "winner"),
        kept=("model_a", "model_b", "language", "source"),
        chosen=False,
    ),
    "ultrafeedback": Published(
        vote=ultrafeedback,
        id="prompt_id",
        id_needed=True,
        id_of_prompt=True,
        needed=SIDES,
        read=SIDES,
        passed=("score_chosen", "score_rejected"),
        repeats=("prompt", "messages"),
    ),
    "orpo-dpo-mix": Published(
        vote=dialogues, needed=SIDES, read=SIDES, repeats=("prompt",), kept=("language",)
    ),
    "hh-rlhf": Published(vote=hh_rlhf, needed=SIDES, read=SIDES),
    "dpo": Published(vote=dpo, needed=SIDES, read=(*SIDES, "prompt")),
}
"""By the names of `--format`."""
