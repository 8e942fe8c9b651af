"""Training and scoring with base, votes, checkpoints, model and predictions all in an object store."""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.conftest import metrics_of, train_config
from wsdm_ray.config import Columns, PseudolabelConfig, ScoreConfig
from wsdm_ray.presets import tiny
from wsdm_ray.scoring.judge import Judge
from wsdm_ray.scoring.pipeline import score
from wsdm_ray.scoring.pseudolabels import pseudolabel
from wsdm_ray.storage import exists, list_files, local_copy, open_parquet, upload_folder, write_parquet
from wsdm_ray.training.runner import train

pytestmark = pytest.mark.usefixtures("ray_session")

RENAMED = Columns(id="key", prompt="question", response_a="left", response_b="right")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fetched goes to a cache of the test's own."""
    monkeypatch.setenv("WSDM_RAY_CACHE", str(tmp_path / "cache"))


def upload(folder: str, int8_base: Path, prepared: Path, rows: int | None = None) -> None:
    """Put base/, data/train/ and data/valid/ into a bucket's folder; of train, its first `rows`."""
    upload_folder(str(int8_base), f"{folder}/base", last="wsdm_ray.json")
    for split in ("train", "valid"):
        votes = pq.read_table(list_files(f"{prepared}/{split}"))
        write_parquet(f"{folder}/data/{split}/part-000000.parquet", votes.slice(0, rows))


def check_folder(model: str, last: str) -> None:
    """The files of a classifier, and of its checkpoints the best and the last."""
    for name in ("metrics.jsonl", "tensorboard/events.out.tfevents.0000000001", "wsdm_ray.json"):
        assert exists(f"{model}/{name}"), name
    kept = {path.split("/")[-2] for path in list_files(f"{model}/_checkpoints", ("wsdm_ray.json",))}
    assert last in kept
    assert len(kept) <= 2, "the best and the last"


def read(folder: str) -> pa.Table:
    tables = []
    for path in list_files(folder):
        with open_parquet(path) as file:
            tables.append(file.read())
    return pa.concat_tables(tables)


@pytest.fixture(scope="module")
def in_s3(s3_server: str, int8_base: Path, prepared: Path, ray_session: None) -> tuple[str, dict[str, Any]]:
    """A bucket's folder with the base, the votes and what two workers made of them, model/, with its run.

    Three workers are asked for, and two have place.
    """
    folder = f"{s3_server}/two-workers"
    upload(folder, int8_base, prepared)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as cache:
        patch.setenv("WSDM_RAY_CACHE", cache)
        run = train(
            train_config(f"{folder}/base", f"{folder}/data", f"{folder}/model", num_workers=3, min_workers=2)
        )
    return folder, run


def test_two_workers_in_s3_train_what_one_does_on_a_disk(in_s3, classifier):
    """To the bit, the valid set's figures too."""
    folder, run = in_s3
    model = f"{folder}/model"
    check_folder(model, "step-000008")
    two = Path(local_copy(model))
    one, other = ((folder / "adapter_model.safetensors").read_bytes() for folder in (classifier, two))
    assert one == other
    of = [metrics_of(folder) for folder in (classifier, two)]
    for name in ("pairs", "loss", "grad_norm", "valid_log_loss"):
        assert [row.get(name) for row in of[0]] == [row.get(name) for row in of[1]], name
    assert json.loads((classifier / "run.json").read_text())["metrics"] == run["metrics"]


