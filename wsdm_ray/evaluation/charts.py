"""The charts of the pages as inline SVG.

They are drawn by hand because the style sheet must reach every mark. Each says its values in words:
`aria-label` for those who cannot see it, `title` where a pointer rests. Shape suffix: N rows.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from wsdm_ray.evaluation.metrics import CalibrationBins
from wsdm_ray.evaluation.svg import (
    Axis,
    bars,
    circle,
    hover_bands,
    line,
    nice_ticks,
    polyline,
    share_ticks,
    svg,
    text,
    whisker,
    x_axis,
    y_axis,
)
from wsdm_ray.statistics import Floats, wilson_interval

__all__ = ["Curve", "curve_chart", "histogram_chart", "position_chart", "reliability_chart", "roc_chart"]

LEVELS = 6
"""Shades of the position map."""
HOVERED = 60
"""A curve says its value at so many places at most."""


class Curve(NamedTuple):
    """One ROC curve."""

    name: str
    false_positives: Floats
    true_positives: Floats
    area: float


def reliability_chart(bins: CalibrationBins, calibrated: CalibrationBins | None, prob_N: Floats) -> Markup:
    """Share of votes for A against its predicted probability, above the histogram of the predictions."""
    x, y = Axis(0, 1, 50, 396), Axis(0, 1, 316, 26)
    low, high = wilson_interval(np.clip(bins.observed, 0, 1), bins.rows)
    parts = [
        x_axis(x, 26, 316, share_ticks(), ""),
        y_axis(y, 50, 396, share_ticks(), "share of votes for A"),
        line(x.at(0), y.at(0), x.at(1), y.at(1), "ref"),
    ]
    if calibrated:
        points = " ".join(
            f"{x.at(at)},{y.at(seen)}"
            for at, seen in zip(calibrated.predicted, calibrated.observed, strict=True)
        )
        parts.append(Markup('<polyline points="{}" class="second"/>').format(points))
    for rows, at, seen, bottom, top in zip(*bins, low, high, strict=True):
        said = f"{rows:,.0f} rows predicted {at:.1%}, voted {seen:.1%} [{bottom:.1%}, {top:.1%}]"
        parts.append(whisker(x.at(at), y.at(bottom), x.at(at), y.at(top)))
        parts.append(circle(x.at(at), y.at(seen), 4, "mark", said))
    counts, edges = np.histogram(prob_N, bins=40, range=(0, 1))
    below = Axis(0, max(int(counts.max()), 1), 396, 344)
    parts += [
        bars(x, below, counts.tolist(), edges.tolist(), [f"{count:,} rows" for count in counts]),
        line(50, 396, 396, 396, "base"),
        text(44, 350, f"{counts.max():,}", "end"),
        text(44, 399, "0", "end"),
        text(44, 375, "rows", "end title"),
        text(223, 418, "predicted probability of A", "middle title"),
    ]
    pairs = "; ".join(f"{at:.0%} {seen:.0%}" for at, seen in zip(bins.predicted, bins.observed, strict=True))
    described = (
        f"Reliability diagram: {len(bins.rows)} groups of about {bins.rows.mean():,.0f} rows."
        f" Predicted against voted: {pairs}."
    )
    return svg(426, described, parts)


def roc_chart(curves: Sequence[Curve]) -> Markup:
    """True positive rate by false positive rate of up to four sets of predictions; A winning is positive."""
    x, y = Axis(0, 1, 50, 396), Axis(0, 1, 372, 26)
    parts = [
        x_axis(x, 26, 372, share_ticks(), "A predicted where B won"),
        y_axis(y, 50, 396, share_ticks(), "A predicted where A won"),
        line(x.at(0), y.at(0), x.at(1), y.at(1), "ref"),
    ]
    for place, curve in enumerate(curves):
        # The bends of a long curve lie closer than a pixel.
        kept = np.unique(np.linspace(0, len(curve.false_positives) - 1, 300).astype(int))
        rates = curve.false_positives[kept], curve.true_positives[kept]
        parts.append(polyline(*rates, x, y, f"roc-{place + 1}"))
    at = np.linspace(0, 1, 51)
    heights = [np.interp(at, curve.false_positives, curve.true_positives) for curve in curves]
    words = [
        f"{share:.0%} where B won: "
        + "; ".join(
            f"{f'{curve.name} ' if len(curves) > 1 else ''}{height[row]:.1%} where A won"
            for curve, height in zip(curves, heights, strict=True)
        )
        for row, share in enumerate(at.tolist())
    ]
    parts.append(hover_bands(x, 26, 372, at.tolist(), words))
    areas = "; ".join(f"{curve.name} {curve.area:.3f}" for curve in curves)
    return svg(412, f"ROC curve; area below it: {areas}.", parts)


def position_chart(prob_ab_N: Floats, prob_ba_N: Floats) -> Markup:
    """Map of the probability of A when it comes first (x) and when it comes second (y)."""
    x, y, cells = Axis(0, 1, 50, 396), Axis(0, 1, 372, 26), 25
    counts, *_ = np.histogram2d(prob_ab_N, prob_ba_N, bins=cells, range=((0, 1), (0, 1)))
    edges = np.linspace(0, 1, cells + 1).tolist()
    # By square root: a few full corners would make everything else invisible.
    shade = np.ceil(np.sqrt(counts / counts.max()) * LEVELS).astype(int)
    side = round(346 / cells, 1)
    parts = [
        x_axis(x, 26, 372, share_ticks(), "probability of A when A comes first"),
        y_axis(y, 50, 396, share_ticks(), "probability of A when A comes second"),
    ]
    cell = Markup('<path d="M{} {}h{}v{}h-{}z" class="bar" opacity="{}"><title>{} rows</title></path>')
    parts += [
        cell.format(
            x.at(edges[i]), y.at(edges[j + 1]), side, side, side, round(shade[i, j] / LEVELS, 2),
            f"{counts[i, j]:,.0f}",
        )
        for i, j in np.argwhere(counts > 0).tolist()
    ]  # fmt: skip
    parts += [
        line(x.at(0), y.at(0), x.at(1), y.at(1), "ref"),
        line(x.at(0.5), 26, x.at(0.5), 372, "half"),
        line(50, y.at(0.5), 396, y.at(0.5), "half"),
        text(390, 364, "first is favoured", "end note"),
        text(56, 41, "second is favoured", "note"),
    ]
    shares = [
        float(np.mean((prob_ab_N > 0.5) & (prob_ba_N < 0.5))),
        float(np.mean((prob_ab_N < 0.5) & (prob_ba_N > 0.5))),
    ]
    described = (
        "Density of the probability of A when it comes first against when it comes second."
        f" In {shares[0]:.1%} of the rows whichever comes first wins, in {shares[1]:.1%} the second."
    )
    return svg(412, described, parts)


def histogram_chart(
    values_N: Floats,
    edges: Floats,
    ticks: Sequence[tuple[float, str]],
    title: str,
    described: str,
    scale: Callable[[float], float] = float,
) -> Markup:
    """Number of rows by value; `ticks` are (position, label).

    `scale` makes of an edge the value that it is of, so that the axis may be a logarithm.
    """
    counts, _ = np.histogram(values_N, bins=edges)
    values = [scale(edge) for edge in edges.tolist()]
    words = [
        f"{low:,.0f} to {high:,.0f}: {count:,} rows"
        for low, high, count in zip(values, values[1:], counts.tolist(), strict=False)
    ]
    x, y = Axis(float(edges[0]), float(edges[-1]), 50, 394), Axis(0, max(int(counts.max()), 1), 196, 26)
    parts = [
        y_axis(y, 50, 394, [(at, f"{at:,.0f}") for at in nice_ticks(0, y.high) if at == int(at)], "rows"),
        bars(x, y, counts.tolist(), edges.tolist(), words),
        line(50, 196, 394, 196, "base"),
        x_axis(x, 196, 200, ticks, title),
    ]
    return svg(242, described, parts)


def curve_chart(
    steps: Floats,
    values: Floats,
    title: str,
    *,
    smooth: Floats | None = None,
    points: Sequence[tuple[float, float, Sequence[float] | None]] = (),
    form: str = "g",
) -> Markup:
    """A value by step, faint where it has a firm `smooth` line; `points` are (step, value, interval).

    The scale leaves out what lies beyond three times the range of the middle nine tenths: one wild step would
    flatten all others. Intervals are always whole.
    """
    shown = np.concatenate([smooth if smooth is not None else values, [point[1] for point in points]])
    low, high = np.quantile(shown, [0.05, 0.95])
    low, high = max(shown.min(), low - (high - low)), min(shown.max(), high + (high - low))
    whole = [end for _, _, interval in points for end in interval or ()]
    low, high = min([low, *whole]), max([high, *whole])
    if high - low < 1e-6 * abs(high):  # one value, but for rounding
        low = high = float(np.median(shown))
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    x, y = Axis(float(steps[0]) - 1, float(steps[-1]), 62, 396), Axis(low - margin, high + margin, 216, 26)
    parts = [
        y_axis(y, 62, 396, [(at, format(at, form)) for at in nice_ticks(y.low, y.high)], title),
        x_axis(x, 26, 216, [(at, f"{at:,.0f}") for at in nice_ticks(x.low, x.high)], "step"),
    ]
    if smooth is not None:
        parts.append(polyline(steps, values, x, y, "faint"))
    parts.append(polyline(steps, values if smooth is None else smooth, x, y, "first"))
    parts.append(step_bands(steps, values, smooth, x))
    for step, value, interval in points:
        at = y.at(min(max(value, y.low), y.high))
        if interval:
            parts.append(
                whisker(x.at(step), y.at(interval[0]), x.at(step), y.at(interval[1]), "whisker-second")
            )
        ends = f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else ""
        parts.append(circle(x.at(step), at, 4, "mark-second", f"step {step:,.0f}: {value:.4g}{ends}"))
    ends_at = values[-1] if smooth is None else smooth[-1]
    described = f"{title} over {len(steps):,} steps: from {values[0]:.4g}, at the end {ends_at:.4g}."
    return svg(258, described, parts)


def step_bands(steps: Floats, values: Floats, smooth: Floats | None, x: Axis) -> Markup:
    """What a curve says where a pointer rests: the step, its value, and the running mean."""
    kept = np.unique(np.linspace(0, len(steps) - 1, HOVERED).astype(int)).tolist()
    words = [
        f"step {steps[row]:,.0f}: {values[row]:.4g}"
        + (f", running mean {smooth[row]:.4g}" if smooth is not None else "")
        for row in kept
    ]
    return hover_bands(x, 26, 216, steps[kept].tolist(), words)
