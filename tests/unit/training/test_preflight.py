"""A training run's checks, and what is expected of it; no Ray."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
import transformers
from fsspec.implementations.memory import MemoryFileSystem

from wsdm_ray.config import TrainConfig
from wsdm_ray.errors import ClusterError, StorageError
from wsdm_ray.modeling.manifest import Manifest
from wsdm_ray.preflight import job
from wsdm_ray.preflight.estimate import Speed
from wsdm_ray.preflight.model_size import parameters_of, trained_parameters
from wsdm_ray.preflight.node import Gpu, NodeFacts, Probe, versions_here
from wsdm_ray.presets import tiny
from wsdm_ray.storage import list_files
from wsdm_ray.text.encoding import read_settings
from wsdm_ray.training import expected, preflight
from wsdm_ray.training.check import CheckedTraining, ClusterResources
from wsdm_ray.training.expected import describe, gpu_need
from wsdm_ray.training.runner import train


@pytest.fixture
def given(tiny_model: Path, prepared: Path, tmp_path: Path) -> TrainConfig:
    whole = tiny(str(tiny_model), (f"{prepared}/train",), str(tmp_path / "out"), (f"{prepared}/valid",))
    return dataclasses.replace(whole, quantization="none", max_steps=3, gpu_hour_price=2.0)


def test_a_dry_run_starts_no_ray_and_writes_nothing(given, monkeypatch, capsys):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for module in ("ray", "wsdm_ray.training.ray_train"):
        monkeypatch.setitem(sys.modules, module, None)
    figures = train(dataclasses.replace(given, dry_run=True))
    assert (figures["steps"], figures["pairs"], figures["orderings"]) == (3, 3 * given.pairs_per_step, 2)
    assert figures["tokens"] == pytest.approx(2 * figures["pairs"] * figures["tokens_per_ordering"], rel=0.01)
    shown = capsys.readouterr().out
    for words in (
        "the base is held as none",
        "1 x 1 CPU; no cluster was asked",
        "write access",
        "hours  not known",
    ):
        assert words in shown
    assert not Path(given.output).exists()
    with pytest.raises(ImportError):
        train(given)


def test_nodes_are_asked_and_hours_follow_from_their_gpus(given, monkeypatch, capsys):
    gpu = Gpu(name="NVIDIA L4", total_bytes=10**9, free_bytes=10**9)
    facts = NodeFacts(node="a", versions=versions_here(), gpus=(gpu,))
    probes = []
    monkeypatch.setattr(job, "answers", lambda probe, assumed: (probes.append(probe), ((facts,), {}))[1])
    monkeypatch.setattr(preflight, "resources_of_cluster", lambda config: ClusterResources(cpus=8, gpus=2))
    monkeypatch.setattr(
        expected, "speed_of", lambda *found: Speed(tokens_per_second=1.0, origin=str(found[:3]))
    )
    run, name = preflight.checked(dataclasses.replace(given, num_workers=2))
    assert capsys.readouterr().out == ""
    assert (name, probes[0].gpus, probes[0].folders) == ("NVIDIA L4", True, (given.base,))
    assert len(probes[0].files) == 2, "a file of train and one of valid"
    asks_for_all_that_workers_read(given, run, probes)
    figures = describe(run, name)
    assert figures["cost"] == pytest.approx(2 * figures["tokens"] / 3600, abs=0.01)
    assert figures["hours"] == pytest.approx(figures["tokens"] / 7200, abs=0.01)
    assert figures["estimated_from"] == "('train', 'NVIDIA L4', 'none')"
    assert "validation at each checkpoint comes on top" in capsys.readouterr().out
    monkeypatch.setattr(expected, "streamed_bytes", lambda files, precision: 2 * 10**9)
    with pytest.raises(ClusterError, match=r"^GPU memory: takes 2.0 GB .*NVIDIA L4; choose a --quantization"):
        preflight.checked(given)


def asks_for_all_that_workers_read(given: TrainConfig, run: CheckedTraining, probes: list[Probe]) -> None:
    """Also an adapter to start from, and predictions of teachers, which may be on the driver's disk alone."""
    objective = dataclasses.replace(run.worker_config.objective, teachers=given.train)
    worker = dataclasses.replace(run.worker_config, start_from="/an/adapter", objective=objective)
    found = preflight.probe_of(dataclasses.replace(run, worker_config=worker))
    assert found.folders == (*probes[0].folders, "/an/adapter")
    assert found.files == (*probes[0].files, list_files(given.train)[0])


