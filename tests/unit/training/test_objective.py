"""The objective, against numbers worked out by hand."""

import numpy as np
import pytest
import torch

from wsdm_ray.training.objective import (
    agreement,
    cross_entropy,
    disagreement,
    distillation,
    learning_rate_factor,
    smoothed,
    targets_of,
    valid_metrics,
)


def test_agreement_by_hand():
    odds = torch.tensor([2.0, -2.0, 0.0, 0.1, -0.1, 3.0])
    labels = torch.tensor([1.0, 1.0, 1.0, 0.5, 0.5, 0.25])
    assert agreement(odds, labels).tolist() == [1.0, 0.0, 0.5, 0.5, 0.5, 0.25]
    assert agreement(-odds, 1 - labels).tolist() == agreement(odds, labels).tolist()


def test_targets_of_both_orderings_pair_by_pair():
    labels = np.array([1.0, 0.0, 0.25])
    assert targets_of(labels, (0, 1)).tolist() == [1, 0, 0, 1, 0.25, 0.75]
    assert targets_of(labels, (0,)).tolist() == [1, 0, 0.25]
    assert targets_of(labels, (1,)).tolist() == [0, 1, 0.75]
    assert targets_of(labels, (1,)).dtype == np.float32


LN3 = float(np.log(3.0))
"""Log-odds of 3/4."""


def test_cross_entropy():
    target = torch.tensor([1.0, 0.0, 0.5, 0.75])
    expected = [
        -np.log(0.75),
        -np.log(0.25),
        -0.5 * np.log(0.75) - 0.5 * np.log(0.25),
        -0.75 * np.log(0.75) - 0.25 * np.log(0.25),
    ]
    np.testing.assert_allclose(cross_entropy(torch.full((4,), LN3), target), expected, rtol=1e-6)


def test_cross_entropy_pulls_towards_the_label():
    log_odds = torch.zeros(3, requires_grad=True)
    cross_entropy(log_odds, torch.tensor([1.0, 0.0, 0.25])).sum().backward()
    assert log_odds.grad is not None
    # probability minus target
    np.testing.assert_allclose(log_odds.grad, [-0.5, 0.5, 0.25], rtol=1e-6)


def test_cross_entropy_of_bfloat16_is_taken_in_float32():
    loss = cross_entropy(torch.tensor([40.0], dtype=torch.bfloat16), torch.tensor([0.0]))
    assert loss.dtype == torch.float32
    assert loss.tolist() == [40.0]


def test_cross_entropy_of_the_certain_is_finite():
    assert cross_entropy(torch.tensor([2e4]), torch.tensor([0.0])).tolist() == [2e4]


def test_smoothing_gives_its_share_to_both():
    assert smoothed(torch.tensor([1.0, 0.0, 0.5]), 0.2).tolist() == pytest.approx([0.9, 0.1, 0.5])
    assert smoothed(torch.tensor([1.0, 0.25]), 0.0).tolist() == [1.0, 0.25]


def test_distillation_by_hand():
    # A teacher of 9/10 has log-odds ln 9, at temperature 2 ln 3, so 3/4; a student with log-odds 0 has 1/2.
    # 4 times [3/4 ln (3/4 / 1/2) + 1/4 ln (1/4 / 1/2)]
    expected = 4 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    found = distillation(torch.zeros(1), torch.tensor([0.9]), 2.0)
    assert found.tolist() == pytest.approx([expected], rel=1e-5)


def test_distillation_ends_where_student_and_teacher_agree():
    log_odds = torch.tensor([LN3, -LN3], requires_grad=True)
    loss = distillation(log_odds, torch.tensor([0.75, 0.25]), 5.0)
    np.testing.assert_allclose(loss.detach(), 0, atol=1e-5)
    loss.sum().backward()
    assert log_odds.grad is not None
    np.testing.assert_allclose(log_odds.grad, 0, atol=1e-5)


def test_the_pull_of_distillation_keeps_its_size_at_any_temperature():
    # For small log-odds the derivative of T^2 KL is (z - t) / 4, whatever the temperature.
    for temperature in (1.0, 5.0, 20.0):
        log_odds = torch.tensor([0.02], requires_grad=True)
        teacher = torch.sigmoid(torch.tensor([0.1]))
        distillation(log_odds, teacher, temperature).sum().backward()
        assert log_odds.grad is not None
        assert log_odds.grad.tolist() == pytest.approx([-0.02], rel=0.01)


def test_certain_teachers_are_finite():
    found = distillation(torch.tensor([30.0, -30.0]), torch.tensor([1.0, 1.0]), 1.0)
    assert torch.isfinite(found).all()
    assert found[0] < 1e-4 < found[1]


def test_disagreement_by_hand():
    # ab: a wins by 3/4. ba: the first, which is b, wins by 1/4, so a by 3/4: they agree.
    # Then ba: b wins by 3/4, so a by 1/4: (3/4 - 1/4) (ln 3 - -ln 3) = ln 3.
    found = disagreement(torch.tensor([[LN3, -LN3], [LN3, LN3], [0.0, 0.0]]))
    np.testing.assert_allclose(found, [0, LN3, 0], atol=1e-6)


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
    assert metrics["accuracy"] == pytest.approx((1 + 0.5 + 0 + 0.75) / 4)
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
