"""How well probabilities match votes, with bootstrap intervals. Pure functions on arrays.

Shape suffixes: N rows, G groups of rows that share a prompt, K row-wise metrics, B resamples.

`prob` and `label` are those of `wsdm_ray.statistics`. A soft label counts as that share of a vote for
response_a and the rest of it for response_b; 0.5 is a tie. A metric that is not defined is None, never NaN.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsdm_ray.evaluation.fitting import LEAST_FIT_GROUPS
from wsdm_ray.statistics import Z_95, Floats, agreement, cross_entropy, wilson_interval

__all__ = [
    "BLOCK_ELEMENTS",
    "ECE_BINS",
    "CalibrationBins",
    "area_under_curve",
    "bootstrap_intervals",
    "bootstrap_means",
    "calibration_bin",
    "calibration_bins",
    "confusion",
    "expected_calibration_error",
    "flips",
    "length_bins",
    "majority_baseline",
    "mean_or_none",
    "measure",
    "one_sided_baseline",
    "percentiles",
    "position_shift",
    "resampled_counts",
    "roc_curve",
    "squared_error",
]

ECE_BINS = 15

BLOCK_ELEMENTS = 1 << 17
"""Numbers of one block of resamples, small enough for a processor's cache."""


def squared_error(prob_N: Floats, label_N: Floats) -> Floats:
    """Squared difference of prediction and label, by row; its mean is the Brier score. Float64 (N,)."""
    return (prob_N - label_N) ** 2


def position_shift(prob_ab_N: Floats, prob_ba_N: Floats) -> Floats:
    """What coming first adds to a response's probability, by row; its mean is the position bias.

    Both are probabilities of the given response_a, which comes first in `ab` and second in `ba`, so half
    their difference is positive where the first response is favoured. NaN where an ordering was not run.
    """
    return (prob_ab_N - prob_ba_N) / 2


def flips(prob_ab_N: Floats, prob_ba_N: Floats) -> Floats:
    """1 where the two orderings name different winners, by row; the mean is the flip rate. NaN as above."""
    product_N = (prob_ab_N - 0.5) * (prob_ba_N - 0.5)
    return np.where(np.isnan(product_N), np.nan, product_N < 0)


def area_under_curve(
    prob_N: Floats, label_N: Floats, groups_N: NDArray[Any]
) -> tuple[float | None, list[float] | None]:
    """Area under the ROC curve and its 95 % interval, or None where the votes all name one side.

    Each row counts as a positive of weight `label` and a negative of weight `1 - label`; equal probabilities
    count half. For hard votes this is the usual AUC (Mann-Whitney), and the interval DeLong's (1988), with
    the rows of one prompt taken together (Obuchowski, 1997): a bootstrap by prompt agrees, at a far higher
    cost.

    Args:
        prob_N, label_N: float64 (N,) in [0, 1].
        groups_N: (N,), equal where rows share a prompt; fewer than two give no interval, nor does an area
            of 0 or 1.
    """
    _, place_N = np.unique(prob_N, return_inverse=True)
    positive, negative = (np.bincount(place_N, weights) for weights in (label_N, 1 - label_N))
    positives, negatives = positive.sum(), negative.sum()
    if not positives * negatives:
        return None, None
    beaten = (np.cumsum(negative) - negative / 2) / negatives  # share of negatives below each probability
    beating = 1 - (np.cumsum(positive) - positive / 2) / positives  # share of positives above
    area = float(positive @ beaten / positives)
    # How far each row, and so each group, moves the area: the first-order terms of a bootstrap.
    pull_N = label_N * (beaten[place_N] - area) / positives
    pull_N += (1 - label_N) * (beating[place_N] - area) / negatives
    pull_G = np.bincount(np.unique(groups_N, return_inverse=True)[1], pull_N)
    if len(pull_G) < 2:
        return area, None
    half = Z_95 * math.sqrt(pull_G @ pull_G * len(pull_G) / (len(pull_G) - 1))
    if not half:  # all winners are above all losers, which says nothing of the spread
        return area, None
    return area, [max(0.0, area - half), min(1.0, area + half)]


def roc_curve(prob_N: Floats, label_N: Floats) -> tuple[Floats, Floats] | None:
    """False and true positive rates from (0, 0) to (1, 1), at every probability; None of one class only.

    Response_a is the positive class. Soft labels count as in `area_under_curve`, which is the area below it.
    """
    _, place_N = np.unique(-prob_N, return_inverse=True)
    rates = []
    for weight_N in (1 - label_N, label_N):
        if not weight_N.sum():
            return None
        passed = np.cumsum(np.bincount(place_N, weight_N))
        rates.append(np.concatenate([[0.0], passed / passed[-1]]))
    return rates[0], rates[1]


