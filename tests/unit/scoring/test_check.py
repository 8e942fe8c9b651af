"""What a run is checked to be before any folder is touched, and what its fingerprint holds."""

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import load_file, save_file

from tests.runs import open_run
from tests.unit.modeling.checkpoints import manifest_of, trained
from tests.unit.scoring.conftest import random_rows
from wsdm_ray.config import ScoreConfig
from wsdm_ray.errors import ConfigError, ModelError, RunMismatchError, WsdmRayError
from wsdm_ray.modeling.checkpoint import save_classifier
from wsdm_ray.modeling.families import FAMILIES
from wsdm_ray.modeling.manifest import Manifest, read_manifest
from wsdm_ray.scoring.check import (
    Cluster,
    ScoreRun,
    check_inputs,
    check_run,
    describe,
)
from wsdm_ray.scoring.model_check import check_models, fastest_layout, numeric_libraries
from wsdm_ray.scoring.model_spec import ModelSpec
from wsdm_ray.scoring.models import Models
from wsdm_ray.scoring.pipeline import score
from wsdm_ray.storage import read_json, write_json

ONE_CPU = Cluster(replicas=1, on_gpu=False, threads=1)


@pytest.mark.parametrize(
    ("precision", "on_gpu", "layout"),
    [
        ("w8a8-fp8", True, "shared"),
        ("w8a8-int8", True, "shared"),
        ("bf16", True, "shared"),
        ("fp32", True, "padded"),
        ("bnb-int8", True, "padded"),
        ("w8a8-fp8", False, "padded"),
        ("fp32", False, "padded"),
    ],
)
def test_the_layout_of_auto(precision, on_gpu, layout):
    model = ModelSpec("folder", None, Manifest(kind="full"), precision)
    assert fastest_layout([model], on_gpu) == layout
    other = ModelSpec("folder", None, Manifest(kind="full"), "bnb-int8")
    assert fastest_layout([model, other], on_gpu) == "padded"


@pytest.mark.parametrize(
    ("kind", "stored", "precision", "on_gpu", "libraries"),
    [
        ("full", "none", "fp32", True, ()),
        ("full", "none", "bnb-int8", True, ("bitsandbytes",)),
        ("full", "nf4", "nf4", True, ("bitsandbytes",)),
        ("full", "bnb-int8", "w8a8-int8", True, ("bitsandbytes",)),  # dequantized
        ("full", "w8a8-fp8", "w8a8-fp8", True, ()),
        ("adapter", "none", "w8a8-int8", True, ()),
        ("adapter", "none", "bf16", True, ()),
        ("adapter", "none", "bf16", False, ("peft",)),  # run by transformers
        ("adapter", "none", "fp32", True, ("peft",)),
        ("adapter", "nf4", "nf4", True, ("bitsandbytes", "peft")),
        ("adapter", "bnb-int8", "w8a8-int8", True, ("bitsandbytes",)),
    ],
)
def test_libraries_that_change_the_numbers_of_some_models(kind, stored, precision, on_gpu, libraries):
    model = ModelSpec("folder", None, Manifest(kind=kind, quantization=stored), precision)
    assert numeric_libraries([model], on_gpu) == libraries
    plain = ModelSpec("folder", None, Manifest(kind="full"), "fp32")
    assert numeric_libraries([plain, model, model], on_gpu) == libraries


@pytest.mark.parametrize(
    ("asked", "device", "capability", "found"),
    [
        ("auto", "cuda", (9, 0), "w8a8-int8"),
        ("auto", "cuda", (8, 9), "w8a8-fp8"),
        ("auto", "cuda", (8, 0), "w8a8-int8"),
        ("auto", "cuda", (7, 5), "bnb-int8"),
        ("bf16", "cuda", None, "bf16"),
        ("auto", "cpu", None, "fp32"),
        ("w8a8-fp8", "cpu", None, "w8a8-fp8"),
    ],
)
def test_precisions_are_resolved_before_replicas_are_made(classifiers, asked, device, capability, found):
    folder = classifiers[0].folder
    config = ScoreConfig(model=(folder,), input=("i",), output="o", precision=asked)
    cluster = Cluster(replicas=1, on_gpu=device == "cuda", threads=None, capability=capability)
    [spec] = check_models(config, cluster.on_gpu, cluster.capability)
    assert spec.precision == spec.fingerprint["precision"] == found


