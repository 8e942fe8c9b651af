"""Token ids of a text from those of its words, for tokenizers of which it can be shown that they are equal.

Gemma's tokenizer merges over a whole text: a space is a letter (`▁`) to it. Where no token has another letter
before a `▁`, no merge crosses the end of a word. So each word can be encoded by itself, and once: most words
of a text were in an earlier one. Not covered: tokenizers that split texts into words themselves, which keep
their own cache.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
from tokenizers import Tokenizer

__all__ = ["WordEncoder", "words_are_independent"]

WORD = re.compile("[ ▁]+[^ ▁]*|[^ ▁]+")
"""Spaces and what follows up to the next one; a `▁` of the text itself is one of them."""

CROSSES_WORDS = re.compile("[^ ▁][ ▁]")

LOOKS_AROUND = ("lstrip", "rstrip", "single_word")
"""What makes a token that was added depend on the text around it."""

SPACE_IS_A_LETTER = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}

PLAIN_MODEL = {"type": "BPE", "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}

KEPT_WORDS = 200_000
KEPT_LENGTH = 40
"""Words that are kept at most, each of so many characters at most."""


def words_are_independent(settings: dict[str, Any]) -> bool:
    """Whether a tokenizer gives a text the ids of its words (`WORD`), one after the other.

    Args:
        settings: the object that tokenizer.json holds.
    """
    model, splits = settings["model"], settings.get("pre_tokenizer")
    if settings.get("normalizer") != SPACE_IS_A_LETTER or model.get("ignore_merges"):
        return False
    if any(model.get(name) != value for name, value in PLAIN_MODEL.items()) or "▁" not in model["vocab"]:
        return False
    # Gemma's own splits at spaces, of which none is left.
    if splits and (splits.get("type"), splits.get("pattern")) != ("Split", {"String": " "}):
        return False
    for token in settings.get("added_tokens", ()):
        if CROSSES_WORDS.search(token["content"]) or any(map(token.get, LOOKS_AROUND)):
            return False
    return not any(map(CROSSES_WORDS.search, model["vocab"]))


class WordEncoder:
    """Encodes texts by their words, of which it keeps the ids."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.known: dict[str, Sequence[int]] = {}

    def __call__(self, texts: Iterable[str]) -> list[np.ndarray]:
        """Token ids of each text, int32."""
        if len(self.known) > KEPT_WORDS:
            self.known.clear()
        words = [WORD.findall(text) for text in texts]
        new = list({word for some in words for word in some if word not in self.known})
        encodings = self.tokenizer.encode_batch_fast(new, add_special_tokens=False)
        ids = {word: encoding.ids for word, encoding in zip(new, encodings, strict=True)}
        self.known |= ids
        found = [
            np.fromiter(chain.from_iterable(map(self.known.__getitem__, some)), np.int32) for some in words
        ]
        for word in ids:
            if len(word) > KEPT_LENGTH:
                del self.known[word]
        return found
