"""Ensembles: joined by id, weighted as given or as votes say, written once."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs._main import main
from tests.unit.evaluation.voters import GRID, voters
from wsdm_ray.config import EnsembleConfig, EvaluateConfig
from wsdm_ray.errors import ConfigError, DataError, RunMismatchError
from wsdm_ray.evaluation.ensemble import ensemble
from wsdm_ray.evaluation.evaluate import evaluate
from wsdm_ray.evaluation.join import read_predictions
from wsdm_ray.evaluation.temperature import fit_temperature
from wsdm_ray.evaluation.weights import combine_sets, fit_weights
from wsdm_ray.schema import predictions_schema
from wsdm_ray.statistics import agreement, cross_entropy


def write(folder: Path, rows: list[dict[str, Any]], id_type: pa.DataType | None = None) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    schema = predictions_schema(id_type or pa.string())
    full = [
        dict.fromkeys(schema.names) | {"winner": "model_a", "tokens": 9, "cut_tokens": 0} | row
        for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(full, schema=schema), folder / "part-000000.parquet")
    return str(folder)


def predicted(*rows: tuple[str, float | None], **values: Any) -> list[dict[str, Any]]:
    return [
        {"id": name, "prob_a": p, "error": None if p is not None else "prompt is null", **values}
        for name, p in rows
    ]


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    """Two sets of the same three rows, in different orders."""
    first = predicted(("x", 0.75), ("y", 0.25), ("z", 0.5), prob_a_ab=0.75, prob_a_ba=0.5)
    second = predicted(("z", 0.0), ("x", 0.25), ("y", 1.0), prob_a_ab=0.25, tokens=4)
    return write(tmp_path / "first", first), write(tmp_path / "second", second)


def config(tmp_path: Path, predictions: tuple[str, ...], **options: Any) -> EnsembleConfig:
    return EnsembleConfig(predictions=predictions, output=str(tmp_path / "out"), **options)


def read(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_the_mean_is_joined_by_id_in_the_order_of_the_first(tmp_path, two):
    run = ensemble(config(tmp_path, two))
    rows = read(tmp_path / "out")
    assert [(row["id"], row["prob_a"], row["winner"]) for row in rows] == [
        ("x", 0.5, "model_a"), ("y", 0.625, "model_a"), ("z", 0.25, "model_b")
    ]  # fmt: skip
    assert [(row["prob_a_ab"], row["prob_a_ba"], row["tokens"], row["error"]) for row in rows] == [
        (0.5, None, 9, None)
    ] * 3
    assert run["weights"] == [0.5, 0.5]
    assert run["temperature"] == 1
    assert run["metrics"] is None
    assert run["counts"] == {"rows": 3, "errors": 0}
    assert json.loads((tmp_path / "out.run/run.json").read_text()) == run
    assert pq.read_schema(tmp_path / "out/part-000000.parquet") == predictions_schema(pa.string())


def test_other_columns_of_the_first_set_are_kept_and_the_schema_says_where_from(tmp_path, two):
    part = tmp_path / "first" / "part-000000.parquet"
    rows = pq.read_table(part).append_column("language", pa.array(["en", "de", None]))
    models = [{"digest": "d", "precision": "fp32"}]
    pq.write_table(rows.replace_schema_metadata({"wsdm_ray.models": json.dumps(models)}), part)
    ensemble(config(tmp_path, two, keep_columns=("language",)))
    assert [(row["id"], row["language"]) for row in read(tmp_path / "out")] == [
        ("x", "en"), ("y", "de"), ("z", None)
    ]  # fmt: skip
    schema = pq.read_schema(tmp_path / "out/part-000000.parquet")
    assert json.loads(schema.metadata[b"wsdm_ray.models"]) == models
    assert json.loads(schema.metadata[b"wsdm_ray.ensemble"])["weights"] == [0.5, 0.5]
    assert b"probability" in schema.field("prob_a").metadata[b"description"]
    with pytest.raises(DataError, match="model_a"):
        ensemble(config(tmp_path, two, keep_columns=("model_a",)))
    for name in ("winner", "logit_ab"):
        with pytest.raises(ConfigError, match=f"--keep-columns {name}: is not copied"):
            ensemble(config(tmp_path, two, keep_columns=(name,)))
    with pytest.raises(RunMismatchError, match="keep_columns: gone"):
        ensemble(config(tmp_path, two))


def test_given_weights_and_temperature(tmp_path, two):
    run = ensemble(config(tmp_path, two, weights=(3, 1), temperature=2.0))
    assert run["weights"] == [0.75, 0.25]
    x, y, z = read(tmp_path / "out")
    # x: 0.625, whose odds are 5 to 3; y: 0.4375, 7 to 9; z: 0.375, 3 to 5. Half the log-odds: their roots.
    assert x["prob_a"] == pytest.approx(5**0.5 / (5**0.5 + 3**0.5), abs=1e-7)
    assert y["prob_a"] == pytest.approx(7**0.5 / (7**0.5 + 9**0.5), abs=1e-7)
    assert z["prob_a"] == np.float32(1) - x["prob_a"]
    assert [row["winner"] for row in (x, y, z)] == ["model_a", "model_b", "model_b"]


def test_an_ensemble_of_ensembles(tmp_path, two):
    ensemble(config(tmp_path, two))
    again = EnsembleConfig(
        predictions=(f"{tmp_path}/out", two[0]), output=f"{tmp_path}/again", weights=(2, 1)
    )
    ensemble(again)
    third = [(0.5 * 2 + 0.75) / 3, (0.625 * 2 + 0.25) / 3, (0.25 * 2 + 0.5) / 3]
    assert [row["prob_a"] for row in read(tmp_path / "again")] == pytest.approx(third, abs=GRID)


def test_a_row_that_any_set_failed_on_says_which(tmp_path, two):
    third = write(tmp_path / "third", predicted(("x", 0.5), ("y", None), ("z", 0.5)))
    run = ensemble(config(tmp_path, (*two, third)))
    x, y, z = read(tmp_path / "out")
    assert y["error"] == f"{third}: prompt is null"
    assert y["prob_a"] is y["winner"] is y["prob_a_ab"] is None
    assert x["prob_a"] == 0.5
    assert z["error"] is None
    assert run["counts"] == {"rows": 3, "errors": 1}
    assert read_predictions(f"{tmp_path}/out").num_rows == 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [("x", 0.5), ("y", 0.5)],
            r"1 rows of .*first are not in .*third \(id 'z'\); give predictions of exac",
        ),
        (
            [("x", 0.5), ("y", 0.5), ("z", 0.5), ("q", 0.5)],
            r"1 rows of .*third are not in .*first \(id 'q'\)",
        ),
        ([("x", 0.5), ("y", 0.5), ("q", 0.5)], r"'z'.* and 1 rows of .*third are not in .*'q'"),
        ([("x", 0.5), ("y", 0.5), ("y", 0.5), ("z", 0.5)], r"third: ids that appear more than once: 1 .*'y'"),
    ],
)
def test_sets_of_other_rows_are_refused(tmp_path, two, rows, message):
    third = write(tmp_path / "third", predicted(*rows))
    with pytest.raises(DataError, match=message):
        ensemble(config(tmp_path, (two[0], third)))
    assert not (tmp_path / "out").exists()


def test_ids_of_other_types_are_refused(tmp_path, two):
    numbers = [{"id": number, "prob_a": 0.5} for number in range(3)]
    third = write(tmp_path / "third", numbers, pa.int64())
    with pytest.raises(DataError, match=r"ids are string in .*first .* and int64 in .*third"):
        ensemble(config(tmp_path, (two[0], third)))


def test_parts_hold_at_most_20_000_rows(tmp_path):
    rows = [{"id": str(number), "prob_a": number / 2**15} for number in range(20_003)]
    first, second = write(tmp_path / "first", rows), write(tmp_path / "second", rows[::-1])
    ensemble(config(tmp_path, (first, second)))
    parts = sorted((tmp_path / "out").glob("*.parquet"))
    assert [(path.name, pq.read_metadata(path).num_rows) for path in parts] == [
        ("part-000000.parquet", 20_000), ("part-000001.parquet", 3)
    ]  # fmt: skip
    assert [(row["id"], row["prob_a"]) for row in read(tmp_path / "out")] == [
        (row["id"], row["prob_a"]) for row in rows
    ]


def test_submission(tmp_path):
    names = ["plain", "a,b", 'say "hi"', "two\nlines", "日本"]
    rows = predicted(*((name, 0.75 if number % 2 else 0.25) for number, name in enumerate(names)))
    given = config(tmp_path, (write(tmp_path / "first", rows),), submission=str(tmp_path / "out.csv"))
    ensemble(given)
    text = (tmp_path / "out.csv").read_bytes().decode()
    assert text.startswith('id,winner\nplain,model_b\n"a,b",model_a\n"say ""hi""",model_b\n')
    with (tmp_path / "out.csv").open(newline="") as file:
        found = list(csv.reader(file))
    assert found == [["id", "winner"], *([n, "model_a" if i % 2 else "model_b"] for i, n in enumerate(names))]
    # The same command again, and one that asks for it elsewhere, find the predictions made.
    (tmp_path / "out.csv").unlink()
    before = (tmp_path / "out/part-000000.parquet").stat().st_mtime_ns
    ensemble(dataclasses.replace(given, submission=str(tmp_path / "other" / "second.csv")))
    assert (tmp_path / "other/second.csv").read_bytes().decode() == text
    assert (tmp_path / "out/part-000000.parquet").stat().st_mtime_ns == before


