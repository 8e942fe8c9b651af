"""The engine: probabilities of swapped pairs add up to 1 exactly, and a pair's neighbours do not matter."""

import numpy as np
import pytest
import torch

from tests.unit.scoring.fakes import FakeScorer, breaking, pairs_of, token_logits, wrapped
from wsdm_ray.modeling.scorers import Scorer
from wsdm_ray.schema import orderings_of
from wsdm_ray.scoring.engine import identical, log_odds
from wsdm_ray.scoring.probabilities import NOT_FINITE, combine, to_probability
from wsdm_ray.text.encoding import EncodedPairs

LAYOUTS = ("padded", "packed", "shared")
BOTH = orderings_of("both")


def probabilities(scorer: Scorer, pairs: EncodedPairs, layout: str, orders: str = "both", budget: int = 600):
    scores = log_odds(scorer, pairs, orderings_of(orders), layout=layout, token_budget=budget)
    return combine(to_probability(scores.log_odds_NO))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_swapping_the_responses_gives_exactly_the_rest(scorer, encoder, texts, layout):
    prompts, a, b = texts
    p = probabilities(scorer, encoder.encode(prompts, a, b), layout)
    q = probabilities(scorer, encoder.encode(prompts, b, a), layout)
    assert p.dtype == np.float32
    np.testing.assert_array_equal(q, np.float32(1) - p)
    assert p.std() > 0.02, "the model tells pairs apart"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_swapping_some_rows_leaves_the_others(scorer, encoder, texts, layout):
    prompts, a, b = texts
    flip = np.arange(30) % 3 == 0
    mixed_a, mixed_b = (
        [(y if flip[i] else x) for i, (x, y) in enumerate(zip(*columns, strict=True))]
        for columns in ((a, b), (b, a))
    )
    p = probabilities(scorer, encoder.encode(prompts, a, b), layout)
    q = probabilities(scorer, encoder.encode(prompts, mixed_a, mixed_b), layout)
    np.testing.assert_array_equal(q, np.where(flip, np.float32(1) - p, p))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_swapping_exchanges_the_orderings_too(scorer, encoder, texts, layout):
    prompts, a, b = texts
    options = {"layout": layout, "token_budget": 600}
    given_ab = log_odds(scorer, encoder.encode(prompts, a, b), BOTH, **options).log_odds_NO
    given_ba = log_odds(scorer, encoder.encode(prompts, b, a), BOTH, **options).log_odds_NO
    differ = np.array([x != y for x, y in zip(a, b, strict=True)])
    np.testing.assert_array_equal(given_ab[differ, 0], -given_ba[differ, 1])
    np.testing.assert_array_equal(given_ab[differ, 1], -given_ba[differ, 0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_identical_responses_are_a_tie(scorer, encoder, texts, layout):
    prompts, a, _ = texts
    p = probabilities(scorer, encoder.encode(prompts, a, a), layout)
    np.testing.assert_array_equal(p, np.float32(0.5))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("orders", ["both", "ab", "ba"])
def test_neighbours_do_not_matter(scorer, encoder, texts, layout, orders):
    together = probabilities(scorer, encoder.encode(*texts), layout, orders, budget=1_500)
    alone = [
        probabilities(scorer, encoder.encode(*([column[i]] for column in texts)), "padded", orders)[0]
        for i in range(0, 30, 3)
    ]
    # float32 on a CPU: the sums of a longer row are taken in another order.
    np.testing.assert_allclose(together[::3], alone, rtol=0, atol=1e-5)
    backwards = [column[::-1] for column in texts]
    turned = probabilities(scorer, encoder.encode(*backwards), layout, orders, budget=300)
    np.testing.assert_allclose(turned[::-1], together, rtol=0, atol=1e-5)


def test_layouts_agree(scorer, encoder, texts):
    pairs = encoder.encode(*texts)
    expected = log_odds(scorer, pairs, BOTH, layout="padded", token_budget=600)
    for layout in ("packed", "shared"):
        found = log_odds(scorer, pairs, BOTH, layout=layout, token_budget=600)
        np.testing.assert_allclose(found.log_odds_NO, expected.log_odds_NO, rtol=0, atol=1e-5)
        assert found.forward_tokens < expected.forward_tokens


def test_one_ordering_is_half_of_both(scorer, encoder, texts):
    pairs = encoder.encode(*texts)
    both = log_odds(scorer, pairs, BOTH, layout="packed", token_budget=600).log_odds_NO
    for orders, column in (("ab", 0), ("ba", 1)):
        one = log_odds(scorer, pairs, orderings_of(orders), layout="packed", token_budget=600).log_odds_NO
        assert one.shape == (30, 1)
        np.testing.assert_allclose(one[:, 0], both[:, column], rtol=0, atol=1e-5)


def test_ba_is_of_the_given_response_a(scorer, encoder, texts):
    prompts, a, b = texts
    ba = log_odds(
        scorer, encoder.encode(prompts, a, b), orderings_of("ba"), layout="padded", token_budget=600
    )
    ab = log_odds(
        scorer, encoder.encode(prompts, b, a), orderings_of("ab"), layout="padded", token_budget=600
    )
    np.testing.assert_array_equal(ba.log_odds_NO, -ab.log_odds_NO)


@pytest.mark.parametrize("orders", ["both", "ab"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_becomes_nan_of_its_row_alone(scorer, encoder, texts, orders, bad):
    pairs = encoder.encode(*texts)
    marked = int(pairs.suffix_ab[7][:-1].max())
    orderings = orderings_of(orders)
    clean = log_odds(scorer, pairs, orderings, layout="padded", token_budget=600).log_odds_NO

    def spoiled(layout):
        logits = scorer(layout)
        rows = torch.from_numpy((layout.tokens_BT == marked).any(axis=1))
        logits[rows, 0] = bad
        return logits

    found = log_odds(
        wrapped(scorer, spoiled), pairs, orderings, layout="padded", token_budget=600
    ).log_odds_NO
    hit = np.array([marked in [*pairs.prefix[i], *pairs.suffix_ab[i]] for i in range(30)])
    assert 0 < hit.sum() < 30
    assert np.isnan(found[hit]).all()
    np.testing.assert_array_equal(found[~hit], clean[~hit])


def test_one_row_that_is_not_a_number_among_good_ones():
    pairs = pairs_of([5, 4, 7, 3])
    marked = int(pairs.prefix[2][0])
    spoiled = FakeScorer(breaking(token_logits, marked, torch.tensor(float("nan"))))
    scores = log_odds(spoiled, pairs, BOTH, layout="padded", token_budget=100)
    assert scores.errors_N.tolist() == [None, None, NOT_FINITE, None]
    assert np.isnan(scores.log_odds_NO).all(axis=1).tolist() == [False, False, True, False]


def test_no_pairs(scorer, encoder):
    scores = log_odds(scorer, encoder.encode([], [], []), BOTH, layout="shared", token_budget=600)
    assert scores.log_odds_NO.shape == (0, 2)
    assert scores.forward_tokens == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pair_over_the_budget_that_memory_lowered_has_a_batch_of_its_own(scorer, encoder, texts, layout):
    pairs = encoder.encode(*texts)
    expected = log_odds(scorer, pairs, BOTH, layout=layout, token_budget=600)
    found = log_odds(scorer, pairs, BOTH, layout=layout, token_budget=60, initial_budget=600)
    np.testing.assert_allclose(found.log_odds_NO, expected.log_odds_NO, rtol=0, atol=1e-5)
    assert (found.token_budget, found.halvings) == (60, 0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pair_over_the_budget_asked_for_is_an_error_of_its_row(scorer, encoder, texts, layout):
    pairs = encoder.encode(*texts)
    expected = log_odds(scorer, pairs, BOTH, layout=layout, token_budget=600).log_odds_NO
    found = log_odds(scorer, pairs, BOTH, layout=layout, token_budget=120)
    tokens = pairs.prefix.lengths * (1 if layout == "shared" else 2) + 2 * pairs.suffix_ab.lengths
    tokens = np.where(identical(pairs), pairs.tokens_N, tokens)
    over = tokens > 120
    assert 0 < over.sum() < 30
    assert found.errors_N[over].tolist() == [
        f"takes {number} tokens in the layout {layout}, over the token budget of 120; score it with a higher "
        "--token-budget or a lower --max-tokens"
        for number in tokens[over]
    ]
    assert found.errors_N[~over].tolist() == [None] * int((~over).sum())
    np.testing.assert_allclose(found.log_odds_NO[~over], expected[~over], rtol=0, atol=1e-5)
    assert np.isnan(found.log_odds_NO[over]).all()


def test_only_what_is_wanted_is_run(scorer, encoder, texts):
    prompts, a, b = texts
    pairs = encoder.encode(prompts, a, [*a[:6], *b[6:]])
    expected = log_odds(scorer, pairs, BOTH, layout="padded", token_budget=600)
    wanted = np.random.default_rng(0).random((30, 2)) < 0.5
    assert {tuple(row) for row in wanted.tolist()} == {(a, b) for a in (True, False) for b in (True, False)}
    found = log_odds(scorer, pairs, BOTH, layout="padded", token_budget=600, wanted_NO=wanted)
    same = identical(pairs)
    assert np.flatnonzero(same).tolist() == [*range(6)]
    known = wanted | (wanted.any(axis=1) & same)[:, None]
    np.testing.assert_array_equal(np.isfinite(found.log_odds_NO), known)
    np.testing.assert_allclose(found.log_odds_NO[known], expected.log_odds_NO[known], rtol=0, atol=1e-5)
    assert found.forward_tokens < expected.forward_tokens
    assert found.errors_N.tolist() == [None] * 30
