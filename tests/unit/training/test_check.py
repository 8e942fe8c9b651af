"""What is found before anything runs, without Ray."""

import dataclasses
import os
import shutil
from pathlib import Path

import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from wsdm_ray.config import LoraConfig, TrainConfig
from wsdm_ray.errors import ClusterError, ConfigError
from wsdm_ray.presets import tiny
from wsdm_ray.runs import hold_run
from wsdm_ray.schema import TEXTS
from wsdm_ray.storage import list_files
from wsdm_ray.training import policy
from wsdm_ray.training.check import (
    CheckedTraining,
    ClusterResources,
    TrainingCounts,
    check,
    check_inputs,
)

TWO_CPUS = ClusterResources(cpus=2, gpus=0)
H100S = ClusterResources(cpus=8, gpus=2, gpu_types=frozenset({"H100"}))
A100S = ClusterResources(cpus=8, gpus=2, gpu_types=frozenset({"A100"}))


@pytest.fixture
def config(tiny_model: Path, prepared: Path, tmp_path: Path) -> TrainConfig:
    whole = tiny(str(tiny_model), (f"{prepared}/train",), str(tmp_path / "model"), (f"{prepared}/valid",))
    return dataclasses.replace(whole, quantization="none", epochs=2.0)


def changed(config: TrainConfig, cluster: ClusterResources = TWO_CPUS, **changes) -> CheckedTraining:
    return check(dataclasses.replace(config, **changes), cluster)


def test_what_was_checked(config, prepared):
    rows = {
        name: sum(pq.read_metadata(path).num_rows for path in list_files(f"{prepared}/{name}"))
        for name in ("train", "valid")
    }
    checked = check(config, TWO_CPUS)
    steps = 2 * -(-rows["train"] // 32)
    assert checked.counts == TrainingCounts(
        train=rows["train"], epoch_rows=rows["train"], steps=steps, valid=rows["valid"]
    )
    assert checked.counts.to_dict() == {
        "train": rows["train"], "epoch_rows": rows["train"], "steps": steps, "valid": rows["valid"],
    }  # fmt: skip
    assert checked.manifest.quantization == "none"
    assert not checked.on_gpu
    assert check(config, ClusterResources(cpus=2, gpus=1)).on_gpu


def test_a_set_may_be_any_table_that_is_read(config, tmp_path):
    """As Spark writes CSV: a folder whose files end otherwise than in .parquet."""
    votes = tmp_path / "votes"
    votes.mkdir()
    table = pq.read_table(list_files(config.valid[0])[0]).select(["id", *TEXTS, "winner"])
    pc.write_csv(table, votes / "part-00000.csv")
    (votes / "_SUCCESS").touch()
    checked = changed(config, valid=(str(votes),))
    assert checked.worker_config.valid == (str(votes / "part-00000.csv"),)
    assert checked.counts.valid == len(table)


def test_workers_get_paths_that_mean_the_same_everywhere(config, monkeypatch):
    folder = Path(config.base).parent
    monkeypatch.chdir(folder)
    checked = changed(config, base=os.path.basename(config.base), output="somewhere/else")
    assert checked.worker_config.base == config.base
    assert checked.worker_config.output == f"{folder}/somewhere/else"
    assert checked.worker_config.train == tuple(list_files(config.train))


def test_the_fingerprint_has_what_decides_the_classifier_and_no_more(config):
    fingerprint = check(config, TWO_CPUS).fingerprint
    assert fingerprint.keys() == {"options", "base", "passes", "gpu", "inputs", "teachers"}
    assert [changed(config, num_workers=number).fingerprint["passes"] for number in (1, 2)] == [1, "2, even"]
    assert fingerprint["options"].keys() == {
        "seed", "epochs", "max_steps", "pairs_per_step", "orders", "layout", "token_budget", "precision",
        "quantization", "int8_activations", "compile", "text", "head", "lora",
        "optimizer", "objective", "mix", "checkpoint_steps",
    }  # fmt: skip
    free = {
        "max_failures": 9,
        "loss_spike": 2.0,
        "allow_leakage": True,
        "tensorboard": False,
        "restart": True,
        "gradient_checkpointing": "yes",
    }
    assert changed(config, **free).fingerprint == fingerprint
    for decisive in ({"seed": 1}, {"num_workers": 2}, {"micro_batches": 2}, {"train": config.valid}):
        others = {"allow_leakage": True, **decisive}
        assert changed(config, **others).fingerprint != fingerprint, decisive
    # Dropout depends on the micro-batches, not on who runs them.
    assert (
        changed(config, num_workers=2, min_workers=1).fingerprint
        == changed(config, num_workers=2).fingerprint
    )
    one, two = (changed(config, num_workers=size, micro_batches=2) for size in (1, 2))
    assert one.fingerprint == two.fingerprint


def test_an_unfinished_run_keeps_how_it_holds_its_base_on_other_gpus(config, monkeypatch):
    monkeypatch.setattr(policy, "FASTER_FROM_HIDDEN_SIZE", 32)
    auto = dataclasses.replace(config, quantization="auto")
    begun = check(auto, H100S)
    assert (begun.manifest.quantization, begun.fingerprint["quantization"]) == ("w8a8-int8", "w8a8-int8")
    elsewhere = check(auto, A100S)
    assert elsewhere.manifest.quantization == "bnb-int8"
    assert "quantization" not in elsewhere.fingerprint, "as runs of earlier versions have it"
    for first, other, cluster in ((begun, elsewhere, A100S), (elsewhere, begun, H100S)):
        with hold_run(auto.output, "train", first.fingerprint, restart=True):
            pass
        assert check(auto, cluster).manifest == first.manifest
        assert check(auto, cluster).fingerprint == first.fingerprint
        assert changed(auto, cluster, restart=True).manifest == other.manifest
        assert changed(auto, cluster, quantization="none").manifest.quantization == "none"
    shutil.rmtree(f"{auto.output}.run", ignore_errors=True)
    shutil.rmtree(auto.output, ignore_errors=True)
    with hold_run(auto.output, "score", {}, restart=False):
        pass
    assert check(auto, H100S).manifest == begun.manifest, "what another job left says nothing"


def test_what_can_share_a_base(config):
    plain = changed(config, quantization="w8a8-int8").fingerprint
    assert changed(config, quantization="w8a8-int8", shard_base=True).fingerprint == plain
    assert changed(config, H100S, shard_base=True).fingerprint == changed(config, H100S).fingerprint
    with pytest.raises(ConfigError, match="--shard-base: takes GPUs in bf16"):
        changed(config, H100S, shard_base=True, layout="padded")


def test_a_target_that_no_layer_has_is_found_before_weights_are_loaded(config):
    with pytest.raises(ConfigError, match=r"--lora.targets q_prj: no such layer; there are .*q_proj"):
        check_inputs(dataclasses.replace(config, lora=LoraConfig(targets=("q_prj",))))


def test_what_cannot_be_done(config):
    with pytest.raises(ClusterError, match=r"2 CPUs and 0 GPUs: too small for 3 workers of 1 CPU each"):
        changed(config, num_workers=3)
    with pytest.raises(ClusterError, match=r"8 CPUs and 1 GPUs: too small for 3 workers of 1 GPU each"):
        changed(config, ClusterResources(cpus=8, gpus=1), num_workers=3)
    with pytest.raises(ConfigError, match="--int8-activations: the base is held as none; leave it out"):
        changed(config, int8_activations=True)
    with pytest.raises(ConfigError, match="--shard-base: takes GPUs in bf16"):
        changed(config, shard_base=True)
    with pytest.raises(ConfigError, match="holds the input"):
        changed(config, output=config.base)
