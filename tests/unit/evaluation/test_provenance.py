"""What made predictions, from run.json of every job that makes some, and from none."""

import os
from pathlib import Path

import pyarrow as pa

from wsdm_ray.evaluation.provenance import facts, provenance
from wsdm_ray.storage import write_parquet

DIGEST = "63ef76b8b6fb75cc19fd4997476d1cabb045ee1b91ee81e8c5b0d01e55a8206e"


def test_of_score():
    run = {
        "job": "score",
        "config": {"model": ["models/one", "models/two"], "model_weights": [2, 1], "orders": "both"},
        "finished": "2026-11-29T05:30:51+00:00",
        "versions": {"wsdm_ray": "0.2.0", "torch": "2"},
        "fingerprint": {
            "models": [{"digest": DIGEST, "precision": "nf4"}, {"digest": "ff", "precision": "bf16"}]
        },
    }
    assert facts(provenance("out", run)) == [
        ("Predictions", "out"),
        ("Models", "models/one (digest 63ef76b8b6fb), weight 2; models/two (digest ff), weight 1"),
        ("Precision", "nf4, bf16"),
        ("Orders", "both"),
        ("Date", "2026-11-29 05:30 UTC"),
        ("Version", "wsdm_ray 0.2.0"),
    ]
    assert provenance("out", run)["models"][0]["digest"] == DIGEST


def test_of_ensemble():
    run = {
        "job": "ensemble", "config": {"predictions": ["x", "y"]}, "weights": [0.75, 0.25], "temperature": 1.5,
        "finished": "2026-11-29T05:30:51+00:00",
    }  # fmt: skip
    assert facts(provenance("out", run)) == [
        ("Predictions", "out"),
        ("Sets", "x, weight 0.75; y, weight 0.25"),
        ("Temperature", "1.500"),
        ("Date", "2026-11-29 05:30 UTC"),
    ]


def test_without_run_json_the_date_is_that_of_the_newest_file(tmp_path: Path):
    for name, seconds in (("a", 0), ("b", 86_400)):
        write_parquet(f"{tmp_path}/{name}.parquet", pa.table({"id": [1]}))
        os.utime(tmp_path / f"{name}.parquet", (seconds, seconds))
    assert facts(provenance(str(tmp_path), {})) == [
        ("Predictions", str(tmp_path)),
        ("Date", "1970-01-02 00:00 UTC"),
    ]


def test_a_run_json_of_anything_else_is_not_believed(tmp_path: Path):
    write_parquet(f"{tmp_path}/a.parquet", pa.table({"id": [1]}))
    odd = {"config": [1], "fingerprint": {"models": ["x"]}, "versions": None, "weights": "many", "job": 7}
    assert [title for title, _ in facts(provenance(str(tmp_path), odd))] == ["Predictions", "Date"]
    odd["config"] = {"model": ["m"], "model_weights": ["heavy"]}
    assert facts(provenance(str(tmp_path), odd))[1] == ("Model", "m")
