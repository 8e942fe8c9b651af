"""The page of a training run: what it shows of steps and checkpoints, also of a run that goes on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsdm_ray.errors import DataError
from wsdm_ray.evaluation.curves import MOST_POINTS, running_mean, thinned, write_curves


def row(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step, "loss": 0.7 - step / 1000, "accuracy": 0.5, "learning_rate": 1e-3, "grad_norm": 1.0,
        "pairs": 8, "tokens": 100, "padding_share": 0.29, "memory_gb": 1.5, "seconds": 0.5,
        "pairs_per_second": 16.0, "tokens_per_second": 200.0, **more,
    }  # fmt: skip


VALID = {"valid_log_loss": 0.6, "valid_accuracy": 0.65, "valid_accuracy_ci95": [0.6, 0.7], "valid_rows": 1234}


def write(folder: Path, rows: list[dict[str, Any]]) -> str:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    path = write_curves(str(folder))
    assert path == f"{folder}/training.html"
    return Path(path).read_text()


def test_a_run_that_goes_on(tmp_path):
    page = write(tmp_path, [row(1), row(2, **VALID), row(3)])
    assert "This run is not finished" in page
    assert "Training: 3 steps" in page
    assert "65.0 %<small>60.0 to 70.0, at step 2" in page
    assert page.count("<svg") == 7
    assert "step 2: 0.6" in page


def test_a_finished_run_names_its_classifier(tmp_path):
    run = {"metrics": {"step": 2}, "counts": {"steps": 4}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    page = write(tmp_path, [row(1), row(2, **VALID), row(3), row(4, **(VALID | {"valid_log_loss": 0.7}))])
    assert "Training: 4 of 4 steps" in page
    assert "not finished" not in page
    assert '<tr class="own"><td>2<small>the classifier</small>' in page
    assert "32<small>400 tokens</small>" in page


@pytest.mark.parametrize("rows", [[row(1)], [row(step) for step in range(1, 2_000)]])
def test_short_and_long_runs_without_a_valid_set(tmp_path, rows):
    page = write(tmp_path, rows)
    assert "Held-out" not in page
    assert len(page) < 200_000


def test_one_wild_step_does_not_flatten_the_others(tmp_path):
    page = write(
        tmp_path, [row(step, grad_norm=1e9 if step == 50 else 1 + step / 100) for step in range(1, 101)]
    )
    assert "1e+09" not in page.split("Gradient norm")[1].split("</figure>")[0].replace("aria-label", "")


def test_a_loss_that_is_no_number_has_no_point(tmp_path):
    page = write(tmp_path, [row(1), row(2, **VALID), row(3, **(VALID | {"valid_log_loss": float("nan")}))])
    assert "step 2: 0.6" in page
    assert page.count("<circle") == 3


def test_nothing_to_show(tmp_path):
    assert write_curves(str(tmp_path)) is None
    (tmp_path / "metrics.jsonl").write_text("")
    assert write_curves(str(tmp_path)) is None
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}')
    with pytest.raises(DataError, match=r"metrics.jsonl: has no 'pairs'|metrics.jsonl: has no"):
        write_curves(str(tmp_path))
    (tmp_path / "metrics.jsonl").write_text("{not json")
    with pytest.raises(DataError, match=r"metrics.jsonl: not JSON lines"):
        write_curves(str(tmp_path))


def test_running_mean_by_hand():
    # two values on either side, fewer at the ends
    assert running_mean(np.array([1.0, 2.0, 3.0, 10.0])).tolist() == [2.0, 4.0, 4.0, 5.0]


def test_thinning_keeps_the_mean():
    steps, values = thinned(np.arange(1.0, 6001.0), np.arange(6000.0))
    assert len(steps) == len(values) == MOST_POINTS
    assert steps[-1] == 6000
    assert values.mean() == pytest.approx(np.arange(6000).mean())


CONFIG = {
    "base": "bases/gemma", "train": ["data/train"], "valid": ["data/<b>valid"], "seed": 7, "epochs": 2.0,
    "pairs_per_step": 32, "orders": "both", "precision": "auto", "quantization": "nf4",
    "lora": {"r": 16, "alpha": 32, "targets": ["q_proj", "v_proj"]}, "text": {"max_tokens": 2048},
    "optimizer": {"kind": "adamw", "learning_rate": 0.0002, "schedule": "cosine"},
}  # fmt: skip


def test_a_finished_run_shows_its_settings(tmp_path):
    run = {
        "config": CONFIG, "resolved": {"precision": "bf16"}, "metrics": {"step": 2},
        "counts": {"steps": 2, "train": 7183, "valid": 804}, "fingerprint": {"base": "4b7c5b40a5fef448f2"},
        "versions": {"wsdm_ray": "0.2.0"},
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(run))
    page = write(tmp_path, [row(1), row(2, **VALID)])
    for title, value in (
        ("Base", "bases/gemma (digest 4b7c5b40a5fe)"),
        ("Train", "data/train (7,183 rows)"),
        ("Valid", "data/&lt;b&gt;valid (804 rows)"),
        ("Classifier", "the checkpoint of step 2"),
        ("Precision", "bf16"),
        ("LoRA", "rank 16, alpha 32, q_proj, v_proj"),
        ("Optimizer", "adamw, learning rate 0.0002, cosine schedule"),
        ("Tokens", "at most 2,048 of a pair"),
    ):
        assert f"<dt>{title}</dt><dd><bdi>{value}</bdi></dd>" in page
    assert "<details><summary>Every setting of the run</summary>" in page
    assert "<td>optimizer.learning_rate</td>" in page


def test_a_run_that_goes_on_shows_its_settings_and_the_best_so_far(tmp_path):
    options = {name: value for name, value in CONFIG.items() if name not in ("base", "train", "valid")}
    inputs = {"train": {"data/train/part-0.parquet": {}}, "valid": {}}
    started = {
        "job": "train",
        "fingerprint": {"options": options, "base": "4b7c5b40a5fef4", "inputs": inputs},
    }
    (tmp_path / "_run.json").write_text(json.dumps(started))
    page = write(tmp_path, [row(1, **VALID), row(2, **(VALID | {"valid_log_loss": 0.65}))])
    assert "<dt>Train</dt><dd><bdi>data/train/part-0.parquet</bdi></dd>" in page
    assert "<dt>Seed</dt><dd><bdi>7</bdi></dd>" in page
    assert "Valid</dt>" not in page
    assert "at step 1, the best so far" in page
