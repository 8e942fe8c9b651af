"""Rows of each format become votes; turns and dialogues become one text from which each can be told apart."""

import json
from typing import get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.inputs.published_rows import (
    LMSYS_33K,
    LMSYS_57K,
    ORPO,
    ROWS,
)
from wsdm_ray.config import PrepareConfig
from wsdm_ray.inputs.formats import FORMATS


def test_every_format_can_be_named_and_has_a_row():
    assert {"canonical", *FORMATS} == set(get_args(get_type_hints(PrepareConfig)["format"]))
    assert ROWS.keys() == FORMATS.keys()


@pytest.mark.parametrize("form", [form for form in FORMATS if not FORMATS[form].chosen])
def test_rows_without_labels_have_no_winner(form):
    whole = FORMATS[form].vote(ROWS[form])
    bare = {name: value for name, value in ROWS[form].items() if name not in FORMATS[form].labels}
    empty = {**ROWS[form], **dict.fromkeys(FORMATS[form].labels)}
    unknown = {**ROWS[form], **dict.fromkeys(FORMATS[form].labels, float("nan"))}
    assert whole
    assert whole.winner in ("model_a", "model_b", "tie (bothbad)", "both_bad")
    assert FORMATS[form].labels
    for row in (bare, empty, unknown):
        assert FORMATS[form].vote(row) == whole._replace(winner=None)


def test_lists_as_python_shows_them():
    row = {**ORPO, "chosen": str(ORPO["chosen"]), "rejected": str(ORPO["rejected"])}
    for form in ("orpo-dpo-mix", "dpo"):
        assert FORMATS[form].vote({**row, "prompt": None}) == FORMATS["orpo-dpo-mix"].vote(ORPO)
    turns = {name: str(LMSYS_57K[name]) for name in ("prompt", "response_a", "response_b")}
    assert FORMATS["lmsys-57k"].vote({**LMSYS_57K, **turns}) == FORMATS["lmsys-57k"].vote(LMSYS_57K)
    talk = {name: str(LMSYS_33K[name]) for name in ("conversation_a", "conversation_b")}
    assert FORMATS["lmsys-33k"].vote({**LMSYS_33K, **talk}) == FORMATS["lmsys-33k"].vote(LMSYS_33K)


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
