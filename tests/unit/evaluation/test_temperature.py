import numpy as np
import pytest

from wsdm_ray.evaluation.temperature import (
    TEMPERATURES,
    apply_temperature,
    cross_fit,
    fit_temperature,
)
from wsdm_ray.statistics import log_odds


def overconfident(rows: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities whose log-odds are `temperature` times what they should be, and votes."""
    random = np.random.default_rng(0)
    logit = random.normal(0, 1.5, rows)
    label = (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(float)
    return 1 / (1 + np.exp(-logit * temperature)), label


def test_the_true_temperature_is_found():
    prob, label = overconfident(20_000, 2.5)
    # The standard error of the slope of such a logistic regression is 0.02 of its value.
    assert fit_temperature(prob, label) == pytest.approx(2.5, rel=0.06)


def test_soft_labels_that_equal_the_probabilities_need_none():
    prob = np.random.default_rng(0).random(100)
    assert fit_temperature(prob, prob) == pytest.approx(1, abs=1e-6)


def test_separable_rows_stop_at_the_bound():
    prob = np.array([0.9, 0.1])
    assert fit_temperature(prob, np.array([1.0, 0.0])) == pytest.approx(TEMPERATURES[0], rel=1e-6)
    assert fit_temperature(prob, np.array([0.0, 1.0])) == pytest.approx(TEMPERATURES[1], rel=1e-6)


def test_apply_temperature():
    np.testing.assert_allclose(
        log_odds(apply_temperature(np.array([0.9]), 2.0)), log_odds(np.array([0.9])) / 2
    )
    np.testing.assert_allclose(apply_temperature(np.array([0.0, 1.0]), 0.05), [0, 1], atol=1e-12)


def test_no_row_is_judged_with_its_own_temperature():
    prob, label = overconfident(2_000, 2.0)
    groups = np.arange(2_000, dtype=np.uint64)
    result, calibrated = cross_fit(prob, label, groups)
    even, odd = (fit_temperature(prob[part::2], label[part::2]) for part in (0, 1))
    assert result["temperatures_by_half"] == [even, odd]
    assert calibrated is not None
    np.testing.assert_array_equal(calibrated[1::2], apply_temperature(prob[1::2], even))
    np.testing.assert_array_equal(calibrated[::2], apply_temperature(prob[::2], odd))
    assert result["after"]["log_loss"] < result["before"]["log_loss"]
    assert result["after"]["ece"] < result["before"]["ece"]


def test_one_prompt_cannot_be_split():
    result, calibrated = cross_fit(np.array([0.6, 0.7]), np.array([1.0, 0.0]), np.zeros(2, np.uint64))
    assert result["after"] is None
    assert calibrated is None
    assert result["temperature"] > 0
