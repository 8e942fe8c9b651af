"""Counts of pseudolabels: every input row is kept or dropped for one reason."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsdm_ray.errors import DataError
from wsdm_ray.telemetry import logger

__all__ = ["REASONS", "Distribution", "Tally", "log_counts"]

REASONS = (
    "null_text",
    "not_scored",
    "empty_prompt",
    "empty_response",
    "identical_responses",
    "excluded_prompt",
    "below_threshold",
)
"""Why a row is left out; a row has the first reason that applies."""

BINS = 10
"""The histogram of probabilities has this many bins between 0 and 1."""

Floats = NDArray[np.float64]


class Tally:
    """What run.json says of the rows, counted as they stream by."""

    def __init__(self) -> None:
        self.rows = 0
        self.dropped: Counter[str] = Counter()
        self.scored, self.kept = Distribution(), Distribution()

    def add(self, codes_N: NDArray[np.int8], prob_N: Floats) -> None:
        self.rows += len(codes_N)
        self.dropped.update(REASONS[code] for code in codes_N[codes_N >= 0])
        self.scored.add(prob_N[~np.isnan(prob_N)])
        self.kept.add(prob_N[codes_N < 0])

    def check_some_kept(self, hard_threshold: float | None, predictions: str) -> None:
        """Raise `DataError` where no row is left; it says why, and how to keep some."""
        if self.kept.rows:
            return
        why = ", ".join(f"{name} {self.dropped[name]:,}" for name in REASONS if self.dropped[name])
        remedy = (
            f"; lower --hard-threshold {hard_threshold} (the surest row has "
            f"{self.scored.surest:.4f}), with --predictions {predictions} and another --output"
            if self.dropped["below_threshold"]
            else "; nothing to write"
        )
        raise DataError(f"all {self.rows:,} input rows were dropped ({why}){remedy}")

    def summary(self) -> dict[str, Any]:
        """The counts of run.json: input rows = kept rows + dropped rows."""
        counts = {
            "input_rows": self.rows,
            "kept": self.kept.rows,
            "dropped": {name: self.dropped[name] for name in REASONS},
        }
        assert counts["input_rows"] == counts["kept"] + sum(counts["dropped"].values())
        return {"counts": counts, "labels": {"scored": self.scored.summary(), "kept": self.kept.summary()}}


class Distribution:
    """The distribution of probabilities that are seen a few at a time."""

    def __init__(self) -> None:
        self.rows = self.over_half = 0
        self.confidence = self.surest = 0.0
        self.histogram = np.zeros(BINS, np.int64)

    def add(self, prob_N: Floats) -> None:
        confidence_N = np.maximum(prob_N, 1 - prob_N)
        self.rows += len(prob_N)
        self.over_half += int(np.count_nonzero(prob_N > 0.5))
        self.confidence += float(confidence_N.sum())
        self.surest = max(self.surest, float(confidence_N.max(initial=0)))
        # Probability 1 belongs to the last bin.
        self.histogram += np.bincount(np.minimum(prob_N * BINS, BINS - 1).astype(int), minlength=BINS)

    def summary(self) -> dict[str, Any]:
        """Rows, share of them over 0.5, mean of max(p, 1 - p), rows by tenths of p from 0 to 1."""
        rows = max(self.rows, 1)
        return {
            "rows": self.rows,
            "share_over_half": self.over_half / rows if self.rows else None,
            "mean_confidence": self.confidence / rows if self.rows else None,
            "histogram": self.histogram.tolist(),
        }


def log_counts(run: Mapping[str, Any]) -> None:
    """Log the counts and the labels of a run.json, one a line."""
    counts = run["counts"]
    logger.info("%12s input rows", f"{counts['input_rows']:,}")
    for name, rows in counts["dropped"].items():
        logger.info("%12s dropped: %s", f"{rows:,}", name)
    logger.info("%12s kept in train/", f"{counts['kept']:,}")
    labels = run["labels"]["kept"]
    logger.info(
        "%12.1f %% of the kept rows favour response_a; mean confidence %.3f",
        100 * labels["share_over_half"], labels["mean_confidence"],
    )  # fmt: skip
    logger.info("rows by tenths of prob_a: %s", " ".join(f"{rows:,}" for rows in labels["histogram"]))
