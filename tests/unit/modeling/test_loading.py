"""A checkpoint as a stack gives the probabilities of the network that it stands for."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.modeling.test_checkpoint import manifest_of, trained
from wsdm_ray.config import QuantizeConfig
from wsdm_ray.errors import ModelError
from wsdm_ray.modeling.checkpoint import load_classifier, save_classifier
from wsdm_ray.modeling.classifier import ordering_logits
from wsdm_ray.modeling.loading import load_stack
from wsdm_ray.modeling.quantization import quantize
from wsdm_ray.packing.layouts import lay_out
from wsdm_ray.text.encoding import PairEncoder

PAIRS = (
    ["What is 2 + 2?", ""],
    ["4", "The answer is 42, of course."],
    ["I cannot help with that, sorry.", "好"],
)


@pytest.fixture(scope="module", params=["gemma2", "qwen2"])
def folders(request, family_model: Callable[..., Path], tmp_path_factory) -> dict[str, str]:
    """Checkpoints of one family by kind."""
    root, plain = tmp_path_factory.mktemp("loading"), family_model(request.param, 64)
    quantize(QuantizeConfig(base=str(plain), output=f"{root}/int8"))
    for name, base, asked in (("adapter", plain, "none"), ("adapter_int8", root / "int8", "auto")):
        manifest = manifest_of(base, asked)
        save_classifier(trained(base, manifest.quantization), str(base), f"{root}/{name}", manifest)
    quantize(QuantizeConfig(base=str(plain), adapter=(f"{root}/adapter",), output=f"{root}/full"))
    return {name: f"{root}/{name}" for name in ("adapter", "adapter_int8", "full")}


@torch.no_grad()
def logits(network: torch.nn.Module, folder: str, text) -> np.ndarray:
    pairs = PairEncoder(folder, text).encode(*PAIRS)
    layout = lay_out("shared", pairs.prefix, [pairs.suffix_ab, pairs.suffix_ba], np.arange(2))
    return ordering_logits(network, layout).numpy()


@pytest.mark.parametrize("kind", ["adapter", "adapter_int8", "full"])
def test_as_the_merged_network(folders, kind):
    network, manifest = load_classifier(folders[kind], precision="fp32")
    stack, found = load_stack(folders[kind], precision="fp32")
    assert found == manifest
    expected = logits(network, folders[kind], manifest.text)
    np.testing.assert_allclose(logits(stack, folders[kind], manifest.text), expected, atol=1e-5)
    for precision, near in (("int8", 0.1), ("fp8", 0.5)):
        stack, _ = load_stack(folders[kind], precision=precision)
        apart = np.abs(logits(stack, folders[kind], manifest.text) - expected).mean()
        assert 0 < apart < near * expected.std(), precision


def test_a_base_without_a_head_is_refused(folders):
    with pytest.raises(ModelError, match="a base without a head"):
        load_stack(str(Path(folders["full"]).parent / "int8"), precision="int8")
