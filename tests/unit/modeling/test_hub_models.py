"""Jobs on models of the Hub: the same checkpoint as from the folder, the commit in every record."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub.utils import close_session

from tests.unit.hub_server import FakeHub
from tests.unit.modeling.checkpoints import manifest_of, trained
from wsdm_ray.config import QuantizeConfig, ScoreConfig
from wsdm_ray.errors import ModelError, StorageError
from wsdm_ray.modeling.checkpoint import save_classifier
from wsdm_ray.modeling.quantization import quantize
from wsdm_ray.presets import tiny
from wsdm_ray.scoring.check import Cluster, check_models
from wsdm_ray.storage import hub as module
from wsdm_ray.storage import local_copy, model_location
from wsdm_ray.training.check import check_base

ONE_CPU = Cluster(replicas=1, on_gpu=False, threads=1)


@pytest.fixture
def plain(family_model: Callable[..., Path]) -> Path:
    return family_model("gemma2")


def fetched(hub: FakeHub) -> set[str]:
    """Names of the files that were fetched so far."""
    return {
        path.rsplit("/", 1)[-1] for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path
    }


def test_quantize_makes_the_same_checkpoint(hub, plain, tmp_path):
    hub.push("models/acme/tiny", plain)
    for name, base in (("here", str(plain)), ("there", "acme/tiny")):
        quantize(QuantizeConfig(base=base, output=str(tmp_path / name), precision="bf16"))
    for file in ("model.safetensors", "config.json", "wsdm_ray.json"):
        assert (tmp_path / "there" / file).read_bytes() == (tmp_path / "here" / file).read_bytes()


def test_a_base_that_cannot_work_is_found_before_its_weights_are_fetched(hub, plain, tmp_path):
    broken = shutil.copytree(plain, tmp_path / "broken")
    settings = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(settings | {"vocab_size": 399}))
    hub.push("models/acme/tiny", broken)
    hub.push("models/acme/bare", {"config.json": (plain / "config.json").read_bytes()})
    with pytest.raises(
        ModelError, match=r"^--base acme/tiny: the tokenizer has the ids 399 \('.*'\), but the emb"
    ):
        quantize(QuantizeConfig(base="acme/tiny", output=str(tmp_path / "out")))
    with pytest.raises(ModelError, match=r"^--base acme/bare: no model\.safetensors and no "):
        check_base(tiny("acme/bare", ("train",), "out"))
    with pytest.raises(ModelError, match=r"^--model acme/tiny: no wsdm_ray\.json; "):
        check_models(ScoreConfig(model=("acme/tiny",), input=("i",), output="o"), ONE_CPU)
    with pytest.raises(
        StorageError, match=r"^--base acme/none: no such folder here; no such model on the Hub"
    ):
        check_base(tiny("acme/none", ("train",), "out"))
    assert fetched(hub) == {"config.json", "tokenizer.json", "tokenizer_config.json"}


def test_a_classifier_of_a_base_on_the_hub(hub, plain, tmp_path, monkeypatch):
    """Trained with its commit, named for PEFT, scored from the cache alone, or from where a user says."""
    commit = hub.push("models/acme/tiny", plain)
    manifest = check_base(tiny("acme/tiny", ("train",), "out"))
    assert manifest.base == f"hf://acme/tiny@{commit}"
    assert manifest.base_digest == manifest_of(plain, "bnb-int8").base_digest
    model = tmp_path / "model"
    save_classifier(trained(plain, manifest.quantization), str(plain), str(model), manifest)
    settings = json.loads((model / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("acme/tiny", commit)

    hub.requests.clear()
    config = ScoreConfig(model=(str(model),), input=("i",), output="o")
    (spec,) = check_models(config, ONE_CPU)
    assert hub.requests == [], "the model's word alone leads to no hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(
        ModelError, match=rf"{model}: its base hf://acme/tiny@{commit} cannot be had .*; use --base"
    ):
        check_models(config, ONE_CPU)
    assert hub.requests == []
    (named,) = check_models(
        ScoreConfig(model=(str(model),), base=("acme/tiny",), input=("i",), output="o"), ONE_CPU
    )
    assert named.base == f"hf://acme/tiny@{commit}", "for replicas on other nodes"
    assert named.digest == spec.digest


def test_a_classifier_on_the_hub_is_known_by_its_digest(hub, folders, tmp_path):
    hub.push("models/acme/judge", folders["full_bf16"])
    here, there = (
        check_models(ScoreConfig(model=(name,), input=("i",), output="o"), ONE_CPU)[0]
        for name in (str(folders["full_bf16"]), "acme/judge")
    )
    assert there.folder == model_location("acme/judge")
    assert there.digest == here.digest
    assert there.fingerprint == here.fingerprint
    module.commit_of.cache_clear()
    hub.close()
    close_session()
    assert local_copy(there.folder) == local_copy("acme/judge")
