"""Charts of estimates with their intervals, one line each: accuracy by slice, differences, ratings of models.

The axis holds every interval whole.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from wsdm_ray.evaluation.svg import Axis, circle, line, nice_ticks, shortened, svg, text, whisker, x_axis

__all__ = ["Estimate", "Mark", "estimates_chart", "ratings_chart"]

STEP = 26
TOP = 26
LABEL_CHARACTERS = 15


class Estimate(NamedTuple):
    """One line of an estimates chart."""

    label: str
    rows: int
    value: float
    interval: Sequence[float] | None


class Mark(NamedTuple):
    """A value of a line and its interval; `words` appear where the pointer rests."""

    value: float
    interval: Sequence[float] | None
    words: str

    @property
    def ends(self) -> Sequence[float]:
        return self.interval or (self.value,)


def estimates_chart(estimates: Sequence[Estimate], overall: float, what: str) -> Markup:
    """Accuracy with its interval and the number of rows, one line an estimate; dashed: all rows."""
    lines = [
        (
            one.label,
            one.rows,
            [Mark(one.value, one.interval, f"{one.label}: {in_words(one)} of {one.rows:,} rows")],
        )
        for one in estimates
    ]
    ends = [end for _, _, (mark,) in lines for end in mark.ends]
    low = max(0.0, math.floor(min([*ends, overall, 0.5]) * 20 - 0.2) / 20)
    high = min(1.0, math.ceil(max([*ends, overall, 0.5]) * 20 + 0.2) / 20)
    x = Axis(low, high, 134, 356)
    references = [(0.5, "half", ""), (overall, "ref", f"all {overall * 100:.1f} %")]
    listed = "; ".join(f"{one.label} {one.value:.1%} of {one.rows:,}" for one in estimates)
    ticks = [(at, f"{at * 100:g} %") for at in nice_ticks(low, high, 5)]
    return forest(lines, x, ticks, "accuracy", references, f"Accuracy by {what}: {listed}.")


def in_words(estimate: Estimate) -> str:
    ends = f" [{estimate.interval[0]:.1%}, {estimate.interval[1]:.1%}]" if estimate.interval else ""
    return f"{estimate.value:.1%}{ends}"


def ratings_chart(lines: Sequence[tuple[str, int, Sequence[Mark]]]) -> Markup:
    """Ratings of models with their intervals: by votes above, by predictions below.

    Args:
        lines: name, comparisons, and one mark each by votes and by predictions.
    """
    ends = [end for *_, marks in lines for mark in marks for end in mark.ends]
    margin = 0.03 * (max(ends) - min(ends)) or 10.0
    x = Axis(min(ends) - margin, max(ends) + margin, 134, 356)
    ticks = [(at, f"{at:g}") for at in nice_ticks(x.low, x.high, 5)]
    listed = "; ".join(f"{name} {marks[0].value:.0f} and {marks[1].value:.0f}" for name, _, marks in lines)
    return forest(lines, x, ticks, "rating", [], f"Rating by votes and by predictions: {listed}.")


def forest(
    lines: Sequence[tuple[str, int, Sequence[Mark]]],
    x: Axis,
    ticks: Sequence[tuple[float, str]],
    title: str,
    references: Sequence[tuple[float, str, str]],
    described: str,
) -> Markup:
    """Label, marks and rows of each line; `references` are values, their line's class and its words."""
    bottom = TOP + STEP * len(lines) + 4
    parts = [x_axis(x, TOP, bottom, ticks, title), text(414, TOP - 10, "rows", "end note")]
    for value, kind, words in references:
        parts.append(line(x.at(value), TOP, x.at(value), bottom, kind))
        if words:
            parts.append(text(min(max(x.at(value), 165), 340), TOP - 10, words, "middle note"))
    for row, (label, rows, marks) in enumerate(lines):
        y = TOP + STEP * (row + 0.5) + 2
        for place, mark in enumerate(marks):
            second = "-second" if place else ""
            at = y if len(marks) == 1 else y - 5 + 10 * place
            if mark.interval:
                parts.append(
                    whisker(x.at(mark.interval[0]), at, x.at(mark.interval[1]), at, f"whisker{second}")
                )
            parts.append(
                circle(x.at(mark.value), at, 4 if len(marks) > 1 else 4.5, f"mark{second}", mark.words)
            )
        name = Markup('<text x="124" y="{}" class="end label">{}<title>{}</title></text>')
        parts += [
            name.format(y + 4, shortened(label, LABEL_CHARACTERS), label),
            text(414, y + 4, f"{rows:,}", "end"),
        ]
    return svg(bottom + 44, described, parts)
