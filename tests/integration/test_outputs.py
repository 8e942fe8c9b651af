"""What `score` leaves reads as one table in common libraries, with kept columns and a submission."""

import csv
import dataclasses
import json

import pyarrow as pa
import pyarrow.parquet as pq

from tests.integration.conftest import score_config
from tests.table_readers import READERS, ray
from wsdm_ray.scoring.pipeline import score


def test_an_output_as_it_is(ray_session, classifier, pairs, tmp_path):
    rows = pairs.append_column("votes", pa.array(range(len(pairs)), pa.int16()))
    pq.write_table(rows, tmp_path / "in.parquet")
    output, submission = tmp_path / "out", tmp_path / "submission.csv"
    asked = score_config(
        classifier,
        tmp_path / "in.parquet",
        output,
        unit_rows=50,
        keep_columns=("votes",),
        submission=str(submission),
        submission_format="lmsys",
    )
    run = score(asked)
    ids = pairs["id"].to_pylist()
    for name, read in (READERS | {"ray": ray}).items():
        assert sorted(read(output)) == sorted(ids), name
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
