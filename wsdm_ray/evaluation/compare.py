"""Several sets of predictions on the same votes: which is better, by paired differences.

A difference is of the same rows in the same resamples, so what makes rows easy or hard for all sets cancels.
Shape suffixes: N rows, G prompt groups, B resamples, U distinct probabilities. Not covered: the metrics of
one set (`metrics`).
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsdm_ray.errors import DataError
from wsdm_ray.evaluation.join import Joined
from wsdm_ray.evaluation.metrics import (
    BLOCK_ELEMENTS,
    area_under_curve,
    bootstrap_means,
    calibration_bin,
    expected_calibration_error,
    percentiles,
    resampled_counts,
    squared_error,
)
from wsdm_ray.statistics import Floats, agreement, cross_entropy

__all__ = ["COMPARED", "common_rows", "paired_differences", "short_names"]

COMPARED = ("accuracy", "log_loss", "auc", "brier", "ece")
"""The metrics that are compared, under their names in metrics.json."""


def paired_differences(
    prob_N: Floats,
    other_N: Floats,
    label_N: Floats,
    groups_N: NDArray[Any],
    *,
    resamples: int = 1_000,
    seed: int = 0,
) -> dict[str, Any]:
    """By how much the metrics of `prob` exceed those of `other`, on the same rows.

    The interval is the percentile interval of the difference over resamples of whole groups. Resampling
    raises `ece`, and most for the set that is calibrated best, so its resamples are moved to have the
    difference as their mean: that interval is of the difference to expect on as many votes, not on ever more.

    Args:
        prob_N, other_N: float64 (N,) in [0, 1], two sets of predictions.
        label_N, groups_N, resamples, seed: as for `measure`.

    Returns:
        For each of `COMPARED`, `difference` and `ci95` of `[low, high]`; None where not defined.
    """
    both = [metrics_of(one, label_N, groups_N) for one in (prob_N, other_N)]
    drawn = [resampled_metrics(one, label_N, groups_N, resamples, seed) for one in (prob_N, other_N)]
    several = len(np.unique(groups_N)) > 1
    result: dict[str, Any] = {}
    for name in COMPARED:
        one, other = (metrics[name] for metrics in both)
        if one is None or other is None:
            result[name] = {"difference": None, "ci95": None}
            continue
        difference = one - other
        drawn_B = drawn[0][name] - drawn[1][name]
        if name == "ece":
            drawn_B += difference - drawn_B.mean()
        result[name] = {"difference": difference, "ci95": percentiles(drawn_B) if several else None}
    return result


def metrics_of(prob_N: Floats, label_N: Floats, groups_N: NDArray[Any]) -> dict[str, float | None]:
    """Each of `COMPARED` on all rows."""
    return {
        "accuracy": float(agreement(prob_N, label_N).mean()),
        "log_loss": float(cross_entropy(prob_N, label_N).mean()),
        "auc": area_under_curve(prob_N, label_N, groups_N)[0],
        "brier": float(squared_error(prob_N, label_N).mean()),
        "ece": expected_calibration_error(prob_N, label_N),
    }


def resampled_metrics(
    prob_N: Floats, label_N: Floats, groups_N: NDArray[Any], resamples: int, seed: int
) -> dict[str, Floats]:
    """Each of `COMPARED` in each resample, float64 (B,); NaN where a resample does not define it."""
    rowwise = {"accuracy": agreement, "log_loss": cross_entropy, "brier": squared_error}
    values_NK = np.stack([metric(prob_N, label_N) for metric in rowwise.values()], axis=1)
    means_BK = bootstrap_means(values_NK, groups_N, resamples=resamples, seed=seed)
    unique, group_N = np.unique(groups_N, return_inverse=True)
    areas, errors = resampled_areas(prob_N, label_N, group_N), resampled_errors(prob_N, label_N, group_N)
    at_once = max(1, BLOCK_ELEMENTS // len(prob_N))  # a prompt may have many votes
    blocks = [
        (areas(counts_BG[first : first + at_once]), errors(counts_BG[first : first + at_once]))
        for counts_BG in resampled_counts(len(unique), resamples, seed)
        for first in range(0, len(counts_BG), at_once)
    ]
    auc_B, ece_B = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return dict(zip(rowwise, means_BK.T, strict=True)) | {"auc": auc_B, "ece": ece_B}


def resampled_areas(prob_N: Floats, label_N: Floats, group_N: NDArray[np.int64]) -> Any:
    """A function from how often each group is drawn, (B, G), to the area under the ROC curve, (B,)."""
    order = np.argsort(prob_N, kind="stable")
    starts_U = np.flatnonzero(np.diff(prob_N[order], prepend=-1.0))
    label_N, group_N = label_N[order], group_N[order]

    def areas(counts_BG: Floats) -> Floats:
        weight_BN = counts_BG[:, group_N]
        rows_BU = np.add.reduceat(weight_BN, starts_U, axis=1)
        weight_BN *= label_N
        positive_BU = np.add.reduceat(weight_BN, starts_U, axis=1)
        negative_BU = rows_BU - positive_BU
        beaten_BU = np.cumsum(negative_BU, axis=1) - negative_BU / 2
        product_B = positive_BU.sum(axis=1) * negative_BU.sum(axis=1)
        beaten_B = (positive_BU * beaten_BU).sum(axis=1)
        return np.divide(beaten_B, product_B, out=np.full_like(product_B, np.nan), where=product_B > 0)

    return areas


def resampled_errors(prob_N: Floats, label_N: Floats, group_N: NDArray[np.int64]) -> Any:
    """A function from how often each group is drawn, (B, G), to the ECE, (B,), in the bins of all rows."""
    bin_N = calibration_bin(prob_N)
    shape = (int(group_N.max()) + 1, int(bin_N.max()) + 1)
    place_N = group_N * shape[1] + bin_N
    gaps = np.bincount(place_N, prob_N - label_N, minlength=shape[0] * shape[1]).reshape(shape)
    rows_G = np.bincount(group_N).astype(np.float64)
    return lambda counts_BG: np.abs(counts_BG @ gaps).sum(axis=1) / (counts_BG @ rows_G)


def common_rows(sets: dict[str, Joined]) -> dict[str, Joined]:
    """Each set with only the rows that all have a probability for, in the same order.

    Their `errors` are those of all sets, with the name of the set before the reason; a row that has one in
    several is once among `failed_ids`.

    Raises:
        DataError: no row has a probability in every set.
    """
    if len(sets) == 1:
        return sets
    places = {name: {str(key): row for row, key in enumerate(one.ids)} for name, one in sets.items()}
    first = next(iter(places.values()))
    shared = [key for key in first if all(key in rows for rows in places.values())]
    if not shared:
        raise DataError(f"{', '.join(sets)}: no row has a probability in all; evaluate them one by one")
    errors = Counter(
        {f"{name}: {why}": count for name, one in sets.items() for why, count in one.errors.items()}
    )
    failed = {str(key): key for one in sets.values() for key in one.failed_ids}
    common = {"errors": errors, "failed_ids": list(failed.values())}
    return {
        name: take(one, [places[name][key] for key in shared])._replace(**common)
        for name, one in sets.items()
    }


def take(joined: Joined, rows: Sequence[int]) -> Joined:
    """Some of the rows, in the order of `rows`."""
    arrays = {
        name: values[rows] for name, values in joined._asdict().items() if isinstance(values, np.ndarray)
    }
    return joined._replace(ids=[joined.ids[row] for row in rows], **arrays)


def short_names(paths: Sequence[str]) -> list[str]:
    """A name for each of several paths: as few of its last folders as tell it from the others."""
    parts = [[part for part in path.rstrip("/").split("/") if part] or [path] for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)
