"""Adaptive orders: one ordering of the first model, and all the others only where that leaves doubt."""

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.scoring.conftest import column, random_rows, swapped
from tests.unit.scoring.fakes import spoiling_first
from wsdm_ray.schema import Ordering, first_ordering
from wsdm_ray.scoring.probabilities import NOT_FINITE


def once_and_again(table: pa.Table) -> np.ndarray:
    """Which rows were run in both orderings: bool [N]."""
    return np.array([value is not None for value in table["prob_a_ab"].to_pylist()]) & np.array(
        [value is not None for value in table["prob_a_ba"].to_pylist()]
    )


@pytest.mark.parametrize("threshold", [0.05, 0.1, 0.5])
def test_runs_again_what_the_first_ordering_leaves_in_doubt(score, threshold):
    rows = random_rows(50, seed=8)
    same = [*rows["response_a"].to_pylist()[:3], *rows["response_b"].to_pylist()[3:]]
    rows = rows.set_column(3, "response_b", pa.array(same))
    both, _ = score(rows)
    table, [report] = score(rows, orders="adaptive", adaptive_threshold=threshold)
    ab, ba = (column(both, name).astype(float) for name in ("prob_a_ab", "prob_a_ba"))
    ba_first = [
        first_ordering(*pair) is Ordering.BA
        for pair in zip(rows["response_a"].to_pylist(), rows["response_b"].to_pylist(), strict=True)
    ]
    first = np.where(ba_first, ba, ab)
    equal = ab + ba == 1  # the same tokens in both orderings
    assert 3 <= equal.sum() < 6
    assert equal[:3].all()
    doubt = np.abs(first - 0.5) < threshold
    assert (np.abs(np.abs(first - 0.5) - threshold) > 1e-5).all(), "no row's rounding decides"
    np.testing.assert_array_equal(once_and_again(table), doubt | equal)
    expected = np.where(equal, 0.5, np.where(doubt, column(both, "prob_a"), first))
    np.testing.assert_allclose(column(table, "prob_a"), expected, rtol=0, atol=1e-5)
    assert (column(table, "prob_a")[equal] == 0.5).all()
    for i in np.flatnonzero(~doubt & ~equal):
        row = table.slice(int(i), 1).to_pylist()[0]
        assert row["prob_a"] == row["prob_a_ba" if ba_first[i] else "prob_a_ab"]
        assert row["prob_a_ab" if ba_first[i] else "prob_a_ba"] is None
    assert report.rerun == (doubt & ~equal).sum() > 0
    assert threshold == 0.5 or report.rerun < 40
    assert report.errors == 0


@pytest.mark.parametrize("layout", ["padded", "packed", "shared"])
def test_swapped_rows_give_exactly_the_rest(score, classifiers, layout):
    rows = random_rows(40, seed=1)
    options = {"layout": layout, "orders": "adaptive", "adaptive_threshold": 0.1, "logits": True}
    for models, weights in ((classifiers[:1], ()), (classifiers, (1.0, 0.3))):
        table, [report] = score(rows, models=models, model_weights=weights, **options)
        turned, [other] = score(swapped(rows), models=models, model_weights=weights, **options)
        assert 0 < report.rerun == other.rerun < 40
        for name, twin in (("prob_a", "prob_a"), ("prob_a_ab", "prob_a_ba"), ("prob_a_ba", "prob_a_ab")):
            np.testing.assert_array_equal(column(turned, name), np.float32(1) - column(table, twin))
        np.testing.assert_array_equal(column(turned, "logit_ab"), -column(table, "logit_ba"))


def test_a_rows_company_does_not_decide(score):
    rows = random_rows(30, seed=3)
    options = {"orders": "adaptive", "adaptive_threshold": 0.1}
    expected, _ = score(rows, **options)
    order = np.random.default_rng(0).permutation(30)
    for taken, more in (
        (np.arange(30), {"unit_rows": 7, "layout": "shared"}),
        (order, {"token_budget": 250}),
    ):
        table, _ = score(rows.take(pa.array(taken)), **options, **more)
        np.testing.assert_array_equal(once_and_again(table), once_and_again(expected)[taken])
        np.testing.assert_allclose(
            column(table, "prob_a"), column(expected, "prob_a")[taken], rtol=0, atol=1e-5
        )


def test_later_models_see_only_the_doubtful_rows(score, classifiers):
    rows = random_rows(40, seed=9)
    options = {"orders": "adaptive", "adaptive_threshold": 0.1}
    alone, _ = score(rows, **options)
    all_of_it, _ = score(rows, models=classifiers, model_weights=(3.0, 1.0))
    table, [report] = score(rows, models=classifiers, model_weights=(3.0, 1.0), **options)
    doubt = once_and_again(alone)
    assert 0 < doubt.sum() == report.rerun < 40
    np.testing.assert_array_equal(once_and_again(table), doubt)
    expected = np.where(doubt, column(all_of_it, "prob_a"), column(alone, "prob_a"))
    np.testing.assert_allclose(column(table, "prob_a"), expected, rtol=0, atol=1e-5)


def test_rows_with_errors(score):
    rows = random_rows(8, seed=7).set_column(1, "prompt", pa.array([None, *["what?"] * 7]))
    # The longest row of each of the two micro-batches comes first in it.
    options = {"adaptive_threshold": 0.5, "token_budget": 100_000, "change": spoiling_first}
    table, [report] = score(rows, orders="adaptive", **options)
    errors = table["error"].to_pylist()
    assert errors[0] == "prompt is null"
    assert sorted(error for error in errors if error) == ["prompt is null", *[NOT_FINITE] * 2]
    assert [value is None for value in table["prob_a"].to_pylist()] == [bool(error) for error in errors]
    assert report.errors == 3
    assert report.rerun == 6, "a row that failed in the first ordering is not run again"
