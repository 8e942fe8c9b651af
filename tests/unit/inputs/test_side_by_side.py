"""Rows with two responses side by side become votes written out here."""

import json

import pytest

from tests.unit.inputs.published_rows import (
    ARENA_140K,
    CALL,
    HELPSTEER2,
    HELPSTEER3,
    assistant,
    pair_of,
    parts,
    read,
    system,
    tool,
    user,
    write,
)
from wsdm_ray.errors import DataError
from wsdm_ray.inputs.formats import FORMATS, LABELS, winner_of_labels


@pytest.mark.parametrize(
    ("marks", "winner"),
    [
        ((1, 0, 0), "model_a"),
        (("0", "1", "0"), "model_b"),
        ((0.0, 0.0, 1.0), "tie"),
        ((True, False, False), "model_a"),
        ((None, None, None), None),
        (("", "", ""), None),
        ((float("nan"),) * 3, None),
    ],
)
def test_winner_of_three_columns(marks, winner):
    assert winner_of_labels(dict(zip(LABELS, marks, strict=True))) == winner


def arena(a: list | str, b: list | str, form: str = "lmsys-33k"):
    return FORMATS[form].vote({"conversation_a": a, "conversation_b": b, "winner": "model_a"})


@pytest.mark.parametrize(
    ("a", "b", "vote"),
    [
        (
            [system("be brief"), user("q"), assistant("x")],
            [system("be brief"), user("q"), assistant("y")],
            ("system: be brief\n\nuser: q", "x", "y"),
        ),
        (
            [{"role": "developer", "content": "D"}, user("q"), assistant("x"), user("r"), assistant("z")],
            [{"role": "developer", "content": "D"}, user("q"), assistant("y"), user("r"), assistant("w")],
            (
                "[turn 1]\ndeveloper: D\n\nuser: q\n\n[turn 2]\nr",
                "[turn 1]\nx\n\n[turn 2]\nz",
                "[turn 1]\ny\n\n[turn 2]\nw",
            ),
        ),
        (
            [user("q"), CALL, tool("42"), assistant("x")],
            [user("q"), assistant("y")],
            ("q", 'assistant: [{"name": "add"}]\n\ntool: 42\n\nassistant: x', "y"),
        ),
        (
            [user("q"), tool("42"), assistant("x")],
            [user("q"), tool("42"), assistant("y")],
            ("user: q\n\ntool: 42", "x", "y"),
        ),
        (
            [user("q"), assistant("x"), system("now rhyme"), user("r"), assistant("z")],
            [user("q"), assistant("y"), system("now rhyme"), user("r"), assistant("w")],
            (
                "[turn 1]\nq\n\n[turn 2]\nsystem: now rhyme\n\nuser: r",
                "[turn 1]\nx\n\n[turn 2]\nz",
                "[turn 1]\ny\n\n[turn 2]\nw",
            ),
        ),
        (
            [{"from": "human", "value": "q"}, {"from": "gpt", "value": "x"}],
            [{"from": "human", "value": "q"}, {"from": "gpt", "value": "y"}],
            ("q", "x", "y"),
        ),
        (
            [parts("user", "one", "two"), parts("assistant", "x")],
            [parts("user", "one", "two"), parts("assistant", "y")],
            ("one\ntwo", "x", "y"),
        ),
        ([system("be brief"), user("q"), assistant("x")], [user("q"), assistant("y")], None),
    ],
)
def test_conversations_of_arenas(a, b, vote):
    for form in ("lmsys-33k", "arena-140k"):
        for sides in ((a, b), (json.dumps(a), json.dumps(b)), (str(a), str(b))):
            assert arena(*sides, form) == (vote and (*vote, "model_a"))


@pytest.mark.parametrize(
    "messages",
    [
        [system("be brief"), assistant("x")],
        [system("be brief")],
        [assistant("x"), user("q")],
        [user("q"), tool("42")],
        [user("q"), CALL, tool("42")],
        [user("q"), user("r"), assistant("x")],
    ],
)
def test_turns_out_of_order(messages):
    with pytest.raises(
        DataError, match=r"conversation_a is .*; user and assistant must take turns, the user"
    ):
        arena(messages, [user("q"), assistant("y")])


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_arena_140k(tmp_path, ending):
    rows, different = read(write(tmp_path, [ARENA_140K], ending), "arena-140k")
    assert different == [False]
    assert list(rows[0].values())[:5] == [
        "c4b9710c-8d64-4bee-a0b0-94637ae4cc65", "What is it?", "A test.", "An exam.", "both_bad"
    ]  # fmt: skip
    assert list(rows[0])[5:] == [
        "model_a", "model_b", "language", "source", "evaluation_session_id", "evaluation_order",
        "conv_metadata", "category_tag", "is_code", "timestamp",
    ]  # fmt: skip
    assert rows[0]["source"] == "arena-140k"


@pytest.mark.parametrize(
    ("strength", "winner"),
    [(-3, "model_a"), (-1, "model_a"), (0, "tie"), (1, "model_b"), ("3", "model_b"), (None, None)],
)
def test_strength_of_preference(strength, winner):
    two = FORMATS["helpsteer2"].vote({**HELPSTEER2, "preference_strength": strength})
    three = FORMATS["helpsteer3"].vote({**HELPSTEER3, "overall_preference": strength})
    assert two == ("Sky?", "Blue.", "Green.", winner)
    assert three == ("user: Hi\n\nassistant: Hello\n\nuser: Sky?", "Green.", "Blue.", winner)


@pytest.mark.parametrize("strength", [-4, 100])
def test_a_strength_beyond_the_scale(strength):
    with pytest.raises(DataError, match=rf"overall_preference is {strength}, not within -3 to 3"):
        FORMATS["helpsteer3"].vote({**HELPSTEER3, "overall_preference": strength})


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_helpsteer3(tmp_path, ending):
    rows, _ = read(write(tmp_path, [{**HELPSTEER3, "context": [user("Sky?")]}], ending), "helpsteer3")
    assert pair_of(rows[0]) == ("Sky?", "Blue.", "Green.")
    assert rows[0]["winner"] == "model_b"
    assert list(rows[0]) == [
        "id", "prompt", "response_a", "response_b", "winner", "language", "source", "domain",
        "overall_preference", "individual_preference",
    ]  # fmt: skip