def confusion(prob_N: Floats, label_N: Floats) -> dict[str, float]:
    """Votes by predicted and actual winner; the two that agree make the accuracy.

    A soft label is that share of a vote for each side. A probability of exactly 0.5 names each side by half.
    """
    for_a_N = np.where(prob_N > 0.5, 1.0, np.where(prob_N < 0.5, 0.0, 0.5))
    return {
        f"predicted_{predicted}_voted_{voted}": float(side_N @ label)
        for predicted, side_N in (("a", for_a_N), ("b", 1 - for_a_N))
        for voted, label in (("a", label_N), ("b", 1 - label_N))
    }


class CalibrationBins(NamedTuple):
    """Rows by predicted probability: float64 arrays, one element a bin that holds any row."""

    rows: Floats
    predicted: Floats
    """Mean predicted probability of response_a."""
    observed: Floats
    """Mean label: the share of votes for response_a."""


def calibration_bin(prob_N: Floats, bins: int = ECE_BINS) -> NDArray[np.int64]:
    """The number of each row's bin, int64 (N,); equal probabilities share one."""
    edges = np.quantile(prob_N, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(edges, prob_N, side="right")


def calibration_bins(prob_N: Floats, label_N: Floats, bins: int = ECE_BINS) -> CalibrationBins:
    """Up to `bins` bins of equal mass. Rows with the same probability share a bin, so bins can be fewer."""
    bin_N = calibration_bin(prob_N, bins)
    rows, predicted, observed = (np.bincount(bin_N, weights) for weights in (None, prob_N, label_N))
    kept = rows > 0
    return CalibrationBins(
        rows[kept].astype(np.float64), predicted[kept] / rows[kept], observed[kept] / rows[kept]
    )


def expected_calibration_error(prob_N: Floats, label_N: Floats, bins: int = ECE_BINS) -> float:
    """Mean distance of predicted probability and share of votes, over `bins` bins of equal mass.

    Of response_a's probability, not of the winner's confidence (Nguyen and O'Connor, 2015). It is never
    negative, so with few rows it is above zero for a perfect model too.
    """
    held = calibration_bins(prob_N, label_N, bins)
    return float(np.average(np.abs(held.predicted - held.observed), weights=held.rows))


def resampled_counts(num_groups: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each group is drawn in each resample, in blocks of float64 (B, G)."""
    random, block = np.random.default_rng(seed), max(1, BLOCK_ELEMENTS // num_groups)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = random.integers(0, num_groups, (size, num_groups))
        drawn += np.arange(size)[:, None] * num_groups
        counts = np.bincount(drawn.ravel(), minlength=size * num_groups)
        yield counts.reshape(size, num_groups).astype(np.float64)


def bootstrap_means(values_NK: Floats, groups_N: NDArray[Any], *, resamples: int, seed: int) -> Floats:
    """The means of row-wise metrics in each resample: float64 (B, K), NaN where a resample has no such row.

    Whole groups are drawn with replacement (a cluster bootstrap), because votes on one prompt are not
    independent of each other. Without repeated prompts it is the bootstrap by rows. The draws depend on the
    number of groups and the seed alone, so metrics of the same rows are of the same resamples.

    Args:
        values_NK: float64 (N, K); NaN where a row has no such metric.
        groups_N: (N,), equal where rows share a prompt.
        resamples: number of resamples.
        seed: of the resampling.
    """
    unique, group_N = np.unique(groups_N, return_inverse=True)
    known_NK = ~np.isnan(values_NK)
    sums_GK, sizes_GK = (
        np.stack([np.bincount(group_N, column) for column in columns.T], axis=1)
        for columns in (np.where(known_NK, values_NK, 0.0), known_NK.astype(np.float64))
    )
    means: list[Floats] = []
    for counts_BG in resampled_counts(len(unique), resamples, seed):
        size_BK = counts_BG @ sizes_GK
        means.append(
            np.divide(counts_BG @ sums_GK, size_BK, out=np.full_like(size_BK, np.nan), where=size_BK > 0)
        )
    return np.concatenate(means)


def bootstrap_intervals(
    values_NK: Floats, groups_N: NDArray[Any], *, resamples: int, seed: int
) -> list[list[float] | None]:
    """95 % percentile intervals of the means of row-wise metrics, by `bootstrap_means`.

    Returns:
        `[low, high]` for each of the K metrics; None where fewer than two groups define it.
    """
    means_BK = bootstrap_means(values_NK, groups_N, resamples=resamples, seed=seed)
    return [
        percentiles(mean_B) if len(np.unique(groups_N[~np.isnan(values_N)])) > 1 else None
        for mean_B, values_N in zip(means_BK.T, values_NK.T, strict=True)
    ]


def of_few(interval: list[float] | None, values_N: Floats, groups_N: NDArray[Any]) -> list[float] | None:
    """The interval of a share, widened where it is of fewer than 100 groups.

    Resampling few votes makes too little of what they have not shown: eleven that are all right have no
    spread. There the interval holds Wilson's (1927) of as many votes as groups.
    """
    known_N = ~np.isnan(values_N)
    groups = len(np.unique(groups_N[known_N]))
    if interval is None or groups >= LEAST_FIT_GROUPS:
        return interval
    low, high = wilson_interval(float(values_N[known_N].mean()), groups)
    return [min(interval[0], low), max(interval[1], high)]


def percentiles(values: Floats) -> list[float]:
    """Both ends of the middle 95 % of the finite values."""
    return [float(value) for value in np.percentile(values[np.isfinite(values)], (2.5, 97.5))]


def mean_or_none(values_N: Floats) -> float | None:
    """The mean of the values that are not NaN, or None where there are none."""
    defined = values_N[~np.isnan(values_N)]
    return float(defined.mean()) if len(defined) else None


def measure(
    prob_N: Floats,
    label_N: Floats,
    prob_ab_N: Floats,
    prob_ba_N: Floats,
    groups_N: NDArray[Any],
    *,
    resamples: int = 1_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Every metric of one set of rows.

    Args:
        prob_N, label_N: float64 (N,) in [0, 1], N at least 1.
        prob_ab_N, prob_ba_N: float64 (N,), probability of the given response_a in each ordering; NaN where
            that ordering was not run.
        groups_N: (N,), equal where rows share a prompt.
        resamples, seed: of the bootstrap.

    Returns:
        `rows`, then `accuracy` (expected agreement, 0..1), `log_loss` (nats), `brier`, `position_bias` (in
        probability; positive: the response that comes first is favoured), `flip_rate` (0..1) and `auc`, each
        with its `…_ci95` of `[low, high]`, and `ece` (15 bins of equal mass). None where not defined: `auc`
        of one class only, the two of position where no row was scored in both orderings.
    """
    values_by_name = {
        "accuracy": agreement(prob_N, label_N),
        "log_loss": cross_entropy(prob_N, label_N),
        "brier": squared_error(prob_N, label_N),
        "position_bias": position_shift(prob_ab_N, prob_ba_N),
        "flip_rate": flips(prob_ab_N, prob_ba_N),
    }
    intervals = bootstrap_intervals(
        np.stack(list(values_by_name.values()), axis=1), groups_N, resamples=resamples, seed=seed
    )
    measured: dict[str, Any] = {"rows": len(prob_N)}
    for (name, values_N), interval in zip(values_by_name.items(), intervals, strict=True):
        measured |= {name: mean_or_none(values_N), f"{name}_ci95": interval}
        if name in ("accuracy", "flip_rate"):
            measured[f"{name}_ci95"] = of_few(interval, values_N, groups_N)
    area, interval = area_under_curve(prob_N, label_N, groups_N)
    measured |= {"auc": area, "auc_ci95": interval}
    return measured | {"ece": expected_calibration_error(prob_N, label_N)}


def entropy(share: float) -> float:
    """Log loss, in nats, of always answering with the share that is right: the best of any constant."""
    return sum(-part * math.log(part) for part in (share, 1 - share) if part > 0)


def one_sided_baseline(
    favours_a_N: Floats, label_N: Floats, groups_N: NDArray[Any], *, resamples: int, seed: int
) -> dict[str, Any]:
    """A rule that names a winner: its accuracy, and the log loss of the one confidence that suits it best.

    The confidence is fitted on the same rows, which flatters the rule a little.

    Args:
        favours_a_N: float64 (N,), above 0 where the rule names response_a, below 0 for response_b, else 0.
        label_N, groups_N, resamples, seed: as for `measure`.
    """
    named_N = np.sign(favours_a_N) / 2 + 0.5
    right_N = agreement(named_N, label_N)
    (interval,) = bootstrap_intervals(right_N[:, None], groups_N, resamples=resamples, seed=seed)
    interval = of_few(interval, right_N, groups_N)
    decided_N = named_N != 0.5
    share = float(right_N[decided_N].mean()) if decided_N.any() else 0.5
    log_loss = decided_N.mean() * entropy(share) + (1 - decided_N.mean()) * math.log(2)
    return {"accuracy": float(right_N.mean()), "accuracy_ci95": interval, "log_loss": float(log_loss)}


def majority_baseline(label_N: Floats) -> dict[str, Any]:
    """Always the side that wins more often in these very votes, with that share as its probability."""
    share = float(label_N.mean())
    return {"accuracy": max(share, 1 - share), "log_loss": entropy(share)}


def length_bins(tokens_N: Floats) -> list[str | None]:
    """The length bin of each row, `257-512`, or None for NaN; by powers of two, so that runs compare."""
    power_N = np.ceil(np.log2(np.maximum(tokens_N, 2)))
    return [
        None if math.isnan(power) else f"{(1 << int(power) >> 1) + 1}-{1 << int(power)}"
        for power in power_N.tolist()
    ]
