"""Weights of an ensemble: the best there are, and judged on prompts that they were not fitted on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from tests.unit.evaluation.voters import GRID, voters
from wsdm_ray.evaluation.temperature import apply_temperature, fit_temperature
from wsdm_ray.evaluation.weights import combine_sets, cross_fit, fit_weights
from wsdm_ray.statistics import cross_entropy


def test_fitted_weights_are_the_best_there_are():
    prob, label, _ = voters(3_000)
    weights = fit_weights(prob, label)
    assert weights.sum() == pytest.approx(1)

    def loss(weights):
        return cross_entropy(prob @ (weights / weights.sum()), label).mean()

    other = minimize(loss, np.full(3, 1 / 3), bounds=[(1e-9, 1)] * 3, method="L-BFGS-B", tol=1e-12)
    # The fit stops within 1e-7 nats of the least log loss.
    assert loss(weights) <= other.fun + 1e-7
    assert weights == pytest.approx(other.x / other.x.sum(), abs=0.01)


def test_a_set_that_says_the_opposite_gets_nothing():
    _, label, logit = voters(2_000)
    right = 1 / (1 + np.exp(-logit))
    weights = fit_weights(np.stack([right, 1 - right], axis=1), label)
    assert weights[1] < 0.05
    same = fit_weights(np.stack([right, right], axis=1), label)
    assert same == pytest.approx([0.5, 0.5])


def test_weights_worked_out_by_hand():
    # Four votes, three for response_a. The sets say 1 and 0, so that the mean is the weight of the first.
    prob = np.array([[1.0, 0.0]] * 4)
    assert fit_weights(prob, np.array([1.0, 1.0, 1.0, 0.0])) == pytest.approx([0.75, 0.25], abs=1e-3)
    assert fit_weights(prob[:, :1], np.ones(4)).tolist() == [1.0]


@given(
    st.lists(st.lists(st.integers(0, 2**24), min_size=3, max_size=3), min_size=1, max_size=9),
    st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda weights: sum(weights) > 0.1),
    st.sampled_from([1.0, 0.3, 2.5]),
)
def test_swapped_responses_give_exactly_the_rest(parts, weights, temperature):
    prob = np.array(parts) * GRID
    shares = np.array(weights) / sum(weights)
    mean = combine_sets(prob, shares, temperature)
    other = combine_sets(1 - prob, shares, temperature)
    assert np.array_equal(mean.astype(np.float32), np.float32(1) - other.astype(np.float32))
    if temperature == 1:
        np.testing.assert_allclose(mean, prob @ shares, atol=GRID)
        assert ((mean >= prob.min(axis=1) - GRID) & (mean <= prob.max(axis=1) + GRID)).all()


INNER = st.floats(1e-6, 1 - 1e-6)


@given(st.lists(st.tuples(INNER, INNER, st.sampled_from([0.0, 1.0, 0.5])), min_size=1, max_size=30))
def test_fitted_weights_are_never_worse_than_all_alike(rows):
    prob, label = np.array([row[:2] for row in rows]), np.array([row[2] for row in rows])
    weights = fit_weights(prob, label)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)
    fitted, alike = (cross_entropy(prob @ w, label).mean() for w in (weights, np.full(2, 0.5)))
    assert fitted <= alike + 1e-12


def test_no_row_is_judged_with_weights_that_saw_its_prompt():
    prob, label, _ = voters(1_000)
    groups = np.arange(1_000, dtype=np.uint64)
    made, halves = cross_fit(prob, label, groups, None, None)
    assert made is not None
    for part, other, half in ((1, 0, halves[0]), (0, 1, halves[1])):
        weights = fit_weights(prob[other::2], label[other::2])
        assert half["weights"] == weights.tolist()
        assert half["rows"] == 500
        temperature = fit_temperature(combine_sets(prob[other::2], weights, 1.0), label[other::2])
        assert half["temperature"] == temperature
        np.testing.assert_allclose(
            made[part::2], apply_temperature(prob[part::2] @ weights, temperature), atol=1e-6
        )
    # Votes that flip for the half that is judged change its figures, not its probabilities.
    flipped = np.where(groups % 2 == 1, 1 - label, label)
    again, _ = cross_fit(prob, flipped, groups, None, None)
    assert again is not None
    np.testing.assert_array_equal(again[1::2], made[1::2])
    assert cross_fit(prob, label, np.zeros(1_000, np.uint64), None, None) == (None, [])
