"""The flow of `evaluate`: read predictions and votes, measure, write metrics.json and report.html.

Running it again writes both files anew. Not covered: making predictions.
"""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import wsdm_ray
from wsdm_ray.config import EvaluateConfig, to_dict
from wsdm_ray.errors import DataError
from wsdm_ray.evaluation.adaptive import adaptive
from wsdm_ray.evaluation.compare import common_rows, paired_differences, short_names
from wsdm_ray.evaluation.fitting import shortage
from wsdm_ray.evaluation.headline import print_headline
from wsdm_ray.evaluation.join import Joined, join_by_id, read_predictions
from wsdm_ray.evaluation.length import length_control, length_difference_bins
from wsdm_ray.evaluation.metrics import (
    confusion,
    length_bins,
    majority_baseline,
    measure,
    one_sided_baseline,
)
from wsdm_ray.evaluation.mistakes import Mistake, confident_mistakes
from wsdm_ray.evaluation.provenance import provenance
from wsdm_ray.evaluation.ratings import model_ratings
from wsdm_ray.evaluation.report import render_report
from wsdm_ray.evaluation.temperature import cross_fit
from wsdm_ray.evaluation.votes import read_pairs, read_votes
from wsdm_ray.inputs.rows import Reading
from wsdm_ray.runs import read_run
from wsdm_ray.statistics import Floats, agreement, cross_entropy
from wsdm_ray.storage import join, write_atomic, write_json
from wsdm_ray.telemetry import logger

__all__ = ["evaluate"]

