"""Ensembles: joined by id, weighted as given or as votes say, written once."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs._main import main
from tests.unit.evaluation.prediction_sets import config, predicted, read, write
from tests.unit.evaluation.voters import GRID
from wsdm_ray.config import EnsembleConfig
from wsdm_ray.errors import ConfigError, DataError, RunMismatchError
from wsdm_ray.evaluation.ensemble import ensemble
from wsdm_ray.evaluation.join import read_predictions
from wsdm_ray.schema import predictions_schema


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    """Two sets of the same three rows, in different orders."""
    first = predicted(("x", 0.75), ("y", 0.25), ("z", 0.5), prob_a_ab=0.75, prob_a_ba=0.5)
    second = predicted(("z", 0.0), ("x", 0.25), ("y", 1.0), prob_a_ab=0.25, tokens=4)
    return write(tmp_path / "first", first), write(tmp_path / "second", second)


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


def test_ids_that_spell_the_same_numbers_are_joined(tmp_path):
    texts = [{"id": str(number), "prob_a": 0.25} for number in range(3)]
    numbers = [{"id": number, "prob_a": 0.75} for number in (2, 0, 1)]
    first, second = write(tmp_path / "x", texts), write(tmp_path / "y", numbers, pa.int64())
    ensemble(config(tmp_path, (first, second)))
    assert [(row["id"], row["prob_a"]) for row in read(tmp_path / "out")] == [(n, 0.5) for n in "012"]


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


def test_command_line(tmp_path, two, capsys):
    arguments = ["--predictions", *two, "--weights", "1", "3", "--output", f"{tmp_path}/out"]
    assert main(ensemble, EnsembleConfig, [*arguments, "--submission", f"{tmp_path}/s.csv"]) == 0
    assert (tmp_path / "s.csv").read_text() == "id,winner\nx,model_b\ny,model_a\nz,model_b\n"
    assert "3 rows in" in capsys.readouterr().out
    assert main(ensemble, EnsembleConfig, ["--predictions", *two, "--weights", "1", "--output", "x"]) == 2
    assert "one for each of the 2 sets" in capsys.readouterr().err
