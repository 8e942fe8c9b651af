"""A scoring run's checks, on clusters that are none, and what is expected of a run."""

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.unit.scoring.conftest import random_rows
from wsdm_ray.config import ScoreConfig
from wsdm_ray.errors import ClusterError, StorageError
from wsdm_ray.modeling.weight_bytes import streamed_bytes
from wsdm_ray.preflight import job
from wsdm_ray.preflight.estimate import Speed
from wsdm_ray.preflight.node import Gpu, NodeFacts, Probe, versions_here
from wsdm_ray.scoring import expected
from wsdm_ray.scoring.check import Cluster, describe
from wsdm_ray.scoring.preflight import checked, model_folders


def denied(*arguments: Any, **options: Any) -> None:
    raise PermissionError("Access Denied")


CPU = Cluster(replicas=2, on_gpu=False, threads=1)
GPU = Cluster(replicas=2, on_gpu=True, threads=None, capability=(9, 0))


@pytest.fixture
def given(classifiers, tmp_path) -> ScoreConfig:
    pq.write_table(random_rows(20), tmp_path / "rows.parquet")
    return ScoreConfig(
        model=(classifiers[0].folder,), input=(f"{tmp_path}/rows.parquet",), output=f"{tmp_path}/out"
    )


@pytest.fixture
def asked(monkeypatch) -> list[Probe]:
    """What nodes are asked: two, of which the second has a GPU of 1 GB."""
    probes: list[Probe] = []

    def answers(probe: Probe, assumed: bool) -> tuple[tuple[NodeFacts, ...], dict[str, str]]:
        probes.append(probe)
        assert Path(str(probe.seen)).exists()
        gpu = Gpu(name="NVIDIA L4", total_bytes=10**9, free_bytes=10**9)
        first = NodeFacts(node="a", versions=versions_here())
        return (first, dataclasses.replace(first, node="b", gpus=(gpu,) if probe.gpus else ())), {}

    monkeypatch.setattr(job, "answers", answers)
    return probes


def test_nodes_are_asked_for_what_the_run_needs(given, asked, capsys):
    run = checked(given, lambda _: GPU)
    assert run.cluster == dataclasses.replace(GPU, gpu="NVIDIA L4")
    [probe] = asked
    assert (probe.files, probe.folders, probe.gpus) == (given.input, given.model, True)
    assert capsys.readouterr().out == "", "a run that is well says nothing"
    assert not Path(given.output).exists()
    assert not list(Path(given.output).parent.glob(".probe*"))


def test_a_dry_run_shows_the_table_and_what_the_run_takes(given, asked, capsys, monkeypatch):
    run = checked(dataclasses.replace(given, dry_run=True, gpu_hour_price=2.0), lambda _: GPU)
    shown = capsys.readouterr().out
    for words in (
        "20 rows in 1 file; 1 model",
        "2 x 1 CPU and 1 GPU; they fit",
        "GPUs: w8a8-int8",
        "GPU memory",
    ):
        assert words in shown
    monkeypatch.setattr(
        expected, "speed_of", lambda *found: Speed(tokens_per_second=1.0, origin=str(found[:3]))
    )
    figures = describe(run)
    assert figures["gpu_hours"] == pytest.approx(figures["tokens"] / 3600, abs=0.01)
    assert figures["hours"] == pytest.approx(figures["gpu_hours"] / 2, abs=0.01)
    assert figures["cost"] == pytest.approx(2 * figures["gpu_hours"], abs=0.02)
    assert figures["estimated_from"] == "('score', 'NVIDIA L4', 'w8a8-int8')"
    shown = capsys.readouterr().out
    assert f"{'cost':>20}  {figures['cost']:,.2f}" in shown
    assert "at most" not in shown
    describe(dataclasses.replace(run, replica=dataclasses.replace(run.replica, orders="adaptive")))
    assert "at most: of rows that are not in doubt" in capsys.readouterr().out


def test_a_model_that_does_not_fit_ends_the_job(given, asked, monkeypatch):
    monkeypatch.setattr(expected, "bytes_of_models", lambda models, device: 2 * 10**9)
    with pytest.raises(ClusterError, match=r"^GPU memory: takes 2.0 GB .* b: 1.0 GB on NVIDIA L4; choose"):
        checked(given, lambda _: GPU)
    assert checked(given, lambda _: CPU).cluster.gpu is None


def test_an_output_that_cannot_be_written_shows_in_the_table(given, asked, capsys):
    given = dataclasses.replace(given, output="/proc/out", dry_run=True)
    with pytest.raises(StorageError, match="/proc/out: "):
        checked(given, lambda _: CPU)
    [row] = [line for line in capsys.readouterr().out.splitlines() if "write access" in line]
    assert "fail   /proc/out: " in row
    assert not asked


def test_a_dry_run_writes_a_probe_to_a_store(given, asked, monkeypatch):
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", denied)
    with pytest.raises(StorageError, match="memory://b/out: permission denied; check the credentials"):
        checked(dataclasses.replace(given, output="memory://b/out", dry_run=True), lambda _: CPU)
    assert not asked


def test_what_a_replica_takes(classifiers):
    models = [dataclasses.replace(each, precision="w8a8-int8") for each in classifiers]
    need = expected.gpu_need(models)
    files = [[f"{each.folder}/model.safetensors"] for each in models]
    assert need.fixed_bytes == sum(streamed_bytes(each, "w8a8-int8") for each in files)
    one = expected.gpu_need(models[:1])
    assert one.batch_bytes == need.batch_bytes > 2 * 96 * 1_000, "the larger of both micro-batches"
    whole = expected.gpu_need([dataclasses.replace(models[0], precision="fp32")])
    assert whole.batch_bytes > one.batch_bytes
    assert whole.fixed_bytes > one.fixed_bytes
    assert (one.what, need.what) == ("weights as w8a8-int8", "2 models as w8a8-int8")


def test_nodes_read_a_model_and_the_base_of_an_adapter(classifiers):
    full = classifiers[0]
    manifest = dataclasses.replace(full.manifest, kind="adapter", base="/base")
    adapter = dataclasses.replace(full, folder="/adapter", manifest=manifest)
    moved = dataclasses.replace(adapter, base="/moved")

    def run(*models: Any) -> Any:
        return type("Run", (), {"replica": type("Replica", (), {"models": models})})

    assert model_folders(run(full, adapter, adapter, moved)) == (full.folder, "/adapter", "/base", "/moved")
