"""Turns and dialogues become one text from which each can be told apart."""

import json

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.inputs.published_rows import (
    LMSYS_57K,
)
from wsdm_ray.inputs.formats import FORMATS

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
