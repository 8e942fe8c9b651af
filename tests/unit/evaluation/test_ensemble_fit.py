"""Weights and temperature of an ensemble, fitted on votes: what is fitted, on how many, and what is said."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.evaluation.prediction_sets import config, read, write
from tests.unit.evaluation.voters import GRID, voters
from wsdm_ray.config import EvaluateConfig
from wsdm_ray.errors import DataError
from wsdm_ray.evaluation.ensemble import ensemble
from wsdm_ray.evaluation.evaluate import evaluate
from wsdm_ray.evaluation.temperature import fit_temperature
from wsdm_ray.evaluation.weights import combine_sets, fit_weights
from wsdm_ray.statistics import agreement, cross_entropy


@pytest.fixture
def voted(tmp_path: Path) -> tuple[tuple[str, ...], str, np.ndarray, np.ndarray]:
    """Folders of three sets on 600 rows, votes on 400 of them in another order, and both as arrays."""
    prob, label, _ = voters(600)
    prob = np.round(prob / GRID) * GRID
    names = [f"r{number}" for number in range(600)]
    random = np.random.default_rng(1)
    folders = []
    for place in range(3):
        order = random.permutation(600)
        rows = [{"id": names[row], "prob_a": prob[row, place]} for row in order]
        folders.append(write(tmp_path / f"set{place}", rows))
    chosen = random.permutation(600)[:400]
    votes = {
        "id": [names[row] for row in chosen],
        "prompt": [f"question {row // 2}" for row in chosen],
        "response_a": ["one"] * 400,
        "response_b": ["two"] * 400,
        "winner": ["model_a" if label[row] else "model_b" for row in chosen],
    }
    (tmp_path / "votes").mkdir()
    pq.write_table(pa.table(votes), tmp_path / "votes/part-000000.parquet")
    return tuple(folders), str(tmp_path / "votes"), prob[np.sort(chosen)], label[np.sort(chosen)]


def test_fitted_on_votes_of_some_of_the_rows(tmp_path, voted, capsys):
    folders, votes, prob, label = voted
    run = ensemble(config(tmp_path, folders, votes=(votes,)))
    measured = run["metrics"]
    assert measured["rows"] == 400
    assert run["fitted"] == ["weights", "temperature"]
    for place, figures in enumerate(measured["sets"]):
        assert figures == {
            "predictions": folders[place],
            "accuracy": pytest.approx(agreement(prob[:, place], label).mean()),
            "log_loss": pytest.approx(cross_entropy(prob[:, place], label).mean()),
        }
    assert measured["equal_mean"]["log_loss"] == pytest.approx(cross_entropy(prob.mean(axis=1), label).mean())
    weights = fit_weights(prob, label)
    assert run["weights"] == pytest.approx(weights.tolist(), abs=1e-6)
    fitted = cross_entropy(combine_sets(prob, weights, run["temperature"]), label).mean()
    result = measured["result"]["log_loss"]
    assert fitted < result < measured["equal_mean"]["log_loss"]
    assert len(measured["cross_fitted"]) == 2
    assert sum(half["rows"] for half in measured["cross_fitted"]) == 400
    screen = capsys.readouterr().out
    assert f"{result:.3f}" in screen
    assert "weights and temperature of the result fitted on other prompts" in screen
    rows = {row["id"]: row["prob_a"] for row in read(tmp_path / "out")}
    assert len(rows) == 600


def test_too_few_votes_fit_nothing(tmp_path, voted, caplog):
    folders, votes, _, _ = voted
    few = tmp_path / "few.parquet"
    pq.write_table(pq.read_table(votes).slice(0, 11), few)
    given = config(tmp_path, folders, votes=(str(few),))
    with pytest.raises(
        DataError,
        match=r"few.parquet: 11 votes on 10 prompts are too few .* to fit weights and temperature; give"
        r" --weights and --temperature yourself, or leave out --votes",
    ):
        ensemble(given)
    with pytest.raises(DataError, match="to fit temperature; give --temperature yourself"):
        ensemble(dataclasses.replace(given, weights=(1, 1, 1)))
    # Nothing is fitted here: the votes only judge.
    run = ensemble(dataclasses.replace(given, weights=(1, 1, 1), temperature=1.0))
    assert run["metrics"]["rows"] == 11


def test_a_result_worse_than_a_part_of_it_is_said_to_be(tmp_path, voted, caplog):
    folders, votes, prob, label = voted
    run = ensemble(config(tmp_path, folders, votes=(votes,), weights=(0, 0, 1), temperature=1.0))
    worse = run["metrics"]["worse_than"]
    expected = cross_entropy(prob[:, 2], label).mean() - cross_entropy(prob[:, :2], label[:, None]).mean(
        axis=0
    )
    by_name = {one["name"]: one for one in worse}
    assert set(by_name) == {*folders[:2], "the equal mean"}
    assert [by_name[name]["difference"] for name in folders[:2]] == pytest.approx(expected.tolist(), abs=1e-6)
    assert all(one["ci95"][0] < one["difference"] < one["ci95"][1] for one in worse)
    assert worse[0]["difference"] == max(one["difference"] for one in worse)
    said = [
        record.getMessage() for record in caplog.records if "log loss of the result" in record.getMessage()
    ]
    assert len(said) == 1
    assert f"higher than that of {worse[0]['name']} by {worse[0]['difference']:.4f} (95 % interval" in said[0]
    assert "on these votes" in said[0]
    again = ensemble(config(tmp_path, folders, votes=(votes,), weights=(0, 0, 1), temperature=1.0))
    assert again == run
    assert sum("log loss of the result" in record.getMessage() for record in caplog.records) == 2


def test_a_result_that_is_best_is_not_spoken_against(tmp_path, voted, caplog):
    folders, votes, _, _ = voted
    run = ensemble(config(tmp_path, folders, votes=(votes,)))
    assert run["metrics"]["worse_than"] == []
    assert "log loss of the result" not in caplog.text


def test_a_fit_that_loses_on_the_other_half_is_said_to(tmp_path, caplog):
    """Two equally good sets: fitted weights can only be luck, and lose to the equal mean."""
    random = np.random.default_rng(1)
    logit = random.normal(0, 1.5, 240)
    label = random.random(240) < 1 / (1 + np.exp(-logit))
    folders = []
    for place in range(2):
        prob = 1 / (1 + np.exp(-(logit + random.normal(0, 0.8, 240)) / 1.1))
        rows = [{"id": f"r{row}", "prob_a": float(np.round(prob[row] / GRID) * GRID)} for row in range(240)]
        folders.append(write(tmp_path / f"set{place}", rows))
    votes = pa.table(
        {"id": [f"r{row}" for row in range(240)], "prompt": [f"q{row}" for row in range(240)]}
        | {"response_a": ["x"] * 240, "response_b": ["y"] * 240}
        | {"winner": np.where(label, "model_a", "model_b")}
    )
    pq.write_table(votes, tmp_path / "votes.parquet")
    run = ensemble(config(tmp_path, tuple(folders), votes=(f"{tmp_path}/votes.parquet",)))
    measured = run["metrics"]
    assert measured["result"]["log_loss"] > measured["equal_mean"]["log_loss"]
    assert measured["worse_than"][0]["name"] == "the equal mean"
    assert "higher than that of the equal mean by" in caplog.text
    assert "on prompts that it was not fitted on" in caplog.text


def test_only_what_is_not_given_is_fitted(tmp_path, voted):
    folders, votes, prob, label = voted
    run = ensemble(config(tmp_path, folders, votes=(votes,), weights=(1, 1, 0)))
    mean = prob[:, :2].mean(axis=1)
    assert run["weights"] == [0.5, 0.5, 0]
    assert run["fitted"] == ["temperature"]
    assert run["temperature"] == pytest.approx(fit_temperature(mean, label), rel=1e-4)
    given = config(tmp_path, folders, votes=(votes,), weights=(1, 1, 0), temperature=1.0, restart=True)
    run = ensemble(given)
    assert run["fitted"] == []
    assert run["metrics"]["cross_fitted"] is None
    assert run["metrics"]["result"]["log_loss"] == pytest.approx(cross_entropy(mean, label).mean())


def test_evaluate_reads_it(tmp_path, voted):
    folders, votes, prob, label = voted
    ensemble(config(tmp_path, folders))
    table = pq.read_table(tmp_path / "out/part-000000.parquet")
    ids = pq.read_table(votes)["id"].to_pylist()
    (tmp_path / "some").mkdir()
    pq.write_table(
        table.filter(pa.array([name in ids for name in table["id"].to_pylist()])), tmp_path / "some/p.parquet"
    )
    metrics = evaluate(
        EvaluateConfig(
            predictions=(f"{tmp_path}/some",), votes=(votes,), output=f"{tmp_path}/report", bootstrap=20
        )
    )
    assert metrics["log_loss"] == pytest.approx(cross_entropy(prob.mean(axis=1), label).mean(), abs=1e-6)


def test_votes_without_a_prediction_are_refused(tmp_path, voted):
    folders, votes, _, _ = voted
    table = pq.read_table(votes)
    pq.write_table(
        table.set_column(0, "id", pa.array(["q", *table["id"].to_pylist()[1:]])),
        f"{votes}/part-000000.parquet",
    )
    with pytest.raises(DataError, match=r"1 of 400 votes have no prediction \(id 'q'\)"):
        ensemble(config(tmp_path, folders, votes=(votes,)))
