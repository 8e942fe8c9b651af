"""What `score --orders adaptive` would have given, from predictions of `--orders both`.

Shape suffix: N rows. The threshold it recommends is never judged on the rows it was fitted on. Not covered:
several models in one run, of which adaptive scoring runs the first alone at first.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsdm_ray.evaluation.fitting import halves_by_prompt
from wsdm_ray.statistics import Floats, agreement, cross_entropy

__all__ = ["THRESHOLDS", "adaptive", "best_threshold", "simulate"]

THRESHOLDS = tuple(step / 40 for step in range(1, 21))
"""The thresholds that are tried: 0.025 to 0.5, distances of a probability from 0.5."""


def simulate(
    prob_N: Floats, prob_ab_N: Floats, prob_ba_N: Floats, ba_first_N: NDArray[np.bool_], threshold: float
) -> tuple[Floats, NDArray[np.bool_]]:
    """The probability of each row, float64 (N,), and whether its second ordering is run, bool (N,).

    Args:
        prob_N, prob_ab_N, prob_ba_N: float64 (N,) in [0, 1], of the given response_a: of both orderings and
            of each.
        ba_first_N: bool (N,), where the first ordering is `ba` (`first_ordering`).
        threshold: a row is in doubt where the first ordering's probability is less than this from 0.5.
    """
    first_N = np.where(ba_first_N, prob_ba_N, prob_ab_N)
    same_N = prob_ab_N + prob_ba_N == 1  # the same tokens in both orderings: the second is known
    rerun_N = (np.abs(first_N - 0.5) < threshold) & ~same_N
    return np.where(rerun_N | same_N, prob_N, first_N), rerun_N


def best_threshold(losses: Floats, both: float, tolerance: float) -> float | None:
    """The smallest threshold whose log loss is at most `tolerance` over that of both orderings, or None.

    Args:
        losses: mean log loss at each of `THRESHOLDS`.
    """
    within = np.flatnonzero(losses <= both + tolerance)
    return THRESHOLDS[within[0]] if len(within) else None


def adaptive(
    prob_N: Floats,
    prob_ab_N: Floats,
    prob_ba_N: Floats,
    ba_first_N: NDArray[np.bool_],
    label_N: Floats,
    groups_N: NDArray[np.uint64],
    tolerance: float,
) -> dict[str, Any] | None:
    """Share run again, accuracy and log loss by threshold, and the threshold to use.

    The rows are split in two by a bit of their prompt's hash; each half is judged at the threshold that is
    the best on the other.

    Args:
        prob_N, prob_ab_N, prob_ba_N, ba_first_N: as for `simulate`; NaN where an ordering was not run.
        label_N: float64 (N,) in [0, 1].
        groups_N: uint64 (N,), a hash of each row's prompt.
        tolerance: log loss, in nats, that leaving out second orderings may cost.

    Returns:
        `tolerance`, `both` (accuracy and log loss), `table` (a dict for each of `THRESHOLDS`, on all rows),
        `threshold` (fitted on all rows: the one to use; None where no threshold is good enough, or none
        leaves out a second ordering), `thresholds_by_half` and `after` (share_rerun, accuracy, log_loss;
        both None where a half is empty or has no threshold). None where a row lacks an ordering.
    """
    if np.isnan(prob_ab_N).any() or np.isnan(prob_ba_N).any():
        return None
    simulated = [simulate(prob_N, prob_ab_N, prob_ba_N, ba_first_N, one) for one in THRESHOLDS]
    losses = np.stack([cross_entropy(prob, label_N) for prob, _ in simulated])  # [thresholds, N]
    both_N = cross_entropy(prob_N, label_N)
    threshold = best_threshold(losses.mean(axis=1), float(both_N.mean()), tolerance)
    if threshold is not None and simulated[THRESHOLDS.index(threshold)][1].all():
        threshold = None
    result: dict[str, Any] = {
        "tolerance": tolerance,
        "both": {"accuracy": float(agreement(prob_N, label_N).mean()), "log_loss": float(both_N.mean())},
        "table": [
            {"threshold": one} | metrics_of(prob, rerun, label_N)
            for one, (prob, rerun) in zip(THRESHOLDS, simulated, strict=True)
        ],
        "threshold": threshold,
        "thresholds_by_half": None,
        "after": None,
    }
    half_N = halves_by_prompt(groups_N)
    if half_N is None:
        return result
    fitted = [
        best_threshold(losses[:, mask_N].mean(axis=1), float(both_N[mask_N].mean()), tolerance)
        for mask_N in (~half_N, half_N)
    ]
    if None in fitted:
        return result
    lower, upper = (simulated[THRESHOLDS.index(threshold)] for threshold in fitted)  # pyright: ignore[reportArgumentType]
    prob, rerun = (np.where(half_N, one, other) for one, other in zip(lower, upper, strict=True))
    return result | {"thresholds_by_half": fitted, "after": metrics_of(prob, rerun, label_N)}


def metrics_of(prob_N: Floats, rerun_N: NDArray[np.bool_], label_N: Floats) -> dict[str, float]:
    """Share of rows whose second ordering is run, accuracy and log loss in nats."""
    return {
        "share_rerun": float(rerun_N.mean()),
        "accuracy": float(agreement(prob_N, label_N).mean()),
        "log_loss": float(cross_entropy(prob_N, label_N).mean()),
    }
