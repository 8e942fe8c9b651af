"""Training and scoring with base, votes, checkpoints, model and predictions all in an object store."""

import dataclasses
import shutil

import pytest

from wsdm_ray.config import ScoreConfig
from wsdm_ray.presets import tiny
from wsdm_ray.scoring.pipeline import score
from wsdm_ray.storage import exists, filesystem, list_files, open_parquet, upload_folder, write_parquet
from wsdm_ray.training.runner import train


@pytest.fixture
def remote(bucket: str, int8_base, prepared, tmp_path, monkeypatch) -> str:
    """A bucket's folder with base/ and train/; what is fetched is cached in a folder of the test's."""
    monkeypatch.setenv("WSDM_RAY_CACHE", str(tmp_path / "cache"))
    upload_folder(str(int8_base), f"{bucket}/base", last="wsdm_ray.json")
    (shard,) = list_files(f"{prepared}/train")
    shutil.copy(shard, tmp_path / "part-000000.parquet")
    fs, inner = filesystem(f"{bucket}/train/part-000000.parquet")
    fs.put_file(str(tmp_path / "part-000000.parquet"), inner)
    return bucket


def test_train_and_score_in_a_bucket(ray_session, remote: str):
    config = tiny(f"{remote}/base", (f"{remote}/train",), f"{remote}/model", (f"{remote}/train",))
    changes = {"max_steps": 3, "pairs_per_step": 4, "checkpoint_steps": 1, "allow_leakage": True}
    train(dataclasses.replace(config, **changes))
    for name in ("metrics.jsonl", "tensorboard/events.out.tfevents.0000000001", "wsdm_ray.json"):
        assert exists(f"{remote}/model/{name}"), name
    kept = {path.split("/")[-2] for path in list_files(f"{remote}/model/_checkpoints", ("wsdm_ray.json",))}
    assert "step-000003" in kept
    assert len(kept) <= 2, "the best and the last"
    run = score(
        ScoreConfig(
            model=(f"{remote}/model",),
            input=(f"{remote}/train",),
            output=f"{remote}/predictions",
            unit_rows=100,
            token_budget=1_024,
        )
    )
    ids = []
    for path in list_files(f"{remote}/predictions"):
        with open_parquet(path) as file:
            ids += file.read(["id"])["id"].to_pylist()
    with open_parquet(list_files(f"{remote}/train")[0]) as file:
        assert ids == file.read(["id"])["id"].to_pylist()
    assert run["counts"]["rows"] == len(ids)
    assert run["counts"]["errors"] == 0


def test_score_in_gcs(ray_session, gcs_server: str, classifier, prepared):
    (shard,) = list_files(f"{prepared}/valid")
    with open_parquet(shard) as file:
        rows = file.read()
    write_parquet(f"{gcs_server}/score/pairs.parquet", rows)
    score(
        ScoreConfig(
            model=(str(classifier),),
            input=(f"{gcs_server}/score/pairs.parquet",),
            output=f"{gcs_server}/score/predictions",
            token_budget=1_024,
        )
    )
    with open_parquet(f"{gcs_server}/score/predictions/part-000000.parquet") as file:
        assert file.read(["id"])["id"].to_pylist() == rows["id"].to_pylist()
