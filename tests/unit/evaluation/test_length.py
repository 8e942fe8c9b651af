"""Is it only counting words: a classifier that does is found out, one that does not is not."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from wsdm_ray.evaluation.length import (
    FOLDS,
    fit_length_only,
    length_control,
    length_difference_bins,
    length_features,
    length_only,
)
from wsdm_ray.evaluation.report import length_verdict
from wsdm_ray.statistics import agreement, cross_entropy, sigmoid

OPTIONS = {"resamples": 100, "seed": 0}


def votes(rows: int) -> tuple[np.ndarray, ...]:
    """Lengths, what people like besides, and votes that follow both."""
    random = np.random.default_rng(0)
    a, b = np.exp(random.normal(6, 0.8, (2, rows))).astype(np.int64)
    quality = random.normal(0, 1.5, rows)
    label = (random.random(rows) < sigmoid(quality + np.log(a / b))).astype(float)
    return a, b, quality, label, np.arange(rows, dtype=np.uint64)


def test_the_regression_is_that_of_scikit_learn():
    a, b, _, label, _ = votes(800)
    features = length_features(a, b)
    fit = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-10).fit(features, label)
    np.testing.assert_allclose(fit_length_only(features, label), fit.coef_[0], rtol=1e-4)
    soft = np.where(np.arange(800) % 3, label, 0.25)
    weighted = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-10)
    weighted.fit(np.tile(features, (2, 1)), np.repeat([1, 0], 800), np.concatenate([soft, 1 - soft]))
    np.testing.assert_allclose(fit_length_only(features, soft), weighted.coef_[0], rtol=1e-4)


def test_lengths_that_tell_all_have_a_fit():
    label = np.tile([1.0, 0.0], 50)
    found = fit_length_only(length_features(*np.array([[400, 100], [100, 400]] * 50).T), label)
    assert np.isfinite(found).all()


def test_exchanging_the_answers_exchanges_the_probabilities():
    a, b, _, label, groups = votes(300)
    np.testing.assert_array_equal(length_features(a, b), -length_features(b, a))
    np.testing.assert_allclose(
        length_only(b, a, 1 - label, groups), 1 - length_only(a, b, label, groups), atol=1e-9
    )


def test_no_row_is_judged_by_a_fit_on_its_own_prompt():
    a, b, _, label, groups = votes(500)
    made = length_only(a, b, label, groups)
    for fold in range(FOLDS):
        mine = groups % FOLDS == fold
        flipped = np.where(mine, 1 - label, label)
        np.testing.assert_array_equal(length_only(a, b, flipped, groups)[mine], made[mine])
        coefficient = fit_length_only(length_features(a, b)[~mine], label[~mine])
        np.testing.assert_allclose(made[mine], sigmoid(length_features(a, b)[mine] @ coefficient))


def test_one_that_only_counts_is_found_out():
    a, b, _, label, groups = votes(2_000)
    found = length_control(sigmoid(np.log(a / b)), label, a, b, groups, **OPTIONS)
    assert found is not None
    assert found["longer_won"]["accuracy"] == found["picks_longer"] == 1
    assert found["shorter_won"]["accuracy"] == 0
    assert found["balanced_accuracy"] == 0.5
    assert found["balanced_accuracy_ci95"] == [0.5, 0.5]
    low, high = found["length_only"]["differences"]["log_loss"]["ci95"]
    assert low <= 0.01
    assert high >= 0
    assert not str(length_verdict(found)).startswith("No.")


def test_one_that_reads_knows_more_than_lengths():
    a, b, quality, label, groups = votes(2_000)
    prob = sigmoid(quality)
    found = length_control(prob, label, a, b, groups, **OPTIONS)
    assert found is not None
    longer_won = (a != b) & ((a > b) == (label == 1))
    shorter_won = (a != b) & ~longer_won
    right = agreement(prob, label)
    assert found["longer_won"] == {
        "rows": longer_won.sum(), "accuracy": pytest.approx(right[longer_won].mean()),
        "accuracy_ci95": found["longer_won"]["accuracy_ci95"],
    }  # fmt: skip
    assert found["shorter_won"]["accuracy"] == pytest.approx(right[shorter_won].mean())
    balanced = (right[longer_won].mean() + right[shorter_won].mean()) / 2
    assert found["balanced_accuracy"] == pytest.approx(balanced)
    low, high = found["balanced_accuracy_ci95"]
    assert 0.5 < low < balanced < high
    # The standard error of the mean of two independent shares.
    errors = [right[rows].var() / rows.sum() for rows in (longer_won, shorter_won)]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(sum(errors)) / 2, rel=0.25)
    by_length = length_only(a, b, label, groups)
    alone = found["length_only"]
    assert alone["log_loss"] == pytest.approx(cross_entropy(by_length, label).mean())
    assert alone["accuracy"] == pytest.approx(agreement(by_length, label).mean())
    expected = cross_entropy(prob, label).mean() - alone["log_loss"]
    assert alone["differences"]["log_loss"]["difference"] == pytest.approx(expected)
    assert alone["differences"]["log_loss"]["ci95"][1] < 0
    assert found["votes_longer"] == pytest.approx(longer_won.sum() / (a != b).sum())
    assert str(length_verdict(found)).startswith("No. The predictions know more")
    worse = length_control(1 - prob, label, a, b, groups, **OPTIONS)
    assert str(length_verdict(worse)).startswith("The lengths alone have a lower log loss")


def test_few_votes_cannot_tell():
    a, b, quality, label, groups = votes(30)
    found = length_control(sigmoid(quality), label, a, b, groups, **OPTIONS)
    assert found is not None
    assert found["length_only"] is None
    assert "30 votes on 30 prompts are too few (at least 200" in str(length_verdict(found))
    same = np.full(30, 9)
    assert length_control(sigmoid(quality), label, same, same, groups, **OPTIONS) is None
    assert length_control(sigmoid(quality), np.full(30, 0.5), a, b, groups, **OPTIONS) is None
    assert length_verdict(None) is None


def test_bins_by_how_many_times_longer():
    a = np.array([10, 11, 125, 100, 40, 0, 0, 100])
    b = np.array([10, 10, 100, 150, 20, 0, 5, 25])
    assert length_difference_bins(a, b) == [
        "1-1.1", "1.1-1.25", "1.25-1.5", "1.5-2", "2-3", "1-1.1", "3-", "3-"
    ]  # fmt: skip
