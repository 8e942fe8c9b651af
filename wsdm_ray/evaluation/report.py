"""One self-contained HTML page for people. All that comes from data is hostile text: jinja2 escapes it.

Not covered: the numbers themselves (`metrics`, `calibration`).
"""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from wsdm_ray.evaluation.charts import (
    Estimate,
    estimates_chart,
    histogram_chart,
    nice_ticks,
    position_chart,
    reliability_chart,
)
from wsdm_ray.evaluation.join import Joined
from wsdm_ray.evaluation.metrics import calibration_bins

__all__ = ["Mistake", "confident_mistakes", "render_page", "render_report", "visible"]

HEAD_CHARACTERS = 280
"""The report shows so many characters of a text at first."""
MOST_CHARACTERS = 6_000
"""The page holds so many characters of a text: with ten pairs of 5 MB answers it must open on a phone."""
MOST_LINES = 12
"""A chart by language, length or source has at most so many lines; metrics.json has them all."""
LEAST_ROWS = 20
"""A line of such a chart has at least so many rows."""
MOST_SETTINGS = 80
"""The page lists at most so many settings of the run."""

# Controls, and marks that would reorder the text around them, become their names; UTF-8 has no surrogates.
CONTROLS = (*range(9), 11, 12, *range(14, 32), *range(0x7F, 0xA0))
REORDERING = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
UNSAFE: dict[int, str] = {code: f"⟨U+{code:04X}⟩" for code in CONTROLS + REORDERING} | dict.fromkeys(
    range(0xD800, 0xE000), "\N{REPLACEMENT CHARACTER}"
)


class Mistake(NamedTuple):
    """A row whose winner is predicted wrong."""

    id: Any
    prob_a: float
    label: float
    language: str | None
    tokens: int | None
    pair: dict[str, str]
    """The three texts by their column."""


