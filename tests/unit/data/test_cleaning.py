"""Labels, texts and reasons to drop a row."""

import ftfy
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wsdm_ray.data.cleaning import REASONS, Labelled, clean_texts, drop_reasons, labels
from wsdm_ray.errors import DataError
from wsdm_ray.inputs.faults import Fault


def votes(**columns) -> pa.Table:
    rows = len(next(iter(columns.values())))
    table = {"id": [f"v{row}" for row in range(rows)]}
    for name in ("prompt", "response_a", "response_b"):
        table[name] = pa.array(columns.pop(name, [f"{name} {row}" for row in range(rows)]), pa.string())
    types = {"winner": pa.string(), "prob_a": pa.float64()}
    return pa.table({**table, **{name: pa.array(column, types[name]) for name, column in columns.items()}})


def test_spellings_of_winners():
    spellings = ["model_a", "winner_b", "A", " b ", "WINNER_A", "response_b"]
    table, _, tie = labels(votes(winner=spellings), "f", "drop")
    assert table["winner"].to_pylist() == ["model_a", "model_b"] * 3
    assert not tie.any()
    assert "prob_a" not in table.column_names


@pytest.mark.parametrize(
    ("winner", "spellings"),
    [
        (
            "model_a",
            ["Model A", "model-a", "[[A]]", "(a)", "assistant_a", "Answer A", "response_1", "left",
             "leftvote", "A>B", "[[A>>B]]", "First"],
        ),
        (
            "model_b",
            ["Model B", "MODEL-B", "[[B]]", "assistant_b", "Answer B", "Response 2", "right", "rightvote",
             "B>A", "[[B>>A]]", "second"],
        ),
        (
            "tie",
            ["tie", "tievote", "bothbad_vote", "tie (bothbad)", "Tie (both bad)", "both_bad", "bothbad",
             "Both bad", "both_good", "neither", "A=B", "draw", "winner_tie"],
        ),
    ],
)  # fmt: skip
def test_spellings_of_published_sets(winner, spellings):
    table, _, tie = labels(votes(winner=spellings), "f", "drop")
    assert tie.tolist() == [winner == "tie"] * len(spellings)
    assert table["winner"].to_pylist() == [None if winner == "tie" else winner] * len(spellings)


def test_an_unknown_winner_lists_the_known_spellings():
    with pytest.raises(DataError) as caught:
        labels(votes(winner=["a", "Gemma"]), "f", "drop")
    message = str(caught.value)
    assert "\n" not in message
    for known in ("(model_a: a, response_a,", "; model_b: b,", "rightvote", "; tie: winner_tie,", "both_bad"):
        assert known in message


@pytest.mark.parametrize("number", ["0", "1", "2", "-1", "1.0", "0.5", "True", "false"])
def test_numbers_are_not_guessed(number):
    remedy = r"a number means different things.*write model_a, model_b or tie, or give --columns.prob-a=NAME"
    with pytest.raises(DataError, match=rf"f: unknown winner '{number}' \(id v0\); {remedy}"):
        labels(votes(winner=[number, "a"]), "f", "drop")


@pytest.mark.parametrize("name", ["-", "()", "chosen", "c", "nobody"])
def test_what_names_no_side_is_unknown(name):
    with pytest.raises(DataError, match=r"unknown winner .*; give model_a, model_b or tie, or one of"):
        labels(votes(winner=[name]), "f", "drop")


def test_ties_are_dropped_or_soft():
    table = votes(winner=["tie", "a", "Tie (bothbad)"])
    _, _, tie = labels(table, "f", "drop")
    assert tie.tolist() == [True, False, True]
    table, _, tie = labels(table, "f", "soft")
    assert not tie.any()
    assert table["winner"].to_pylist() == [None, "model_a", None]
    assert table["prob_a"].to_pylist() == [0.5, None, 0.5]


def test_a_soft_label_wins_over_a_winner():
    table, _, tie = labels(votes(winner=["b", "tie", None, ""], prob_a=[0.9, 0.2, 0.0, 1.0]), "f", "drop")
    assert table["prob_a"].to_pylist() == [0.9, 0.2, 0.0, 1.0]
    assert table["winner"].to_pylist() == ["model_b", None, None, None]
    assert not tie.any()


