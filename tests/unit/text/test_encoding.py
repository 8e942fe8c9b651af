"""Pairs to token ids: what stands where, what stays text, what is cut, and which folders are refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsdm_ray.config import TextConfig
from wsdm_ray.errors import ModelError
from wsdm_ray.schema import Ordering, first_ordering
from wsdm_ray.text.encoding import PairEncoder

CONFIG = TextConfig(max_tokens=64)
BOS, EOS = 2, 1

texts = st.text(st.characters(max_codepoint=0x500), max_size=120)


@pytest.fixture(scope="module")
def encoder(tokenizer_folder: Path) -> PairEncoder:
    return PairEncoder(str(tokenizer_folder), CONFIG)


@pytest.fixture(scope="module")
def long_encoder(tokenizer_folder: Path) -> PairEncoder:
    return PairEncoder(str(tokenizer_folder), TextConfig(max_tokens=100_000))


@pytest.fixture
def folder(tokenizer_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tokenizer's folder, to break."""
    return shutil.copytree(tokenizer_folder, tmp_path / "copy")


def plain_ids(encoder: PairEncoder, text: str) -> list[int]:
    return encoder.tokenizer.encode(text, add_special_tokens=False).ids


def left_encoder(tokenizer_folder: Path, **options) -> PairEncoder:
    return PairEncoder(str(tokenizer_folder), dataclasses.replace(CONFIG, truncation="left", **options))


def test_which_ordering_is_first_is_said_of_the_texts_as_given(encoder, long_encoder):
    responses_a = ["One.", "same", "&amp;", "x" * 500]
    responses_b = ["Two.", "same", "&", "x" * 501]
    expected = [first_ordering(*pair) is Ordering.BA for pair in zip(responses_a, responses_b, strict=True)]
    for one in (encoder, long_encoder):
        pairs = one.encode(["?"] * 4, responses_a, responses_b)
        assert pairs.ba_first_N.tolist() == expected
        turned = one.encode(["?"] * 4, responses_b, responses_a)
        assert turned.ba_first_N.tolist() == [
            not expected[0],
            expected[1],
            *(not one for one in expected[2:]),
        ]


def test_an_ordering_is_tags_and_texts_in_their_places(encoder):
    pairs = encoder.encode(["What?"], ["One."], ["Two, or three."])
    tag, first, second = (
        plain_ids(encoder, tag) for tag in ("<prompt>: ", "\n\n<response_a>: ", "\n\n<response_b>: ")
    )
    prompt, a, b = (plain_ids(encoder, text) for text in ("What?", "One.", "Two, or three."))
    assert pairs.prefix[0].tolist() == [BOS, *tag, *prompt]
    assert pairs.suffix_ab[0].tolist() == [*first, *a, *second, *b, EOS]
    assert pairs.suffix_ba[0].tolist() == [*first, *b, *second, *a, EOS]
    assert pairs.tokens_N.tolist() == [len(pairs.prefix[0]) + len(pairs.suffix_ab[0])]
    assert pairs.cut_tokens_N.tolist() == [0]
    assert pairs.cut_tokens_N.dtype == np.int32
    assert pairs.suffix_ab.values.dtype == np.int32


def test_each_pair_is_encoded_as_if_alone(encoder):
    columns = (["p", "", "long " * 50], ["a" * 90, "", "x"], ["b", "", "y " * 60])
    together = encoder.encode(*columns)
    for i in range(3):
        alone = encoder.encode(*([column[i]] for column in columns))
        for name in ("prefix", "suffix_ab", "suffix_ba"):
            assert getattr(together, name)[i].tolist() == getattr(alone, name)[0].tolist()
        assert together.cut_tokens_N[i] == alone.cut_tokens_N[0]


def test_no_pairs(encoder):
    pairs = encoder.encode([], [], [])
    assert len(pairs) == 0
    assert pairs.tokens_N.tolist() == []


