"""Differences of two sets of predictions: of the same rows and resamples, with intervals that cover."""

import tracemalloc
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import norm
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, roc_auc_score

from tests.unit.evaluation.voters import voters
from wsdm_ray.errors import DataError
from wsdm_ray.evaluation.compare import (
    COMPARED,
    common_rows,
    paired_differences,
    resampled_metrics,
    short_names,
)
from wsdm_ray.evaluation.join import Joined, join_by_id
from wsdm_ray.evaluation.metrics import calibration_bin, measure, resampled_counts
from wsdm_ray.evaluation.votes import VOTES_SCHEMA


def test_a_difference_is_that_of_the_metrics():
    prob, label, _ = voters(400)
    groups = np.arange(400) // 2
    found = paired_differences(prob[:, 0], prob[:, 1], label, groups, resamples=50)
    one, other = (measure(prob[:, place], label, label, label, groups, resamples=20) for place in (0, 1))
    assert tuple(found) == COMPARED
    for name in COMPARED:
        assert found[name]["difference"] == pytest.approx(one[name] - other[name], abs=1e-12)
        low, high = found[name]["ci95"]
        assert low < found[name]["difference"] < high


def test_each_resample_is_what_scikit_learn_says_of_it():
    """The rows of one prompt are drawn as often as each other, and equal probabilities stay ties."""
    prob, label, _ = voters(300)
    prob = prob[:, 0].round(1).clip(0.05, 0.95)
    prob[prob == 0.5] = 0.55
    groups = np.random.default_rng(0).integers(0, 120, 300)
    drawn = resampled_metrics(prob, label, groups, 4, seed=3)
    unique, group = np.unique(groups, return_inverse=True)
    counts = np.concatenate(list(resampled_counts(len(unique), 4, 3)))[:, group]
    bins = calibration_bin(prob)
    for place, weight in enumerate(counts):
        gaps = [abs((weight * (prob - label))[bins == one].sum()) for one in np.unique(bins)]
        expected = {
            "accuracy": accuracy_score(label, prob > 0.5, sample_weight=weight),
            "log_loss": log_loss(label, prob, sample_weight=weight),
            "auc": roc_auc_score(label, prob, sample_weight=weight),
            "brier": brier_score_loss(label, prob, sample_weight=weight),
            "ece": sum(gaps) / weight.sum(),
        }
        assert {name: drawn[name][place] for name in COMPARED} == pytest.approx(expected)


def test_intervals_cover_the_true_difference():
    """100 fixed draws of 200 votes: 95 % intervals hold the true difference in 88 to 100 % of them.

    Three standard errors of such a share are 6.5 points.
    """
    prob, label, _ = voters(200_000, seed=1)
    truth = {
        name: metric(label, prob[:, 0]) - metric(label, prob[:, 1])
        for name, metric in (
            ("accuracy", lambda label, prob: accuracy_score(label, prob > 0.5)),
            ("log_loss", log_loss), ("auc", roc_auc_score), ("brier", brier_score_loss),
        )
    }  # fmt: skip
    held: Counter[str] = Counter()
    for draw in range(100):
        prob, label, _ = voters(200, seed=100 + draw)
        found = paired_differences(prob[:, 0], prob[:, 1], label, np.arange(200), resamples=120, seed=draw)
        held.update(
            name for name, true in truth.items() if found[name]["ci95"][0] <= true <= found[name]["ci95"][1]
        )
    assert {name: 0.88 <= held[name] / 100 <= 1 for name in truth} == dict.fromkeys(truth, True)


def test_calibration_errors_of_few_votes_are_compared_as_such():
    """The interval holds the mean difference on as many votes, also where one set is calibrated."""

    def draw(seed: int) -> tuple[np.ndarray, ...]:
        random = np.random.default_rng(seed)
        logit = random.normal(0, 1.5, 200)
        label = (random.random(200) < 1 / (1 + np.exp(-logit))).astype(float)
        return 1 / (1 + np.exp(-logit)), 1 / (1 + np.exp(-1.6 * logit)), label

    found = [
        paired_differences(*draw(seed), np.arange(200), resamples=100, seed=seed)["ece"]
        for seed in range(100)
    ]
    mean = np.mean([one["difference"] for one in found])
    assert np.mean([one["ci95"][0] <= mean <= one["ci95"][1] for one in found]) >= 0.86


def test_a_pair_of_sets_is_known_better_than_each_alone():
    """What makes rows hard for both cancels; an interval made of the two alone would be far wider."""
    random = np.random.default_rng(0)
    prob, label, _ = voters(1_000)
    near = np.clip(prob[:, 0] + random.normal(0, 0.01, 1_000), 0.001, 0.999)
    found = paired_differences(near, prob[:, 0], label, np.arange(1_000), resamples=200)["brier"]["ci95"]
    alone = measure(near, label, near, near, np.arange(1_000), resamples=200)["brier_ci95"]
    assert found[1] - found[0] < 0.2 * (alone[1] - alone[0])


