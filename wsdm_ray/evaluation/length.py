"""Is it only counting words? Predictions against what the lengths of the two answers say alone.

Shape suffixes: N rows, F features, B resamples. A length is a number of characters.
"""

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsdm_ray.data.length_balance import LENGTH_RATIOS
from wsdm_ray.evaluation.fitting import parts_by_prompt, shortage
from wsdm_ray.evaluation.metrics import (
    bootstrap_intervals,
    bootstrap_means,
    mean_or_none,
    percentiles,
)
from wsdm_ray.statistics import Floats, agreement, cross_entropy, sigmoid

__all__ = ["fit_length_only", "length_control", "length_difference_bins", "length_features", "length_only"]

FOLDS = 5
PENALTY = 1.0
"""Half of it times the squared coefficients is added: votes that lengths separate have no fit without it."""


def length_difference_bins(characters_a_N: NDArray[np.int64], characters_b_N: NDArray[np.int64]) -> list[str]:
    """The bin of each row by how many times longer its longer answer is, such as `1.1-1.25`."""
    low_N, high_N = np.minimum(characters_a_N, characters_b_N), np.maximum(characters_a_N, characters_b_N)
    ratio_N = np.where(high_N > 0, high_N, 1) / np.maximum(low_N, 1)
    edges = [f"{edge:g}" for edge in (1.0, *LENGTH_RATIOS)]
    names = [f"{low}-{high}" for low, high in pairwise(edges)] + [f"{edges[-1]}-"]
    return [names[place] for place in np.searchsorted(LENGTH_RATIOS, ratio_N, side="right").tolist()]


def length_features(characters_a_N: NDArray[np.int64], characters_b_N: NDArray[np.int64]) -> Floats:
    """What lengths say of a row, float64 (N, F): 0 for equal lengths, and of the other sign if swapped.

    The logarithm of their ratio, its cube (the longest answers need not gain as the longer do), and their
    difference in thousands of characters.
    """
    ratio_N = np.log1p(characters_a_N) - np.log1p(characters_b_N)
    third_N = ratio_N / 3
    cube_N = third_N * third_N * third_N  # a power of numpy rounds by sign on some processors
    difference_N = (characters_a_N - characters_b_N) / 1000.0
    return np.stack([ratio_N, cube_N, np.clip(difference_N, -10, 10)], axis=1)


def fit_length_only(features_NF: Floats, label_N: Floats) -> Floats:
    """Coefficients of the logistic regression without intercept, float64 (F,), by Newton's method.

    Args:
        features_NF: float64 (N, F).
        label_N: float64 (N,) in [0, 1]; a soft label counts as that share of a vote.
    """
    coefficient_F = np.zeros(features_NF.shape[1])
    for _ in range(50):
        prob_N = sigmoid(features_NF @ coefficient_F)
        slope_F = features_NF.T @ (label_N - prob_N) - PENALTY * coefficient_F
        hessian_FF = (features_NF.T * (prob_N * (1 - prob_N))) @ features_NF
        step_F = np.linalg.solve(hessian_FF + PENALTY * np.eye(len(coefficient_F)), slope_F)
        longest = np.abs(step_F).max()
        coefficient_F += step_F * min(1.0, 1.0 / max(longest, 1e-300))
        if longest < 1e-10:
            break
    return coefficient_F


def length_only(
    characters_a_N: NDArray[np.int64],
    characters_b_N: NDArray[np.int64],
    label_N: Floats,
    groups_N: NDArray[np.uint64],
) -> Floats:
    """Probabilities by the lengths alone, float64 (N,): each from a fit without the votes on its prompt.

    There are five fits, each without a fifth of the prompts.
    """
    features_NF = length_features(characters_a_N, characters_b_N)
    fold_N = parts_by_prompt(groups_N, FOLDS)
    prob_N = np.empty(len(label_N))
    for fold in range(FOLDS):
        held_out_N = fold_N == fold
        coefficient_F = fit_length_only(features_NF[~held_out_N], label_N[~held_out_N])
        prob_N[held_out_N] = sigmoid(features_NF[held_out_N] @ coefficient_F)
    return prob_N