def render_page(name: str, **values: Any) -> str:
    """The page of a template of this folder; what comes from data is escaped."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "decimals": decimals, "whole": whole, "visible": visible}
    folder = files("wsdm_ray.evaluation")
    style = Markup(folder.joinpath("page.css").read_text("utf-8"))
    return environment.from_string(folder.joinpath(name).read_text("utf-8")).render(style=style, **values)


def visible(text: str) -> str:
    """`text` with control characters, lone surrogates and bidirectional overrides made visible."""
    return text.translate(UNSAFE)


def confident_mistakes(
    prob_N: NDArray[np.float64], label_N: NDArray[np.float64], most: int = 10
) -> list[int]:
    """Rows whose winner is predicted wrong, the furthest from its label first; at most `most` row numbers."""
    distance_N = np.where((prob_N - 0.5) * (label_N - 0.5) < 0, np.abs(prob_N - label_N), 0)
    first = np.argsort(-distance_N, kind="stable")[:most]
    return [int(row) for row in first if distance_N[row] > 0]


def render_report(
    metrics: dict[str, Any],
    joined: Joined,
    calibrated_N: NDArray[np.float64] | None,
    mistakes: Sequence[Mistake],
    run: dict[str, Any],
    paths: dict[str, str],
) -> str:
    """The report as HTML.

    Args:
        metrics: what metrics.json holds.
        joined: the rows behind it.
        calibrated_N: float64 (N,), probabilities after the temperature, or None.
        mistakes: the rows to show.
        run: the run.json of the predictions, or empty.
        paths: predictions and votes, by what the page calls them.
    """
    return render_page(
        "report.html",
        metrics=metrics,
        paths=paths,
        charts=charts(metrics, joined, calibrated_N),
        rows_of_table=table_rows(metrics),
        mistakes=[mistake_for_page(mistake) for mistake in mistakes],
        slices_left_out={
            key: len(metrics[key]) - len(large_slices(metrics[key]))
            for key in ("by_language", "by_length", "by_source")
        },
        settings=flatten(run)[:MOST_SETTINGS],
        cut_share=known_share(joined.cut_tokens > 0, joined.cut_tokens),
    )


def charts(
    metrics: dict[str, Any], joined: Joined, calibrated_N: NDArray[np.float64] | None
) -> dict[str, Markup | None]:
    both_N = ~np.isnan(joined.prob_ab) & ~np.isnan(joined.prob_ba)
    tokens_N, cut_N = (values[~np.isnan(values)] for values in (joined.tokens, joined.cut_tokens))
    return {
        "reliability": reliability_chart(
            calibration_bins(joined.prob, joined.label),
            calibration_bins(calibrated_N, joined.label) if calibrated_N is not None else None,
            joined.prob,
        ),
        "position": position_chart(joined.prob_ab[both_N], joined.prob_ba[both_N]) if both_N.any() else None,
        "by_language": slices_chart(metrics, "by_language", "language"),
        "by_length": slices_chart(metrics, "by_length", "tokens of one ordering"),
        "by_source": slices_chart(metrics, "by_source", "source"),
        "lengths": lengths_chart(tokens_N) if len(tokens_N) else None,
        "cut": cut_chart(cut_N[cut_N > 0]) if (cut_N > 0).any() else None,
    }


def slices_chart(metrics: dict[str, Any], key: str, what: str) -> Markup | None:
    estimates = [
        Estimate(
            visible(name).replace("-", "–") if key == "by_length" else visible(name),
            one["rows"],
            one["accuracy"],
            one["accuracy_ci95"],
        )
        for name, one in large_slices(metrics[key]).items()
    ]
    # One slice of all rows would only repeat the headline.
    several = len(metrics[key]) > 1 and estimates
    return estimates_chart(estimates, metrics["accuracy"], what) if several else None


def large_slices(slices: dict[str, Any]) -> dict[str, Any]:
    """The first slices that are large enough for a chart: a tiny slice has a wide interval."""
    return dict([item for item in slices.items() if item[1]["rows"] >= LEAST_ROWS][:MOST_LINES])


def lengths_chart(tokens_N: NDArray[np.float64]) -> Markup:
    high = max(float(tokens_N.max()), 1.0)
    described = f"Histogram of tokens of one ordering: median {np.median(tokens_N):,.0f}, most {high:,.0f}."
    ticks = [(at, f"{at:,.0f}") for at in nice_ticks(0, high)]
    return histogram_chart(tokens_N, np.linspace(0, high, 41), ticks, "tokens of one ordering", described)


def cut_chart(cut_N: NDArray[np.float64]) -> Markup:
    """By powers of two: most cuts are small and a few are huge."""
    power_N = np.log2(cut_N)
    low, high = float(np.floor(power_N.min())), float(np.floor(power_N.max())) + 1
    ticks = [
        (power, f"{2**power:,.0f}") for power in np.arange(low, high + 1, max(1, round((high - low) / 6)))
    ]
    middle, most = np.median(cut_N), cut_N.max()
    described = f"Histogram of tokens cut from {len(cut_N):,} rows: median {middle:,.0f}, most {most:,.0f}."
    edges = np.arange(low, high + 0.25, 0.5)
    return histogram_chart(power_N, edges, ticks, "tokens cut (doubling scale)", described)


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


def mistake_for_page(mistake: Mistake) -> dict[str, Any]:
    """What the template needs of one mistake."""
    predicted, prob = ("A", mistake.prob_a) if mistake.prob_a > 0.5 else ("B", 1 - mistake.prob_a)
    share = max(mistake.label, 1 - mistake.label)
    chosen = "B" if predicted == "A" else "A"
    voted = f"people chose {chosen}" if share == 1 else f"{share:.0%} of the vote went to {chosen}"
    titles = {"Prompt": "prompt", "Response A": "response_a", "Response B": "response_b"}
    marks = {f"Response {predicted}": " (predicted)", f"Response {chosen}": " (chosen)"}
    return mistake._asdict() | {
        "predicted": predicted,
        "confidence": prob,
        "voted": voted,
        "texts": [
            excerpt(title + marks.get(title, ""), mistake.pair[name]) for title, name in titles.items()
        ],
    }


def excerpt(title: str, text: str) -> dict[str, Any]:
    """A text cut for the page: what is shown, what can be opened, how much is in neither."""
    cut = HEAD_CHARACTERS if len(text) > HEAD_CHARACTERS * 1.2 else len(text)
    return {
        "title": title,
        "head": visible(text[:cut]),
        "rest": visible(text[cut:MOST_CHARACTERS]),
        "left_out": max(0, len(text) - MOST_CHARACTERS),
    }


def flatten(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Dotted names and short values of nested settings; a long list shows its first three."""
    if isinstance(value, dict) and value:
        return [
            pair for key, inner in value.items() for pair in flatten(inner, f"{name}.{key}" if name else key)
        ]
    if isinstance(value, list):
        more = f", … {len(value) - 3:,} more" if len(value) > 3 else ""
        value = ", ".join(str(one)[:120] for one in value[:3]) + more
    return [(name, str(value)[:300])]


def known_share(condition_N: NDArray[np.bool_], values_N: NDArray[np.float64]) -> float | None:
    known_N = ~np.isnan(values_N)
    return float(condition_N[known_N].mean()) if known_N.any() else None


def percent(value: float | None, places: int = 1) -> str:
    return "–" if value is None else f"{value * 100:.{places}f}"


def decimals(value: float | None, places: int = 3) -> str:
    return "–" if value is None else f"{value:.{places}f}".replace("-", "−")


def whole(value: float) -> str:
    return f"{value:,.0f}"
