"""What a report says beyond one set of plain predictions: several sets, few votes, models, provenance."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.evaluation.page import page_of
from tests.unit.evaluation.voters import enough
from wsdm_ray.config import EvaluateConfig
from wsdm_ray.errors import ConfigError, DataError
from wsdm_ray.evaluation.evaluate import evaluate
from wsdm_ray.schema import predictions_schema
from wsdm_ray.storage import write_parquet

Rows = dict[str, list[Any]]
Write = Callable[..., EvaluateConfig]


def second_set(config: EvaluateConfig, predictions: Rows, name: str = "other", **changes: Any) -> str:
    """Another folder of predictions beside the first."""
    rows = pa.table(predictions | {name: pa.array(column) for name, column in changes.items()})
    schema = predictions_schema(rows.schema.field("id").type)
    columns = [rows[name] if name in rows.column_names else pa.nulls(len(rows)) for name in schema.names]
    folder = f"{Path(config.output).parent}/{name}"
    write_parquet(f"{folder}/part-000000.parquet", pa.table(columns, names=schema.names).cast(schema))
    return folder


def test_several_sets_side_by_side(on_disk: Write, predictions: Rows, votes: Rows, capsys):
    predictions, votes = enough(predictions), enough(votes)
    alone = evaluate(config := on_disk(predictions, votes))
    assert not {"sets", "differences"} & alone.keys()
    better = [0.9 if winner == "model_a" else 0.2 for winner in votes["winner"]]
    other = second_set(config, predictions, prob_a=better)
    capsys.readouterr()
    metrics = evaluate(replace(config, predictions=(config.predictions[0], other)))
    assert {name: metrics[name] for name in ("accuracy", "auc_ci95", "by_language")} == {
        name: alone[name] for name in ("accuracy", "auc_ci95", "by_language")
    }
    assert list(metrics["sets"]) == ["predictions", "other"]
    assert metrics["sets"]["predictions"]["log_loss"] == metrics["log_loss"]
    assert metrics["sets"]["other"]["accuracy"] == 1
    assert metrics["sets"]["other"]["provenance"]["predictions"] == other
    (difference,) = metrics["differences"].values()
    assert difference["accuracy"]["difference"] == pytest.approx(1 - metrics["accuracy"], abs=1e-5)
    assert difference["accuracy"]["ci95"][0] > 0
    assert difference["log_loss"]["ci95"][1] < 0
    screen = capsys.readouterr().out
    assert f"{100 - 100 * metrics['accuracy']:+.1f} [" in screen
    text, page = page_of(config)
    assert "<h2>Side by side</h2>" in text
    assert '<small class="better">better</small>' in text
    assert text.count("<polyline") == 3  # two ROC curves and the reliability after temperature
    assert not page.loads


def test_several_sets_have_the_rows_of_all(on_disk: Write, predictions: Rows, votes: Rows):
    config = on_disk(predictions, votes)
    other = second_set(
        config, predictions, prob_a=[None, *predictions["prob_a"][1:]], error=["late", *[None] * 59]
    )
    metrics = evaluate(replace(config, predictions=(config.predictions[0], other)))
    assert metrics["rows"] == metrics["sets"]["other"]["rows"] == 59
    assert metrics["errors"] == 1
    assert metrics["error_reasons"] == {"other: late": 1}
    assert metrics["differences"]["other"]["log_loss"] == {"difference": 0, "ci95": [0, 0]}


def test_sets_that_do_not_fit_are_named(on_disk: Write, predictions: Rows, votes: Rows):
    config = on_disk(predictions, votes)
    other = second_set(config, predictions, id=[60, *predictions["id"][1:]])
    with pytest.raises(DataError, match=r"^other: 1 of 60 votes have no prediction"):
        evaluate(replace(config, predictions=(config.predictions[0], other)))
    with pytest.raises(ConfigError, match=r"must be different folders"):
        replace(config, predictions=("x", "x"))


def test_few_votes_recommend_nothing(on_disk: Write, predictions: Rows, votes: Rows, capsys):
    few = {name: column[:11] for name, column in votes.items()}
    few |= {"model_a": ["x", "y"] * 5 + ["x"], "model_b": ["y", "z"] * 5 + ["z"]}
    metrics = evaluate(config := on_disk({name: column[:11] for name, column in predictions.items()}, few))
    calibration = metrics["calibration"]
    assert calibration["temperature"] is calibration["temperatures_by_half"] is calibration["after"] is None
    assert calibration["too_few"].startswith("11 votes on 6 prompts are too few")
    assert metrics["adaptive"]["threshold"] is metrics["adaptive"]["after"] is None
    assert metrics["length_control"]["length_only"] is None
    low, high = metrics["accuracy_ci95"]
    assert high - low > 0.55  # Wilson's, of six prompts
    text, _ = page_of(config)
    assert "<strong>A first look.</strong> 11 votes on 6 prompts" in text
    for word in (
        "recommended<",
        "after temperature",
        "Is the second order",
        "counting words",
        "Which models",
    ):
        assert word not in text
    assert "Reliability diagram: 1 groups" in text
    assert "too few" in capsys.readouterr().out


def test_models_are_rated_where_the_votes_name_them(on_disk: Write, predictions: Rows, votes: Rows):
    names = {"model_a": ["one", "<i>two</i>", "three"] * 20, "model_b": ["<i>two</i>", "three", "one"] * 20}
    assert evaluate(on_disk(predictions, votes))["models"] is None
    metrics = evaluate(config := on_disk(predictions, votes | names))
    models = metrics["models"]["models"]
    assert {model["name"] for model in models} == {"one", "<i>two</i>", "three"}
    assert all(model["rows"] == 40 and model["votes"]["rating_ci95"] for model in models)
    label = np.array([winner == "model_a" for winner in votes["winner"]])
    won = label[0::3].sum() + (~label[2::3]).sum()
    assert next(one for one in models if one["name"] == "one")["votes"]["win_rate"] == pytest.approx(won / 40)
    text, _ = page_of(config)
    assert "Which models win?" in text
    assert "&lt;i&gt;two&lt;/i&gt; by votes:" in text
    assert "<i>two" not in text


def test_the_header_says_what_made_the_predictions(on_disk: Write, predictions: Rows, votes: Rows):
    config = on_disk(predictions, votes)
    run = {
        "job": "score", "config": {"model": ["models/mine"], "orders": "both"},
        "versions": {"wsdm_ray": "0.2.0"},
        "fingerprint": {"models": [{"digest": "ab" * 32, "precision": "w8a8-int8"}]},
        "finished": "2026-11-29T05:30:51+00:00",
    }  # fmt: skip
    Path(config.predictions[0], "run.json").write_text(json.dumps(run))
    assert evaluate(config)["provenance"]["models"][0]["digest"] == "ab" * 32
    head = page_of(config)[0].split("<main>")[0]
    for value in (
        "models/mine (digest abababababab)", "w8a8-int8", "both", "2026-11-29 05:30 UTC", "wsdm_ray 0.2.0",
        *config.votes,
    ):  # fmt: skip
        assert f"<bdi>{value}</bdi>" in head


def test_the_confusion_makes_the_accuracy(on_disk: Write, predictions: Rows, votes: Rows):
    metrics = evaluate(config := on_disk(predictions, votes))
    cells = metrics["confusion"]
    assert sum(cells.values()) == 60
    right = cells["predicted_a_voted_a"] + cells["predicted_b_voted_b"]
    assert right / 60 == pytest.approx(metrics["accuracy"], abs=1e-6)
    assert "A predicted</td>" in page_of(config)[0]
