"""What is a spike, which rows are named, and how an error says it."""

import numpy as np
import pytest

from wsdm_ray.training.health import evaluation_error, is_spike, step_error, usual_loss, worst_rows
from wsdm_ray.training.metrics import StepMetrics


def step_of(loss: float, weight: float = 1.0) -> StepMetrics:
    return StepMetrics(
        step=1, loss=loss, weight=weight, accuracy=0.5, learning_rate=1e-3, grad_norm=1.0, pairs=16,
        tokens=500, seconds=0.5, padding_share=0.0, memory_gb=1.0,
    )  # fmt: skip


def test_the_usual_loss_is_the_median_of_the_latest_steps():
    assert usual_loss([step_of(0.02)] * 9) == float("inf"), "too few to judge by"
    assert usual_loss([step_of(0.02)] * 10) == 0.02
    assert usual_loss([step_of(9.0)] * 100 + [step_of(0.5)] * 26 + [step_of(0.7)] * 24) == 0.5
    assert usual_loss([step_of(8.0, weight=4.0)] * 10) == 2.0, "by weight"
    assert usual_loss([step_of(0.0, weight=0.0)] * 20 + [step_of(0.02)] * 3) == float("inf"), "no weight"


def test_what_is_no_spike():
    assert is_spike(9.0, 1.0, 32, 0.02, 5.0)
    assert not is_spike(0.15, 1.0, 32, 0.02, 5.0), "much more than usual, and a good loss"
    assert not is_spike(9.0, 4.0, 32, 0.02, 5.0), "rows that count four times"
    assert not is_spike(9.0, 1.0, 6, 0.02, 5.0), "too few sequences to judge by"
    assert not is_spike(0.0, 0.0, 32, 0.02, 5.0), "rows that do not count"
    assert not is_spike(9.0, 1.0, 32, 1.0, 10.0), "as asked for"
    assert not is_spike(9.0, 1.0, 32, float("inf"), 5.0)


def test_the_worst_rows_are_those_that_are_not_finite_and_then_the_largest():
    losses = np.arange(16.0)
    losses[4], losses[2] = float("nan"), float("inf")
    assert worst_rows(losses).tolist() == [4, 2, 15, 14, 13]
    assert worst_rows(np.array([1.0, 2.0])).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("loss", "shown", "alternative"),
    [
        (9.0, "loss is 9 where 0.02 is usual", ", or go on from there with a larger --loss-spike"),
        (float("nan"), "loss nan", ""),
    ],
)
def test_the_error_of_a_step(loss, shown, alternative):
    error = step_error(
        14, loss=loss, weight=1.0, usual=0.02, grad_norm=1.5, num_rows=16, worst_ids=["x", "y"],
        checkpoint_steps=5,
    )  # fmt: skip
    assert str(error) == (
        f"step 14: {shown}, gradient norm 1.5; of its 16 rows the worst are ['x', 'y']; the last good "
        "checkpoint is that of step 10; look at these rows, then lower --optimizer.learning-rate and start "
        f"over with --restart{alternative}"
    )


def test_the_checkpoint_of_a_spoilt_step_is_no_good_one():
    assert "the last good checkpoint is that of step 5;" in str(evaluation_error(10, "spoilt", 5))
    assert "there is no checkpoint yet" in str(evaluation_error(5, "spoilt", 5))
