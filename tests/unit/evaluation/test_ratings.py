"""Bradley-Terry ratings: the greatest likelihood, intervals that cover, and models that have no rating."""

import math
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from wsdm_ray.evaluation import ratings
from wsdm_ray.evaluation.ratings import Games, fit_strengths, model_ratings, rated_together
from wsdm_ray.statistics import sigmoid


def rate(
    model_a: list[Any], model_b: list[Any], label: Any, prob: Any = None, **options: Any
) -> dict[str, Any]:
    share = np.array(label, float)
    found = model_ratings(
        np.array(model_a, object), np.array(model_b, object), share,
        share if prob is None else np.array(prob, float), np.arange(len(share)),
        **({"resamples": 50, "seed": 0} | options),
    )  # fmt: skip
    assert found is not None
    return found


def by_name(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {model["name"]: model for model in found["models"]}


def tournament(rows: int, strengths: np.ndarray, seed: int) -> tuple[list[str], list[str], np.ndarray]:
    random = np.random.default_rng(seed)
    first = random.integers(0, len(strengths), rows)
    second = (first + random.integers(1, len(strengths), rows)) % len(strengths)
    won = random.random(rows) < sigmoid(strengths[first] - strengths[second])
    return [f"m{at}" for at in first], [f"m{at}" for at in second], won.astype(float)


def test_three_of_four_by_hand():
    found = rate(["x", "y", "x", "x"], ["y", "x", "y", "y"], [1, 0, 1, 0])
    x, y = by_name(found)["x"], by_name(found)["y"]
    # Odds of 3 to 1, around a mean of 1000.
    assert x["votes"]["rating"] - y["votes"]["rating"] == pytest.approx(400 * math.log10(3))
    assert x["votes"]["rating"] + y["votes"]["rating"] == pytest.approx(2000)
    assert (x["votes"]["win_rate"], y["votes"]["win_rate"]) == (0.75, 0.25)
    assert x["rows"] == y["rows"] == 4
    assert found["models"][0] is x
    assert found["unrated"] == []
    assert found["rank_correlation"] is None


def test_ties_and_soft_labels_are_shares_of_a_win():
    tied = rate(["x", "x"], ["y", "y"], [0.5, 0.5])
    assert [model["votes"]["rating"] for model in tied["models"]] == pytest.approx([1000, 1000])
    soft, votes = rate(["x"], ["y"], [0.75]), rate(["x"] * 4, ["y"] * 4, [1, 1, 1, 0])
    assert by_name(soft)["x"]["votes"]["rating"] == pytest.approx(by_name(votes)["x"]["votes"]["rating"])


def test_the_greatest_likelihood_is_that_of_a_logistic_regression():
    strengths = np.linspace(-1.5, 1.5, 8)
    first, second, won = tournament(1_500, strengths, seed=0)
    soft = np.where(np.arange(1_500) % 5, won, 0.5)
    found = by_name(rate(first, second, soft, resamples=20))
    design = np.zeros((1_500, 8))
    design[np.arange(1_500), [int(name[1]) for name in first]] += 1
    design[np.arange(1_500), [int(name[1]) for name in second]] -= 1
    fit = LogisticRegression(C=1e9, fit_intercept=False, tol=1e-10, max_iter=5_000)
    fit.fit(np.tile(design, (2, 1)), np.repeat([1, 0], 1_500), np.concatenate([soft, 1 - soft]))
    expected = 1000 + 400 / math.log(10) * (fit.coef_[0] - fit.coef_[0].mean())
    np.testing.assert_allclose([found[f"m{at}"]["votes"]["rating"] for at in range(8)], expected, atol=0.01)


def test_which_of_the_two_is_called_a_does_not_matter():
    first, second, won = tournament(300, np.array([0.0, 0.5, 1.0]), seed=1)
    turned = np.random.default_rng(2).random(300) < 0.5
    other = [(b, a) if swap else (a, b) for a, b, swap in zip(first, second, turned, strict=True)]
    one = by_name(rate(first, second, won))
    two = by_name(rate([a for a, _ in other], [b for _, b in other], np.where(turned, 1 - won, won)))
    for name in one:
        assert two[name]["votes"]["rating"] == pytest.approx(one[name]["votes"]["rating"])
        assert two[name]["votes"]["rating_ci95"] == pytest.approx(one[name]["votes"]["rating_ci95"])


def test_predictions_are_rated_beside_the_votes():
    strengths = np.array([-1.0, 0.0, 1.0])
    first, second, won = tournament(2_000, strengths, seed=3)
    true = sigmoid(strengths[[int(a[1]) for a in first]] - strengths[[int(b[1]) for b in second]])
    found = rate(first, second, won, true)
    for at, model in ((at, by_name(found)[f"m{at}"]) for at in range(3)):
        # Shares that are the true probabilities have the true strengths for their greatest likelihood.
        assert model["predictions"]["rating"] == pytest.approx(
            1000 + 400 / math.log(10) * strengths[at], abs=0.01
        )
        assert model["votes"]["rating"] == pytest.approx(model["predictions"]["rating"], abs=60)
    assert found["rank_correlation"] == pytest.approx(1)
    turned = rate(first, second, won, 1 - true)
    assert turned["rank_correlation"] == pytest.approx(-1)


def test_intervals_cover_the_true_ratings():
    """50 fixed draws: 95 % intervals hold the true rating in 90 to 99 % of 200 cases."""
    strengths = np.array([-0.75, -0.25, 0.25, 0.75])
    held = 0
    for draw in range(50):
        found = by_name(rate(*tournament(300, strengths, seed=draw), resamples=120, seed=draw))
        for at, strength in enumerate(strengths):
            low, high = found[f"m{at}"]["votes"]["rating_ci95"]
            held += low <= 1000 + 400 / math.log(10) * strength <= high
    assert 0.90 <= held / 200 <= 0.99


def test_models_without_a_finite_rating():
    """`best` won all, `p` and `q` met only each other: the other three are rated as if alone."""
    inner = (["x", "y", "z", "x", "y", "z"], ["y", "z", "x", "y", "z", "x"], [1, 1, 1, 0, 1, 0])
    outer = (["best", "y", "p", "q"], ["x", "best", "q", "p"], [1, 0, 1, 1])
    found = rate(*(one + other for one, other in zip(inner, outer, strict=True)))
    assert found["unrated"] == ["best", "p", "q"]
    alone = by_name(rate(*inner))
    models = by_name(found)
    for name in ("x", "y", "z"):
        assert models[name]["votes"]["rating"] == pytest.approx(alone[name]["votes"]["rating"])
    assert models["best"]["votes"] == {"win_rate": 1.0, "rating": None, "rating_ci95": None}
    assert models["best"]["rows"] == 2
    none = rate(["x"], ["y"], [1])
    assert none["unrated"] == ["x", "y"]
    assert by_name(none)["x"]["votes"]["rating"] is None


def test_rows_without_two_models_are_left_out(monkeypatch):
    found = rate(["x", None, "x", "x", ""], ["y", "y", "x", "y", "y"], [1, 0, 1, 0, 1])
    assert found["left_out"] == 3
    assert by_name(found)["x"]["rows"] == 2
    names = np.array([None, "x"], object)
    assert model_ratings(names, names, np.ones(2), np.ones(2), np.arange(2), resamples=20, seed=0) is None
    monkeypatch.setattr(ratings, "MOST_MODELS", 2)
    few = rate(["x", "y", "x"], ["y", "x", "rare"], [1, 1, 0])
    assert few["left_out"] == 1
    assert set(by_name(few)) == {"x", "y"}


def test_a_resample_without_a_maximum_stays_finite():
    games = Games(np.array([0, 1]), np.array([1, 2]), 3)
    played = np.array([[4.0, 4.0], [4.0, 0.0]])
    strengths = fit_strengths(games, played, np.array([[4.0, 2.0], [2.0, 0.0]]), prior=1e-3)
    assert np.isfinite(strengths).all()
    assert strengths[0, 0] > strengths[0, 1] + 4
    assert strengths[1, 2] == pytest.approx(0, abs=1e-6), "a model that was not drawn is in the middle"


def test_rated_together_is_who_beat_whom_in_a_circle():
    games = Games(np.array([0, 1, 0, 3]), np.array([1, 2, 2, 4]), 5)
    circle = rated_together(games, np.ones(4), np.array([1.0, 1.0, 0.0, 1.0]))
    assert circle.tolist() == [True, True, True, False, False]
    line = rated_together(games, np.ones(4), np.array([1.0, 1.0, 1.0, 0.5]))
    assert line.tolist() == [False, False, False, True, True]
