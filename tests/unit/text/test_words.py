"""Texts by their words: the ids of the tokenizer itself, and only where that can be shown."""

import copy
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, trainers

from tests.unit.conftest import WORDS
from wsdm_ray.text import words
from wsdm_ray.text.words import WordEncoder, words_are_independent

BYTES = [f"<0x{i:02X}>" for i in range(256)]


def gemma_like(texts: list[str]) -> Tokenizer:
    """BPE over whole texts with spaces as letters, bytes for unknown characters, and added tokens."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        show_progress=False,
        special_tokens=["<unk>", "▁", *BYTES],
    )
    # Trained by words, as SentencePiece does: no token crosses the end of one.
    tokenizer.train_from_iterator([word for text in texts for word in words.WORD.findall(text)], trainer)
    settings = json.loads(tokenizer.to_str())
    settings["added_tokens"] = []
    tokenizer = Tokenizer.from_str(json.dumps(settings))
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("\n\n", "<b>", "▁▁")])
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return gemma_like([*WORDS * 3, "  two  spaces   three \n\n lines\n\nmore"])


PIECES = st.sampled_from(
    [
        *(" ", "  ", "▁", " ▁", "\n\n", "\n\n\n", "<b>", "."),
        *("answer", "The", "sum", "世界", "Blätter", "🙂", "x", "Как"),
    ]
)


@given(st.lists(PIECES | st.text(max_size=5), max_size=20).map("".join))
@example(" \n\n <b> <b>▁x ▁ x")
def test_any_text_has_the_ids_of_the_tokenizer(tokenizer, text):
    [ids] = WordEncoder(tokenizer)([text])
    assert ids.tolist() == tokenizer.encode(text, add_special_tokens=False).ids


def test_words_are_kept_within_bounds(tokenizer, monkeypatch):
    monkeypatch.setattr(words, "KEPT_WORDS", 3)
    encoder = WordEncoder(tokenizer)
    texts = ["the sum is 42", "", "x" * 41, "the answer"]
    for text, ids in zip(texts, encoder(texts), strict=True):
        assert ids.tolist() == tokenizer.encode(text, add_special_tokens=False).ids
    assert set(encoder.known) == {"the", " sum", " is", " 42", " answer"}
    encoder(["sum"])
    assert set(encoder.known) == {"sum"}


def changed(settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return copy.deepcopy(settings) | changes


def test_where_it_cannot_be_shown_texts_are_encoded_whole(tokenizer):
    settings = json.loads(tokenizer.to_str())
    assert words_are_independent(settings)
    model, [added, *_] = settings["model"], settings["added_tokens"]
    at_spaces = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    assert words_are_independent(changed(settings, pre_tokenizer=at_spaces)), "as in Gemma-2's own folder"
    for changes in (
        {"normalizer": None},
        {"normalizer": {"type": "Prepend", "prepend": "▁"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}},
        {"model": model | {"type": "Unigram"}},
        {"model": model | {"dropout": 0.1}},
        {"model": model | {"vocab": model["vocab"] | {"e▁": 9_999}}},
        {"added_tokens": [added | {"content": "a b"}]},
        {"added_tokens": [added | {"content": "a▁"}]},
        {"added_tokens": [added | {"lstrip": True}]},
    ):
        assert not words_are_independent(changed(settings, **changes)), changes
