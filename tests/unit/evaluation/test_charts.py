"""Charts: nothing is drawn outside of its plot, and every mark says what it is."""

import re

import numpy as np
import pytest
from markupsafe import Markup

from wsdm_ray.evaluation.charts import Curve, curve_chart, histogram_chart, roc_chart
from wsdm_ray.evaluation.forest import Estimate, Mark, estimates_chart, ratings_chart
from wsdm_ray.evaluation.svg import shortened


def lines(chart: Markup, kind: str) -> list[list[float]]:
    found = re.findall(rf'<line x1="([^"]*)" y1="([^"]*)" x2="([^"]*)" y2="([^"]*)" class="{kind}"/>', chart)
    return [[float(value) for value in each] for each in found]


@pytest.mark.parametrize("interval", [[0.0, 1.0], [0.5, 0.999], [0.499, 0.501], [0.72, 0.98], [0.0, 0.001]])
def test_accuracy_intervals_end_within_the_plot(interval):
    chart = estimates_chart([Estimate("x", 9, sum(interval) / 2, interval)], 0.7, "language")
    whiskers = lines(chart, "whisker")
    assert len(whiskers) == 3
    assert all(134 <= x <= 356 for x1, _, x2, _ in whiskers for x in (x1, x2))
    assert whiskers[0][2] > whiskers[0][0] or interval[1] - interval[0] < 0.01
    assert f"[{interval[0]:.1%}, {interval[1]:.1%}] of 9 rows</title>" in chart


def test_ratings_intervals_end_within_the_plot():
    chart = ratings_chart(
        [("x", 9, [Mark(1000, [-900, 3500], "x by votes"), Mark(1010, [990, 1020], "x by predictions")])]
    )
    ends = [
        x for kind in ("whisker", "whisker-second") for x1, _, x2, _ in lines(chart, kind) for x in (x1, x2)
    ]
    assert len(ends) == 12
    assert all(134 <= x <= 356 for x in ends)
    assert "<title>x by votes</title>" in chart
    assert "<title>x by predictions</title>" in chart


def test_intervals_of_checkpoints_end_within_the_plot():
    steps = np.arange(1.0, 101)
    points = [(50.0, 0.7, [0.1, 0.95]), (100.0, 0.71, [0.69, 0.73])]
    chart = curve_chart(steps, np.full(100, 0.7) + steps / 1e4, "accuracy", points=points)
    whiskers = [each for each in lines(chart, "whisker-second") if each[0] == each[2]]
    assert len(whiskers) == 2
    assert all(26 < y < 216 for _, y1, _, y2 in whiskers for y in (y1, y2))
    assert "step 50: 0.7 [0.1, 0.95]</title>" in chart
    assert "<title>step 1: 0.7001</title>" in chart


def test_histogram_bars_say_their_numbers():
    chart = histogram_chart(
        np.array([0.5, 1.5, 1.6]), np.array([0.0, 1, 2]), [], "x", "x", lambda at: 2.0**at
    )
    assert re.findall("<title>(.*?)</title>", chart) == ["1 to 2: 1 rows", "2 to 4: 2 rows"]


def test_roc_curves_of_several_sets_say_all_their_rates():
    rates = np.array([0.0, 0.5, 1.0]), np.array([0.0, 0.8, 1.0])
    chart = roc_chart([Curve("<x>", *rates, 0.65), Curve("y", rates[0], rates[0], 0.5)])
    assert chart.count("<polyline") == 2
    assert "50% where B won: &lt;x&gt; 80.0% where A won; y 50.0% where A won</title>" in chart


def test_a_long_name_keeps_both_ends():
    assert shortened("claude-3-5-sonnet-20241022", 15) == "claude-3-…41022"
    assert shortened("short", 15) == "short"
