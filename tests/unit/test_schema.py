"""Names, types and orderings."""

import pyarrow as pa
import pytest

from wsdm_ray.schema import CANONICAL_TYPES, PAIR_COLUMNS, Ordering, orderings_of, predictions_schema


def test_orderings():
    assert orderings_of("both") == (Ordering.AB, Ordering.BA) == (0, 1)
    assert orderings_of("ab") == (Ordering.AB,)
    assert orderings_of("ba") == (Ordering.BA,)
    with pytest.raises(KeyError):
        orderings_of("neither")


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