def test_a_submission_needs_every_row(tmp_path):
    first = write(tmp_path / "first", predicted(("x", 0.5), ("y", None)))
    given = config(tmp_path, (first,), submission=str(tmp_path / "out.csv"))
    with pytest.raises(
        DataError, match=r"1 rows have an error .*\(id 'y'; .*first: prompt is null\); correct"
    ):
        ensemble(given)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("first/part-000000.parquet", "would overwrite an input; choose another file"),
        ("first/new.parquet", "lies within the input .*first; choose another file"),
        ("votes.parquet", "would overwrite an input; choose another file"),
        ("out/part-000000.parquet", "is of the output itself; choose another file"),
        ("out/run.json", "is of the output itself; choose another file"),
        ("out.run/s.csv", "is of the output itself; choose another file"),
        ("out", "is of the output itself; choose another file"),
    ],
)
def test_a_submission_overwrites_nothing(tmp_path, path, message):
    rows = predicted(("x", 0.5), ("y", 0.5))
    first, votes = write(tmp_path / "first", rows), tmp_path / "votes.parquet"
    pq.write_table(pa.table({"id": ["x", "y"], "winner": ["model_a", "model_b"]}), votes)
    given = config(tmp_path, (first,), votes=(str(votes),), submission=f"{tmp_path}/{path}")
    before = {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()}
    with pytest.raises(ConfigError, match=f"--submission .*{path}: {message}"):
        ensemble(given)
    assert {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()} == before


