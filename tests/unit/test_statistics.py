"""What scoring, training and evaluation share, against numbers worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsdm_ray.statistics import (
    agreement,
    centered_sigmoid,
    cross_entropy,
    log_odds,
    round_to_grid,
    sigmoid,
    wilson_interval,
)


def test_agreement_and_cross_entropy_by_hand():
    prob, label = np.array([0.8, 0.4, 0.5, 0.9]), np.array([1.0, 1.0, 0.0, 0.25])
    assert agreement(prob, label).tolist() == [1, 0, 0.5, 0.25]
    expected = [
        -math.log(0.8),
        -math.log(0.4),
        -math.log(0.5),
        -0.25 * math.log(0.9) - 0.75 * math.log(0.1),
    ]
    np.testing.assert_allclose(cross_entropy(prob, label), expected, rtol=1e-12)


def test_certain_and_wrong_is_finite():
    assert cross_entropy(np.array([1.0, 0.0]), np.array([0.0, 1.0])).max() < 17


def test_wilson_interval():
    low, high = wilson_interval(np.array([0.0, 0.5]), np.array([10.0, 100.0]))
    np.testing.assert_allclose(low, [0, 0.4038], atol=1e-4)  # the published values for 0/10 and 50/100
    np.testing.assert_allclose(high, [0.2775, 0.5962], atol=1e-4)


def test_sigmoid_and_log_odds():
    odds = math.log(3) * np.array([1.0, -1.0, 0.0])
    np.testing.assert_allclose(sigmoid(odds), [0.75, 0.25, 0.5], rtol=1e-15)
    np.testing.assert_allclose(sigmoid(odds, 0.5), [0.9, 0.1, 0.5], rtol=1e-15)
    np.testing.assert_allclose(log_odds(np.array([0.75, 0.25, 0.5])), odds, rtol=1e-15)
    assert sigmoid(np.array([1e6, -1e6])).tolist() == [1, 0]
    assert np.isfinite(log_odds(np.array([0.0, 1.0]))).all()


@given(st.floats(-50, 50), st.floats(0.05, 20))
def test_probabilities_on_the_grid_are_float32_and_add_up_to_one(odds, temperature):
    p, q = (round_to_grid(centered_sigmoid([value], temperature)) for value in (odds, -odds))
    assert p + q == 1
    assert p.astype(np.float32) + q.astype(np.float32) == 1
    assert p.astype(np.float32) == p
    assert p == pytest.approx(sigmoid([odds], temperature), abs=2**-25)


def test_rounding_to_the_grid_keeps_nan():
    assert np.isnan(round_to_grid(np.array([np.nan]))).all()
