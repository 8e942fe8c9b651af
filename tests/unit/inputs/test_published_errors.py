"""Published formats: missing columns and malformed rows are named by their place."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.inputs.published_rows import (
    DPO,
    HH,
    LMSYS_33K,
    LMSYS_57K,
    ORPO,
    ROWS,
    ULTRAFEEDBACK,
    WSDM,
    assistant,
    read,
    user,
    write,
)
from wsdm_ray.errors import DataError
from wsdm_ray.inputs import tables


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


def test_the_format_that_fits_is_named(tmp_path):
    raw = write(tmp_path, [ROWS["ultrafeedback-raw"]], "jsonl")
    fits = r"; there are: source, .*, incorrect_answers; --format ultrafeedback-raw fits these columns$"
    for form in ("ultrafeedback", "dpo"):
        with pytest.raises(DataError, match=rf"which --format {form} needs{fits}"):
            read(raw, form)
    arena = write(tmp_path, [ROWS["arena-140k"]], "jsonl")
    with pytest.raises(DataError, match=r"no column 'prompt'.*; --format arena-140k fits these columns$"):
        read(arena, "canonical")


def two_turns(a: list, b: list) -> dict:
    return {**LMSYS_33K, "conversation_a": a, "conversation_b": b}


@pytest.mark.parametrize(
    ("form", "row", "message"),
    [
        ("wsdm", {**WSDM, "prompt": 5}, r"id 00007.*\): prompt is 5, but text is needed"),
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
            {**LMSYS_57K, "prompt": "['Hi' 'And']"},
            r"but a list of texts is needed, one a turn \(JSON in CSV\); it is a numpy array as text: write ",
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
            {**LMSYS_33K, "conversation_a": [{"speaker": "human", "value": "Hi"}]},
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
            {**ORPO, "chosen": [{"role": "", "content": "Hi"}, assistant("y")]},
            r"id rows-0\): chosen has the message .*'Hi'.* without a role",
        ),
        (
            "orpo-dpo-mix",
            {**ORPO, "chosen": [{"role": "user", "content": 5}]},
            r"chosen has the message .*5.*; its content must be text, or a list of parts",
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
    monkeypatch.setattr(tables, "BATCH_ROWS", 2)
    bad = {**HH, "chosen": "Hello"}
    message = (
        r"rows.jsonl: row 3 \(counted from 0; id rows-3\): chosen is 'Hello'.*; 4 of 7 rows are malformed$"
    )
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, [HH] * 3 + [bad] * 4, "jsonl"), "hh-rlhf")


def test_a_few_malformed_rows_have_no_texts_and_a_warning(tmp_path, caplog):
    bad = {**HH, "chosen": "Hello"}
    rows, different = read(write(tmp_path, [HH, bad, HH], "jsonl"), "hh-rlhf")
    assert [row["prompt"] is None for row in rows] == [False, True, False]
    assert different == [False] * 3
    assert "1 of 3 rows are malformed (not a dialogue 1), first" in caplog.text


def test_an_id_that_a_later_batch_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH_ROWS", 1)
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