def test_a_prob_a_column_of_nulls_changes_nothing():
    table, _, _ = labels(votes(winner=["a", "b"], prob_a=[None, None]), "f", "drop")
    assert table["winner"].to_pylist() == ["model_a", "model_b"]
    assert table["prob_a"].to_pylist() == [None, None]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"winner": ["a", "Alice", "Bob"]},
            r"f: unknown winner 'Alice' \(id v1\); give model_a, model_b or tie",
        ),
        ({"winner": ["a", "x"], "prob_a": [0.5, 0.5]}, r"unknown winner 'x' \(id v1\)"),
        ({"prob_a": [0.5, 1.5, -1.0]}, r"f: prob_a 1.5 \(id v1\) is not within 0..1"),
        ({"prob_a": [-0.01, 2.0]}, r"f: prob_a -0.01 \(id v0\) is not within 0..1"),
    ],
)
def test_bad_labels_are_named_with_the_first_id(columns, message):
    with pytest.raises(DataError, match=message):
        labels(votes(**columns), "f", "drop")


@pytest.mark.parametrize(
    "columns",
    [
        {"winner": ["a", None]}, {"winner": ["tie", " "]}, {"prob_a": [0.5, None]},
        {"prob_a": [0.5, float("nan")]}, {"winner": [None, None], "prob_a": [0.1, None]},
    ],
)  # fmt: skip
def test_rows_without_a_label_are_named(columns):
    assert labels(votes(**columns), "f", "drop").no_label.tolist() == [False, True]


def cleaned(texts: list[str | None]) -> list[str | None]:
    return clean_texts(votes(prompt=texts))[0]["prompt"].to_pylist()


def test_texts_are_mended_and_null_stays_null():
    texts = ["plain", None, "schÃ¶n", "a\r\nb", "nul\x00byte", "x &amp; y", "\x1b[31mred"]
    table, changed = clean_texts(votes(prompt=texts))
    assert table["prompt"].to_pylist() == ["plain", None, "schön", "a\nb", "nulbyte", "x & y", "red"]
    assert changed == 5


@pytest.mark.parametrize(
    "text", ["<eos> <|im_start|>user <bos>", "אב\u200fגד\u202e", "日本語 🙂", "tab\tand\nline", ""]
)
def test_other_texts_stay(text):
    assert cleaned([text]) == [text]


@given(st.text(alphabet=st.characters(max_codepoint=127)))
@example("\x0c\t\n &lt; \x1b[0m \r \x7f \x00")
def test_the_short_way_for_ascii_is_exact(text):
    assert cleaned([text]) == [ftfy.fix_text(text)]


@given(st.text())
def test_the_short_way_is_exact_for_any_text(text):
    assert cleaned([text, "x"]) == [ftfy.fix_text(text), "x"]


def test_reasons_come_in_order():
    table = votes(
        prompt=[None, " ", "p", "p", "p", "p", None],
        response_a=["a", "a", "\n", "a", "same", "a", ""],
        response_b=["b", "b", "b", "b", "same", "b", "b"],
    )
    tie = np.array([False, True, True, True, True, False, True])
    none = np.zeros(7, bool)
    tied = Labelled(table, none, tie)
    names = [REASONS[code] if code >= 0 else None for code in drop_reasons(table, tied)]
    assert names == ["null_text", "empty_prompt", "empty_response", "tie", "tie", None, "null_text"]
    unlabelled = Labelled(table, np.array([False] * 5 + [True] * 2), none)
    assert [REASONS[code] for code in drop_reasons(table, unlabelled)[5:]] == ["no_label", "null_text"]
    assert REASONS[drop_reasons(table)[4]] == "identical_responses"
    different = {row: Fault("different_prompts", "") for row in (0, 1, 4, 5)}
    names = [REASONS[code] if code >= 0 else None for code in drop_reasons(table, tied, different)]
    assert names == [
        *["different_prompts"] * 2,
        "empty_response",
        "tie",
        *["different_prompts"] * 2,
        "null_text",
    ]
