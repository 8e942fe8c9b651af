"""Whether replicas and a reader fit, for clusters of all shapes; and what models are checked to be."""

import dataclasses
import shutil

import pytest
import ray

from tests.unit.modeling.test_checkpoint import manifest_of, trained
from wsdm_ray.config import ScoreConfig
from wsdm_ray.errors import ClusterError, ModelError
from wsdm_ray.modeling.checkpoint import save_classifier
from wsdm_ray.modeling.families import FAMILIES
from wsdm_ray.modeling.manifest import Manifest
from wsdm_ray.scoring import pipeline
from wsdm_ray.scoring.models import Models, ModelSpec
from wsdm_ray.scoring.pipeline import check_models, fastest_layout, fit_cluster


@pytest.fixture
def cluster(monkeypatch):
    """Makes a cluster of nodes with (CPUs, GPUs); a dead node with many of both is there, too."""

    def make(*nodes: tuple[float, int]) -> None:
        told = [{"Alive": True, "Resources": {"CPU": cpus, "GPU": gpus}} for cpus, gpus in nodes]
        monkeypatch.setattr(
            ray, "nodes", lambda: [*told, {"Alive": False, "Resources": {"CPU": 64, "GPU": 8}}]
        )

    return make


@pytest.mark.parametrize(
    ("nodes", "asked", "expected"),
    [
        ([(2, 0)], None, (1, False)),
        ([(1.5, 0)], None, (1, False)),
        ([(4, 0)], 3, (3, False)),
        ([(8, 2)], None, (2, True)),
        ([(16, 8), (16, 8)], None, (16, True)),
        ([(1, 1), (2, 0)], None, (1, True)),  # the reader runs beside, on the node without a GPU
        ([(2, 0), (2, 0)], 3, (3, False)),
    ],
)
def test_what_fits(cluster, nodes, asked, expected):
    cluster(*nodes)
    assert fit_cluster(asked) == expected


@pytest.mark.parametrize(
    ("nodes", "asked", "message"),
    [
        (
            [(1, 0)],
            None,
            "1 CPUs and 0 GPUs: too small for 1 replicas of 1 CPU beside one reader of 0.5 CPU; add nodes",
        ),
        ([(1, 1)], None, "too small for 1 replicas of 1 CPU and 1 GPU"),
        ([(8, 1)], 2, "too small for 2 replicas of 1 CPU and 1 GPU .* or lower --replicas"),
        ([(1.25, 0), (1.25, 0)], 2, "too small for 2 replicas"),  # 2.5 CPUs, but half a CPU on no node
        ([(0.5, 1), (8, 0)], None, "too small for 1 replicas"),  # the GPU's node has no CPU for the replica
    ],
)
def test_what_would_wait_for_ever_is_refused(cluster, nodes, asked, message):
    cluster(*nodes)
    with pytest.raises(ClusterError, match=message):
        fit_cluster(asked)


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
def test_precisions_are_resolved_before_replicas_are_made(
    classifiers, monkeypatch, asked, device, capability, found
):
    monkeypatch.setattr(pipeline, "gpu_capability", lambda: capability or pytest.fail("asked for a GPU"))
    folder = classifiers[0].folder
    config = ScoreConfig(model=(folder,), input=("i",), output="o", precision=asked)
    [spec], [digest] = check_models(config, device)
    assert spec.precision == digest["precision"] == found


def test_each_model_has_a_base_of_its_own(family_model, tmp_path):
    """Bases that are no longer where they were in training."""
    models, bases = [], []
    for family in ("gemma2", "llama"):
        there = shutil.copytree(family_model(family), tmp_path / f"{family}-base")
        models.append(str(tmp_path / family))
        save_classifier(trained(there, "none"), str(there), models[-1], manifest_of(there, "none"))
        bases.append(str(there.rename(tmp_path / f"{family}-moved")))
    given = ScoreConfig(model=tuple(models), input=("i",), output="o", base=tuple(bases))
    specs, _ = check_models(given, "cpu")
    assert [spec.base for spec in specs] == bases
    held = Models([dataclasses.replace(spec, precision="w8a8-int8") for spec in specs]).held
    assert [network.stack.shape.family for network, _ in held] == [FAMILIES["gemma2"], FAMILIES["llama"]]
    only_one = dataclasses.replace(given, base=(bases[0],))
    with pytest.raises(ModelError, match=r"llama: was trained on a base with digest .*gemma2-moved has"):
        check_models(only_one, "cpu")
    with pytest.raises(ModelError, match=r"gemma2: its base .*gemma2-base cannot be had .*use --base FOLDER"):
        check_models(dataclasses.replace(given, base=()), "cpu")
