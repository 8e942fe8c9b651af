"""One temperature for the log-odds, never judged on the rows it was fitted on (Guo et al., 2017)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsdm_ray.evaluation.fitting import halves_by_prompt
from wsdm_ray.evaluation.metrics import expected_calibration_error, squared_error
from wsdm_ray.statistics import Floats, cross_entropy, log_odds, sigmoid

__all__ = ["TEMPERATURES", "apply_temperature", "cross_fit", "fit_temperature"]

TEMPERATURES = (0.05, 20.0)
"""The fit stays within these: rows that are all right have no finite best temperature."""


def apply_temperature(prob_N: Floats, temperature: float | Floats) -> Floats:
    """Probabilities whose log-odds are divided by `temperature`: above 1 is less sure. Float64 (N,)."""
    return sigmoid(log_odds(prob_N), temperature)


def fit_temperature(prob_N: Floats, label_N: Floats) -> float:
    """The temperature with the least log loss, within `TEMPERATURES`.

    The log loss is convex in the inverse temperature, so its slope is bisected (on a logarithmic scale).

    Args:
        prob_N, label_N: float64 (N,) in [0, 1], N at least 1.
    """
    logit_N = log_odds(prob_N)
    low, high = np.log(1 / np.array(TEMPERATURES[::-1]))
    for _ in range(50):
        middle = (low + high) / 2
        if np.mean((sigmoid(np.exp(middle) * logit_N) - label_N) * logit_N) <= 0:
            low = middle
        else:
            high = middle
    return float(np.exp(-(low + high) / 2))


def cross_fit(
    prob_N: Floats, label_N: Floats, groups_N: NDArray[np.uint64]
) -> tuple[dict[str, Any], Floats | None]:
    """Log loss, Brier score and ECE before and after a temperature, each row's fitted without its prompt.

    The rows are split in two by a bit of their prompt's hash; each half gets the temperature of the other.

    Args:
        prob_N, label_N: float64 (N,) in [0, 1].
        groups_N: uint64 (N,), a hash of each row's prompt.

    Returns:
        `temperature` (fitted on all rows: the one to use), `temperatures_by_half`, `before` and `after` (None
        where a half is empty); and the calibrated probabilities, float64 (N,), or None.
    """
    half_N = halves_by_prompt(groups_N)
    result: dict[str, Any] = {
        "temperature": fit_temperature(prob_N, label_N),
        "temperatures_by_half": None,
        "before": scores(prob_N, label_N),
        "after": None,
    }
    if half_N is None:
        return result, None
    fitted = [fit_temperature(prob_N[mask_N], label_N[mask_N]) for mask_N in (~half_N, half_N)]
    calibrated_N = apply_temperature(prob_N, np.where(half_N, fitted[0], fitted[1]))
    return result | {"temperatures_by_half": fitted, "after": scores(calibrated_N, label_N)}, calibrated_N


def scores(prob_N: Floats, label_N: Floats) -> dict[str, float]:
    return {
        "log_loss": float(cross_entropy(prob_N, label_N).mean()),
        "brier": float(squared_error(prob_N, label_N).mean()),
        "ece": expected_calibration_error(prob_N, label_N),
    }