@pytest.mark.parametrize("special", ["<eos>", "<bos>", "<pad>", "<unk>"])
def test_special_token_strings_stay_text(long_encoder, special):
    encoder = long_encoder
    text = f"before {special} after{special}"
    assert encoder.tokenizer.token_to_id(special) is not None
    pairs = encoder.encode([text], [text], [special])
    prefix, suffix = pairs.prefix[0].tolist(), pairs.suffix_ab[0].tolist()
    assert not {0, 1, 2, 3} & set(prefix[1:] + suffix[:-1]), "bos at the start and eos at the end, no other"
    ids = prefix[1 + len(encoder.prompt_tag) :]
    assert encoder.tokenizer.decode(ids, skip_special_tokens=False) == text


@given(texts, texts, texts)
@settings(max_examples=40)
def test_swapping_the_answers_swaps_the_orderings(encoder, prompt, a, b):
    pairs, swapped = encoder.encode([prompt], [a], [b]), encoder.encode([prompt], [b], [a])
    assert pairs.prefix[0].tolist() == swapped.prefix[0].tolist()
    assert pairs.suffix_ab[0].tolist() == swapped.suffix_ba[0].tolist()
    assert pairs.suffix_ba[0].tolist() == swapped.suffix_ab[0].tolist()
    assert sorted(pairs.suffix_ab[0]) == sorted(pairs.suffix_ba[0]), "the same ids in another order"


@pytest.mark.parametrize("truncation", ["balanced", "left"])
@given(texts, texts, texts)
@settings(max_examples=40)
def test_cut_and_kept_add_up(tokenizer_folder, long_encoder, truncation, prompt, a, b):
    encoder = PairEncoder(str(tokenizer_folder), dataclasses.replace(CONFIG, truncation=truncation))
    whole = long_encoder.encode([prompt], [a], [b])
    pairs = encoder.encode([prompt], [a], [b])
    assert whole.cut_tokens_N.tolist() == [0]
    assert pairs.tokens_N + pairs.cut_tokens_N == whole.tokens_N
    assert pairs.tokens_N <= CONFIG.max_tokens
    # Two halves of an odd number leave one token free.
    assert pairs.tokens_N >= min(CONFIG.max_tokens, whole.tokens_N) - (truncation == "balanced")
    assert len(pairs.suffix_ab[0]) == len(pairs.suffix_ba[0])


@given(texts, texts, texts)
@settings(max_examples=40)
def test_left_cuts_the_joined_text_from_its_left_end(tokenizer_folder, long_encoder, prompt, a, b):
    encoder = left_encoder(tokenizer_folder)
    whole, pairs = long_encoder.encode([prompt], [a], [b]), encoder.encode([prompt], [a], [b])
    for suffix in ("suffix_ab", "suffix_ba"):
        joined = [*whole.prefix[0], *getattr(whole, suffix)[0]]
        cut = [BOS, *joined[1:][-(CONFIG.max_tokens - 1) :]]  # tags go like any text
        assert [*pairs.prefix[0], *getattr(pairs, suffix)[0]] == cut


def test_left_may_take_the_prompt_and_its_tag(tokenizer_folder):
    encoder = left_encoder(tokenizer_folder, max_tokens=40)
    pairs = encoder.encode(["question"], ["a" * 200], ["b" * 200])
    assert pairs.prefix[0].tolist() == [BOS]
    assert len(pairs.suffix_ab[0]) == 39
    assert pairs.suffix_ab[0][-1] == EOS


def test_balanced_keeps_every_tag_and_both_answers(encoder):
    pairs = encoder.encode(["p " * 500], ["a " * 500], ["b " * 500])
    for suffix in (pairs.suffix_ab[0].tolist(), pairs.suffix_ba[0].tolist()):
        assert suffix[: len(encoder.first_tag)] == encoder.first_tag.tolist()
        kept = encoder.tokenizer.decode(suffix)
        assert "<response_b>: " in kept
        assert "a a" in kept
        assert "b b" in kept
    assert pairs.prefix[0].tolist()[1 : 1 + len(encoder.prompt_tag)] == encoder.prompt_tag.tolist()


