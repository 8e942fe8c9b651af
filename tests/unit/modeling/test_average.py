"""The mean of several folds: of the models that their adapters make, exactly; what has no mean is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.modeling.checkpoints import manifest_of, trained
from wsdm_ray.config import QuantizeConfig, TextConfig
from wsdm_ray.errors import ModelError
from wsdm_ray.modeling.checkpoint import save_classifier
from wsdm_ray.modeling.classifier import trainable_parameters
from wsdm_ray.modeling.lora import read_adapter
from wsdm_ray.modeling.manifest import MANIFEST, folder_digest, read_manifest
from wsdm_ray.modeling.merging import Merged, read_base
from wsdm_ray.modeling.quantization import merge, quantize


@pytest.fixture(scope="module")
def base(family_model) -> Path:
    return family_model("llama")


@pytest.fixture(scope="module")
def folds(base, tmp_path_factory) -> list[str]:
    """Three classifiers that differ in all that trains."""
    root, network = tmp_path_factory.mktemp("folds"), trained(base, "none")
    manifest = dataclasses.replace(manifest_of(base, "none"), metrics={"step": 1})
    for fold in range(3):
        with torch.no_grad():
            for parameter in trainable_parameters(network).values():
                parameter.add_(
                    0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(fold))
                )
        save_classifier(network, str(base), f"{root}/{fold}", manifest)
    return [f"{root}/{fold}" for fold in range(3)]


@pytest.mark.parametrize("quantization", ["none", "nf4", "bnb-int8"])
def test_it_is_the_mean_of_the_merged_models(base, folds, quantization):
    weights = read_base(str(base))
    adapters = tuple(
        dataclasses.replace(read_adapter(folder, weights.config), quantization=quantization)
        for folder in folds
    )
    mean = Merged(base=weights, adapters=adapters, average=True)
    for name in ("layers.0.self_attn.q_proj.weight", "layers.1.mlp.down_proj.weight", "norm.weight"):
        each = [Merged(base=weights, adapters=(adapter,)).parameter(name) for adapter in adapters]
        found = mean.parameter(name)
        assert torch.allclose(found, torch.stack(each).mean(0), atol=1e-6), name
    assert not torch.allclose(mean.parameter("layers.0.self_attn.q_proj.weight"), each[0])


def test_quantize_writes_one_classifier_without_metrics(base, folds, tmp_path):
    output = tmp_path / "mean"
    config = QuantizeConfig(
        base=str(base), adapter=tuple(folds), average=True, precision="bf16", output=str(output)
    )
    quantize(config)
    manifest = read_manifest(str(output))
    assert (manifest.kind, manifest.metrics) == ("full", {})
    found = load_file(output / "model.safetensors")
    heads = [read_adapter(folder, read_base(str(base)).config).head() for folder in folds]
    for name in heads[0]:
        expected = torch.stack([head[name] for head in heads]).mean(0)
        assert torch.equal(found[f"score.{name}"], expected), name
    assert json.loads((output / "run.json").read_text())["config"]["average"]


def test_what_has_no_mean(base, folds, tmp_path):
    digest = folder_digest(str(base))
    merge(str(base), folds, digest, average=True)
    with pytest.raises(ModelError, match=r"was trained on a base with digest"):
        merge(str(base), folds, "other", average=True)
    path = Path(folds[1]) / MANIFEST
    written = path.read_text()
    values: dict[str, Any] = json.loads(written)
    text = dataclasses.asdict(TextConfig(max_tokens=64))
    for name, other in (("orders", "ab"), ("quantization", "w8a8-int8"), ("text", text)):
        path.write_text(json.dumps(values | {name: other}))
        try:
            with pytest.raises(
                ModelError, match=rf"/1: its {name} is not that of .*/0; --average takes runs"
            ):
                merge(str(base), folds, digest, average=True)
        finally:
            path.write_text(written)
