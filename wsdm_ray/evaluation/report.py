"""report.html: the metrics of `evaluate` as a page for people.

Not covered: the numbers themselves (`metrics` and the modules beside it).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from wsdm_ray.evaluation.charts import (
    Curve,
    histogram_chart,
    position_chart,
    reliability_chart,
    roc_chart,
)
from wsdm_ray.evaluation.compare import COMPARED
from wsdm_ray.evaluation.forest import Estimate, Mark, estimates_chart, ratings_chart
from wsdm_ray.evaluation.join import Joined
from wsdm_ray.evaluation.metrics import ECE_BINS, calibration_bins, roc_curve
from wsdm_ray.evaluation.mistakes import Mistake, mistake_for_page
from wsdm_ray.evaluation.pages import (
    MOST_SETTINGS,
    decimals,
    flatten,
    percent,
    render_page,
    signed,
    visible,
)
from wsdm_ray.evaluation.provenance import facts
from wsdm_ray.evaluation.svg import nice_ticks
from wsdm_ray.statistics import Floats

__all__ = ["render_report", "table_rows"]

MOST_LINES = 12
"""A chart by language, length or source has at most so many lines; metrics.json has them all."""
MOST_RATINGS = 25
"""The chart of models has at most so many lines; the table below it has them all."""
LEAST_ROWS = 20
"""A line of such a chart has at least so many rows, and so has a group of the reliability figure.

Fewer rows in all have no ROC curve, nor anything of lengths and models.
"""
MOST_CURVES = 4
"""The ROC figure has at most so many curves."""
SLICES = {
    "by_language": "language",
    "by_length": "tokens of one ordering",
    "by_length_difference": "times that the longer answer is longer",
    "by_source": "source",
}


def render_report(
    metrics: dict[str, Any],
    sets: dict[str, Joined],
    calibrated_N: Floats | None,
    mistakes: Sequence[Mistake],
    run: dict[str, Any],
) -> str:
    """The report as HTML.

    Args:
        metrics: what metrics.json holds.
        sets: the rows behind it, of each set of predictions by name; all but the comparison is of the first.
        calibrated_N: float64 (N,), probabilities after the temperature, or None.
        mistakes: the rows to show.
        run: the run.json of the first set, or empty.
    """
    joined = next(iter(sets.values()))
    return render_page(
        "report.html",
        metrics=metrics,
        header=[*facts(metrics["provenance"]), ("Votes", ", ".join(metrics["config"]["votes"]))],
        charts=charts(metrics, sets, calibrated_N),
        rows_of_table=table_rows(metrics),
        set_rows=set_rows(metrics),
        verdict=length_verdict(metrics["length_control"]),
        mistakes=[mistake_for_page(mistake) for mistake in mistakes],
        slices_left_out={key: len(metrics[key]) - len(large_slices(metrics[key])) for key in SLICES},
        settings=flatten(run)[:MOST_SETTINGS],
        least_rows=LEAST_ROWS,
        cut_share=known_share(joined.cut_tokens > 0, joined.cut_tokens),
    )


def charts(
    metrics: dict[str, Any], sets: dict[str, Joined], calibrated_N: Floats | None
) -> dict[str, Markup | None]:
    joined = next(iter(sets.values()))
    both_N = ~np.isnan(joined.prob_ab) & ~np.isnan(joined.prob_ba)
    tokens_N, cut_N = (values[~np.isnan(values)] for values in (joined.tokens, joined.cut_tokens))
    bins = min(ECE_BINS, max(1, len(joined.prob) // LEAST_ROWS))
    return {
        "reliability": reliability_chart(
            calibration_bins(joined.prob, joined.label, bins),
            calibration_bins(calibrated_N, joined.label, bins) if calibrated_N is not None else None,
            joined.prob,
        ),
        "roc": sets_roc(sets) if len(joined.prob) >= LEAST_ROWS else None,
        "models": models_chart(metrics["models"]),
        "position": position_chart(joined.prob_ab[both_N], joined.prob_ba[both_N]) if both_N.any() else None,
        "lengths": lengths_chart(tokens_N) if len(tokens_N) else None,
        "cut": cut_chart(cut_N[cut_N > 0]) if (cut_N > 0).any() else None,
    } | {key: slices_chart(metrics, key, what) for key, what in SLICES.items()}


def sets_roc(sets: dict[str, Joined]) -> Markup | None:
    """The ROC curves of the first sets, or None of votes that all name one side."""
    curves = []
    for name, one in list(sets.items())[:MOST_CURVES]:
        if (rates := roc_curve(one.prob, one.label)) is None:
            return None
        curves.append(Curve(visible(name), *rates, float(np.trapezoid(rates[1], rates[0]))))
    return roc_chart(curves)


def models_chart(models: dict[str, Any] | None) -> Markup | None:
    """Ratings of the models with enough comparisons, the strongest first."""
    lines = []
    for model in models["models"] if models else ():
        if model["rated"] and model["rows"] >= LEAST_ROWS and model["votes"]["rating_ci95"]:
            marks = [model_mark(model, kind) for kind in ("votes", "predictions")]
            lines.append((visible(model["name"]), model["rows"], marks))
    return ratings_chart(lines[:MOST_RATINGS]) if len(lines) > 1 else None


def model_mark(model: dict[str, Any], kind: str) -> Mark:
    one = model[kind]
    low, high = one["rating_ci95"]
    return Mark(
        one["rating"],
        one["rating_ci95"],
        f"{visible(model['name'])} by {kind}: {one['rating']:.0f} [{low:.0f}, {high:.0f}],"
        f" wins {one['win_rate']:.1%}",
    )


def slices_chart(metrics: dict[str, Any], key: str, what: str) -> Markup | None:
    estimates = [
        Estimate(
            slice_label(name, key),
            one["rows"],
            one["accuracy"],
            one["accuracy_ci95"],
        )
        for name, one in large_slices(metrics[key]).items()
    ]
    # One slice of all rows would only repeat the headline.
    several = len(metrics[key]) > 1 and estimates
    return estimates_chart(estimates, metrics["accuracy"], what) if several else None


def slice_label(name: str, key: str) -> str:
    if key == "by_length":
        return name.replace("-", "–")
    if key == "by_length_difference":
        low, high = name.split("-")
        return f"{low} to {high} ×" if high else f"over {low} ×"
    return visible(name)


def large_slices(slices: dict[str, Any]) -> dict[str, Any]:
    """The first slices that are large enough for a chart: a tiny slice has a wide interval."""
    return dict([item for item in slices.items() if item[1]["rows"] >= LEAST_ROWS][:MOST_LINES])


def lengths_chart(tokens_N: Floats) -> Markup:
    high = max(float(tokens_N.max()), 1.0)
    described = f"Histogram of tokens of one ordering: median {np.median(tokens_N):,.0f}, most {high:,.0f}."
    ticks = [(at, f"{at:,.0f}") for at in nice_ticks(0, high)]
    return histogram_chart(tokens_N, np.linspace(0, high, 41), ticks, "tokens of one ordering", described)


def cut_chart(cut_N: Floats) -> Markup:
    """By powers of two: most cuts are small and a few are huge."""
    power_N = np.log2(cut_N)
    low, high = float(np.floor(power_N.min())), float(np.floor(power_N.max())) + 1
    ticks = [
        (power, f"{2**power:,.0f}") for power in np.arange(low, high + 1, max(1, round((high - low) / 6)))
    ]
    middle, most = np.median(cut_N), cut_N.max()
    described = f"Histogram of tokens cut from {len(cut_N):,} rows: median {middle:,.0f}, most {most:,.0f}."
    edges = np.arange(low, high + 0.25, 0.5)
    return histogram_chart(
        power_N, edges, ticks, "tokens cut (doubling scale)", described, lambda at: 2.0**at
    )


def set_rows(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Each set for the comparison: its name and facts, its metrics, and its differences from the first."""
    rows = []
    for name, one in metrics.get("sets", {}).items():
        known = [value for title, value in facts(one["provenance"]) if title != "Predictions"]
        rows.append(
            {
                "name": visible(name),
                "facts": [visible(value) for value in known],
                "figures": [figure_of(one, key) for key in COMPARED],
                "differences": [difference_of(metrics["differences"][name][key], key) for key in COMPARED]
                if name in metrics["differences"]
                else None,
            }
        )
    return rows


