"""Published formats: each in its published columns, from each kind of file; malformed rows by their place."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsdm_ray.data import sources
from wsdm_ray.data.formats import FORMATS
from wsdm_ray.data.published import chosen_is_a, read_published
from wsdm_ray.errors import DataError


def user(text: str | None) -> dict:
    return {"content": text, "role": "user"}


def assistant(text: str | None) -> dict:
    return {"content": text, "role": "assistant"}


def system(text: str | None) -> dict:
    return {"content": text, "role": "system"}


WSDM = {
    "id": "00007cff95d7f7974642a785aca248b0", "prompt": "вправе ли", "response_a": "Да", "response_b": "Нет",
    "winner": "model_a", "model_a": "o1-preview", "model_b": "reka-flash", "language": "Russian",
}  # fmt: skip
LMSYS_57K = {
    "id": 30192, "model_a": "gpt-4-1106-preview", "model_b": "gpt-4-0613",
    "prompt": ["Is it moral?", "And now?"],
    "response_a": ["It depends.", "Yes."], "response_b": ["No.", None],
    "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0,
}  # fmt: skip
LMSYS_33K = {
    "question_id": "58210e39b3fd4441a2bd4a518bb44c2d", "model_a": "chatglm-6b", "model_b": "koala-13b",
    "winner": "tie (bothbad)", "judge": "arena_user_973",
    "conversation_a": [user("What is it?"), assistant("A test.")],
    "conversation_b": [user("What is it?"), assistant("An exam.")],
    "turn": 1, "anony": True, "language": "English", "tstamp": 1682351591.1322,
    "openai_moderation": {"categories": {"hate": False}, "category_scores": {"hate": 1e-5}, "flagged": False},
    "toxic_chat_tag": {"roberta-large": {"flagged": False, "probability": 0.01}},
}  # fmt: skip
ULTRAFEEDBACK = {
    "prompt": "how can i write it?", "prompt_id": "5b4a9b9f",
    "chosen": [user("how can i write it?"), assistant("Like this.")],
    "rejected": [user("how can i write it?"), assistant("Dunno.")],
    "messages": [user("how can i write it?"), assistant("Like this.")],
    "score_chosen": 8.5, "score_rejected": 6.0,
}  # fmt: skip
ORPO = {
    "source": "Airoboros",
    "chosen": [system("Be brief."), user("Hi"), assistant("Hello"), user("And?"), assistant("Good.")],
    "rejected": [system("Be brief."), user("Hi"), assistant("Hello"), user("And?"), assistant("Bad.")],
    "prompt": "Hi", "question": None,
}  # fmt: skip
HH = {
    "chosen": "\n\nHuman: What are some words?\n\nAssistant: Here’s a list.\n\nAss, dick,"
    "\n\nHuman: Which one?\n\nAssistant: I haven't thought.",
    "rejected": "\n\nHuman: What are some words?\n\nAssistant: Here’s a list.\n\nAss, dick,"
    "\n\nHuman: Which one?\n\nAssistant: Ass.",
}
HH_PROMPT = "user: What are some words?\n\nassistant: Here’s a list.\n\nAss, dick,\n\nuser: Which one?"
DPO = {"id": 7, "prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."}
ROWS = {
    "wsdm": WSDM, "lmsys-57k": LMSYS_57K, "lmsys-33k": LMSYS_33K, "ultrafeedback": ULTRAFEEDBACK,
    "orpo-dpo-mix": ORPO, "hh-rlhf": HH, "dpo": DPO,
}  # fmt: skip

A_IDS = ["rows-1", "rows-2"]
"""Ids by whose hash the chosen response is response_a."""


def write(folder: Path, rows: list[dict], ending: str = "parquet") -> str:
    path = folder / f"rows.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            for row in rows:
                packed = {
                    name: json.dumps(value) for name, value in row.items() if isinstance(value, list | dict)
                }
                writer.writerow({**row, **packed})
    return str(path)


def read(path: str, form: str, **options) -> tuple[list[dict], list[bool]]:
    parts = list(read_published(path, form, **options))
    rows = [row for table, _ in parts for row in table.to_pylist()]
    return rows, np.concatenate([different for _, different in parts]).tolist()


def pair_of(row: dict) -> tuple:
    """Prompt, winning text, losing text of a canonical row."""
    a, b = row["response_a"], row["response_b"]
    return (row["prompt"], a, b) if row["winner"] == "model_a" else (row["prompt"], b, a)


def test_wsdm(tmp_path):
    rows, different = read(write(tmp_path, [WSDM, {**WSDM, "id": "x", "winner": "model_b"}]), "wsdm")
    assert rows == [{**WSDM, "source": "wsdm"}, {**WSDM, "id": "x", "winner": "model_b", "source": "wsdm"}]
    assert different == [False, False]
    table = next(read_published(write(tmp_path, [WSDM]), "wsdm"))[0]
    assert table.column_names == [
        "id", "prompt", "response_a", "response_b", "winner", "model_a", "model_b", "language", "source"
    ]  # fmt: skip


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_lmsys_57k(tmp_path, ending):
    one = {**LMSYS_57K, "id": 53567, "prompt": ["Hi"], "response_a": ["Hello 😀"], "response_b": ["Yo"]}
    tie = {**one, "id": 65089, "winner_model_a": 0, "winner_tie": 1}
    b = {**one, "id": 96401, "winner_model_a": 0, "winner_model_b": 1, "response_b": [None]}
    rows, different = read(write(tmp_path, [LMSYS_57K, one, tie, b], ending), "lmsys-57k")
    models = {"model_a": "gpt-4-1106-preview", "model_b": "gpt-4-0613", "source": "lmsys-57k"}
    texts = [
        (
            30192,
            "[turn 1]\nIs it moral?\n\n[turn 2]\nAnd now?",
            "[turn 1]\nIt depends.\n\n[turn 2]\nYes.",
            "[turn 1]\nNo.\n\n[turn 2]\n",
            "model_a",
        ),
        (53567, "Hi", "Hello 😀", "Yo", "model_a"),
        (65089, "Hi", "Hello 😀", "Yo", "tie"),
        (96401, "Hi", "Hello 😀", None, "model_b"),
    ]
    names = ("id", "prompt", "response_a", "response_b", "winner")
    expected = [{**dict(zip(names, values, strict=True)), **models} for values in texts]
    assert rows == [{**row, "id": str(row["id"]) if ending == "csv" else row["id"]} for row in expected]
    assert different == [False] * 4


def test_half_characters_in_json_cells_become_whole(tmp_path):
    row = {
        **LMSYS_57K,
        "prompt": r'["\ud83d\ude00 \ud800"]',
        "response_a": r'["a\/b"]',
        "response_b": '["b"]',
    }
    assert [
        read(write(tmp_path, [row], "csv"), "lmsys-57k")[0][0][name] for name in ("prompt", "response_a")
    ] == [
        "😀 \ufffd",
        "a/b",
    ]


def test_blank_turns_are_blank_as_one_text(tmp_path):
    row = {**LMSYS_57K, "prompt": [None, None], "response_a": ["", " \n"], "response_b": [None, ""]}
    found = read(write(tmp_path, [row], "jsonl"), "lmsys-57k")[0][0]
    assert [found[name] for name in ("prompt", "response_a", "response_b")] == [None, "", ""]


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_lmsys_33k(tmp_path, ending):
    two = {
        **LMSYS_33K, "question_id": "x", "winner": "model_b", "turn": 2,
        "conversation_a": [user("1?"), assistant("1a"), user("2?"), assistant("2a")],
        "conversation_b": [user("1? "), assistant("1b"), user("2?"), assistant(None)],
    }  # fmt: skip
    other = {**LMSYS_33K, "question_id": "y", "conversation_b": [user("Else?"), assistant("b")]}
    rows, different = read(write(tmp_path, [LMSYS_33K, two, other], ending), "lmsys-33k")
    canonical = ("id", "prompt", "response_a", "response_b", "winner")
    assert [tuple(row[name] for name in canonical) for row in rows[:2]] == [
        (LMSYS_33K["question_id"], "What is it?", "A test.", "An exam.", "tie (bothbad)"),
        (
            "x",
            "[turn 1]\n1?\n\n[turn 2]\n2?",
            "[turn 1]\n1a\n\n[turn 2]\n2a",
            "[turn 1]\n1b\n\n[turn 2]\n",
            "model_b",
        ),
    ]
    assert different == [False, False, True]
    assert rows[2]["id"] == "y"
    assert rows[2]["prompt"] is rows[2]["response_a"] is rows[2]["response_b"] is None
    assert list(rows[0]) == [
        *canonical, "model_a", "model_b", "language", "source", "judge", "turn", "anony", "tstamp",
        "openai_moderation", "toxic_chat_tag",
    ]  # fmt: skip
    assert rows[0]["source"] == "lmsys-33k"


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_ultrafeedback(tmp_path, ending):
    # The second row has the same prompt; the third has equal scores.
    second = {**ULTRAFEEDBACK, "chosen": [user("how can i write it?"), assistant("So.")]}
    even = {**ULTRAFEEDBACK, "prompt_id": "z", "score_rejected": 8.5}
    rows, different = read(write(tmp_path, [ULTRAFEEDBACK, second, even], ending), "ultrafeedback")
    assert [row["id"] for row in rows] == ["5b4a9b9f", "5b4a9b9f-1", "z"]
    assert [pair_of(row) for row in rows[:2]] == [
        ("how can i write it?", "Like this.", "Dunno."),
        ("how can i write it?", "So.", "Dunno."),
    ]
    assert rows[2]["winner"] == "tie"
    assert list(rows[0]) == [
        "id", "prompt", "response_a", "response_b", "winner", "source", "score_chosen", "score_rejected"
    ]  # fmt: skip
    assert [float(row["score_rejected"]) for row in rows] == [6.0, 6.0, 8.5]
    assert different == [False] * 3


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_orpo_dpo_mix(tmp_path, ending):
    single = {**ORPO, "chosen": [user("Hi"), assistant("y")], "rejected": [user("Hi"), assistant("n")]}
    other = {**ORPO, "rejected": ORPO["rejected"][1:]}
    rows, different = read(write(tmp_path, [ORPO, single, other], ending), "orpo-dpo-mix")
    assert [row["id"] for row in rows] == ["rows-0", "rows-1", "rows-2"]
    prompt = "system: Be brief.\n\nuser: Hi\n\nassistant: Hello\n\nuser: And?"
    assert [pair_of(row) for row in rows[:2]] == [(prompt, "Good.", "Bad."), ("Hi", "y", "n")]
    assert different == [False, False, True]
    assert {row["source"] for row in rows} == {"orpo-dpo-mix"}
    assert {row["input_source"] for row in rows} == {"Airoboros"}
    assert list(rows[0]) == [
        "id", "prompt", "response_a", "response_b", "winner", "source", "input_source", "question"
    ]  # fmt: skip


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_hh_rlhf(tmp_path, ending):
    early = {
        "chosen": "\n\nHuman: Is it?\n\nAssistant: Yes.\n\nHuman: Sure?\n\nAssistant: Yes!",
        "rejected": "\n\nHuman: Is it?\n\nAssistant: No.\n\nHuman: Sure?\n\nAssistant: ",
    }
    shorter = {**early, "rejected": "\n\nHuman: Is it?\n\nAssistant: Other."}
    empty = {"chosen": "\n\nHuman: Is it?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Is it?\n\nAssistant:"}
    unanswered = {
        "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
        "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c",
    }
    rows, different = read(write(tmp_path, [HH, early, shorter, empty, unanswered], ending), "hh-rlhf")
    assert different == [False, True, True, False, False]
    assert [pair_of(rows[place]) for place in (0, 3, 4)] == [
        (HH_PROMPT, "I haven't thought.", "Ass."),
        ("Is it?", "Yes.", ""),
        ("user: a\n\nassistant: b\n\nuser: c", "d", ""),
    ]
    assert list(rows[0]) == ["id", "prompt", "response_a", "response_b", "winner", "source"]


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_dpo_of_texts(tmp_path, ending):
    bracket = {**DPO, "id": 8, "chosen": "[1]", "rejected": "[] is empty"}
    rows, _ = read(write(tmp_path, [DPO, bracket], ending), "dpo")
    assert [int(row["id"]) for row in rows] == [7, 8]
    assert [pair_of(row) for row in rows] == [("Sky?", "Blue.", "Green."), ("Sky?", "[1]", "[] is empty")]
    assert {row["source"] for row in rows} == {"dpo"}


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize(
    ("prompt", "before", "text"),
    [
        ("Sky?", [], "Sky?"),
        ([user("Sky?")], [], "Sky?"),
        ([system("Short."), user("Sky?")], [], "system: Short.\n\nuser: Sky?"),
        ("Sky?", [user("Sky?")], "Sky?"),
        (
            [user("Sky?")],
            [user("Sky?"), assistant("?"), user("So?")],
            "user: Sky?\n\nassistant: ?\n\nuser: So?",
        ),
        ("Sky?", [system("Short."), user("Sky?")], "system: Short.\n\nuser: Sky?"),
        (None, [user("Sky?")], "Sky?"),
    ],
)
def test_dpo_of_messages(tmp_path, ending, prompt, before, text):
    row = {
        "prompt": prompt,
        "chosen": [*before, assistant("Blue.")],
        "rejected": [*before, assistant("Green.")],
    }
    if prompt is None:
        del row["prompt"]
    rows, _ = read(write(tmp_path, [row], ending), "dpo")
    assert [pair_of(row) for row in rows] == [(text, "Blue.", "Green.")]
    assert rows[0]["id"] == "rows-0"


def test_a_source_of_the_file_stays_and_is_filled(tmp_path):
    rows = [{**DPO, "source": "mine"}, {**DPO, "id": 8, "source": None}, {**DPO, "id": 9, "source": ""}]
    for ending in ("parquet", "jsonl", "csv"):
        assert [row["source"] for row in read(write(tmp_path, rows, ending), "dpo")[0]] == [
            "mine",
            "dpo",
            "dpo",
        ]


def test_foreign_columns_never_stand_for_canonical_ones(tmp_path):
    row = {**DPO, "prob_a": 0.25, "winner": "Bob", "model_a": "x", "response_a": 3, "language": "en"}
    found = read(write(tmp_path, [row]), "dpo")[0][0]
    assert pair_of(found) == ("Sky?", "Blue.", "Green.")
    assert "prob_a" not in found
    assert "model_a" not in found, "the sides may be swapped"
    assert (found["input_prob_a"], found["input_winner"]) == (0.25, "Bob")
    assert (found["input_model_a"], found["input_response_a"]) == ("x", 3)
    assert found["language"] == "en"


@pytest.mark.parametrize(
    ("form", "column"),
    [(form, name) for form in FORMATS for name in FORMATS[form].read if not name.startswith("winner")],
)
def test_null_cells_are_null_texts(tmp_path, form, column):
    found, different = read(write(tmp_path, [{**ROWS[form], column: None}], "jsonl"), form)
    assert None in [found[0][text] for text in ("prompt", "response_a", "response_b")]
    assert different == [False]


@given(st.lists(st.integers(-(2**40), 2**40), unique=True, max_size=50), st.integers(0, 2**30))
def test_sides_are_a_function_of_the_id(ids, salt):
    order = np.random.default_rng(salt).permutation(len(ids))
    sides = chosen_is_a(ids)
    assert sides.shape == (len(ids),)
    assert (chosen_is_a([ids[place] for place in order]) == sides[order]).all()
    assert (chosen_is_a([str(name) for name in ids]) == sides).all(), "in CSV ids are strings"


def test_about_half_of_the_chosen_stand_on_each_side():
    # Of 10,000 fair coins, 4 standard deviations are 200.
    assert abs(int(chosen_is_a(list(range(10_000))).sum()) - 5_000) < 200
    assert abs(int(chosen_is_a([f"train-{row}" for row in range(10_000)]).sum()) - 5_000) < 200


def test_the_label_follows_the_chosen_response(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BATCH_ROWS", 7)
    rows = [{"prompt": f"p{row}", "chosen": f"good {row}", "rejected": f"bad {row}"} for row in range(100)]
    found, _ = read(write(tmp_path, rows, "jsonl"), "dpo")
    assert [row["id"] for row in found] == [f"rows-{row}" for row in range(100)]
    assert [pair_of(row) for row in found] == [(f"p{row}", f"good {row}", f"bad {row}") for row in range(100)]
    assert [row["winner"] == "model_a" for row in found] == chosen_is_a([row["id"] for row in found]).tolist()
    assert 20 < sum(row["winner"] == "model_a" for row in found) < 80


@pytest.mark.parametrize(
    ("form", "column", "extra"),
    [
        ("wsdm", "winner", ""),
        ("wsdm", "id", "; --make-ids makes ids"),
        ("lmsys-57k", "winner_tie", ""),
        ("lmsys-57k", "response_b", ""),
        ("lmsys-33k", "conversation_b", ""),
        ("lmsys-33k", "question_id", "; --make-ids makes ids"),
        ("ultrafeedback", "rejected", ""),
        ("ultrafeedback", "prompt_id", "; --make-ids makes ids"),
        ("orpo-dpo-mix", "chosen", ""),
        ("hh-rlhf", "rejected", ""),
        ("dpo", "chosen", ""),
    ],
)
def test_a_missing_column_is_named(tmp_path, form, column, extra):
    row = {name: value for name, value in ROWS[form].items() if name != column}
    message = (
        rf"rows.jsonl: no column '{column}', which --format {form} needs{extra}; there are: {', '.join(row)}$"
    )
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, [row], "jsonl"), form)


@pytest.mark.parametrize("form", ["wsdm", "lmsys-57k", "lmsys-33k", "ultrafeedback"])
def test_ids_can_be_made(tmp_path, form):
    row = {name: value for name, value in ROWS[form].items() if name != FORMATS[form].id}
    found, _ = read(write(tmp_path, [row, row]), form, make_ids=True)
    assert [row["id"] for row in found] == ["rows-0", "rows-1"]


def two_turns(a: list, b: list) -> dict:
    return {**LMSYS_33K, "conversation_a": a, "conversation_b": b}


@pytest.mark.parametrize(
    ("form", "row", "message"),
    [
        ("wsdm", {**WSDM, "prompt": 5}, r"column 'prompt' holds int64, but text is needed"),
        ("wsdm", {**WSDM, "id": None}, r"row 0 \(counted from 0\) has no id"),
        (
            "lmsys-57k",
            {**LMSYS_57K, "response_b": ["one"]},
            r"row 0 \(counted from 0; id 30192\): the numbers of turns differ "
            r"\(prompt 2, response_a 2, response_b 1\); each turn has a prompt and two responses",
        ),
        (
            "lmsys-57k",
            {**LMSYS_57K, "prompt": "Hi"},
            r"id 30192\): prompt is 'Hi', but a list of texts is needed",
        ),
        (
            "lmsys-57k",
            {**LMSYS_57K, "prompt": "['Hi', None]"},
            r"but a list of texts is needed, one a turn \(JSON",
        ),
        (
            "lmsys-57k",
            {**LMSYS_57K, "prompt": '["Hi", 5]'},
            r"prompt is '\[\"Hi\", 5\]', but a list of texts",
        ),
        ("lmsys-57k", {**LMSYS_57K, "prompt": "[" * 100_000}, r"prompt is .*\.\.\., but a list of texts"),
        (
            "lmsys-57k",
            {**LMSYS_57K, "winner_tie": 1},
            r"winner_model_a 1, winner_model_b 0, winner_tie 1; one of them must be 1, the others 0",
        ),
        ("lmsys-57k", {**LMSYS_57K, "winner_model_a": 0}, r"one of them must be 1, the others 0"),
        ("lmsys-57k", {**LMSYS_57K, "winner_model_b": None}, r"winner_model_b None.* one of them must be 1"),
        ("lmsys-57k", {**LMSYS_57K, "winner_model_a": 0.7}, r"winner_model_a 0.7.* one of them must be 1"),
        (
            "lmsys-33k",
            two_turns([user("1"), assistant("a")], [user("1"), assistant("a"), user("2"), assistant("b")]),
            r"id 58210e39b3fd4441a2bd4a518bb44c2d\): conversation_a has 1 turns, but conversation_b 2; "
            "they must be as many",
        ),
        (
            "lmsys-33k",
            two_turns([user("1"), user("2")], [user("1"), assistant("a")]),
            r"conversation_a is user, user; user and assistant must take turns, the user first",
        ),
        (
            "lmsys-33k",
            two_turns([], [user("1"), assistant("a")]),
            r"conversation_a is empty; user and assistant",
        ),
        (
            "lmsys-33k",
            two_turns([user("1")], [user("1")]),
            r"conversation_a is user; user and assistant must",
        ),
        (
            "lmsys-33k",
            {**LMSYS_33K, "conversation_a": "Hi"},
            r"conversation_a is 'Hi', but a list of messages",
        ),
        (
            "lmsys-33k",
            {**LMSYS_33K, "conversation_a": [{"from": "human", "value": "Hi"}]},
            r"conversation_a is .*, but a list of messages with role and content is needed \(JSON in CSV\)",
        ),
        (
            "ultrafeedback",
            {**ULTRAFEEDBACK, "chosen": [user("Hi")]},
            r"row 0 \(counted from 0; id 5b4a9b9f\): chosen is user; the last message must be",
        ),
        ("ultrafeedback", {**ULTRAFEEDBACK, "rejected": []}, r"rejected is empty; the last message must be"),
        (
            "ultrafeedback",
            {**ULTRAFEEDBACK, "rejected": [assistant("Hi")]},
            r"rejected has no user's message before the answer",
        ),
        (
            "ultrafeedback",
            {**ULTRAFEEDBACK, "score_chosen": "high"},
            r"score_chosen is 'high', but a number is",
        ),
        (
            "orpo-dpo-mix",
            {**ORPO, "chosen": [{"role": "human", "content": "Hi"}, assistant("y")]},
            r"id rows-0\): chosen has the message .*human.*; role must be one of system, user, assistant",
        ),
        (
            "orpo-dpo-mix",
            {**ORPO, "chosen": [{"role": "user", "content": 5}]},
            r"chosen has the message .*5.*; role must be one of system, user, assistant, content text",
        ),
        (
            "hh-rlhf",
            {**HH, "chosen": "Hello"},
            r"chosen is 'Hello', but a dialogue that begins with '\\n\\nHuman:'",
        ),
        (
            "hh-rlhf",
            {**HH, "chosen": "So\n\nHuman: a\n\nAssistant: b"},
            r"chosen is 'So.*, but a dialogue that",
        ),
        ("hh-rlhf", {**HH, "rejected": "\n\nHuman: Hi"}, r"rejected has no assistant's turn"),
        (
            "hh-rlhf",
            {**HH, "rejected": "\n\nAssistant: Hi"},
            r"rejected has no user's message before the answer",
        ),
        ("hh-rlhf", {**HH, "rejected": [user("Hi")]}, r"rejected is \[.*, but a dialogue that begins with"),
        (
            "dpo",
            {**DPO, "chosen": 5},
            r"id 7\): chosen is 5 and rejected 'Green.'; both must be texts, or both",
        ),
        (
            "dpo",
            {**DPO, "chosen": [assistant("x")]},
            r"chosen is \[.* and rejected 'Green.'; both must be texts",
        ),
        (
            "dpo",
            {"chosen": "x", "rejected": "y"},
            r"no prompt; give a column 'prompt', or messages that have it",
        ),
        ("dpo", {**DPO, "prompt": 5}, r"prompt is 5, but text or messages are needed"),
        (
            "dpo",
            {**DPO, "chosen": [user("Sea?"), assistant("x")], "rejected": [user("Sea?"), assistant("y")]},
            r"the prompt 'Sky\?' is not what the messages of chosen begin with",
        ),
        (
            "dpo",
            {"chosen": [assistant("x")], "rejected": [assistant("y")]},
            r"chosen has no user's message before the answer",
        ),
    ],
)
def test_malformed_rows(tmp_path, form, row, message):
    with pytest.raises(DataError, match=message) as caught:
        read(write(tmp_path, [row], "jsonl"), form)
    assert "rows.jsonl" in str(caught.value)


def test_the_row_is_counted_over_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BATCH_ROWS", 2)
    bad = {**HH, "chosen": "Hello"}
    with pytest.raises(
        DataError, match=r"rows.jsonl: row 5 \(counted from 0; id rows-5\): chosen is 'Hello'"
    ):
        read(write(tmp_path, [HH] * 5 + [bad], "jsonl"), "hh-rlhf")


def test_an_id_that_a_later_batch_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BATCH_ROWS", 1)
    nameless = {name: value for name, value in WSDM.items() if name != "id"}
    with pytest.raises(DataError, match=r"rows.jsonl: row 1 \(counted from 0\) has no id"):
        read(write(tmp_path, [WSDM, nameless], "jsonl"), "wsdm")


def test_a_column_that_is_there_twice(tmp_path):
    table = pa.Table.from_pylist([DPO])
    pq.write_table(
        pa.table([*table.columns, table["chosen"]], [*table.column_names, "chosen"]), tmp_path / "x.parquet"
    )
    with pytest.raises(DataError, match=r"x.parquet: has the column 'chosen' 2 times"):
        read(str(tmp_path / "x.parquet"), "dpo")


TEXT = st.none() | st.sampled_from(["", " ", "a", "[turn 1]", "Human: x", "naïve", "x\n\ny"])


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=4))
def test_no_turn_is_lost(turns):
    prompts, a, b = (list(side) for side in zip(*turns, strict=True))
    row = {**LMSYS_57K, "prompt": prompts, "response_a": a, "response_b": json.dumps(b)}
    vote = FORMATS["lmsys-57k"].vote(row)
    assert vote
    for text, side in zip(vote[:3], (prompts, a, b), strict=True):
        blank = not any((turn or "").strip() for turn in side)
        if len(side) == 1:
            assert text == side[0]
        elif blank:
            assert (text is None) == all(turn is None for turn in side)
            assert not text
        else:
            assert text == "\n\n".join(f"[turn {k}]\n{turn or ''}" for k, turn in enumerate(side, 1))


SAID = st.sampled_from(["", "a", "Human: x", "x\n\ny", "it says:\nAssistant: no", "naïve"])


@given(st.lists(st.tuples(SAID, SAID), min_size=1, max_size=4), SAID, SAID)
def test_a_dialogue_comes_apart_as_it_was_put_together(turns, chosen, rejected):
    before = "".join(f"\n\nHuman: {asked}\n\nAssistant: {answered}" for asked, answered in turns)
    before = before[: before.rindex("\n\nAssistant:")] + "\n\nAssistant: "
    vote = FORMATS["hh-rlhf"].vote({"chosen": before + chosen, "rejected": before + rejected})
    said = [(role, text) for pair in turns for role, text in zip(("user", "assistant"), pair, strict=True)][
        :-1
    ]
    asked = [text for _, text in said]
    if len(said) == 1:
        prompt = asked[0]
    else:
        prompt = "\n\n".join(f"{role}: {text}" for role, text in said) if any(asked) else ""
    assert vote == (prompt, chosen, rejected, "model_a")
