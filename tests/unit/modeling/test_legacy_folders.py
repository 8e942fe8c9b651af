"""Folders and runs that version 0.1.0 made load, score and resume under the present names."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.data.legacy.scores import BASE, SCORED, log_odds, machine
from tests.runs import open_run
from wsdm_ray.config import QuantizeConfig, ScoreConfig, TrainConfig
from wsdm_ray.config.model import HeadConfig, LoraConfig, TextConfig
from wsdm_ray.config.train import ObjectiveConfig, OptimizerConfig
from wsdm_ray.legacy import modernize_run
from wsdm_ray.modeling.manifest import Manifest, folder_digest, read_manifest
from wsdm_ray.modeling.quantization import quantize
from wsdm_ray.training.check import TrainingFiles, fingerprint_of

LEGACY = Path(__file__).parents[2] / "data" / "legacy"
EXPECTED = json.loads((LEGACY / "expected.json").read_text())
STORED = {"full-fp8": "w8a8-fp8", "full-int8-rows": "w8a8-int8"}


@pytest.mark.parametrize(
    ("name", "old", "present"),
    [
        ("base-int8", "int8", "bnb-int8"),
        ("adapter", "int8", "bnb-int8"),
        ("full-fp8", "fp8", "w8a8-fp8"),
        ("full-int8-rows", "int8-rows", "w8a8-int8"),
    ],
)
def test_a_manifest_is_read_under_present_names(name, old, present):
    assert json.loads((LEGACY / name / "wsdm_ray.json").read_text())["quantization"] == old
    assert read_manifest(str(LEGACY / name), need_head=False).quantization == present


def test_digests_are_those_that_version_0_1_0_took():
    """They cover the manifest as it is on disk, with its old names."""
    assert folder_digest(str(LEGACY / BASE)) == read_manifest(str(LEGACY / "adapter")).base_digest
    run = json.loads((LEGACY / "full-fp8" / "run.json").read_text())
    assert run["fingerprint"]["adapter"] == [folder_digest(str(LEGACY / "adapter"))]


@pytest.mark.parametrize(("name", "precision"), SCORED)
def test_a_folder_scores_as_it_did(name, precision):
    """To float32's rounding where the processor has the name of that which made the expected scores.

    Two of that name differed by 1.2e-7. Elsewhere sums may be in another order.
    A sum in another order can round an activation to the next of 8 bits: 1e-3 is some such steps.
    """
    expected = EXPECTED["log_odds"][f"{name} {precision}"]
    found = log_odds(LEGACY, name, precision)
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=1e-6 if machine() == EXPECTED["machine"] else 1e-3
    )


def merged(output: Path, name: str) -> dict:
    """`quantize` with the present name of the command that made a full folder."""
    precision = STORED[name]
    return quantize(
        QuantizeConfig(
            base=str(LEGACY / BASE),
            adapter=(str(LEGACY / "adapter"),),
            precision=precision,  # pyright: ignore[reportArgumentType]
            output=str(output),
        )
    )


@pytest.mark.parametrize("name", STORED)
def test_a_finished_quantize_is_complete_already(tmp_path, name):
    output = shutil.copytree(LEGACY / name, tmp_path / name)
    stamps = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    run = merged(output, name)
    assert run["fingerprint"]["precision"] == run["config"]["precision"] == STORED[name]
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == stamps


def test_an_unfinished_quantize_resumes(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    shutil.copy(LEGACY / "full-fp8" / "unfinished.json", output / "_run.json")
    assert merged(output, "full-fp8")["fingerprint"]["precision"] == "w8a8-fp8"
    found, expected = (load_file(folder / "model.safetensors") for folder in (output, LEGACY / "full-fp8"))
    assert sorted(found) == sorted(expected)
    assert all(found[name].equal(tensor) for name, tensor in expected.items())


def train_config(values: dict) -> TrainConfig:
    """A present config from the values of one."""
    parts = {
        "text": TextConfig,
        "head": HeadConfig,
        "lora": LoraConfig,
        "optimizer": OptimizerConfig,
        "objective": ObjectiveConfig,
    }
    return TrainConfig(**values | {name: kind(**values[name]) for name, kind in parts.items()})


def test_the_run_of_a_train_has_the_options_of_a_present_one():
    old = json.loads((LEGACY / "adapter" / "run.json").read_text())
    assert old["config"]["objective"]["order_agreement"] == 0.1
    run = modernize_run(old)
    config = train_config(run["config"])
    assert (config.quantization, config.objective.swap_consistency_weight) == ("bnb-int8", 0.1)
    present = fingerprint_of(config, TrainingFiles(train=[], valid=[]), Manifest(kind="adapter"), False)
    assert run["fingerprint"]["options"] == present["options"]


def test_the_run_of_a_score_has_the_options_of_a_present_one():
    old = json.loads((LEGACY / "predictions" / "run.json").read_text())
    run = modernize_run(old)
    assert ScoreConfig(**run["config"] | {"columns": {}}).precision == "w8a8-int8"
    (model,) = run["fingerprint"]["models"]
    assert model == old["fingerprint"]["models"][0] | {"precision": "w8a8-int8"}


@pytest.mark.parametrize(("name", "job"), [("adapter", "train"), ("predictions", "score")])
def test_a_run_of_ray_is_known_finished_or_not(tmp_path, name, job):
    fingerprint = modernize_run(json.loads((LEGACY / name / "run.json").read_text()))["fingerprint"]
    finished, unfinished = tmp_path / "finished", tmp_path / "unfinished"
    for folder in (finished, unfinished):
        folder.mkdir()
    shutil.copy(LEGACY / name / "run.json", finished)
    shutil.copy(LEGACY / name / "unfinished.json", unfinished / "_run.json")
    (unfinished / "part-000000.parquet").touch()
    run = open_run(str(finished), job, fingerprint, False)
    assert run is not None
    assert run["fingerprint"] == fingerprint
    assert open_run(str(unfinished), job, fingerprint, False) is None
    assert (unfinished / "part-000000.parquet").exists(), "what was done is kept"