@pytest.mark.parametrize(
    ("text", "as_if"),
    [
        ("nul \0 inside", "nul  inside"),
        ("\ud83d\ude00 \ud800", "😀 �"),
        ("don&#39;t", "don't"),
        ("\u200fשלום\u200e", "\u200fשלום\u200e"),
    ],
)
def test_odd_texts(encoder, text, as_if):
    pairs, clean = encoder.encode([text], [text], ["b"]), encoder.encode([as_if], [as_if], ["b"])
    assert pairs.prefix[0].tolist() == clean.prefix[0].tolist()
    assert pairs.suffix_ab[0].tolist() == clean.suffix_ab[0].tolist()
    assert encoder.tokenizer.decode(pairs.prefix[0][1 + len(encoder.prompt_tag) :].tolist()) == as_if


@pytest.mark.parametrize("text", ["a" * 2_000_000, "日本" * 300_000])
def test_two_megabytes(encoder, text):
    # A second; a quadratic step would take an hour, which pytest's own timeout ends.
    pairs = encoder.encode([text], ["short"], ["answer"])
    assert pairs.tokens_N[0] == CONFIG.max_tokens
    assert pairs.cut_tokens_N[0] > 10_000


def test_tags_that_take_all_tokens(tokenizer_folder):
    config = TextConfig(
        max_tokens=32, prompt_tag="a very long tag, word by word, which leaves no room at all: " * 2
    )
    with pytest.raises(ModelError, match=r"tags take \d+ of max_tokens 32; raise max_tokens"):
        PairEncoder(str(tokenizer_folder), config)


def test_without_a_tokenizer(tmp_path):
    with pytest.raises(ModelError, match=r"no tokenizer\.json; save the model's tokenizer there") as caught:
        PairEncoder(str(tmp_path), CONFIG)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {"type": "Nothing"}}'])
def test_a_broken_tokenizer(folder, content):
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json: not a tokenizer"):
        PairEncoder(str(folder), CONFIG)


@pytest.mark.parametrize(
    ("settings_of_tokenizer", "settings_of_model", "expected"),
    [
        ({"eos_token": "<eos>"}, None, 1),
        ({"eos_token": {"content": "<pad>", "lstrip": False}}, {"eos_token_id": 7}, 0),
        ({"eos_token": None}, {"eos_token_id": 7}, 7),
        ({}, {"eos_token_id": [5, 7]}, 5),
        (None, {"eos_token_id": 0}, 0),
        ({"eos_token": "not in the vocabulary"}, {"eos_token_id": 3}, 3),
    ],
)
def test_where_the_eos_comes_from(folder, settings_of_tokenizer, settings_of_model, expected):
    (folder / "tokenizer_config.json").unlink()
    for name, values in (("tokenizer_config", settings_of_tokenizer), ("config", settings_of_model)):
        if values is not None:
            (folder / f"{name}.json").write_text(json.dumps(values))
    encoder = PairEncoder(str(folder), CONFIG)
    assert encoder.encode(["p"], ["a"], ["b"]).suffix_ab[0][-1] == expected


def test_without_an_eos(folder):
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match=r"no eos token in tokenizer_config\.json or config\.json"):
        PairEncoder(str(folder), CONFIG)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_unreadable_settings(folder, name, content):
    (folder / "tokenizer_config.json").unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"{name}: not a JSON object; restore the model's own file"):
        PairEncoder(str(folder), CONFIG)


def test_a_tokenizer_without_bos(folder):
    values = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(values | {"post_processor": None}))
    encoder = PairEncoder(str(folder), CONFIG)
    pairs = encoder.encode(["p"], ["a"], ["b"])
    assert pairs.prefix[0].tolist() == [*encoder.prompt_tag, *plain_ids(encoder, "p")]
    assert pairs.suffix_ab[0][-1] == EOS


def test_a_tokenizer_set_to_truncate_and_pad(folder):
    values = json.loads((folder / "tokenizer.json").read_text())
    values["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    values["padding"] = {
        "strategy": {"Fixed": 90}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "<pad>",
    }  # fmt: skip
    plain = PairEncoder(str(folder), CONFIG).encode(["a question"], ["one answer"], ["another"])
    (folder / "tokenizer.json").write_text(json.dumps(values))
    pairs = PairEncoder(str(folder), CONFIG).encode(["a question"], ["one answer"], ["another"])
    assert pairs.suffix_ab[0].tolist() == plain.suffix_ab[0].tolist()
    assert pairs.prefix[0].tolist() == plain.prefix[0].tolist()
