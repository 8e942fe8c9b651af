"""Published formats: each in its published columns, from each kind of file."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.inputs.published_rows import (
    DPO,
    HH,
    HH_PROMPT,
    LMSYS_33K,
    LMSYS_57K,
    ORPO,
    ROWS,
    ULTRAFEEDBACK,
    WSDM,
    assistant,
    pair_of,
    read,
    system,
    user,
    write,
)
from wsdm_ray.errors import DataError
from wsdm_ray.inputs import tables
from wsdm_ray.inputs.files import list_inputs
from wsdm_ray.inputs.formats import FORMATS
from wsdm_ray.inputs.published import chosen_is_a
from wsdm_ray.inputs.rows import Reading, read_rows


def test_wsdm(tmp_path):
    rows, different = read(write(tmp_path, [WSDM, {**WSDM, "id": "x", "winner": "model_b"}]), "wsdm")
    assert rows == [{**WSDM, "source": "wsdm"}, {**WSDM, "id": "x", "winner": "model_b", "source": "wsdm"}]
    assert different == [False, False]
    file = list_inputs([write(tmp_path, [WSDM])])[0]
    table = next(read_rows(file, Reading(format="wsdm"))).table
    assert table.column_names == [
        "id", "prompt", "response_a", "response_b", "winner", "model_a", "model_b", "language", "source"
    ]  # fmt: skip


def test_texts_that_are_stored_as_bytes(tmp_path):
    """As Hive and older Spark write strings to parquet."""
    stored = {name: pa.array([value.encode()], pa.binary()) for name, value in WSDM.items()}
    pq.write_table(pa.table(stored), tmp_path / "x.parquet")
    rows, _ = read(str(tmp_path / "x.parquet"), "wsdm")
    assert rows == [{**WSDM, "source": "wsdm"}]


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
    [
        (form, name)
        for form in FORMATS
        for name in FORMATS[form].read
        if name in ROWS[form] and not name.startswith("winner")
    ],
)
def test_null_cells_are_null_texts(tmp_path, form, column):
    found, different = read(write(tmp_path, [{**ROWS[form], column: None}], "jsonl"), form)
    assert None in [found[0][text] for text in ("prompt", "response_a", "response_b")]
    assert different == [False]


@pytest.mark.parametrize("form", [form for form in FORMATS if FORMATS[form].labels])
def test_labels_are_needed_only_where_asked_for(tmp_path, form):
    bare = {name: value for name, value in ROWS[form].items() if name not in FORMATS[form].labels}
    path = write(tmp_path, [bare], "jsonl")
    (row,), _ = read(path, form, labels=False)
    (labelled,), _ = read(write(tmp_path, [ROWS[form]], "csv"), form)
    assert row["winner"] is None
    assert labelled["winner"] is not None
    for name in ("prompt", "response_a", "response_b"):
        assert row[name] == labelled[name]
    with pytest.raises(
        DataError, match=rf"no column .*{FORMATS[form].labels[0]}.*which --format {form} needs"
    ):
        read(path, form)


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
    monkeypatch.setattr(tables, "BATCH_ROWS", 7)
    rows = [{"prompt": f"p{row}", "chosen": f"good {row}", "rejected": f"bad {row}"} for row in range(100)]
    found, _ = read(write(tmp_path, rows, "jsonl"), "dpo")
    assert [row["id"] for row in found] == [f"rows-{row}" for row in range(100)]
    assert [pair_of(row) for row in found] == [(f"p{row}", f"good {row}", f"bad {row}") for row in range(100)]
    assert [row["winner"] == "model_a" for row in found] == chosen_is_a([row["id"] for row in found]).tolist()
    assert 20 < sum(row["winner"] == "model_a" for row in found) < 80


@pytest.mark.parametrize("form", ["wsdm", "lmsys-57k", "lmsys-33k", "ultrafeedback"])
def test_ids_can_be_made(tmp_path, form):
    row = {name: value for name, value in ROWS[form].items() if name != FORMATS[form].id}
    found, _ = read(write(tmp_path, [row, row]), form, make_ids=True)
    assert [row["id"] for row in found] == ["rows-0", "rows-1"]


def test_images_are_counted_in_a_warning(tmp_path, caplog):
    image = {"type": "image_url", "image_url": {"url": "u"}}
    asked = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}
    row = {
        **LMSYS_33K,
        "conversation_a": [asked, assistant("A cat.")],
        "conversation_b": [asked, assistant("A dog.")],
    }
    rows, _ = read(write(tmp_path, [row, {**LMSYS_33K, "question_id": "x"}], "jsonl"), "lmsys-33k")
    assert rows[0]["prompt"] == "What is it?\n[image]"
    assert "rows.jsonl: 2 parts are no text but image: [image] is in their place" in caplog.text
