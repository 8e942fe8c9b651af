"""One key for a prompt group: splitting, exclusion and evaluation put the same prompts together."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wsdm_ray.data.splitting import group_digests, pair_digests, prompt_digests
from wsdm_ray.evaluation.votes import read_votes
from wsdm_ray.inputs.rows import Reading
from wsdm_ray.text.groups import prompt_group_key

FORMS = [
    [
        "What is 1 + 1?",
        "what is 1 + 1?",
        " What  is\n1 + 1? ",
        "Ｗｈａｔ　ｉｓ　１　＋　１？",
        "WHAT\u00a0IS ① + ①?",
    ],
    ["the ﬁnest café of the Straße", "The finest cafe\u0301 of the STRASSE"],
    ["カタカナ", "ｶﾀｶﾅ"],
    ["ΣΊΣΥΦΟΣ", "σίσυφος"],
    ["What is 1 + 2?"],
    ["cafe", "cafe "],
    ["café"],
]
"""Prompts by group: they differ by case, white space, width and compatibility forms."""
PROMPTS = [prompt for group in FORMS for prompt in group]
GROUP = [number for number, group in enumerate(FORMS) for _ in group]


def test_prompt_group_key():
    assert prompt_group_key("  Straße\u3000ＡＢＣ \n x ") == "strasse abc x"
    assert prompt_group_key("ﬁne") == "fine"
    assert prompt_group_key("\u1fb4") == prompt_group_key("\u03ac\u03b9"), (
        "folding leaves a letter decomposed"
    )


def groups_of_split(prompts, path):
    return group_digests(prompts)


def groups_of_pairs(prompts, path):
    column = pa.array(prompts)
    table = pa.table(
        {"prompt": column, "response_a": ["a"] * len(prompts), "response_b": ["b"] * len(prompts)}
    )
    return pair_digests(table, np.ones(len(prompts)))[0]


def groups_of_exclusion(prompts, path):
    pq.write_table(pa.table({"prompt": prompts}), path)
    return prompt_digests([str(path)])


def groups_of_evaluation(prompts, path):
    rows = len(prompts)
    texts = {"prompt": prompts, "response_a": ["a"] * rows, "response_b": ["b"] * rows}
    pq.write_table(pa.table({"id": list(range(rows)), **texts, "winner": ["model_a"] * rows}), path)
    return read_votes([str(path)], Reading())["group"].to_numpy()


@pytest.mark.parametrize(
    "groups_of", [groups_of_split, groups_of_pairs, groups_of_exclusion, groups_of_evaluation]
)
def test_every_reader_of_prompts_has_the_same_groups(tmp_path, groups_of):
    found = groups_of(PROMPTS, tmp_path / "votes.parquet")
    expected = np.array(GROUP)
    assert ((found[:, None] == found) == (expected[:, None] == expected)).all()
