"""Figures that scoring, training and evaluation share. Pure functions on float64 arrays, numpy alone.

Shape suffix: N rows. Throughout, `prob` is a probability that response_a wins and `label` what people said: 1
for response_a, 0 for response_b, anything between for a soft label.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "EPSILON",
    "Z_95",
    "Floats",
    "agreement",
    "centered_sigmoid",
    "cross_entropy",
    "log_odds",
    "round_to_grid",
    "sigmoid",
    "wilson_interval",
]

Floats = NDArray[np.float64]

EPSILON = 1e-7
"""No logarithm is of less than this, for `p` and `1 - p` alike: float32 has no finer step near 1."""

GRID = 2.0**-24
"""Probabilities are multiples of this, the coarsest step of float32 below 1, so that `1 - p` is exact."""

Z_95 = 1.959964
"""Half the width of the normal distribution's middle 95 %, in standard deviations."""


def log_odds(prob_N: Floats) -> Floats:
    """`log(p / (1 - p))`, float64 (N,), with no logarithm of less than `EPSILON`."""
    return np.log(np.maximum(prob_N, EPSILON)) - np.log(np.maximum(1 - prob_N, EPSILON))


def centered_sigmoid(log_odds: Any, temperature: float | Floats = 1.0) -> Floats:
    """The sigmoid of log-odds over a temperature, less one half: float64 of the same shape.

    It does not overflow, and changing the sign of the log-odds changes its sign and nothing else.
    """
    return 0.5 * np.tanh(0.5 * np.asarray(log_odds, np.float64) / temperature)


def sigmoid(log_odds: Any, temperature: float | Floats = 1.0) -> Floats:
    """The probability of log-odds over a temperature: float64 of the same shape."""
    return 0.5 + centered_sigmoid(log_odds, temperature)


def round_to_grid(centered: Floats) -> Floats:
    """Probabilities on the grid of 2**-24, of which `1 - p` is exact: float64 of the same shape.

    Args:
        centered: probabilities less one half; rounding them treats both responses alike. NaN stays NaN.
    """
    return 0.5 + np.round(centered / GRID) * GRID


def agreement(prob_N: Floats, label_N: Floats) -> Floats:
    """Expected agreement of the predicted winner with the vote, by row; its mean is the accuracy.

    The predicted winner is response_a above 0.5 and response_b below. Exactly 0.5 is a coin flip and scores
    0.5, so that swapping the two responses of every row changes nothing.

    Args:
        prob_N: float64 (N,), in [0, 1].
        label_N: float64 (N,), in [0, 1].

    Returns:
        float64 (N,): `label` where response_a is predicted, `1 - label` where response_b is.
    """
    return np.where(prob_N > 0.5, label_N, np.where(prob_N < 0.5, 1 - label_N, 0.5))


def cross_entropy(prob_N: Floats, label_N: Floats) -> Floats:
    """Cross entropy of label and prediction in nats, by row; its mean is the log loss. Float64 (N,)."""
    log_a_N, log_b_N = (np.log(np.maximum(side_N, EPSILON)) for side_N in (prob_N, 1 - prob_N))
    return -(label_N * log_a_N + (1 - label_N) * log_b_N)


def wilson_interval(share: Any, rows: Any) -> tuple[Any, Any]:
    """Both ends of the 95 % interval of a share of `rows` votes (Wilson, 1927), always within 0..1."""
    z2 = Z_95**2
    center = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = Z_95 / (1 + z2 / rows) * np.sqrt(share * (1 - share) / rows + z2 / (4 * rows**2))
    return center - half, center + half