def test_integers_stay_integers(tmp_path):
    rows = [{"id": number, "prob_a": 0.5} for number in (7, 3)]
    ensemble(
        config(tmp_path, (write(tmp_path / "a", rows, pa.int64()),), submission=str(tmp_path / "out/s.csv"))
    )
    assert (tmp_path / "out/s.csv").read_text() == "id,winner\n7,model_a\n3,model_a\n"


def test_another_run_is_refused_and_inputs_are_safe(tmp_path, two):
    given = config(tmp_path, two)
    ensemble(given)
    with pytest.raises(RunMismatchError, match=r"weights: \[\] -> \[1, 2\]"):
        ensemble(dataclasses.replace(given, weights=(1, 2)))
    with pytest.raises(RunMismatchError, match=r"place|predictions\.0"):
        ensemble(dataclasses.replace(given, predictions=two[::-1]))
    ensemble(dataclasses.replace(given, weights=(1, 2), restart=True))
    with pytest.raises(ConfigError, match="holds the input"):
        ensemble(dataclasses.replace(given, output=two[0], restart=True))


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


def test_command_line(tmp_path, two, capsys):
    arguments = ["--predictions", *two, "--weights", "1", "3", "--output", f"{tmp_path}/out"]
    assert main(ensemble, EnsembleConfig, [*arguments, "--submission", f"{tmp_path}/s.csv"]) == 0
    assert (tmp_path / "s.csv").read_text() == "id,winner\nx,model_b\ny,model_a\nz,model_b\n"
    assert "3 rows in" in capsys.readouterr().out
    assert main(ensemble, EnsembleConfig, ["--predictions", *two, "--weights", "1", "--output", "x"]) == 2
    assert "one for each of the 2 sets" in capsys.readouterr().err