MOST_REASONS = 10


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Write metrics.json and report.html to `config.output`, print the headline, return the metrics.

    Raises:
        StorageError: a path is missing or not writable.
        DataError: predictions and votes do not fit each other, or a value is not what was promised.
    """
    inputs = read_inputs(config)
    measured = measure_inputs(inputs, config)
    write_outputs(inputs, measured, config)
    print_headline(measured.metrics, join(config.output, "report.html"))
    return measured.metrics


class Inputs(NamedTuple):
    """Sets of predictions by name, each with the votes, of the rows that all have a probability for."""

    sets: dict[str, Joined]
    runs: dict[str, dict[str, Any]]
    """The run.json of each set (empty where there is none)."""

    @property
    def first(self) -> Joined:
        return next(iter(self.sets.values()))

    @property
    def first_run(self) -> dict[str, Any]:
        return next(iter(self.runs.values()))


class Measured(NamedTuple):
    """What metrics.json holds, and the probabilities after the temperature, float64 (N,) or None."""

    metrics: dict[str, Any]
    calibrated_N: Floats | None


def read_inputs(config: EvaluateConfig) -> Inputs:
    """The rows that have a prediction in every set and a vote. A warning counts those with an error."""
    votes = read_votes(config.votes, reading_of(config))
    names = short_names(config.predictions)
    sets = {}
    for name, folder in zip(names, config.predictions, strict=True):
        try:
            sets[name] = join_by_id(read_predictions(folder), votes)
        except DataError as error:
            raise error if len(names) == 1 else DataError(f"{name}: {error}") from error
    sets = common_rows(sets)
    inputs = Inputs(sets, dict(zip(names, map(read_run, config.predictions), strict=True)))
    warn_of_errors(inputs.first)
    return inputs


def reading_of(config: EvaluateConfig) -> Reading:
    """How the votes are read."""
    return Reading(format=config.format, columns=config.columns, make_ids=config.make_ids)


def measure_inputs(inputs: Inputs, config: EvaluateConfig) -> Measured:
    """All metrics, in the form of metrics.json: those of the first set, and how the others compare."""
    calibration, calibrated_N = calibrate(inputs.first)
    metrics = measure_all(inputs.first, config) | {
        "calibration": calibration,
        "adaptive": adaptive_of(inputs, config),
        "provenance": provenance(config.predictions[0], inputs.first_run),
        "config": to_dict(config),
        "version": wsdm_ray.__version__,
    }
    if len(inputs.sets) > 1:
        metrics |= compare_sets(inputs, config)
    return Measured(to_json(metrics), calibrated_N)


def compare_sets(inputs: Inputs, config: EvaluateConfig) -> dict[str, Any]:
    """`sets`, the metrics of each by name, and `differences`, of each further set less the first."""
    options = {"resamples": config.bootstrap, "seed": config.seed}
    first = inputs.first
    sets = {
        name: measure(one.prob, one.label, one.prob_ab, one.prob_ba, one.group, **options)
        | {"provenance": provenance(folder, inputs.runs[name])}
        for (name, one), folder in zip(inputs.sets.items(), config.predictions, strict=True)
    }
    differences = {
        name: paired_differences(one.prob, first.prob, one.label, one.group, **options)
        for name, one in list(inputs.sets.items())[1:]
    }
    return {"sets": sets, "differences": differences}


def calibrate(joined: Joined) -> tuple[dict[str, Any], Floats | None]:
    """The temperature, and how well it does on other prompts; none is fitted on too few votes."""
    calibration, calibrated_N = cross_fit(joined.prob, joined.label, joined.group)
    too_few = shortage(joined.group)
    if too_few:
        calibration |= {"temperature": None, "temperatures_by_half": None, "after": None}
        calibrated_N = None
    return calibration | {"too_few": too_few}, calibrated_N


def write_outputs(inputs: Inputs, measured: Measured, config: EvaluateConfig) -> None:
    """Write report.html, then metrics.json."""
    page = render_report(
        measured.metrics,
        inputs.sets,
        measured.calibrated_N,
        mistakes_to_show(inputs.first, config),
        inputs.first_run,
    )
    write_atomic(join(config.output, "report.html"), lambda file: file.write(page.encode()))
    write_json(join(config.output, "metrics.json"), measured.metrics)


def measure_all(joined: Joined, config: EvaluateConfig) -> dict[str, Any]:
    """The metrics of all rows and of each slice, the baselines, and the best that is possible where known.

    The best is what the true probabilities reach on these very votes, so the luck of the draw is in both.
    """
    options = {"resamples": config.bootstrap, "seed": config.seed}
    columns: tuple[Any, ...] = (joined.prob, joined.label, joined.prob_ab, joined.prob_ba, joined.group)

    def by_name(names: Iterable[str | None]) -> dict[str, Any]:
        names_N = np.array(list(names), dtype=object)
        return {
            name: measure(*(values[names_N == name] for values in columns), **options)
            for name, _ in Counter(names_N.tolist()).most_common()
            if name is not None
        }

    overall = measure(*columns, **options)
    lengths = (joined.characters_a, joined.characters_b)
    longer_N = np.sign(joined.characters_a - joined.characters_b).astype(np.float64)
    best_accuracy = float(agreement(joined.best_prob, joined.label).mean())
    best_log_loss = float(cross_entropy(joined.best_prob, joined.label).mean())
    best_known = not math.isnan(best_log_loss)
    return overall | {
        "errors": len(joined.failed_ids),
        "rows_in_both_orders": int(np.count_nonzero(~np.isnan(joined.prob_ab + joined.prob_ba))),
        "error_reasons": dict(joined.errors.most_common(MOST_REASONS)),
        "left_out": dict(joined.left_out),
        "best_accuracy": best_accuracy if best_known else None,
        "best_log_loss": best_log_loss if best_known else None,
        "share_of_best": (overall["accuracy"] - 0.5) / (best_accuracy - 0.5)
        if best_known and best_accuracy > 0.5
        else None,
        "baselines": {
            "longer_answer": one_sided_baseline(longer_N, joined.label, joined.group, **options),
            "majority": majority_baseline(joined.label),
        },
        "by_language": by_name(named_slices(joined.language)),
        "by_length": dict(
            sorted(by_name(length_bins(joined.tokens)).items(), key=lambda item: lower_bound(item[0]))
        ),
        "by_source": by_name(named_slices(joined.source)),
        "by_length_difference": dict(
            sorted(by_name(length_difference_bins(*lengths)).items(), key=lambda item: lower_bound(item[0]))
        ),
        "length_control": length_control(joined.prob, joined.label, *lengths, joined.group, **options),
        "confusion": confusion(joined.prob, joined.label),
        "models": model_ratings(
            joined.model_a, joined.model_b, joined.label, joined.prob, joined.group, **options
        ),
    }


def named_slices(names_N: NDArray[np.object_]) -> list[str | None]:
    """The slice of each row: rows without a name are one slice, unless no row has a name."""
    names = names_N.tolist()
    return [name if name is not None else "unknown" for name in names] if any(names) else [None] * len(names)


def lower_bound(length_bin: str) -> float:
    return float(length_bin.split("-")[0])


def adaptive_of(inputs: Inputs, config: EvaluateConfig) -> dict[str, Any] | None:
    """What `--orders adaptive` would have given; None of several models, or where an ordering is missing."""
    joined, run = inputs.first, inputs.first_run
    models = (run.get("config") or {}).get("model") or [None]
    if run.get("job", "score") != "score" or len(models) > 1:
        return None
    found = adaptive(
        joined.prob, joined.prob_ab, joined.prob_ba, joined.ba_first, joined.label, joined.group,
        config.adaptive_tolerance,
    )  # fmt: skip
    if found and (too_few := shortage(joined.group)):
        return found | {"threshold": None, "thresholds_by_half": None, "after": None, "too_few": too_few}
    return found and found | {"too_few": None}


def mistakes_to_show(joined: Joined, config: EvaluateConfig) -> list[Mistake]:
    """The most confident mistakes, with their texts."""
    rows = confident_mistakes(joined.prob, joined.label)
    pairs = read_pairs(config.votes, reading_of(config), [joined.ids[row] for row in rows])
    return [
        Mistake(
            id=joined.ids[row],
            prob_a=float(joined.prob[row]),
            label=float(joined.label[row]),
            language=joined.language[row],
            tokens=None if np.isnan(joined.tokens[row]) else int(joined.tokens[row]),
            pair=pairs[joined.ids[row]],
        )
        for row in rows
    ]


def to_json(value: Any) -> Any:
    """`value` for JSON: floats to 6 places (the rest depends on the order of sums), no NaN, no infinity."""
    if isinstance(value, dict):
        return {str(key): to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def warn_of_errors(joined: Joined) -> None:
    if joined.left_out:
        why = ", ".join(f"{reason} {count:,}" for reason, count in joined.left_out.most_common())
        logger.warning("evaluate: %d votes name no winner: left out (%s)", joined.left_out.total(), why)
    if joined.errors:
        reason, count = joined.errors.most_common(1)[0]
        logger.warning(
            "%d of %d rows carry an error and are left out of every figure (most often, %d rows: %s)",
            len(joined.failed_ids),
            len(joined.failed_ids) + len(joined.prob),
            count,
            " ".join(reason.split())[:200],
        )