def length_control(
    prob_N: Floats,
    label_N: Floats,
    characters_a_N: NDArray[np.int64],
    characters_b_N: NDArray[np.int64],
    groups_N: NDArray[np.uint64],
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any] | None:
    """What the predictions know beyond lengths; None where no row has a longer answer that won or lost.

    Args:
        prob_N, label_N, groups_N, resamples, seed: as for `measure`.
        characters_a_N, characters_b_N: lengths of the two answers, int64 (N,).

    Returns:
        `picks_longer` and `votes_longer`: how often predictions and votes name the longer answer;
        `longer_won` and `shorter_won`: `rows`, and `accuracy` on the rows where that answer won;
        `balanced_accuracy`: the mean of these two, which is 0.5 for a rule that counts characters and nothing
        else. `length_only`: `accuracy` and `log_loss` of the regression on lengths, each row judged by a fit
        without its prompt, and `differences`, of the predictions less it; None where the votes are too few
        (`too_few` says so). Each figure has its `..._ci95`.
    """
    longer_N = np.sign(characters_a_N - characters_b_N).astype(np.float64)
    towards_N = np.where(longer_N > 0, label_N, 1 - label_N)  # the share of the vote for the longer answer
    decided_N = (longer_N != 0) & (towards_N != 0.5)
    if not decided_N.any():
        return None
    right_N = agreement(prob_N, label_N)
    longer_won_N, shorter_won_N = decided_N & (towards_N > 0.5), decided_N & (towards_N < 0.5)
    values = {
        "picks_longer": np.where(longer_N != 0, agreement(prob_N, longer_N / 2 + 0.5), np.nan),
        "votes_longer": np.where(longer_N != 0, towards_N, np.nan),
        "longer_won": np.where(longer_won_N, right_N, np.nan),
        "shorter_won": np.where(shorter_won_N, right_N, np.nan),
    }
    values_NK = np.stack(list(values.values()), axis=1)
    options = {"resamples": resamples, "seed": seed}
    means = {name: mean_or_none(values_N) for name, values_N in values.items()}
    intervals = dict(zip(values, bootstrap_intervals(values_NK, groups_N, **options), strict=True))
    result: dict[str, Any] = {}
    for name in ("picks_longer", "votes_longer"):
        result |= {name: means[name], f"{name}_ci95": intervals[name]}
    for name, rows_N in (("longer_won", longer_won_N), ("shorter_won", shorter_won_N)):
        result[name] = {"rows": int(rows_N.sum()), "accuracy": means[name], "accuracy_ci95": intervals[name]}
    balanced, interval = None, None
    if longer_won_N.any() and shorter_won_N.any():
        balanced = float(np.nanmean(values_NK[:, 2:], axis=0).mean())
        if intervals["longer_won"] and intervals["shorter_won"]:
            interval = percentiles(bootstrap_means(values_NK[:, 2:], groups_N, **options).mean(axis=1))
    result |= {"balanced_accuracy": balanced, "balanced_accuracy_ci95": interval}
    too_few, alone = shortage(groups_N), None
    if not too_few:
        by_length_N = length_only(characters_a_N, characters_b_N, label_N, groups_N)
        alone = beyond_length(prob_N, label_N, by_length_N, groups_N, options)
    return result | {"too_few": too_few, "length_only": alone}


def beyond_length(
    prob_N: Floats,
    label_N: Floats,
    by_length_N: Floats,
    groups_N: NDArray[np.uint64],
    options: dict[str, int],
) -> dict[str, Any]:
    """Accuracy and log loss of the probabilities by length, and what the predictions have over them."""
    metrics = {"accuracy": agreement, "log_loss": cross_entropy}
    alone_NK, whole_NK = (
        np.stack([metric(one_N, label_N) for metric in metrics.values()], axis=1)
        for one_N in (by_length_N, prob_N)
    )
    over_NK = whole_NK - alone_NK
    alone, over = (bootstrap_intervals(each, groups_N, **options) for each in (alone_NK, over_NK))
    measured: dict[str, Any] = {"differences": {}}
    for place, name in enumerate(metrics):
        measured |= {name: float(alone_NK[:, place].mean()), f"{name}_ci95": alone[place]}
        difference = float(over_NK[:, place].mean())
        measured["differences"][name] = {"difference": difference, "ci95": over[place]}
    return measured
