"""What the charts are drawn with: axes, lines, texts, and words that appear where the pointer rests.

Sizes are in SVG units; a chart is `WIDTH` wide and scales. Labels are hostile text: `Markup.format` escapes
all of it. Colours are the style sheet's, by class (`mark`, `ref`, ...), so that they follow its dark mode.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from wsdm_ray.statistics import Floats

__all__ = [
    "WIDTH",
    "Axis",
    "bars",
    "circle",
    "hover_bands",
    "line",
    "nice_ticks",
    "polyline",
    "share_ticks",
    "shortened",
    "svg",
    "text",
    "whisker",
    "x_axis",
    "y_axis",
]

WIDTH = 420


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
    """A straight line."""
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(x1, y1, x2, y2, kind)


def text(x: float, y: float, content: str, kind: str) -> Markup:
    """A text whose baseline is at `y`."""
    return Markup('<text x="{}" y="{}" class="{}">{}</text>').format(x, y, kind, content)


def svg(height: float, description: str, parts: Iterable[Markup]) -> Markup:
    """A chart of its parts; `description` is what a screen reader says."""
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, description, Markup("").join(parts)
    )


def x_axis(axis: Axis, top: float, bottom: float, ticks: Iterable[tuple[float, str]], title: str) -> Markup:
    """Grid lines from `top` to `bottom` at the ticks (value, label), with the title below."""
    parts = [line(axis.at(at), top, axis.at(at), bottom, "grid") for at, _ in ticks]
    parts += [text(axis.at(at), bottom + 16, label, "middle") for at, label in ticks]
    parts.append(text((axis.start + axis.end) / 2, bottom + 36, title, "middle title"))
    return Markup("").join(parts)


def y_axis(axis: Axis, left: float, right: float, ticks: Iterable[tuple[float, str]], title: str) -> Markup:
    """Grid lines from `left` to `right` at the ticks (value, label), with the title above."""
    parts = [line(left, axis.at(at), right, axis.at(at), "grid") for at, _ in ticks]
    parts += [text(left - 6, axis.at(at) + 4, label, "end") for at, label in ticks]
    parts.append(text(4, axis.end - 13, title, "title"))  # level, above: a turned one is hard to read
    return Markup("").join(parts)


def shortened(label: str, most: int) -> str:
    """At most so many characters, the middle left out: both ends of a model's name tell it from others."""
    head = (most - 1) * 2 // 3
    return label if len(label) <= most else f"{label[:head]}…{label[len(label) - (most - 1 - head) :]}"


def circle(x: float, y: float, radius: float, kind: str, words: str) -> Markup:
    """A dot with words that appear where the pointer rests."""
    return Markup('<circle cx="{}" cy="{}" r="{}" class="{}"><title>{}</title></circle>').format(
        x, y, radius, kind, words
    )


def whisker(x1: float, y1: float, x2: float, y2: float, kind: str = "whisker") -> Markup:
    """An interval: a line with short ends across, so that it is seen to end within the plot."""
    across, along = (0, 3.5) if y1 == y2 else (3.5, 0)
    ends = [line(x - across, y - along, x + across, y + along, kind) for x, y in ((x1, y1), (x2, y2))]
    return Markup("").join([line(x1, y1, x2, y2, kind), *ends])


def bars(
    x: Axis, y: Axis, counts: Sequence[float], edges: Sequence[float], words: Sequence[str], kind: str = "bar"
) -> Markup:
    """Histogram bars, a hair apart."""
    return Markup("").join(
        Markup('<path d="{}" class="{}"><title>{}</title></path>').format(
            f"M{x.at(low) + 0.5:.1f} {y.at(0)}V{y.at(count)}H{x.at(high) - 0.5:.1f}V{y.at(0)}z", kind, said
        )
        for count, low, high, said in zip(counts, edges[:-1], edges[1:], words, strict=True)
        if count
    )


def hover_bands(x: Axis, top: float, bottom: float, at: Sequence[float], words: Sequence[str]) -> Markup:
    """Invisible upright bands, each of the places nearest to one of `at` (ascending), that say something."""
    middles = [x.at((one + other) / 2) for one, other in pairwise(at)]
    edges = [min(x.start, x.at(at[0])), *middles, max(x.end, x.at(at[-1]))]
    band = Markup('<rect x="{}" y="{}" width="{}" height="{}" class="hit"><title>{}</title></rect>')
    return Markup("").join(
        band.format(low, top, round(high - low, 1), bottom - top, said)
        for (low, high), said in zip(pairwise(edges), words, strict=True)
    )


def share_ticks(step: float = 0.25) -> list[tuple[float, str]]:
    """Ticks from 0 to 1, labelled in percent."""
    return [(at, f"{at:.0%}".replace("%", " %")) for at in np.arange(0, 1 + step / 2, step).tolist()]


def polyline(steps: Floats, values: Floats, x: Axis, y: Axis, kind: str) -> Markup:
    """A line through the points, float64 (N,) each; values beyond the axis are drawn at its end."""
    inside = np.clip(values, y.low, y.high).tolist()
    points = " ".join(f"{x.at(step)},{y.at(at)}" for step, at in zip(steps.tolist(), inside, strict=True))
    return Markup('<polyline points="{}" class="{}"/>').format(points, kind)
