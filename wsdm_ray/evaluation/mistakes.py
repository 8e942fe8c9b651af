"""The most confident mistakes, with their texts cut for a page.

Shape suffix: N rows.
"""

from typing import Any, NamedTuple

import numpy as np

from wsdm_ray.evaluation.pages import visible
from wsdm_ray.statistics import Floats

__all__ = ["Mistake", "confident_mistakes", "excerpt", "mistake_for_page"]

HEAD_CHARACTERS = 280
"""The report shows so many characters of a text at first."""
MOST_CHARACTERS = 6_000
"""The page holds so many characters of a text: with ten pairs of 5 MB answers it must open on a phone."""


class Mistake(NamedTuple):
    """A row whose winner is predicted wrong."""

    id: Any
    prob_a: float
    label: float
    language: str | None
    tokens: int | None
    pair: dict[str, str]
    """The three texts by their column."""


def confident_mistakes(prob_N: Floats, label_N: Floats, most: int = 10) -> list[int]:
    """Rows whose winner is predicted wrong, the furthest from its label first; at most `most` row numbers."""
    distance_N = np.where((prob_N - 0.5) * (label_N - 0.5) < 0, np.abs(prob_N - label_N), 0)
    first = np.argsort(-distance_N, kind="stable")[:most]
    return [int(row) for row in first if distance_N[row] > 0]


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
