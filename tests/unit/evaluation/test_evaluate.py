import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs._main import main
from tests.unit.evaluation.page import page_of
from tests.unit.evaluation.voters import enough
from wsdm_ray.config import EvaluateConfig
from wsdm_ray.evaluation.evaluate import evaluate
from wsdm_ray.evaluation.mistakes import HEAD_CHARACTERS, MOST_CHARACTERS, confident_mistakes, excerpt
from wsdm_ray.evaluation.pages import visible
from wsdm_ray.schema import Ordering, first_ordering
from wsdm_ray.storage import exists, read_json

Rows = dict[str, list[Any]]
Write = Callable[..., EvaluateConfig]

HOSTILE = (
    "</div></article><script>alert(1)</script><img src=https://example.com/x onerror=alert(1)>"
    "\x00\x1b[31m \N{RIGHT-TO-LEFT OVERRIDE}abc {{ 7 * 7 }} {% raw %} <|im_end|> " + "w" * 400
)


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def test_metrics_json_keeps_its_contract(on_disk: Write, predictions: Rows, votes: Rows, capsys):
    known = votes | {"best_prob_a": np.random.default_rng(1).random(60).tolist()}
    config = on_disk(enough(predictions), enough(known))
    returned = evaluate(config)
    written = json.loads(Path(config.output, "metrics.json").read_text(), parse_constant=refuse_constant)
    assert written == returned
    promised = {
        *(
            "rows",
            "accuracy",
            "accuracy_ci95",
            "log_loss",
            "auc",
            "brier",
            "ece",
            "position_bias",
            "flip_rate",
        ),
    }
    assert promised <= written.keys()
    for slices in (written["by_language"], written["by_length"]):
        assert sum(one["rows"] for one in slices.values()) == 240
        assert all(promised <= one.keys() for one in slices.values())
    assert list(written["by_length"]) == sorted(
        written["by_length"], key=lambda name: int(name.split("-")[0])
    )
    assert written["errors"] == 0
    assert written["calibration"]["temperature"] > 0
    assert written["calibration"]["before"].keys() == written["calibration"]["after"].keys()
    assert written["calibration"]["before"]["log_loss"] == written["log_loss"]
    assert written["share_of_best"] == pytest.approx(
        (written["accuracy"] - 0.5) / (written["best_accuracy"] - 0.5), abs=1e-4
    ) or (written["best_accuracy"] <= 0.5)
    assert written["config"]["votes"] == list(config.votes)
    screen = capsys.readouterr().out
    assert "The longer answer wins" in screen
    assert "The best possible" in screen
    assert f"{config.output}/report.html" in screen


def test_the_output_may_be_an_object_store(on_disk: Write, predictions: Rows, votes: Rows):
    config = on_disk(predictions, votes, output="memory://bucket/report")
    metrics = evaluate(config)
    assert read_json("memory://bucket/report/metrics.json") == metrics
    assert exists("memory://bucket/report/report.html")