def test_auc_differences_agree_with_delong():
    prob, label, _ = voters(500)
    found = paired_differences(prob[:, 0], prob[:, 1], label, np.arange(500), resamples=2_000)["auc"]
    won, lost = label == 1, label == 0
    by_winner, by_loser = (
        np.stack([compared(one[won], one[lost]).mean(axis=axis) for one in prob[:, :2].T]) for axis in (1, 0)
    )
    variances = [np.cov(each) / each.shape[1] for each in (by_winner, by_loser)]
    contrast = np.array([1, -1])
    half = norm.ppf(0.975) * np.sqrt(contrast @ sum(variances) @ contrast)
    # The spread of 2,000 resamples is known to within 1.6 % (one standard deviation).
    assert found["ci95"][1] - found["ci95"][0] == pytest.approx(2 * half, rel=0.08)


def compared(winners: np.ndarray, losers: np.ndarray) -> np.ndarray:
    return (winners[:, None] > losers) + 0.5 * (winners[:, None] == losers)


def test_copies_of_a_prompt_say_no_more_than_one():
    prob, label, _ = voters(100)
    once = paired_differences(prob[:, 0], prob[:, 1], label, np.arange(100), resamples=100)
    ten = paired_differences(
        *(np.repeat(each, 10) for each in (*prob[:, :2].T, label, np.arange(100))), resamples=100
    )
    for name in ("accuracy", "log_loss", "auc", "brier"):
        assert ten[name]["ci95"] == pytest.approx(once[name]["ci95"])


def test_where_nothing_can_be_said():
    prob = np.array([0.2, 0.7])
    one_side = paired_differences(prob, prob, np.ones(2), np.arange(2), resamples=20)
    assert one_side["auc"] == {"difference": None, "ci95": None}
    one_prompt = paired_differences(prob, 1 - prob, np.array([1.0, 0.0]), np.zeros(2), resamples=20)
    assert one_prompt["accuracy"] == {"difference": -1.0, "ci95": None}


def test_many_votes_on_few_prompts_take_memory_for_the_votes_alone():
    rows, resamples = 50_000, 50
    prob = np.random.default_rng(0).random((rows, 2))
    label, prompts = (prob[:, 0] > 0.4).astype(float), np.arange(rows) % 20
    tracemalloc.start()
    try:
        paired_differences(prob[:, 0], prob[:, 1], label, prompts, resamples=resamples)
        assert tracemalloc.get_traced_memory()[1] < resamples * rows * 8 / 2
    finally:
        tracemalloc.stop()


def joined(ids: list[Any], errors: dict[Any, str]) -> Joined:
    votes = {name: [1 if name == "label" else None] * len(ids) for name, _ in VOTES_SCHEMA}
    votes |= {"characters_a": [3] * len(ids), "characters_b": [3] * len(ids), "group": list(range(len(ids)))}
    votes |= {"ba_first": [False] * len(ids)}
    columns = [pa.array(votes[name], kind) for name, kind in VOTES_SCHEMA]
    table = pa.table([pa.array(ids), *columns], names=["id", *(name for name, _ in VOTES_SCHEMA)])
    probabilities = [None if key in errors else (int(key) + 1) / 10 for key in ids]
    predictions = {
        name: pa.array(probabilities, pa.float32()) for name in ("prob_a", "prob_a_ab", "prob_a_ba")
    }
    counts = {name: pa.nulls(len(ids), pa.int32()) for name in ("tokens", "cut_tokens")}
    error = pa.array([errors.get(key) for key in ids], pa.string())
    return join_by_id(pa.table({"id": ids} | predictions | counts | {"error": error}), table)


def test_rows_that_one_set_lacks_are_left_out_of_all():
    sets = {
        "x": joined([0, 1, 2, 3], {1: "late"}),
        "y": joined(["3", "2", "1", "0"], {"1": "null", "2": "null", "3": "null"}),
    }
    found = common_rows(sets)
    assert [str(key) for key in found["x"].ids] == found["y"].ids == ["0"]
    np.testing.assert_array_equal(found["x"].prob, found["y"].prob)
    assert found["x"].errors == found["y"].errors == {"x: late": 1, "y: null": 3}
    assert sorted(map(str, found["x"].failed_ids)) == ["1", "2", "3"], "each once, in however many sets"
    alone = {"x": sets["x"]}
    assert common_rows(alone) == alone
    with pytest.raises(DataError, match=r"^x, z: no row has a probability in all; evaluate them one by one"):
        common_rows({"x": sets["x"], "z": joined([0, 1, 2, 3], {0: "null", 2: "null", 3: "null"})})


def test_short_names():
    assert short_names(["out/gemma", "out/qwen/"]) == ["gemma", "qwen"]
    assert short_names(["s3://b/x/predictions", "s3://b/y/predictions"]) == ["x/predictions", "y/predictions"]
    assert short_names(["predictions"]) == ["predictions"]
    assert short_names(["a", "./a"]) == ["a", "./a"]
