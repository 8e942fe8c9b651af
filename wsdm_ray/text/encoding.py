"""Pairs to token ids. Each text is tokenized once; both orderings are made of the same ids.

One ordering is  bos · prompt tag · prompt · first tag · one response · second tag · the other · eos.
The part up to the prompt's end is the prefix, which both orderings share; the rest is the suffix.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from wsdm_ray.config import TextConfig
from wsdm_ray.errors import ModelError
from wsdm_ray.packing.ragged import Ragged
from wsdm_ray.schema import Ordering, first_ordering
from wsdm_ray.text.normalize import fix_text
from wsdm_ray.text.truncation import balanced_budgets, truncate_middle
from wsdm_ray.text.words import WordEncoder, words_are_independent

__all__ = ["TOKENIZER_FILES", "EncodedPairs", "PairEncoder", "ba_first", "read_settings"]


@dataclass(frozen=True)
class EncodedPairs:
    """N pairs as token ids.

    An ordering is the prefix and its suffix; the two suffixes of a pair are equally long.
    """

    prefix: Ragged
    suffix_ab: Ragged
    suffix_ba: Ragged
    cut_tokens_N: np.ndarray
    """Tokens that truncation left out of one ordering, int32 [N]."""
    ba_first_N: np.ndarray
    """Where `first_ordering` of the two responses, as they came, is `ba`: bool [N]."""

    def __len__(self) -> int:
        return len(self.prefix)

    def take(self, rows: Sequence[int] | np.ndarray) -> "EncodedPairs":
        """The pairs of `rows` (int [n]), in that order."""
        ragged = (
            Ragged.from_lists([each[row] for row in rows])
            for each in (self.prefix, self.suffix_ab, self.suffix_ba)
        )
        return EncodedPairs(*ragged, cut_tokens_N=self.cut_tokens_N[rows], ba_first_N=self.ba_first_N[rows])

    @property
    def tokens_N(self) -> np.ndarray:
        """Tokens of one ordering, int64 [N]."""
        return self.prefix.lengths + self.suffix_ab.lengths


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "config.json")
"""What a `PairEncoder` reads of a model folder, when it is made."""


class PairEncoder:
    """Encodes pairs with the tokenizer of a model folder.

    Only the files `TOKENIZER_FILES` are read, so a process without a model and without torch can encode.
    Strings of special tokens inside a text are encoded as text.
    """

    def __init__(self, folder: str, config: TextConfig):
        self.config = config
        self.tokenizer = load_tokenizer(folder)
        independent = words_are_independent(read_settings(Path(folder) / "tokenizer.json"))
        self.by_words = WordEncoder(self.tokenizer) if independent else None
        self.eos_id = eos_id_of(folder, self.tokenizer)
        self.eos = np.asarray([self.eos_id], np.int32)
        first = self.tokenizer.encode("", add_special_tokens=True).ids[:1]
        # Some tokenizers start every text with a token of their own, such as Gemma's bos.
        self.bos = np.asarray([id for id in first if id != self.eos_id], np.int32)
        self.prompt_tag, self.first_tag, self.second_tag = (
            self.ids_of([tag])[0] for tag in (config.prompt_tag, config.first_tag, config.second_tag)
        )
        fixed = len(self.bos) + len(self.prompt_tag) + len(self.first_tag) + len(self.second_tag) + 1
        self.text_budget = config.max_tokens - fixed
        if self.text_budget < 3:
            raise ModelError(
                f"{folder}: tags take {fixed} of max_tokens {config.max_tokens}; raise max_tokens"
            )

    def ids_of(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self.by_words:
            return self.by_words(texts)
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, np.int32) for encoding in encodings]

    def encode(
        self, prompts: Sequence[str], responses_a: Sequence[str], responses_b: Sequence[str]
    ) -> EncodedPairs:
        """Encode N pairs; no text may be null."""
        texts = (prompts, responses_a, responses_b)
        fixed = [[fix_text(text) for text in column] for column in texts]
        return self.encode_fixed(fixed, ba_first(responses_a, responses_b))

    def encode_fixed(self, texts: Sequence[Sequence[str]], ba_first_N: np.ndarray) -> EncodedPairs:
        """Encode N pairs whose texts are repaired (`fix_text`): prompts, and both responses.

        Args:
            ba_first_N: of the texts as they came (`ba_first`).
        """
        columns = [self.ids_of(column) for column in texts]
        lengths = [np.asarray([len(ids) for ids in segment], np.int64) for segment in columns]
        total_N = np.sum(lengths, axis=0)
        if self.config.truncation == "balanced":
            for_prompt, for_a, for_b = lengths
            budgets = balanced_budgets(for_prompt, for_a, for_b, self.text_budget, self.config.prompt_share)
            columns = [
                [truncate_middle(ids, keep) for ids, keep in zip(segment, budget.tolist(), strict=True)]
                for segment, budget in zip(columns, budgets, strict=True)
            ]
            cut_N = total_N - np.sum(budgets, axis=0)
            from_left = np.zeros(len(cut_N), np.int64)
        else:
            cut_N = from_left = np.maximum(total_N - self.text_budget, 0)
        prompt, a, b = columns
        prefixes, suffixes_ab, suffixes_ba = [], [], []
        for i, drop in enumerate(from_left.tolist()):
            prefix = np.concatenate([self.prompt_tag, prompt[i]])
            prefixes.append(np.concatenate([self.bos, prefix[drop:]]))
            drop = max(drop - len(prefix), 0)
            suffixes_ab.append(self.suffix(a[i], b[i])[drop:])
            suffixes_ba.append(self.suffix(b[i], a[i])[drop:])
        prefix, suffix_ab, suffix_ba = map(Ragged.from_lists, (prefixes, suffixes_ab, suffixes_ba))
        return EncodedPairs(prefix, suffix_ab, suffix_ba, cut_N.astype(np.int32), ba_first_N)

    def suffix(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.concatenate([self.first_tag, first, self.second_tag, second, self.eos])


def ba_first(responses_a: Sequence[str], responses_b: Sequence[str]) -> np.ndarray:
    """Where `first_ordering` of two responses is `ba`: bool [N]."""
    pairs = zip(responses_a, responses_b, strict=True)
    return np.array([first_ordering(*pair) is Ordering.BA for pair in pairs], bool)


def load_tokenizer(folder: str) -> Tokenizer:
    """The fast tokenizer of a model folder, set to treat special-token strings in a text as text."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise ModelError(
            f"{folder}: no tokenizer.json; save the model's tokenizer there "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(...))"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ModelError(f"{path}: not a tokenizer ({error})") from error
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def eos_id_of(folder: str, tokenizer: Tokenizer) -> int:
    """The eos id by tokenizer_config.json, else by config.json."""
    for name, key in (("tokenizer_config.json", "eos_token"), ("config.json", "eos_token_id")):
        path = Path(folder) / name
        value = read_settings(path).get(key) if path.is_file() else None
        value = (
            value[0]
            if isinstance(value, list)
            else value.get("content")
            if isinstance(value, dict)
            else value
        )
        id = tokenizer.token_to_id(value) if isinstance(value, str) else value
        if id is not None:
            return id
    raise ModelError(f"{folder}: no eos token in tokenizer_config.json or config.json")


def read_settings(path: Path) -> dict[str, Any]:
    """The object that a JSON file of a model folder holds. Raises `ModelError` where it holds none."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise ModelError(f"{path}: not a JSON object; restore the model's own file")
    return values
