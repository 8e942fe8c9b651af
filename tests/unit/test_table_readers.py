"""Folders of predictions and of shards read as one table, as they are, in the libraries that people use."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.runs import finish_run, open_run
from tests.table_readers import READERS
from wsdm_ray.config import EnsembleConfig
from wsdm_ray.evaluation.ensemble import ensemble
from wsdm_ray.runs import PRIVATE_FOLDER, run_folder
from wsdm_ray.schema import predictions_schema
from wsdm_ray.scoring.crash_records import crash_record_path
from wsdm_ray.scoring.kept_columns import append_kept
from wsdm_ray.scoring.parts import UnitReport, provenance, write_part
from wsdm_ray.storage import write_json

IDS = list(range(10, 16))


def rows_of(ids: list[int]) -> pa.Table:
    schema = predictions_schema(pa.int64())
    row: dict[str, Any] = dict.fromkeys(schema.names) | {"prob_a": 0.75, "winner": "model_a"}
    table = pa.Table.from_pylist([row | {"id": name, "tokens": 9, "cut_tokens": 0} for name in ids], schema)
    return append_kept(table, pa.table({"keep_language": ["en"] * len(ids)}))


def scored(tmp_path: Path, parts: int = 3) -> Path:
    """A folder as `score` leaves it, or leaves it before its last part is written."""
    output = str(tmp_path / "scored")
    open_run(output, "score", {}, restart=False)
    for number, start in list(enumerate(range(0, len(IDS), 2)))[:parts]:
        table = rows_of(IDS[start : start + 2]).replace_schema_metadata(provenance([], "both"))
        write_part(output, table, UnitReport(unit=number, rows=2), digest="")
    write_json(crash_record_path(output, 0), [])
    private = Path(run_folder(output), PRIVATE_FOLDER)
    private.mkdir()
    pq.write_table(pa.table({"text": ["not a prediction"]}), private / "input.parquet")
    if parts == 3:
        finish_run(output, "score", {}, {"counts": {"rows": len(IDS)}})
    return tmp_path / "scored"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("parts", [3, 2], ids=["finished", "under way"])
def test_scored(tmp_path, reader, parts):
    assert sorted(READERS[reader](scored(tmp_path, parts))) == IDS[: 2 * parts]


@pytest.mark.parametrize("reader", READERS)
def test_ensemble(tmp_path, reader):
    ensemble(EnsembleConfig(predictions=(str(scored(tmp_path)),), output=str(tmp_path / "mean")))
    assert sorted(READERS[reader](tmp_path / "mean")) == IDS


@pytest.mark.parametrize("reader", READERS)
def test_prepared(prepared, tmp_path, reader):
    folder = tmp_path / "train"
    folder.symlink_to(prepared / "train")
    expected = pq.read_table(prepared / "train")["id"].to_pylist()
    assert sorted(READERS[reader](folder)) == sorted(expected)


def test_the_schema_says_what_it_holds(tmp_path):
    first, second = (pq.read_schema(scored(tmp_path / name) / "part-000001.parquet") for name in ("a", "b"))
    assert first.equals(second, check_metadata=True), "nothing of the time or the place"
    assert json.loads(first.metadata[b"wsdm_ray.models"]) == []
    assert first.metadata[b"wsdm_ray.orders"] == b"both"
    assert b"wsdm_ray.version" in first.metadata
    descriptions = {field.name: field.metadata[b"description"].decode() for field in first}
    assert "probability that the given response_a wins" in descriptions["prob_a"]
    assert "copied from the input" in descriptions["language"]
    assert all(len(text) > 10 for text in descriptions.values())
