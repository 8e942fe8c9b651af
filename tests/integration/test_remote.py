"""Training and scoring with base, votes, checkpoints, model and predictions all in an object store."""

import dataclasses
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from tests.integration.conftest import metrics_of, train_config
from wsdm_ray.config import ScoreConfig
from wsdm_ray.presets import tiny
from wsdm_ray.scoring.pipeline import score
from wsdm_ray.storage import exists, list_files, local_copy, open_parquet, upload_folder, write_parquet
from wsdm_ray.training.runner import train

pytestmark = pytest.mark.usefixtures("ray_session")


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


def check_scores(model: str, pairs: str, output: str) -> None:
    """Scores `pairs` in three units: every id once, in order."""
    with open_parquet(list_files(pairs)[0]) as file:
        expected = file.read(["id"])["id"].to_pylist()
    run = score(
        ScoreConfig(
            model=(model,),
            input=(pairs,),
            output=output,
            unit_rows=-(-len(expected) // 3),
            token_budget=1_024,
        )
    )
    ids = []
    for path in list_files(output):
        with open_parquet(path) as file:
            ids += file.read(["id"])["id"].to_pylist()
    assert ids == expected
    assert run["counts"]["rows"] == len(ids)
    assert run["counts"]["units"] == 3
    assert run["counts"]["errors"] == 0


def test_two_workers_in_s3_agree_with_one_on_a_disk(s3_bucket, classifier, int8_base, prepared):
    """Steps of the same pairs: only the order in which gradients are added up differs.

    Three workers are asked for, and two have place.
    """
    upload(s3_bucket, int8_base, prepared)
    model = f"{s3_bucket}/model"
    run = train(train_config(f"{s3_bucket}/base", f"{s3_bucket}/data", model, num_workers=3, min_workers=2))
    check_folder(model, "step-000008")
    two = Path(local_copy(model))
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (classifier, two))
    assert one.keys() == other.keys()
    for name, tensor in one.items():  # a step moves them by up to 3e-3
        apart = (other[name] - tensor).abs()
        assert float(apart.max()) <= 1e-4, name
        assert float(apart.mean()) <= 1e-6, name
    of = [metrics_of(folder) for folder in (classifier, two)]
    assert [row["pairs"] for row in of[0]] == [row["pairs"] for row in of[1]]
    assert [row["loss"] for row in of[0]] == pytest.approx([row["loss"] for row in of[1]], abs=1e-6)
    assert json.loads((classifier / "run.json").read_text())["metrics"]["valid_log_loss"] == pytest.approx(
        run["metrics"]["valid_log_loss"], abs=1e-4
    )
    check_scores(model, f"{s3_bucket}/data/valid", f"{s3_bucket}/predictions")


def test_train_and_score_in_gcs(gcs_bucket, int8_base, prepared):
    upload(gcs_bucket, int8_base, prepared, rows=60)
    model, train_votes = f"{gcs_bucket}/model", f"{gcs_bucket}/data/train"
    config = tiny(f"{gcs_bucket}/base", (train_votes,), model, (train_votes,))
    changes = {"max_steps": 3, "pairs_per_step": 4, "checkpoint_steps": 1, "allow_leakage": True}
    train(dataclasses.replace(config, **changes))
    check_folder(model, "step-000003")
    check_scores(model, train_votes, f"{gcs_bucket}/predictions")