def test_each_model_has_a_base_of_its_own(family_model, tmp_path):
    """Bases that are no longer where they were in training."""
    models, bases = [], []
    for family in ("gemma2", "llama"):
        there = shutil.copytree(family_model(family), tmp_path / f"{family}-base")
        models.append(str(tmp_path / family))
        save_classifier(trained(there, "none"), str(there), models[-1], manifest_of(there, "none"))
        bases.append(str(there.rename(tmp_path / f"{family}-moved")))
    given = ScoreConfig(model=tuple(models), input=("i",), output="o", base=tuple(bases))
    specs = check_models(given, False, None)
    assert [spec.base for spec in specs] == bases
    scorers = Models([dataclasses.replace(spec, precision="w8a8-int8") for spec in specs]).scorers
    assert [scorer.stack.shape.family for scorer in scorers] == [FAMILIES["gemma2"], FAMILIES["llama"]]
    only_one = dataclasses.replace(given, base=(bases[0],))
    with pytest.raises(ModelError, match=r"llama: was trained on a base with digest .*gemma2-moved has"):
        check_models(only_one, False, None)
    with pytest.raises(ModelError, match=r"gemma2: its base .*gemma2-base cannot be had .*use --base FOLDER"):
        check_models(dataclasses.replace(given, base=()), False, None)


# What decides the output


@pytest.fixture
def adapter(family_model, tmp_path) -> tuple[Path, Path]:
    """An adapter's folder, and its base's."""
    base = Path(shutil.copytree(family_model("gemma2"), tmp_path / "base"))
    folder = tmp_path / "model"
    save_classifier(trained(base, "none"), str(base), str(folder), manifest_of(base, "none"))
    return folder, base


@pytest.fixture
def run_of(adapter, tmp_path):
    """The checked run over twenty rows; keywords are options."""

    def check(**options: Any) -> ScoreRun:
        rows = tmp_path / "rows.parquet"
        if not rows.exists():
            pq.write_table(random_rows(20), rows)
        config = ScoreConfig(model=(str(adapter[0]),), input=(str(rows),), output=str(tmp_path / "out"))
        return check_run(dataclasses.replace(config, **options), ONE_CPU)

    return check


def refusal(begun: ScoreRun, now: ScoreRun) -> str:
    """What `open_run` says when a folder that `begun` began is opened by `now`."""
    assert open_run(begun.output, "score", begun.fingerprint, False) is None
    assert open_run(begun.output, "score", begun.fingerprint, False) is None, "its own run goes on"
    with pytest.raises(RunMismatchError) as caught:
        open_run(now.output, "score", now.fingerprint, False)
    return str(caught.value)


def test_the_fingerprint_has_all_that_decides_the_output(run_of, adapter):
    run = run_of()
    manifest = read_manifest(str(adapter[0]))
    [model] = run.fingerprint["models"]
    assert set(run.fingerprint) == {"options", "models", "inputs", "units"}
    assert "units" not in run_of(unit_rows=4).fingerprint, "the options say how they were cut"
    assert set(model) == {"digest", "base_digest", "precision"}
    assert (model["base_digest"], model["precision"]) == (manifest.base_digest, "fp32")
    assert set(run.fingerprint["options"]) == {
        "orders", "layout", "max_tokens", "unit_rows", "logits", "columns", "model_weights",
    }  # fmt: skip
    assert run.fingerprint["options"]["layout"] == "padded", "auto is resolved"
    assert run_of(orders="adaptive").fingerprint["options"]["adaptive_threshold"] == 0.2
    assert list(run.fingerprint["inputs"]) == [*run.files]


def test_changed_weights_of_the_model_are_refused_by_name(run_of, adapter):
    begun = run_of()
    path = adapter[0] / "adapter_model.safetensors"
    weights = load_file(path)
    name = min(weights)
    save_file(weights | {name: weights[name] + 1}, path)
    assert "models[0].digest: " in refusal(begun, run_of())


def test_a_changed_temperature_is_refused_by_name(run_of, adapter):
    begun = run_of()
    path = str(adapter[0] / "wsdm_ray.json")
    write_json(path, read_json(path) | {"temperature": 1.25})
    now = run_of()
    assert now.replica.models[0].manifest.temperature == 1.25
    assert "models[0].digest: " in refusal(begun, now)


