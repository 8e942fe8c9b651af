"""What `score` leaves reads as one table in common libraries, with kept columns and a submission.

Rows that have other neighbours, batches, files and parts than in `scored` have the predictions of there.
"""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.conftest import score_config
from tests.table_readers import READERS, ray
from wsdm_ray.scoring.pipeline import score


def test_an_output_as_it_is(ray_session, scored, classifier, pairs, tmp_path):
    shuffled = pairs.take(np.random.default_rng(0).permutation(len(pairs)))
    rows = shuffled.append_column("votes", pa.array(range(len(pairs)), pa.int16()))
    pq.write_table(rows, tmp_path / "in.parquet")
    output, submission = tmp_path / "out", tmp_path / "submission.csv"
    asked = score_config(
        classifier,
        tmp_path / "in.parquet",
        output,
        unit_rows=50,
        token_budget=1_100,
        keep_columns=("votes",),
        submission=str(submission),
        submission_format="lmsys",
    )
    run = score(asked)
    ids = shuffled["id"].to_pylist()
    for name, read in (READERS | {"ray": ray}).items():
        assert sorted(read(output)) == sorted(ids), name
    check_same_predictions(output, scored)
    found = pq.read_table(output / "part-000001.parquet")
    assert found["votes"].to_pylist() == list(range(50, 100))
    assert found.schema.field("votes").type == pa.int16()
    (model,) = json.loads(found.schema.metadata[b"wsdm_ray.models"])
    assert model == run["fingerprint"]["models"][0]
    assert model["precision"] == "fp32"
    with submission.open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["id", "winner_model_a", "winner_model_b", "winner_tie"]
    assert [line[0] for line in lines] == ids
    # The same command again writes the submission alone; without it, the record stays.
    submission.unlink()
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    assert score(asked) == run
    assert submission.exists()
    assert score(dataclasses.replace(asked, submission=None, submission_format="wsdm")) == run
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == before


def check_same_predictions(output: Path, scored: Path) -> None:
    expected = {row["id"]: row for row in pq.read_table(scored).to_pylist()}
    for row in pq.read_table(output).to_pylist():
        assert row["error"] == expected[row["id"]]["error"]
        assert row["tokens"] == expected[row["id"]]["tokens"]
        if not row["error"]:
            assert row["prob_a"] == pytest.approx(expected[row["id"]]["prob_a"], abs=1e-5)