def test_soft_and_hard_pseudolabels_of_one_scoring_in_s3(in_s3, prepared, tmp_path):
    votes = pq.read_table(list_files(f"{prepared}/train"))
    rows = votes.drop_columns(["winner", "best_prob_a", "source"]).slice(0, 50).to_pylist()
    rows[7]["prompt"] = None
    rows[8]["response_b"] = "\n"
    folder, _ = in_s3
    write_parquet(f"{folder}/pairs/rows.parquet", pa.Table.from_pylist(rows))
    soft = PseudolabelConfig(
        model=(f"{folder}/model",),
        input=(f"{folder}/pairs/rows.parquet",),
        output=f"{folder}/soft",
        unit_rows=20,
        token_budget=2_048,
    )
    run = pseudolabel(soft)
    assert run["counts"]["kept"] == 48
    assert {reason: rows for reason, rows in run["counts"]["dropped"].items() if rows} == {
        "null_text": 1,
        "empty_response": 1,
    }
    predicted = read(f"{soft.output}/predictions")
    assert predicted["id"].to_pylist() == [row["id"] for row in rows], "every row once and in order"
    assert len(list_files(f"{soft.output}/predictions")) == 3
    probabilities = {row["id"]: row["prob_a"] for row in predicted.to_pylist()}
    labelled = read(f"{soft.output}/train").to_pylist()
    kept = [row for number, row in enumerate(rows) if number not in (7, 8)]
    assert labelled == [
        {name: row[name] for name in ("id", "prompt", "response_a", "response_b")}
        | {"prob_a": probabilities[row["id"]]}
        | {name: row[name] for name in ("model_a", "model_b", "language")}
        | {"source": "pseudolabels"}
        for row in kept
    ]
    assert len({row["prob_a"] for row in labelled}) > 40
    check_hard_labels(soft, labelled, tmp_path / "hard")


def check_hard_labels(soft: PseudolabelConfig, labelled: list[dict[str, Any]], output: Path) -> None:
    """By the same predictions; half of the rows are sure enough."""
    threshold = sorted(max(p, 1 - p) for p in (row["prob_a"] for row in labelled))[24]
    hard = pseudolabel(
        dataclasses.replace(
            soft, output=str(output), predictions=f"{soft.output}/predictions", hard_threshold=threshold
        )
    )
    found = {row["id"]: row["winner"] for row in read(str(output / "train")).to_pylist()}
    assert found == {
        row["id"]: "model_a" if row["prob_a"] > 0.5 else "model_b"
        for row in labelled
        if max(row["prob_a"], 1 - row["prob_a"]) >= threshold
    }
    assert hard["counts"]["kept"] == len(found) >= 24
    assert hard["counts"]["dropped"]["below_threshold"] == 48 - len(found)
    assert not (output / "predictions").exists()


@pytest.mark.long
def test_train_and_score_in_gcs(gcs_bucket, int8_base, prepared):
    upload(gcs_bucket, int8_base, prepared, rows=60)
    model, train_votes = f"{gcs_bucket}/model", f"{gcs_bucket}/data/train"
    config = tiny(f"{gcs_bucket}/base", (train_votes,), model, (train_votes,))
    changes = {"max_steps": 3, "pairs_per_step": 4, "checkpoint_steps": 1, "allow_leakage": True}
    train(dataclasses.replace(config, **changes))
    check_folder(model, "step-000003")
    check_one_ordering(model, read(train_votes), f"{gcs_bucket}/pairs.parquet", f"{gcs_bucket}/predictions")


def check_one_ordering(model: str, votes: pa.Table, pairs: str, output: str) -> None:
    """Scores pairs whose columns have other names, in three units: every id once and in order, as a judge."""
    names = ("id", "prompt", "response_a", "response_b")
    renamed = votes.select(names).rename_columns([getattr(RENAMED, name) for name in names])
    write_parquet(pairs, renamed.append_column("note", pa.array(["x"] * len(votes))))
    run = score(
        ScoreConfig(
            model=(model,), input=(pairs,), output=output, columns=RENAMED, orders="ba", logits=True,
            unit_rows=20, token_budget=1_024,
        )
    )  # fmt: skip
    found = read(output)
    assert found["id"].to_pylist() == votes["id"].to_pylist()
    counts = {"rows": len(votes), "units": 3, "errors": 0}
    assert {name: run["counts"][name] for name in counts} == counts
    assert found["prob_a_ab"].null_count == len(votes)
    assert found["prob_a"].to_pylist() == found["prob_a_ba"].to_pylist()
    assert 1 / (1 + np.exp(-found["logit_ba"].to_numpy())) == pytest.approx(
        found["prob_a"].to_numpy(), abs=1e-6
    )
    with Judge(model, token_budget=1_024) as judge:
        both = judge.score(votes.to_pandas())
    assert both["prob_a_ab"].std() > 0
    assert found["prob_a_ba"].to_numpy() == pytest.approx(both["prob_a_ba"].to_numpy(), abs=1e-5)
