"""Training and scoring with base, votes, checkpoints, model and predictions all in an object store."""

import dataclasses

import pyarrow.parquet as pq
import pytest

from wsdm_ray.config import ScoreConfig
from wsdm_ray.presets import tiny
from wsdm_ray.scoring.pipeline import score
from wsdm_ray.storage import exists, list_files, open_parquet, upload_folder, write_parquet
from wsdm_ray.training.runner import train


@pytest.fixture
def remote(bucket: str, int8_base, prepared, tmp_path, monkeypatch) -> str:
    """A folder of a bucket with base/ and 60 votes in train/; what is fetched goes to a cache of its own."""
    monkeypatch.setenv("WSDM_RAY_CACHE", str(tmp_path / "cache"))
    upload_folder(str(int8_base), f"{bucket}/base", last="wsdm_ray.json")
    votes = pq.read_table(list_files(f"{prepared}/train"))
    write_parquet(f"{bucket}/train/part-000000.parquet", votes.slice(0, 60))
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
            unit_rows=25,
            token_budget=1_024,
        )
    )
    ids = []
    for path in list_files(f"{remote}/predictions"):
        with open_parquet(path) as file:
            ids += file.read(["id"])["id"].to_pylist()
    with open_parquet(list_files(f"{remote}/train")[0]) as file:
        assert ids == file.read(["id"])["id"].to_pylist()
    assert run["counts"]["rows"] == len(ids) == 60
    assert run["counts"]["units"] == 3
    assert run["counts"]["errors"] == 0
