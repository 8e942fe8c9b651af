"""The objective, against numbers worked out by hand."""

import numpy as np
import pytest
import torch

from wsdm_ray.training.objective import learning_rate_factor, soft_cross_entropy, targets_of, valid_metrics


def test_targets_of_both_orderings_pair_by_pair():
    labels = np.array([1.0, 0.0, 0.25])
    assert targets_of(labels, (0, 1)).tolist() == [1, 0, 0, 1, 0.25, 0.75]
    assert targets_of(labels, (0,)).tolist() == [1, 0, 0.25]
    assert targets_of(labels, (1,)).tolist() == [0, 1, 0.75]
    assert targets_of(labels, (1,)).dtype == np.float32


def test_cross_entropy():
    # softmax(ln 3, 0) is (3/4, 1/4)
    logits = torch.tensor([[np.log(3.0), 0.0]] * 4, dtype=torch.float32)
    target = torch.tensor([1.0, 0.0, 0.5, 0.75])
    expected = [
        -np.log(0.75),
        -np.log(0.25),
        -0.5 * np.log(0.75) - 0.5 * np.log(0.25),
        -0.75 * np.log(0.75) - 0.25 * np.log(0.25),
    ]
    np.testing.assert_allclose(soft_cross_entropy(logits, target), expected, rtol=1e-6)


def test_cross_entropy_pulls_towards_the_label():
    logits = torch.zeros(3, 2, requires_grad=True)
    soft_cross_entropy(logits, torch.tensor([1.0, 0.0, 0.25])).sum().backward()
    assert logits.grad is not None
    # softmax minus target
    np.testing.assert_allclose(logits.grad, [[-0.5, 0.5], [0.5, -0.5], [0.25, -0.25]], rtol=1e-6)


def test_cross_entropy_of_bfloat16_is_taken_in_float32():
    loss = soft_cross_entropy(torch.tensor([[40.0, 0.0]], dtype=torch.bfloat16), torch.tensor([0.0]))
    assert loss.dtype == torch.float32
    assert loss.tolist() == [40.0]


def test_cross_entropy_of_the_certain_is_finite():
    assert soft_cross_entropy(torch.tensor([[1e4, -1e4]]), torch.tensor([0.0])).tolist() == [2e4]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("constant", [0.5, *[1.0] * 9]),
        ("cosine", [0.5, 1.0, *(0.5 * (1 + np.cos(np.pi * np.arange(8) / 8)))]),
    ],
)
def test_learning_rate(schedule, expected):
    factors = [learning_rate_factor(step, 10, 0.2, schedule) for step in range(10)]
    np.testing.assert_allclose(factors, expected, rtol=1e-12)


def test_learning_rate_at_the_edges():
    assert learning_rate_factor(0, 1, 0.0, "linear") == 1
    assert learning_rate_factor(0, 1, 0.025, "linear") == 1
    assert [learning_rate_factor(step, 4, 1.0, "linear") for step in range(4)] == [0.25, 0.5, 0.75, 1]
    assert learning_rate_factor(0, 1_000, 0.025, "cosine") == 1 / 25


def test_valid_metrics():
    # Probabilities 3/4 and 1/4, averaged over orderings: 3/4, 1/2, 1/4, 1/4
    odds = np.log(3) * np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [-1.0, -1.0]])
    metrics = valid_metrics(odds, np.array([1.0, 0.5, 1.0, 0.25]))
    assert metrics["rows"] == 4
    assert metrics["accuracy"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    losses = [-np.log(0.75), np.log(2), -np.log(0.25), -0.25 * np.log(0.25) - 0.75 * np.log(0.75)]
    assert metrics["log_loss"] == pytest.approx(np.mean(losses))


def test_valid_interval():
    metrics = valid_metrics(np.array([[5.0]] * 7 + [[-5.0]] * 3), np.ones(10))
    assert metrics["accuracy"] == 0.7
    # Wilson's interval of 7 out of 10
    assert metrics["accuracy_ci95"] == pytest.approx([0.39678, 0.89221], abs=1e-5)


def test_valid_metrics_of_the_certain():
    metrics = valid_metrics(np.array([[1e6], [-1e6], [1e6]]), np.array([1.0, 0.0, 0.0]))
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["log_loss"] == pytest.approx(-np.log(1e-7) / 3, rel=1e-4)