def test_the_command_line(on_disk: Write, predictions: Rows, votes: Rows, capsys):
    config = on_disk(predictions, votes)
    line = ["--predictions", *config.predictions, "--output", config.output, "--bootstrap", "20", "--votes"]
    assert main(evaluate, EvaluateConfig, [*line, config.votes[0]]) == 0
    assert Path(config.output, "metrics.json").exists()
    assert main(evaluate, EvaluateConfig, [*line, "nowhere.parquet"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: nowhere.parquet: not found; check the path"


def test_the_same_bytes_again(on_disk: Write, predictions: Rows, votes: Rows):
    config = on_disk(predictions, votes)
    written = []
    for _ in range(2):
        evaluate(config)
        written.append([Path(config.output, name).read_bytes() for name in ("metrics.json", "report.html")])
    assert written[0] == written[1]


def test_best_probabilities_close_all_of_the_distance(on_disk: Write, predictions: Rows, votes: Rows):
    best = [0.9 if winner == "model_a" else 0.1 for winner in votes["winner"]]
    metrics = evaluate(on_disk(predictions | {"prob_a": best}, votes | {"best_prob_a": best}))
    assert metrics["share_of_best"] == metrics["best_accuracy"] == 1
    assert metrics["best_log_loss"] == pytest.approx(metrics["log_loss"], abs=1e-6)


def test_errors_are_said_loudly(on_disk: Write, predictions: Rows, votes: Rows, caplog, capsys):
    errors = ["<b>too</b> long", *[None] * 59]
    change = {"error": errors, "prob_a": [None, *predictions["prob_a"][1:]]}
    config = on_disk(predictions | change, votes)
    with caplog.at_level(logging.WARNING, "wsdm_ray"):
        metrics = evaluate(config)
    assert metrics["rows"] == 59
    assert metrics["errors"] == 1
    assert metrics["error_reasons"] == {"<b>too</b> long": 1}
    assert "1 of 60 rows carry an error and are left out" in caplog.text
    assert "59 rows, 1 left out with an error" in capsys.readouterr().out
    text, _ = page_of(config)
    assert "1 of 60 rows have no probability" in text
    assert "&lt;b&gt;too&lt;/b&gt; long" in text


def test_hostile_text_stays_text(on_disk: Write, predictions: Rows, votes: Rows):
    everywhere = {
        name: [HOSTILE + str(row) for row in range(60)] for name in ("prompt", "response_a", "response_b")
    }
    everywhere |= {"language": [HOSTILE] * 60, "source": [HOSTILE] * 60, "id": everywhere["prompt"]}
    config = on_disk(predictions | {"id": everywhere["prompt"]}, votes | everywhere)
    Path(config.predictions[0], "run.json").write_text(json.dumps({HOSTILE: HOSTILE, "many": [HOSTILE] * 9}))
    evaluate(config)
    text, page = page_of(config)
    assert not {"script", "img", "iframe", "object", "link"} & set(page.tags)
    assert not page.loads
    assert "&lt;script&gt;alert(1)" in text
    assert "{{ 7 * 7 }} {% raw %}" in text  # a template in the data is not run
    assert not {"\x00", "\x1b", "\N{RIGHT-TO-LEFT OVERRIDE}"} & set(text)
    assert "⟨U+0000⟩⟨U+001B⟩" in text


def test_the_page_stands_alone(on_disk: Write, predictions: Rows, votes: Rows):
    config = on_disk(predictions, votes)
    evaluate(config)
    text, page = page_of(config)
    assert not page.loads
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert 'name="viewport"' in text
    # Headings go down one level at a time, and every drawing has words for those who cannot see it.
    assert page.headings[0] == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    # Reliability, ROC, position; by length difference, language, length; tokens, cut.
    assert len(page.drawings) == 8
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in page.drawings)


def test_only_what_is_known_is_shown(on_disk: Write, votes: Rows):
    """One ordering, no languages, no token counts, one vote: the page still stands."""
    one = {name: column[:1] for name, column in votes.items() if name != "language"}
    config = on_disk({"id": [0], "prob_a": [0.75], "prob_a_ab": [0.75]}, one)
    metrics = evaluate(config)
    assert (
        metrics["position_bias"] is metrics["flip_rate"] is metrics["auc"] is metrics["accuracy_ci95"] is None
    )
    assert metrics["by_language"] == metrics["by_length"] == {}
    assert metrics["best_accuracy"] is metrics["calibration"]["after"] is None
    _, page = page_of(config)
    assert len(page.drawings) == 1


def test_soft_votes(on_disk: Write, predictions: Rows, votes: Rows):
    soft = np.random.default_rng(2).random(60).tolist()
    metrics = evaluate(
        on_disk(predictions, {name: votes[name] for name in votes if name != "winner"} | {"prob_a": soft})
    )
    right = [
        share if prob > 0.5 else 1 - share for prob, share in zip(predictions["prob_a"], soft, strict=True)
    ]
    assert metrics["accuracy"] == pytest.approx(np.mean(right), abs=1e-6)


def test_the_most_confident_mistakes_come_first():
    prob = np.array([0.9, 0.2, 0.99, 0.4, 0.5, 0.8])
    label = np.array([0.0, 1.0, 1.0, 1.0, 1.0, 0.5])
    assert confident_mistakes(prob, label) == [0, 1, 3]
    assert confident_mistakes(prob, label, most=2) == [0, 1]


def test_long_texts_are_cut_and_say_so():
    cut = excerpt("Prompt", "x" * (MOST_CHARACTERS + 5))
    assert len(cut["head"]) == HEAD_CHARACTERS
    assert len(cut["head"]) + len(cut["rest"]) == MOST_CHARACTERS
    assert cut["left_out"] == 5
    assert excerpt("Prompt", "short") == {"title": "Prompt", "head": "short", "rest": "", "left_out": 0}


def test_visible():
    assert visible("a\tb\n\x07\x85\ud800\N{LEFT-TO-RIGHT ISOLATE}") == "a\tb\n⟨U+0007⟩⟨U+0085⟩\ufffd⟨U+2066⟩"
    assert visible("\N{RIGHT-TO-LEFT MARK}עברית") == "\N{RIGHT-TO-LEFT MARK}עברית"


def test_what_adaptive_orders_would_give(on_disk: Write, predictions: Rows, votes: Rows, capsys):
    predictions, votes = enough(predictions), enough(votes)
    config = on_disk(predictions, votes, adaptive_tolerance=1.0)
    found = evaluate(config)["adaptive"]
    assert found["tolerance"] == 1
    assert found["threshold"] == 0.025
    assert found["thresholds_by_half"] == [0.025, 0.025]
    ab, ba = (np.array(predictions[name]) for name in ("prob_a_ab", "prob_a_ba"))
    pairs = zip(votes["response_a"], votes["response_b"], strict=True)
    first = np.where([first_ordering(*pair) is Ordering.BA for pair in pairs], ba, ab)
    last = found["table"][-1]
    assert last["share_rerun"] == 1
    assert last["log_loss"] == found["both"]["log_loss"]
    row = found["table"][3]
    assert row["threshold"] == 0.1
    assert row["share_rerun"] == pytest.approx(np.mean(np.abs(first - 0.5) < 0.1), abs=1e-6)
    assert found["after"]["share_rerun"] == found["table"][0]["share_rerun"]
    assert "score --orders adaptive --adaptive-threshold 0.025: a second ordering" in capsys.readouterr().out
    text, _ = page_of(config)
    assert "Is the second order needed everywhere?" in text
    assert "recommended" in text


def test_adaptive_orders_of_one_model_with_both_orderings_alone(
    on_disk: Write, predictions: Rows, votes: Rows
):
    config = on_disk(predictions, votes)
    for run, known in (
        ({"job": "score", "config": {"model": ["one"]}}, True),
        ({"job": "score", "config": {"model": ["one", "two"]}}, False),
        ({"job": "ensemble"}, False),
    ):
        Path(config.predictions[0], "run.json").write_text(json.dumps(run))
        assert (evaluate(config)["adaptive"] is not None) == known
    config = on_disk(predictions | {"prob_a_ba": [None, *predictions["prob_a_ba"][1:]]}, votes)
    Path(config.predictions[0], "run.json").unlink()
    assert evaluate(config)["adaptive"] is None
    assert "second order needed" not in page_of(config)[0]
