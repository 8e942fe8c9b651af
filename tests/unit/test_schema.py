"""Names, types and orderings."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsdm_ray.schema import (
    CANONICAL_TYPES,
    PAIR_COLUMNS,
    Ordering,
    first_ordering,
    orderings_of,
    predictions_schema,
)


def test_orderings():
    assert orderings_of("both") == (Ordering.AB, Ordering.BA) == (0, 1)
    assert orderings_of("ab") == (Ordering.AB,)
    assert orderings_of("ba") == (Ordering.BA,)
    assert orderings_of("adaptive") == orderings_of("both")
    with pytest.raises(KeyError):
        orderings_of("neither")


@given(st.text(), st.text())
def test_the_swapped_twin_starts_with_the_same_text(a, b):
    assert (first_ordering(a, b) is first_ordering(b, a)) == (a == b)


def test_neither_side_nor_alphabet_decides_who_stands_first():
    pairs = [(f"a {number}", f"b {number}") for number in range(1_000)]
    # Binomial with a standard deviation of 16.
    assert 440 < sum(first_ordering(*pair) for pair in pairs) < 560
    assert first_ordering("same", "same") is Ordering.AB
    assert {first_ordering("", "\ud800"), first_ordering("\ud800", "")} == {Ordering.AB, Ordering.BA}


@pytest.mark.parametrize("id_type", [pa.int64(), pa.string()])
def test_predictions_keep_the_type_of_the_id(id_type):
    schema = predictions_schema(id_type)
    assert schema.field("id").type == id_type
    assert schema.names == [
        "id", "prob_a", "winner", "prob_a_ab", "prob_a_ba", "tokens", "cut_tokens", "error"
    ]  # fmt: skip
    assert {schema.field(name).type for name in ("prob_a", "prob_a_ab", "prob_a_ba")} == {pa.float32()}
    assert {schema.field(name).type for name in ("tokens", "cut_tokens")} == {pa.int32()}


def test_canonical_columns():
    assert set(PAIR_COLUMNS) - {"id"} <= set(CANONICAL_TYPES)
    assert "id" not in CANONICAL_TYPES, "an id keeps the type that its input gave it"