def test_another_base_is_refused_by_name(run_of, adapter):
    folder, base = adapter
    begun = run_of()
    weights = load_file(base / "model.safetensors")
    name = "model.norm.weight"
    save_file(weights | {name: weights[name] + 1}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="was trained on a base with digest"):
        run_of()
    shutil.rmtree(folder)
    save_classifier(trained(base, "none"), str(base), str(folder), manifest_of(base, "none"))
    assert "models[0].base_digest: " in refusal(begun, run_of())


def test_another_precision_is_refused_by_name(run_of):
    assert 'models[0].precision: "fp32" -> "bf16"' in refusal(run_of(), run_of(precision="bf16"))


def test_one_model_more_is_refused_by_name(run_of, adapter):
    assert "models: " in refusal(run_of(), run_of(model=(str(adapter[0]),) * 2))


def test_what_decides_nothing_may_change(run_of):
    begun = run_of()
    assert open_run(begun.output, "score", begun.fingerprint, False) is None
    again = run_of(token_budget=4_096, replicas=2)
    assert open_run(begun.output, "score", again.fingerprint, False) is None
    assert run_of(orders="both", adaptive_threshold=0.1).fingerprint == begun.fingerprint


def test_options_travel_resolved(run_of, adapter, tmp_path):
    run = run_of(max_tokens=64, logits=True, orders="ba", unit_rows=8)
    assert run.replica.models[0].manifest.text.max_tokens == 64
    assert (run.replica.logits, run.replica.orders, run.replica.threads) == (True, "ba", 1)
    assert [unit.rows for unit in run.plan.units] == [8, 8, 4]
    assert run.config["max_tokens"] == 64
    assert not (tmp_path / "out").exists(), "no folder is touched"
    with pytest.raises(ConfigError, match="--token-budget 100: must be at least twice"):
        run_of(token_budget=100)


def test_a_dry_run_counts_tokens(run_of, capsys):
    figures = describe(run_of(unit_rows=8))
    assert (figures["rows"], figures["units"], figures["orderings"]) == (20, 3, 2)
    assert figures["tokens"] == pytest.approx(2 * 20 * figures["tokens_per_ordering"], rel=0.01)
    assert f"{figures['tokens']:,}" in capsys.readouterr().out
    assert describe(run_of(orders="ab"))["orderings"] == 1


# In which order


def denied(*arguments: Any, **options: Any) -> None:
    raise PermissionError("Access Denied")


def test_paths_are_checked_before_torch_is_imported(adapter, tmp_path, monkeypatch):
    """An import takes seconds; where its module is None it raises."""
    monkeypatch.setitem(sys.modules, "wsdm_ray.scoring.model_check", None)
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", denied)
    pq.write_table(random_rows(3), tmp_path / "rows.parquet")
    given = ScoreConfig(model=(str(adapter[0]),), input=(str(tmp_path / "rows.parquet"),), output="o")
    for changes, message in (
        ({"input": (str(tmp_path / "none"),)}, "none: not found"),
        ({"model": (str(tmp_path / "none"),)}, "none: no such folder"),
        ({"output": str(tmp_path)}, "holds the input"),
        ({"output": "memory://b/out"}, "memory://b/out: permission denied; check the credentials"),
    ):
        with pytest.raises(WsdmRayError, match=message):
            check_inputs(dataclasses.replace(given, **changes))
    with pytest.raises(ImportError):
        check_inputs(given)


def test_a_dry_run_asks_no_cluster(adapter, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for module in ("wsdm_ray.scoring.cluster", "wsdm_ray.scoring.ray_data", "wsdm_ray.session", "ray"):
        monkeypatch.setitem(sys.modules, module, None)
    pq.write_table(random_rows(20), tmp_path / "rows.parquet")
    given = ScoreConfig(
        model=(str(adapter[0]),), input=(str(tmp_path / "rows.parquet"),), output="o", dry_run=True
    )
    assert score(given)["rows"] == 20
    shown = capsys.readouterr().out
    assert "cluster  not asked; with no GPU, like this machine: fp32, padded layout" in shown
    with pytest.raises(ImportError):
        score(dataclasses.replace(given, dry_run=False))
