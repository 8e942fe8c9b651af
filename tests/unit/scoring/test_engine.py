"""The engine: probabilities of swapped pairs add up to 1 exactly, and a pair's neighbours do not matter."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.scoring.conftest import random_texts
from wsdm_ray.modeling.checkpoint import load_classifier
from wsdm_ray.schema import orderings_of
from wsdm_ray.scoring import engine
from wsdm_ray.scoring.engine import combine, log_odds, to_probability
from wsdm_ray.text.encoding import EncodedPairs, PairEncoder

LAYOUTS = ("padded", "packed", "shared")
BOTH = orderings_of("both")


@pytest.fixture(scope="module")
def network(classifiers) -> Any:
    return load_classifier(classifiers[0].folder, precision="fp32")[0]


@pytest.fixture(scope="module")
def encoder(classifiers) -> PairEncoder:
    return PairEncoder(classifiers[0].folder, classifiers[0].manifest.text)


@pytest.fixture(scope="module")
def texts() -> list[list[str]]:
    """Prompts, responses a and responses b of 60 pairs."""
    return [random_texts(60, seed) for seed in range(3)]


def probabilities(network: Any, pairs: EncodedPairs, layout: str, orders: str = "both", budget: int = 600):
    scores = log_odds(network, pairs, orderings_of(orders), layout=layout, token_budget=budget)
    return combine(to_probability(scores.log_odds_NO))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_swapping_the_responses_gives_exactly_the_rest(network, encoder, texts, layout):
    prompts, a, b = texts
    p = probabilities(network, encoder.encode(prompts, a, b), layout)
    q = probabilities(network, encoder.encode(prompts, b, a), layout)
    assert p.dtype == np.float32
    np.testing.assert_array_equal(q, np.float32(1) - p)
    assert p.std() > 0.02, "the model tells pairs apart"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_swapping_some_rows_leaves_the_others(network, encoder, texts, layout):
    prompts, a, b = texts
    flip = np.arange(60) % 3 == 0
    mixed_a, mixed_b = (
        [(y if flip[i] else x) for i, (x, y) in enumerate(zip(*columns, strict=True))]
        for columns in ((a, b), (b, a))
    )
    p = probabilities(network, encoder.encode(prompts, a, b), layout)
    q = probabilities(network, encoder.encode(prompts, mixed_a, mixed_b), layout)
    np.testing.assert_array_equal(q, np.where(flip, np.float32(1) - p, p))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_swapping_exchanges_the_orderings_too(network, encoder, texts, layout):
    prompts, a, b = texts
    options = {"layout": layout, "token_budget": 600}
    given_ab = log_odds(network, encoder.encode(prompts, a, b), BOTH, **options).log_odds_NO
    given_ba = log_odds(network, encoder.encode(prompts, b, a), BOTH, **options).log_odds_NO
    differ = np.array([x != y for x, y in zip(a, b, strict=True)])
    np.testing.assert_array_equal(given_ab[differ, 0], -given_ba[differ, 1])
    np.testing.assert_array_equal(given_ab[differ, 1], -given_ba[differ, 0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_identical_responses_are_a_tie(network, encoder, texts, layout):
    prompts, a, _ = texts
    p = probabilities(network, encoder.encode(prompts, a, a), layout)
    np.testing.assert_array_equal(p, np.float32(0.5))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("orders", ["both", "ab", "ba"])
def test_neighbours_do_not_matter(network, encoder, texts, layout, orders):
    together = probabilities(network, encoder.encode(*texts), layout, orders, budget=1_500)
    alone = [
        probabilities(network, encoder.encode(*([column[i]] for column in texts)), "padded", orders)[0]
        for i in range(0, 60, 6)
    ]
    # float32 on a CPU: the sums of a longer row are taken in another order.
    np.testing.assert_allclose(together[::6], alone, rtol=0, atol=1e-5)
    backwards = [column[::-1] for column in texts]
    turned = probabilities(network, encoder.encode(*backwards), layout, orders, budget=300)
    np.testing.assert_allclose(turned[::-1], together, rtol=0, atol=1e-5)


def test_layouts_agree(network, encoder, texts):
    pairs = encoder.encode(*texts)
    expected = log_odds(network, pairs, BOTH, layout="padded", token_budget=600)
    for layout in ("packed", "shared"):
        found = log_odds(network, pairs, BOTH, layout=layout, token_budget=600)
        np.testing.assert_allclose(found.log_odds_NO, expected.log_odds_NO, rtol=0, atol=1e-5)
        assert found.passed_tokens < expected.passed_tokens


def test_one_ordering_is_half_of_both(network, encoder, texts):
    pairs = encoder.encode(*texts)
    both = log_odds(network, pairs, BOTH, layout="packed", token_budget=600).log_odds_NO
    for orders, column in (("ab", 0), ("ba", 1)):
        one = log_odds(network, pairs, orderings_of(orders), layout="packed", token_budget=600).log_odds_NO
        assert one.shape == (60, 1)
        np.testing.assert_allclose(one[:, 0], both[:, column], rtol=0, atol=1e-5)


def test_ba_is_of_the_given_response_a(network, encoder, texts):
    prompts, a, b = texts
    ba = log_odds(
        network, encoder.encode(prompts, a, b), orderings_of("ba"), layout="padded", token_budget=600
    )
    ab = log_odds(
        network, encoder.encode(prompts, b, a), orderings_of("ab"), layout="padded", token_budget=600
    )
    np.testing.assert_array_equal(ba.log_odds_NO, -ab.log_odds_NO)


@pytest.mark.parametrize("orders", ["both", "ab"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_becomes_nan_of_its_row_alone(monkeypatch, network, encoder, texts, orders, bad):
    pairs = encoder.encode(*texts)
    marked = int(pairs.suffix_ab[7][:-1].max())
    orderings = orderings_of(orders)
    clean = log_odds(network, pairs, orderings, layout="padded", token_budget=600).log_odds_NO
    real = engine.ordering_logits

    def spoiled(network, layout):
        logits = real(network, layout)
        rows = torch.from_numpy((layout.tokens_BT == marked).any(axis=1))
        logits[rows, 0] = bad
        return logits

    monkeypatch.setattr(engine, "ordering_logits", spoiled)
    found = log_odds(network, pairs, orderings, layout="padded", token_budget=600).log_odds_NO
    hit = np.array([marked in [*pairs.prefix[i], *pairs.suffix_ab[i]] for i in range(60)])
    assert 0 < hit.sum() < 60
    assert np.isnan(found[hit]).all()
    np.testing.assert_array_equal(found[~hit], clean[~hit])


def test_no_pairs(network, encoder):
    scores = log_odds(network, encoder.encode([], [], []), BOTH, layout="shared", token_budget=600)
    assert scores.log_odds_NO.shape == (0, 2)
    assert scores.passed_tokens == 0


def test_a_pair_over_the_budget(network, encoder, texts):
    with pytest.raises(ValueError, match="over the budget of 60"):
        log_odds(network, encoder.encode(*texts), BOTH, layout="shared", token_budget=60)


finite = st.floats(-1e4, 1e4)


@given(st.lists(finite, min_size=1, max_size=9), st.floats(0.01, 100))
def test_probabilities_mirror_exactly(values, temperature):
    odds = np.asarray(values, np.float32)
    p, q = to_probability(odds, temperature), to_probability(-odds, temperature)
    np.testing.assert_array_equal(q, 1 - p)
    np.testing.assert_array_equal(np.float32(q), np.float32(1) - np.float32(p))
    assert ((p >= 0) & (p <= 1)).all()
    np.testing.assert_allclose(
        p, 0.5 + 0.5 * np.tanh(odds.astype(float) / temperature / 2), rtol=0, atol=2.0**-24
    )


@given(st.lists(st.lists(finite, min_size=3, max_size=3), min_size=1, max_size=9))
def test_means_mirror_exactly(rows):
    odds = np.asarray(rows, np.float32)
    p, q = combine(to_probability(odds)), combine(to_probability(-odds))
    assert p.dtype == np.float32
    np.testing.assert_array_equal(q, np.float32(1) - p)


def test_probabilities_by_hand():
    assert to_probability(np.float32([0.0])).tolist() == [0.5]
    np.testing.assert_allclose(to_probability(np.float32([np.log(3)])), [0.75], atol=1e-7)
    np.testing.assert_allclose(to_probability(np.float32([2 * np.log(3)]), 2.0), [0.75], atol=1e-7)
    np.testing.assert_allclose(combine(np.array([[0.75, 0.25], [1.0, 0.5]])), [0.5, 0.75])
    assert np.isnan(combine(np.array([[np.nan, 0.5]]))).all()
