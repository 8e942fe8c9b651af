"""The names, types and orderings that every other module relies on.

Not covered: how rows are read (`wsdm_ray.data`).
"""

import enum
import hashlib

import pyarrow as pa

__all__ = [
    "CANONICAL_TYPES",
    "LOGIT_COLUMNS",
    "MODEL_A",
    "MODEL_B",
    "PAIR_COLUMNS",
    "RESPONSES",
    "TEXTS",
    "Ordering",
    "described",
    "first_ordering",
    "orderings_of",
    "predictions_schema",
]

MODEL_A = "model_a"
MODEL_B = "model_b"

RESPONSES = ("response_a", "response_b")
TEXTS = ("prompt", *RESPONSES)
PAIR_COLUMNS = ("id", *TEXTS)

CANONICAL_TYPES: dict[str, pa.DataType] = {
    "prompt": pa.string(),
    "response_a": pa.string(),
    "response_b": pa.string(),
    "winner": pa.string(),
    "prob_a": pa.float64(),
    "model_a": pa.string(),
    "model_b": pa.string(),
    "language": pa.string(),
    "source": pa.string(),
}
"""Arrow types of the canonical columns but `id`, which is int64 or string, as its input had it."""


LOGIT_COLUMNS = ("logit_ab", "logit_ba")

DESCRIPTIONS = {
    "id": "id of the input row",
    "prob_a": "probability that the given response_a wins: all models and orders",
    "winner": "model_a where prob_a is at least 0.5, else model_b",
    "prob_a_ab": "prob_a of the order (prompt, response_a, response_b); null if that order was not run",
    "prob_a_ba": "prob_a of the order (prompt, response_b, response_a); null if that order was not run",
    "tokens": "tokens of one order, after truncation",
    "cut_tokens": "tokens that truncation cut: the most of all models",
    "error": "null, or why this row has no probability",
    "logit_ab": "log-odds that response_a wins, before any temperature, of the order ab",
    "logit_ba": "log-odds that response_a wins, before any temperature, of the order ba",
}
"""What each column of a predictions file holds: the parquet field's metadata has it as `description`."""


class Ordering(enum.IntEnum):
    """Which response comes first in the text. A probability is of the input's response_a either way."""

    AB = 0
    BA = 1


def orderings_of(orders: str) -> tuple[Ordering, ...]:
    """The orderings that `both`, `ab`, `ba` or `adaptive` names: all that a row may be run in."""
    both = (Ordering.AB, Ordering.BA)
    return {"both": both, "adaptive": both, "ab": (Ordering.AB,), "ba": (Ordering.BA,)}[orders]


def first_ordering(response_a: str, response_b: str) -> Ordering:
    """The ordering that a pair is run in first: the response with the smaller hash comes first.

    Which of the two is called response_a does not matter, so a pair and its swapped twin are the same text
    to the model. It is a hash because in alphabetical order "Sorry, ..." would always come late.
    """
    a, b = (
        hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
        for text in (response_a, response_b)
    )
    return Ordering.BA if b < a else Ordering.AB


def described(field: pa.Field) -> pa.Field:
    """A field of the predictions with what it holds as metadata."""
    return field.with_metadata({"description": DESCRIPTIONS[field.name]})


def predictions_schema(id_type: pa.DataType) -> pa.Schema:
    """Arrow schema of a predictions file whose input has ids of `id_type`."""
    fields = pa.schema(
        [
            ("id", id_type),
            ("prob_a", pa.float32()),
            ("winner", pa.string()),
            ("prob_a_ab", pa.float32()),
            ("prob_a_ba", pa.float32()),
            ("tokens", pa.int32()),
            ("cut_tokens", pa.int32()),
            ("error", pa.string()),
        ]
    )
    return pa.schema([described(field) for field in fields])
