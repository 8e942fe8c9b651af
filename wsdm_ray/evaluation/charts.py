"""Inline SVG charts for the report, coloured by the page's style sheet, so that they follow its dark mode.

They are drawn by hand because the style sheet must reach every mark (classes `mark`, `ref`, `grid`, ...) and
because labels are hostile text: `Markup.format` escapes all of it. Sizes are in SVG units. A chart is 420
wide and scales.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from wsdm_ray.evaluation.metrics import CalibrationBins
from wsdm_ray.statistics import Floats, wilson_interval

__all__ = [
    "Estimate",
    "curve_chart",
    "estimates_chart",
    "histogram_chart",
    "position_chart",
    "reliability_chart",
]

WIDTH = 420
LEVELS = 6
"""Shades of the position map."""


class Estimate(NamedTuple):
    """One line of an estimates chart."""

    label: str
    rows: int
    value: float
    interval: Sequence[float] | None


class Axis(NamedTuple):
    """Values `low..high`, drawn at `start..end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        part = (value - self.low) / (self.high - self.low)
        return round(self.start + part * (self.end - self.start), 1)


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` round numbers from `low` to `high`."""
    raw = (high - low) / (most - 1) or 1.0
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(step * scale for step in (1, 2, 5, 10) if step * scale >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(x1, y1, x2, y2, kind)


def text(x: float, y: float, content: str, kind: str) -> Markup:
    return Markup('<text x="{}" y="{}" class="{}">{}</text>').format(x, y, kind, content)


def svg(height: float, description: str, parts: Iterable[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, description, Markup("").join(parts)
    )


def x_axis(axis: Axis, top: float, bottom: float, ticks: Iterable[tuple[float, str]], title: str) -> Markup:
    parts = [line(axis.at(at), top, axis.at(at), bottom, "grid") for at, _ in ticks]
    parts += [text(axis.at(at), bottom + 16, label, "middle") for at, label in ticks]
    parts.append(text((axis.start + axis.end) / 2, bottom + 36, title, "middle title"))
    return Markup("").join(parts)


def y_axis(axis: Axis, left: float, right: float, ticks: Iterable[tuple[float, str]], title: str) -> Markup:
    parts = [line(left, axis.at(at), right, axis.at(at), "grid") for at, _ in ticks]
    parts += [text(left - 6, axis.at(at) + 4, label, "end") for at, label in ticks]
    parts.append(text(4, axis.end - 13, title, "title"))  # level, above: a turned one is hard to read
    return Markup("").join(parts)


def bars(x: Axis, y: Axis, counts: Sequence[float], edges: Sequence[float], kind: str = "bar") -> Markup:
    """Histogram bars as one path, a hair apart."""
    path = "".join(
        f"M{x.at(low) + 0.5:.1f} {y.at(0)}V{y.at(count)}H{x.at(high) - 0.5:.1f}V{y.at(0)}z"
        for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True)
        if count
    )
    return Markup('<path d="{}" class="{}"/>').format(path, kind)


def share_ticks(step: float = 0.25) -> list[tuple[float, str]]:
    return [(at, f"{at:.0%}".replace("%", " %")) for at in np.arange(0, 1 + step / 2, step).tolist()]


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
        parts.append(line(x.at(at), y.at(bottom), x.at(at), y.at(top), "whisker"))
        parts.append(
            Markup('<circle cx="{}" cy="{}" r="4" class="mark"><title>{}</title></circle>').format(
                x.at(at),
                y.at(seen),
                f"{rows:,.0f} rows predicted {at:.1%}, voted {seen:.1%} [{bottom:.1%}, {top:.1%}]",
            )
        )
    counts, edges = np.histogram(prob_N, bins=40, range=(0, 1))
    below = Axis(0, max(int(counts.max()), 1), 396, 344)
    parts += [
        bars(x, below, counts.tolist(), edges.tolist()),
        line(50, 396, 396, 396, "base"),
        text(44, 352, f"{counts.max():,}", "end"),
        text(44, 399, "0", "end"),
        text(44, 376, "rows", "end title"),
        text(223, 418, "predicted probability of A", "middle title"),
    ]
    pairs = "; ".join(f"{at:.0%} {seen:.0%}" for at, seen in zip(bins.predicted, bins.observed, strict=True))
    described = (
        f"Reliability diagram: {len(bins.rows)} groups of about {bins.rows.mean():,.0f} rows."
        f" Predicted against voted: {pairs}."
    )
    return svg(426, described, parts)


def position_chart(prob_ab_N: Floats, prob_ba_N: Floats) -> Markup:
    """Map of the probability of A when it stands first (x) and when it stands second (y)."""
    x, y, cells = Axis(0, 1, 50, 396), Axis(0, 1, 372, 26), 30
    counts, *_ = np.histogram2d(prob_ab_N, prob_ba_N, bins=cells, range=((0, 1), (0, 1)))
    edges = np.linspace(0, 1, cells + 1).tolist()
    # By square root: a few full corners would make everything else invisible.
    shade = np.ceil(np.sqrt(counts / counts.max()) * LEVELS).astype(int)
    side = round(346 / cells, 1)
    parts = [
        x_axis(x, 26, 372, share_ticks(), "probability of A when A stands first"),
        y_axis(y, 50, 396, share_ticks(), "probability of A when A stands second"),
    ]
    for level in range(1, LEVELS + 1):
        path = "".join(
            f"M{x.at(edges[i])} {y.at(edges[j + 1])}h{side}v{side}h-{side}z"
            for i, j in np.argwhere(shade == level).tolist()
        )
        parts.append(Markup('<path d="{}" class="bar" opacity="{}"/>').format(path, round(level / LEVELS, 2)))
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
        "Density of the probability of A when it stands first against when it stands second."
        f" In {shares[0]:.1%} of the rows whichever stands first wins, in {shares[1]:.1%} the second."
    )
    return svg(412, described, parts)


def estimates_chart(estimates: Sequence[Estimate], overall: float, what: str) -> Markup:
    """Accuracy with its interval and the number of rows, one line an estimate; dashed: all rows."""
    step, top = 26, 26
    bottom = top + step * len(estimates) + 4
    ends = [end for estimate in estimates for end in (estimate.interval or [estimate.value])]
    low = max(0.0, math.floor(min([*ends, overall, 0.5]) * 20 - 0.2) / 20)
    high = min(1.0, math.ceil(max([*ends, overall, 0.5]) * 20 + 0.2) / 20)
    x = Axis(low, high, 134, 356)
    ticks = [(at, f"{at * 100:g} %") for at in nice_ticks(low, high)]
    parts = [
        x_axis(x, top, bottom, ticks, "accuracy"),
        line(x.at(0.5), top, x.at(0.5), bottom, "half"),
        line(x.at(overall), top, x.at(overall), bottom, "ref"),
        text(x.at(overall), top - 10, f"all {overall * 100:.1f} %", "middle note"),
        text(414, top - 10, "rows", "end note"),
    ]
    for row, estimate in enumerate(estimates):
        y = top + step * (row + 0.5) + 2
        if estimate.interval:
            parts.append(line(x.at(estimate.interval[0]), y, x.at(estimate.interval[1]), y, "whisker"))
        shown = estimate.label if len(estimate.label) <= 14 else estimate.label[:13] + "…"
        parts += [
            Markup('<circle cx="{}" cy="{}" r="4.5" class="mark"><title>{}</title></circle>').format(
                x.at(estimate.value), y, f"{estimate.label}: {estimate.value:.1%} of {estimate.rows:,} rows"
            ),
            text(124, y + 4, shown, "end label"),
            text(414, y + 4, f"{estimate.rows:,}", "end"),
        ]
    listed = "; ".join(f"{one.label} {one.value:.1%} of {one.rows:,}" for one in estimates)
    return svg(bottom + 44, f"Accuracy by {what}: {listed}.", parts)


def histogram_chart(
    values_N: Floats, edges: Floats, ticks: Sequence[tuple[float, str]], title: str, described: str
) -> Markup:
    """Number of rows by value; `ticks` are (position, label), so that the scale may be a logarithm."""
    counts, _ = np.histogram(values_N, bins=edges)
    x, y = Axis(float(edges[0]), float(edges[-1]), 50, 394), Axis(0, max(int(counts.max()), 1), 196, 26)
    parts = [
        y_axis(y, 50, 394, [(at, f"{at:,.0f}") for at in nice_ticks(0, y.high) if at == int(at)], "rows"),
        bars(x, y, counts.tolist(), edges.tolist()),
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
    flatten all others.
    """
    shown = np.concatenate([smooth if smooth is not None else values, [point[1] for point in points]])
    low, high = np.quantile(shown, [0.05, 0.95])
    low, high = max(shown.min(), low - (high - low)), min(shown.max(), high + (high - low))
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
    for step, value, interval in points:
        if interval:
            ends = [y.at(min(max(end, y.low), y.high)) for end in interval]
            parts.append(line(x.at(step), ends[0], x.at(step), ends[1], "whisker-second"))
        parts.append(
            Markup('<circle cx="{}" cy="{}" r="4" class="mark-second"><title>{}</title></circle>').format(
                x.at(step), y.at(min(max(value, y.low), y.high)), f"step {step:,.0f}: {value:.4g}"
            )
        )
    ends_at = values[-1] if smooth is None else smooth[-1]
    described = f"{title} over {len(steps):,} steps: from {values[0]:.4g}, at the end {ends_at:.4g}."
    return svg(258, described, parts)


def polyline(steps: Floats, values: Floats, x: Axis, y: Axis, kind: str) -> Markup:
    inside = np.clip(values, y.low, y.high).tolist()
    points = " ".join(f"{x.at(step)},{y.at(at)}" for step, at in zip(steps.tolist(), inside, strict=True))
    return Markup('<polyline points="{}" class="{}"/>').format(points, kind)