def test_an_output_that_takes_no_file_is_found_before_ray_starts_a_worker(given, monkeypatch):
    def denied(*arguments: object, **options: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", denied)
    monkeypatch.setattr(preflight, "resources_of_cluster", lambda config: ClusterResources(cpus=8, gpus=0))
    with pytest.raises(StorageError, match="memory://b/out: permission denied; check the credentials"):
        preflight.checked(dataclasses.replace(given, output="memory://b/out"))


def test_the_gpus_of_this_machine_are_named_as_ray_names_them(monkeypatch):
    names = ["NVIDIA H100 80GB HBM3", "NVIDIA H200"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", names.__getitem__)
    machine = preflight.this_machine()
    assert (machine.gpus, machine.gpu_types) == (2, {"H100", "H200"})


def test_what_a_worker_takes(given):
    manifest = Manifest(kind="adapter", quantization="none")
    found = gpu_need(given, manifest, 1_000)
    held = [
        gpu_need(given, dataclasses.replace(manifest, quantization=kind), 1_000)
        for kind in ("bnb-int8", "nf4")
    ]
    assert found.fixed_bytes > held[0].fixed_bytes > held[1].fixed_bytes
    optimizer = dataclasses.replace(given.optimizer, kind="adamw_8bit")
    trained = trained_parameters(
        read_settings(Path(given.base, "config.json")), given.lora.r, given.lora.targets
    )
    less = gpu_need(dataclasses.replace(given, optimizer=optimizer), manifest, 1_000)
    assert found.fixed_bytes - less.fixed_bytes == 6 * trained > 0
    large = dataclasses.replace(given, token_budget=2 * given.token_budget)
    assert gpu_need(large, manifest, 1_000) == found, "of which a GPU may take less"
    text = dataclasses.replace(given.text, max_tokens=2 * given.text.max_tokens)
    twice = dataclasses.replace(large, text=text)
    assert gpu_need(twice, manifest, 1_000).batch_bytes == 2 * found.batch_bytes
    assert gpu_need(given, manifest, 10).batch_bytes > found.batch_bytes, "so few steps are not compiled"


def test_what_a_worker_takes_that_shares_the_base(given, monkeypatch):
    deep = transformers.Qwen2Config(num_hidden_layers=20)
    shared = dataclasses.replace(given, shard_base=True, num_workers=4)
    assert expected.bytes_of_others(4, 1_000, 0, deep) == 650, "a quarter of it, and two of 20 layers"
    assert expected.bytes_of_others(2, 1_000, 0, deep) == 400
    assert expected.bytes_of_others(4, 1_000, 100, deep) == 750, "embeddings are not on the GPU"
    assert expected.bytes_of_others(1, 1_000, 100, deep) == 0
    manifest = Manifest(kind="adapter", quantization="none")
    whole = gpu_need(given, manifest, 1_000)
    parameters = parameters_of(read_settings(Path(given.base, "config.json")))

    def much(shards: int, layer_bytes: float, embedding_bytes: float, network: object) -> int:
        assert (layer_bytes, embedding_bytes) == (2 * parameters.linear, 2 * parameters.embedding)
        return 10 * whole.batch_bytes

    monkeypatch.setattr(expected, "bytes_of_others", much)
    settings = read_settings(Path(given.base, "config.json"))
    state = 8 * trained_parameters(settings, given.lora.r, given.lora.targets)
    for config, parts in ((shared, 4), (dataclasses.replace(shared, min_workers=2), 2)):
        found = gpu_need(config, manifest, 1_000)
        most = whole.fixed_bytes - state * (parts - 1) // parts
        assert found.fixed_bytes + found.batch_bytes == most, "a base is loaded whole"
