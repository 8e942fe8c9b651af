"""A finished run is known by listings; anything else is left to the checks."""

import dataclasses
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.scoring.conftest import random_rows
from wsdm_ray.config import ScoreConfig
from wsdm_ray.modeling.manifest import Manifest, folder_digest
from wsdm_ray.runs import RUN_FILE, file_versions, hold_run, read_run, run_folder
from wsdm_ray.scoring import finished as module
from wsdm_ray.scoring import pipeline
from wsdm_ray.scoring.check import options_of_the_output
from wsdm_ray.scoring.finished import finished_run
from wsdm_ray.scoring.model_spec import ModelSpec
from wsdm_ray.scoring.parts import UnitReport, digest_of_sizes, part_sizes, write_part
from wsdm_ray.storage import folder_identity, join, read_json, write_json


@pytest.fixture
def finished(tmp_path) -> ScoreConfig:
    """A command whose run is finished, with two units of ten rows."""
    model, rows = tmp_path / "model", tmp_path / "rows.parquet"
    model.mkdir()
    for name in ("adapter_model.safetensors", "tokenizer_config.json"):
        (model / name).write_text("{}")
    pq.write_table(random_rows(20), rows)
    config = ScoreConfig(model=(str(model),), input=(str(rows),), output=str(tmp_path / "out"), unit_rows=10)
    fingerprint = {
        "options": options_of_the_output(config) | {"layout": "padded"},
        "models": [
            ModelSpec(
                str(model), None, Manifest(kind="adapter"), "fp32", folder_digest(str(model))
            ).fingerprint
        ],
        "inputs": file_versions([str(rows)]),
    }
    with hold_run(config.output, "score", fingerprint, restart=False) as held:
        for number in range(2):
            table = pa.table({"id": [*range(10)]})
            write_part(config.output, table, UnitReport(unit=number, rows=10), held.digest)
        sizes = digest_of_sizes(part_sizes(config.output))
        identities = [folder_identity(str(model))]
        held.finish(
            {"counts": {"units": 2, "rows": 20}, "parts_digest": sizes, "model_identities": identities}
        )
    return config


def test_the_same_command_is_complete_before_anything_is_read(finished, monkeypatch, caplog):
    monkeypatch.setattr(pipeline, "check", None)
    with caplog.at_level("INFO"):
        assert pipeline.score(finished) == read_run(finished.output)
    assert f"{finished.output} is complete already (20 rows)" in caplog.text
    assert finished_run(dataclasses.replace(finished, replicas=3, precision="fp32", layout="padded"))


def test_weights_are_read_only_where_a_file_of_the_model_was_written(finished, monkeypatch):
    weights, read = Path(finished.model[0], "adapter_model.safetensors"), []

    def digest(folder: str) -> str:
        read.append(folder)
        return folder_digest(folder)

    monkeypatch.setattr(module, "folder_digest", digest)
    assert finished_run(finished)
    assert not read
    os.utime(weights, (1, 1))
    assert finished_run(finished), "the same content"
    assert read == [finished.model[0]]
    weights.write_text("[]")
    assert finished_run(finished) is None
    path = join(run_folder(finished.output), RUN_FILE)
    record = read_json(path)
    del record["model_identities"]  # as earlier versions left it
    weights.write_text("{}")
    write_json(path, record)
    assert finished_run(finished)


@pytest.mark.parametrize(
    "change",
    [
        {"restart": True}, {"dry_run": True}, {"submission": "s.csv"}, {"unit_rows": 7}, {"orders": "ab"},
        {"precision": "bf16"}, {"layout": "shared"}, {"output": "elsewhere"}, {"input": ("nowhere",)},
        {"model": ("nowhere",)},
    ],
)  # fmt: skip
def test_another_command_is_checked(finished, change):
    assert finished_run(dataclasses.replace(finished, **change)) is None


def test_what_changed_since_is_checked(finished, tmp_path):
    output, model, rows = Path(finished.output), Path(finished.model[0]), Path(finished.input[0])
    lease = Path(run_folder(finished.output), "_lease-000001.json")
    lease.write_text("{}")
    assert finished_run(finished) is None, "it is left by a process that died at its end"
    lease.unlink()
    part = (output / "part-000001.parquet").rename(tmp_path / "part")
    assert finished_run(finished) is None
    part.rename(output / "part-000001.parquet")
    assert finished_run(finished)
    whole = (output / "part-000001.parquet").read_bytes()
    (output / "part-000001.parquet").write_bytes(whole[:100])
    assert finished_run(finished) is None, "a part was cut"
    (output / "part-000001.parquet").write_bytes(whole)
    assert finished_run(finished)
    config = model / "tokenizer_config.json"
    text = config.read_text()
    config.write_text(text + " ")
    assert finished_run(finished) is None
    config.write_text(text)
    assert finished_run(finished)
    pq.write_table(random_rows(21), rows)
    assert finished_run(finished) is None