def figure_of(measured: dict[str, Any], key: str) -> dict[str, str]:
    ends = measured.get(f"{key}_ci95")
    form = percent if key == "accuracy" else decimals
    return {"value": form(measured[key]), "ends": f"{form(ends[0])} to {form(ends[1])}" if ends else ""}


def difference_of(difference: dict[str, Any], key: str) -> dict[str, str]:
    """A difference in words: it is better or worse where its interval is on one side of 0."""
    value, ends = difference["difference"], difference["ci95"]
    scale, places = (100, 1) if key == "accuracy" else (1, 3)
    shown = {"value": signed(None if value is None else value * scale, places), "ends": "", "verdict": ""}
    if not ends:
        return shown
    low, high = (end * scale for end in ends)
    up_is_good = key in ("accuracy", "auc")
    verdict = "unclear" if low <= 0 <= high else "better" if (low > 0) == up_is_good else "worse"
    return shown | {"ends": f"{signed(low, places)} to {signed(high, places)}", "verdict": verdict}


def length_verdict(control: dict[str, Any] | None) -> str | None:
    """What the votes say of the question whether the predictions only count words."""
    if not control:
        return None
    if not control["length_only"]:
        return f"These votes cannot tell: {control['too_few']}."
    low, high = control["length_only"]["differences"]["log_loss"]["ci95"]
    fair = control["balanced_accuracy_ci95"]
    if high < 0 and fair and fair[0] > 0.5:
        return (
            "No. The predictions know more than the lengths: their log loss is lower than that of the lengths"
            " alone, and they are right more often than not when longer and shorter winners count alike."
        )
    if low > 0:
        return "The lengths alone have a lower log loss than these predictions."
    return "These votes do not show that the predictions know more than the lengths."


def table_rows(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Name, accuracy, interval and log loss of the model, of what it must beat and of what it cannot."""
    after = metrics["calibration"]["after"]
    longer, majority = metrics["baselines"]["longer_answer"], metrics["baselines"]["majority"]
    rows = [
        {"name": "These predictions", "note": "as given", "kind": "own"} | metrics,
        {"name": "The longer answer wins", "note": "by characters"} | longer,
        {"name": "Always the majority side", "note": "of these votes"} | majority,
    ]
    if after:
        temperature = {
            "log_loss": after["log_loss"],
            "accuracy": metrics["accuracy"],
            "accuracy_ci95": metrics["accuracy_ci95"],
        }
        rows.insert(
            1, {"name": "These predictions", "note": "after temperature", "kind": "own"} | temperature
        )
    if metrics["best_accuracy"] is not None:
        best = {"accuracy": metrics["best_accuracy"], "log_loss": metrics["best_log_loss"]}
        rows.insert(0, {"name": "The best possible", "note": "truth known"} | best)
    return [{"accuracy_ci95": None, "kind": ""} | row for row in rows]


def known_share(condition_N: NDArray[np.bool_], values_N: Floats) -> float | None:
    known_N = ~np.isnan(values_N)
    return float(condition_N[known_N].mean()) if known_N.any() else None
