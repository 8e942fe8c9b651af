import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, auc, brier_score_loss, confusion_matrix, log_loss, roc_auc_score
from sklearn.metrics import roc_curve as roc_of_scikit_learn

from wsdm_ray.evaluation.metrics import (
    area_under_curve,
    bootstrap_intervals,
    calibration_bins,
    confusion,
    expected_calibration_error,
    flips,
    length_bins,
    majority_baseline,
    measure,
    one_sided_baseline,
    position_shift,
    roc_curve,
    squared_error,
)

# In steps of 2 ** -24, so that 1 - p is exact, and with it the symmetry of the two responses.
probabilities = st.integers(0, 1 << 24).map(lambda steps: steps / (1 << 24))
rows = st.lists(
    st.tuples(probabilities, st.sampled_from([0.0, 1.0, 0.5, 0.25]), probabilities, probabilities),
    min_size=1,
    max_size=40,
).map(lambda rows: np.array(rows, dtype=np.float64).T)


def test_hand_worked_figures():
    prob, label = np.array([0.8, 0.4, 0.5, 0.9]), np.array([1.0, 1.0, 0.0, 0.25])
    np.testing.assert_allclose(squared_error(prob, label), [0.04, 0.36, 0.25, 0.4225], rtol=1e-12)
    # Weights of wins: 0.8 -> 1, 0.4 -> 1, 0.9 -> 0.25; of losses: 0.5 -> 1, 0.9 -> 0.75.
    # 0.8 is above 0.5, 0.4 above nothing, 0.9 above 0.5 and beside 0.9, each by the products of the weights.
    assert area_under_curve(prob, label, np.arange(len(prob)))[0] == pytest.approx(
        (1 + 0.25 + 0.25 * 0.75 / 2) / (2.25 * 1.75)
    )


def test_position_figures():
    ab, ba = np.array([0.7, 0.6, 0.2, 0.5, 0.9]), np.array([0.5, 0.2, 0.4, 0.1, np.nan])
    np.testing.assert_allclose(position_shift(ab, ba), [0.1, 0.2, -0.1, 0.2, np.nan])
    assert flips(ab, ba)[:4].tolist() == [0, 1, 0, 0]
    measured = measure(ab, np.ones(5), ab, ba, np.arange(5), resamples=20)
    assert measured["position_bias"] == pytest.approx(0.1)
    assert measured["flip_rate"] == 0.25


def test_same_as_scikit_learn():
    random = np.random.default_rng(0)
    prob, label = random.random(500).round(2), (random.random(500) < 0.5).astype(float)
    prob = np.where(prob == 0.5, 0.51, prob).clip(0.01, 0.99)
    measured = measure(prob, label, prob, prob, np.arange(500), resamples=20)
    assert measured["accuracy"] == pytest.approx(accuracy_score(label, prob > 0.5))
    assert measured["log_loss"] == pytest.approx(log_loss(label, prob))
    assert measured["brier"] == pytest.approx(brier_score_loss(label, prob))
    assert measured["auc"] == pytest.approx(roc_auc_score(label, prob))


def test_soft_auc_is_that_of_weighted_copies():
    random = np.random.default_rng(1)
    prob, label = random.random(200).round(1), random.random(200)
    twice, sides = np.tile(prob, 2), np.repeat([1, 0], 200)
    expected = roc_auc_score(sides, twice, sample_weight=np.concatenate([label, 1 - label]))
    assert area_under_curve(prob, label, np.arange(len(prob)))[0] == pytest.approx(expected)


@given(rows)
@settings(max_examples=60, deadline=None)
def test_swapping_the_responses_changes_nothing(values):
    prob, label, ab, ba = values
    groups = np.arange(len(prob))
    given_way = measure(prob, label, ab, ba, groups, resamples=20)
    swapped = measure(1 - prob, 1 - label, 1 - ba, 1 - ab, groups, resamples=20)
    for name in ("accuracy", "log_loss", "brier", "auc", "flip_rate", "position_bias"):
        # Sums of at most 40 float64 values, of at most 16 each. None, where not defined, compares as itself.
        expected = given_way[name]
        assert swapped[name] == (expected and pytest.approx(expected, rel=1e-12, abs=1e-12)), name


def test_calibration_bins_have_equal_mass_and_keep_ties_together():
    prob = np.arange(30) / 30
    bins = calibration_bins(prob, np.ones(30))
    assert bins.rows.tolist() == [2] * 15
    np.testing.assert_allclose(bins.predicted[0], 0.5 / 30)
    half = np.full(1000, 0.5)
    label = np.tile([1.0, 0.0], 500)
    assert calibration_bins(half, label).rows.tolist() == [1000]
    assert expected_calibration_error(half, label) == 0


def test_calibration_error_by_hand():
    prob, label = np.array([0.1, 0.1, 0.8, 0.8]), np.array([0.0, 1.0, 1.0, 1.0])
    assert expected_calibration_error(prob, label) == pytest.approx((0.4 + 0.2) / 2)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_has_no_auc(label):
    prob = np.array([0.2, 0.7, 0.6])
    measured = measure(prob, np.full(3, label), prob, prob, np.arange(3), resamples=20)
    assert measured["auc"] is None
    assert measured["auc_ci95"] is None
    assert measured["accuracy_ci95"] is not None


def test_one_row_has_no_interval():
    one, none = np.array([0.75]), np.array([np.nan])
    measured = measure(one, np.ones(1), one, none, np.zeros(1), resamples=20)
    assert measured["rows"] == 1
    assert measured["accuracy"] == 1
    assert measured["accuracy_ci95"] is None
    assert measured["position_bias"] is None
    assert measured["flip_rate"] is None


