"""Log-odds to probabilities, and their means over orderings and models.

Exchanging the two responses of a pair gives exactly 1 - p.
"""

from collections.abc import Sequence

import numpy as np

from wsdm_ray.statistics import centered_sigmoid, round_to_grid

__all__ = ["NOT_FINITE", "combine", "combine_models", "to_probability"]

NOT_FINITE = "the model's output is not finite"
"""The `error` of a row whose log-odds are NaN or infinite."""


def to_probability(log_odds: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Sigmoid of log-odds over a temperature: float64, same shape. sigmoid(-x) is 1 - sigmoid(x) exactly."""
    return round_to_grid(centered_sigmoid(log_odds, temperature))


def combine(probabilities: np.ndarray) -> np.ndarray:
    """The mean over orderings: float32 [N], on the grid on which 1 - p is exact.

    Args:
        probabilities: float64 [N, orderings], of the given response_a.
    """
    return combine_models(probabilities[None], np.ones((1, *probabilities.shape), bool), [1.0])


def combine_models(
    probabilities_MNO: np.ndarray, ran_MNO: np.ndarray, weights: Sequence[float]
) -> np.ndarray:
    """The mean over the orderings that a model ran, and over models by their weights: float32 [N].

    It is on the grid on which 1 - p is exact. NaN where one that ran is not finite, or where none ran.

    Args:
        probabilities_MNO: float64 [models, N, orderings], of the given response_a.
        ran_MNO: bool [models, N, orderings].
        weights: one a model, above 0.
    """
    half_MN = np.where(ran_MNO, probabilities_MNO - 0.5, 0).sum(axis=2) / np.maximum(ran_MNO.sum(axis=2), 1)
    # Orderings first: a sum of two is the same either way round, and exchanging responses exchanges them.
    weights_MN = ran_MNO.any(axis=2) * np.asarray(weights, np.float64)[:, None]
    total_N = weights_MN.sum(axis=0)
    half_N = np.divide(
        (half_MN * weights_MN).sum(axis=0), total_N, out=np.full(len(total_N), np.nan), where=total_N > 0
    )
    return round_to_grid(half_N).astype(np.float32)
