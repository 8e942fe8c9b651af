"""A scorer with static shapes, as on a GPU: micro-batches are filled up and groups are aligned."""

import numpy as np
import pytest

from tests.unit.scoring.fakes import with_memory_for, wrapped
from wsdm_ray.errors import ModelError
from wsdm_ray.modeling.loading import load_fused_classifier
from wsdm_ray.modeling.scorers import FusedClassifier
from wsdm_ray.packing.plan import pair_tokens
from wsdm_ray.schema import orderings_of
from wsdm_ray.scoring.engine import identical, log_odds
from wsdm_ray.scoring.probabilities import combine, to_probability

LAYOUTS = ("padded", "packed", "shared")
BOTH = orderings_of("both")


@pytest.fixture(scope="module")
def fused(classifiers) -> FusedClassifier:
    """The classifier on the fused decoder, with static shapes as on a GPU."""
    made, _ = load_fused_classifier(classifiers[0].folder, precision="fp32")
    made.static_shapes = True
    return made


@pytest.fixture(scope="module")
def expected_NO(scorer, encoder, texts) -> np.ndarray:
    """Log-odds of the pairs by the network that the decoder stands for."""
    return log_odds(scorer, encoder.encode(*texts), BOTH, layout="padded", token_budget=600).log_odds_NO


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("budget", [256, 600])
def test_all_batches_have_the_size_of_the_budget(expected_NO, fused, encoder, texts, layout, budget):
    pairs = encoder.encode(*texts)
    sizes: list[tuple[int, ...]] = []

    def noting_sizes(layout):
        sizes.append(layout.tokens_BT.shape)
        return fused(layout)

    found = log_odds(wrapped(fused, noting_sizes), pairs, BOTH, layout=layout, token_budget=budget)
    assert set(sizes) == {(1, 256 if budget == 256 else 640)}
    np.testing.assert_allclose(found.log_odds_NO, expected_NO, rtol=0, atol=1e-5)
    assert found.errors_N.tolist() == [None] * 30
    assert found.forward_tokens == sum(row for _, row in sizes)
    swapped = encoder.encode(texts[0], texts[2], texts[1])
    other = log_odds(fused, swapped, BOTH, layout=layout, token_budget=budget)
    p, q = (combine(to_probability(scores.log_odds_NO)) for scores in (found, other))
    np.testing.assert_array_equal(q, np.float32(1) - p)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_aligned_groups_take_no_room_from_a_pair(expected_NO, fused, encoder, texts, layout):
    pairs = encoder.encode(*texts)
    starts = set()

    def noting_starts(layout):
        groups = layout.groups_BT.reshape(-1)
        starts.update(np.flatnonzero((np.diff(groups, prepend=-1) != 0) & (groups >= 0)).tolist())
        return fused(layout)

    tokens_N = pair_tokens(layout, pairs.prefix.lengths, pairs.suffix_ab.lengths, 2)
    tokens_N[identical(pairs)] //= 2  # run once
    most = int(tokens_N.max())
    alignment = 7 + (most % 7 == 0)
    assert most % alignment, "as it is it fits, aligned it is longer than the budget"
    aligned = wrapped(fused, noting_starts, alignment=alignment)
    for budget in (most, 600):
        found = log_odds(aligned, pairs, BOTH, layout=layout, token_budget=budget)
        assert found.errors_N.tolist() == [None] * 30
        np.testing.assert_allclose(found.log_odds_NO, expected_NO, rtol=0, atol=1e-5)
    assert len(starts) > 3
    assert all(start % alignment == 0 for start in starts)
    found = log_odds(aligned, pairs, BOTH, layout=layout, token_budget=most - 1)
    over = tokens_N == most
    assert [error is not None for error in found.errors_N] == over.tolist()
    assert f"takes {most} tokens in the layout {layout}" in found.errors_N[over][0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("room", [511, 128, 127])
def test_where_memory_runs_out_static_shapes_are_smaller(fused, encoder, texts, layout, room):
    pairs, sizes = encoder.encode(*texts), []
    short = wrapped(fused, with_memory_for(room, sizes, real=fused))
    if room < 128:
        with pytest.raises(ModelError, match="pairs of a unit fail, each alone: out of memory at"):
            log_odds(short, pairs, BOTH, layout=layout, token_budget=1_024)
        return
    expected = log_odds(fused, pairs, BOTH, layout=layout, token_budget=1_024)
    found = log_odds(short, pairs, BOTH, layout=layout, token_budget=1_024)
    assert all(size % 128 == 0 for size in sizes)
    assert found.token_budget <= max(room, 128)
    assert found.errors_N.tolist() == [None] * 30
    np.testing.assert_allclose(found.log_odds_NO, expected.log_odds_NO, rtol=0, atol=1e-5)