def test_interval_covers_and_narrows():
    """A mean of 2,000 Bernoulli(0.7): the interval is close to the normal one, 0.7 +- 1.96 * 0.01025."""
    values = (np.random.default_rng(0).random(2000) < 0.7).astype(float)
    (interval,) = bootstrap_intervals(values[:, None], np.arange(2000), resamples=1000, seed=0)
    assert interval is not None
    low, high = interval
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * 0.01025, rel=0.1)


def test_rows_of_one_prompt_are_drawn_together():
    """Ten copies of each row say no more than one: the interval must not shrink."""
    values = (np.random.default_rng(0).random(200) < 0.7).astype(float)
    (once,) = bootstrap_intervals(values[:, None], np.arange(200), resamples=500, seed=0)
    (copies,) = bootstrap_intervals(
        np.repeat(values, 10)[:, None], np.repeat(np.arange(200), 10), resamples=500, seed=0
    )
    np.testing.assert_allclose(once, copies, rtol=1e-12)


def test_intervals_follow_the_seed():
    values = np.random.default_rng(0).random((50, 1))
    first, again, other = (
        bootstrap_intervals(values, np.arange(50), resamples=100, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("votes_a_prompt", [1, 4])
def test_auc_interval_is_that_of_a_bootstrap_by_prompt(votes_a_prompt):
    random = np.random.default_rng(3)
    groups = np.arange(400) // votes_a_prompt
    label = np.repeat(random.integers(0, 2, 400 // votes_a_prompt), votes_a_prompt).astype(float)
    prob = 1 / (1 + np.exp(-(np.repeat(random.normal(size=400 // votes_a_prompt), votes_a_prompt) + label)))
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    areas = []
    for _ in range(400):
        drawn = np.concatenate([members[group] for group in random.integers(0, len(members), len(members))])
        areas.append(roc_auc_score(label[drawn], prob[drawn]))
    _, interval = area_under_curve(prob, label, groups)
    assert interval is not None
    # The spread of 400 resamples is known to within 3.5 % (one standard deviation).
    assert interval[1] - interval[0] == pytest.approx(2 * 1.96 * np.std(areas), rel=0.12)


def test_baselines():
    label = np.array([1.0, 0.0, 1.0, 1.0])
    longer = one_sided_baseline(np.array([1.0, -1.0, -1.0, 0.0]), label, np.arange(4), resamples=20, seed=0)
    assert longer["accuracy"] == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    share = 2 / 3
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert longer["log_loss"] == pytest.approx((3 * entropy + math.log(2)) / 4)
    assert majority_baseline(label)["accuracy"] == 0.75
    assert majority_baseline(np.zeros(3)) == {"accuracy": 1.0, "log_loss": 0}


def test_length_bins():
    tokens = np.array([0.0, 1, 2, 3, 256, 257, 2048, np.nan])
    assert length_bins(tokens) == ["2-2", "2-2", "2-2", "3-4", "129-256", "257-512", "1025-2048", None]


def test_roc_curve_is_that_of_scikit_learn():
    random = np.random.default_rng(4)
    prob, label = random.random(300).round(2), random.random(300)
    hard = (label > 0.5).astype(float)
    found = roc_curve(prob, hard)
    assert found is not None
    expected = roc_of_scikit_learn(hard, prob, drop_intermediate=False)
    np.testing.assert_allclose(found, expected[:2], atol=1e-12)
    soft = roc_curve(prob, label)
    assert soft is not None
    assert auc(*soft) == pytest.approx(area_under_curve(prob, label, np.arange(300))[0])
    assert roc_curve(prob, np.ones(300)) is None


def test_confusion_by_hand_and_by_scikit_learn():
    assert confusion(np.array([0.9, 0.5, 0.2]), np.array([1.0, 0.0, 0.25])) == {
        "predicted_a_voted_a": 1.0,
        "predicted_a_voted_b": 0.5,
        "predicted_b_voted_a": 0.25,
        "predicted_b_voted_b": 0.5 + 0.75,
    }
    prob, label = np.random.default_rng(5).random((2, 200))
    label = (label < prob).astype(float)
    expected = confusion_matrix(label, prob > 0.5)  # by vote, then by prediction; B first
    assert list(confusion(prob, label).values()) == [
        expected[1, 1],
        expected[0, 1],
        expected[1, 0],
        expected[0, 0],
    ]


def test_few_votes_that_are_all_right_are_no_certainty():
    prob, label = np.full(11, 0.9), np.ones(11)
    few = measure(prob, label, prob, prob, np.arange(11), resamples=50)
    # Wilson's interval of 11 of 11: z2 / (n + z2) is left out below.
    assert few["accuracy_ci95"] == pytest.approx([11 / (11 + 1.959964**2), 1.0])
    baseline = one_sided_baseline(np.ones(11), label, np.arange(11), resamples=50, seed=0)
    assert baseline["accuracy_ci95"] == few["accuracy_ci95"]
    many = measure(*(np.repeat(each, 10) for each in (prob, label, prob, prob)), np.arange(110), resamples=50)
    assert many["accuracy_ci95"] == [1.0, 1.0]


def test_votes_without_a_wrong_pair_have_no_spread_to_go_by():
    assert area_under_curve(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0.0, 0, 1, 1]), np.arange(4)) == (
        1.0,
        None,
    )
