"""Adaptive orders, simulated: worked by hand, and a threshold that is judged on other rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsdm_ray.evaluation.adaptive import THRESHOLDS, adaptive, best_threshold, simulate
from wsdm_ray.statistics import cross_entropy

steps = st.integers(0, 1 << 24).map(lambda step: step / (1 << 24))
rows = st.lists(
    st.tuples(steps, steps, st.booleans(), st.sampled_from([0.0, 1.0, 0.25]), st.integers(0, 9)), min_size=1
)


def test_by_hand():
    ab = np.array([0.9, 0.6, 0.6, 0.3, 0.75])
    ba = np.array([0.5, 0.2, 0.2, 0.5, 0.25])
    ba_first = np.array([False, False, True, True, False])
    # First: 0.9, 0.6, 0.2, 0.5, and 0.75 of a row that is the same text twice.
    prob, again = simulate((ab + ba) / 2, ab, ba, ba_first, 0.15)
    assert again.tolist() == [False, True, False, True, False]
    np.testing.assert_allclose(prob, [0.9, 0.4, 0.2, 0.4, 0.5])


def test_the_edge_of_a_threshold_is_no_doubt():
    ab, ba = np.array([0.75, 0.25]), np.array([0.5, 0.5])
    assert not simulate((ab + ba) / 2, ab, ba, np.zeros(2, bool), 0.25)[1].any()


@given(rows, st.sampled_from(THRESHOLDS))
def test_exchanging_the_responses_exchanges_the_probabilities(given_rows, threshold):
    ab, ba, ba_first = (np.array(column) for column in list(zip(*given_rows, strict=True))[:3])
    prob, again = simulate((ab + ba) / 2, ab, ba, ba_first, threshold)
    turned, other = simulate(1 - (ab + ba) / 2, 1 - ba, 1 - ab, ~ba_first, threshold)
    np.testing.assert_array_equal(again, other)
    np.testing.assert_array_equal(turned, 1 - prob)


@given(rows)
def test_larger_thresholds_run_more_rows_again(given_rows):
    ab, ba, ba_first, label, group = (np.array(column) for column in zip(*given_rows, strict=True))
    found = adaptive((ab + ba) / 2, ab, ba, ba_first, label, group.astype(np.uint64), 0.0005)
    assert found is not None
    shares = [row["share_rerun"] for row in found["table"]]
    assert shares == sorted(shares)
    assert [row["threshold"] for row in found["table"]] == list(THRESHOLDS)
    losses = [row["log_loss"] for row in found["table"]]
    if found["threshold"] is not None:
        place = THRESHOLDS.index(found["threshold"])
        assert losses[place] <= found["both"]["log_loss"] + 0.0005
        assert all(loss > found["both"]["log_loss"] + 0.0005 for loss in losses[:place])


def test_a_threshold_that_leaves_nothing_out_is_none():
    ab, ba = np.array([0.45, 0.55, 0.45]), np.array([0.05, 0.95, 0.05])
    found = adaptive(
        (ab + ba) / 2, ab, ba, np.zeros(3, bool), np.array([0.0, 1.0, 0.0]), np.arange(3, dtype=np.uint64), 0
    )
    assert found is not None
    assert found["threshold"] is None


def test_the_smallest_threshold_within_the_tolerance():
    losses = np.linspace(0.7, 0.6, len(THRESHOLDS))
    assert best_threshold(losses, 0.6, 1.0) == THRESHOLDS[0] == 0.025
    # Steps of 0.1 / 19: the last three are within 0.0106.
    assert best_threshold(losses, 0.6, 0.0106) == THRESHOLDS[-3]
    assert best_threshold(losses, 0.5, 0.05) is None


def position_biased(number: int) -> tuple[np.ndarray, ...]:
    """Orderings that are off by a shift of log-odds that favours who stands first, and votes."""
    random = np.random.default_rng(0)
    logit = random.normal(0, 2, number)
    label = (random.random(number) < 1 / (1 + np.exp(-logit))).astype(float)
    shift = random.normal(0.5, 0.5, number)
    ab, ba = 1 / (1 + np.exp(-logit - shift)), 1 / (1 + np.exp(-logit + shift))
    return ab, ba, random.random(number) < 0.5, label


def test_no_row_is_judged_at_its_own_threshold():
    ab, ba, ba_first, label = position_biased(4_000)
    groups = np.arange(4_000, dtype=np.uint64)
    both = (ab + ba) / 2
    found = adaptive(both, ab, ba, ba_first, label, groups, 0.002)
    assert found is not None
    halves = [
        adaptive(*(values[part::2] for values in (both, ab, ba, ba_first, label, groups)), 0.002)
        for part in (0, 1)
    ]
    fitted = [half["threshold"] for half in halves if half]
    assert found["thresholds_by_half"] == fitted
    assert all(half["after"] is None for half in halves if half), "one half alone cannot be judged"
    probs, agains = zip(
        *(simulate(both, ab, ba, ba_first, fitted[1 - row % 2]) for row in range(2)), strict=True
    )
    odd = np.arange(4_000) % 2 == 1
    prob, again = np.where(odd, probs[1], probs[0]), np.where(odd, agains[1], agains[0])
    assert found["after"]["share_rerun"] == pytest.approx(again.mean())
    assert found["after"]["log_loss"] == pytest.approx(cross_entropy(prob, label).mean())
    assert 0.05 < found["after"]["share_rerun"] < 0.95
    assert found["after"]["log_loss"] < found["both"]["log_loss"] + 0.004
    assert found["both"]["log_loss"] == pytest.approx(cross_entropy(both, label).mean())


def test_rows_that_lack_an_ordering_tell_nothing():
    half = np.array([0.5, 0.5])
    missing = np.array([0.5, np.nan])
    groups = np.arange(2, dtype=np.uint64)
    for ab, ba in ((half, missing), (missing, half)):
        assert adaptive(half, ab, ba, np.zeros(2, bool), half, groups, 0.0005) is None
