"""Loading a backbone: types of weights, and folders that are refused."""

import functools
import shutil
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.unit.modeling.sequences import random_pairs
from wsdm_ray.config import HeadConfig, QuantizeConfig
from wsdm_ray.errors import ModelError
from wsdm_ray.modeling.classifier import (
    load_network,
    ordering_logits,
)
from wsdm_ray.modeling.quantization import quantize
from wsdm_ray.packing.layouts import lay_out


def test_what_is_not_quantized_is_of_the_type_asked_for(family_model, tmp_path):
    base, quantized = tmp_path / "bf16", str(tmp_path / "bnb-int8")
    shutil.copytree(family_model("gemma2"), base)
    network = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    network.save_pretrained(base)
    quantize(QuantizeConfig(base=str(base), output=quantized))
    network = load_network(
        quantized, HeadConfig(), seed=0, device="cpu", dtype=torch.float32, quantization="bnb-int8"
    )
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32, torch.int8}
    prefix, suffixes = random_pairs([(5, 4), (2, 9)], 0)
    with torch.no_grad():
        packed, padded = (
            ordering_logits(network, lay_out(layout, prefix, suffixes, np.arange(2)))
            for layout in ("packed", "padded")
        )
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-5)


def test_bfloat16_is_close(family_model):
    """8 bits of mantissa: a relative rounding of 0.4 % an operation, on logits of about 0.1."""
    layout_of = functools.partial(lay_out, "shared", *random_pairs([(20, 30)], 0), np.array([0]))
    with torch.no_grad():
        exact, rough = (
            ordering_logits(
                load_network(
                    str(family_model("gemma2")),
                    HeadConfig(),
                    seed=0,
                    device="cpu",
                    dtype=dtype,
                    quantization="none",
                ),
                layout_of(),
            )
            for dtype in (torch.float32, torch.bfloat16)
        )
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "no usable config.json"),
        (b"\xff\xfe", "no usable config.json"),
        (b"[]", "no usable config.json"),
        (b"{}", "no usable config.json"),
        (b'{"model_type": "no_such_model"}', "no usable config.json"),
        (b'{"model_type": "bert"}', "model type bert is not one of gemma2, gemma3_text, llama, qwen2, qwen3"),
    ],
)
def test_a_config_that_is_of_no_use(family_model, tmp_path, content, message):
    folder = shutil.copytree(family_model("llama"), tmp_path / "model")
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_network(
            str(folder), HeadConfig(), seed=0, device="cpu", dtype=torch.float32, quantization="none"
        )
    assert str(caught.value).startswith(f"{folder}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", ["google/gemma-2-9b-it", "no_such_folder"])
def test_a_hub_id(folder):
    with pytest.raises(ModelError, match=f"{folder}: no usable config.json"):
        load_network(folder, HeadConfig(), seed=0, device="cpu", dtype=torch.float32, quantization="none")


def test_weights_that_are_not_safetensors(family_model, tmp_path):
    folder = shutil.copytree(family_model("llama"), tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_network(
            str(folder), HeadConfig(), seed=0, device="cpu", dtype=torch.float32, quantization="none"
        )


def test_weights_that_are_cut_off(family_model, tmp_path):
    folder = shutil.copytree(family_model("llama"), tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1_000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_network(
            str(folder), HeadConfig(), seed=0, device="cpu", dtype=torch.float32, quantization="none"
        )


def test_weights_that_are_not_all_there(family_model, tmp_path):
    """transformers fills what is missing with random numbers and only says so."""
    folder = shutil.copytree(family_model("llama"), tmp_path / "model")
    path = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if ".layers.1.mlp." not in name}
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(ModelError) as caught:
        load_network(
            str(folder), HeadConfig(), seed=0, device="cpu", dtype=torch.float32, quantization="none"
        )
    assert str(caught.value) == (
        f"{folder}: its weights lack model.layers.1.mlp.down_proj.weight and 2 other tensors, "
        "or have them in another shape; fetch or save the model anew"
    )


def test_a_head_of_another_number_of_labels_gives_way(family_model, tmp_path):
    plain = family_model("llama")
    reward = transformers.AutoModelForSequenceClassification.from_pretrained(plain, num_labels=1)
    reward.save_pretrained(tmp_path)
    options: dict[str, Any] = {"seed": 0, "device": "cpu", "dtype": torch.float32, "quantization": "none"}
    found, expected = (load_network(str(each), HeadConfig(), **options) for each in (tmp_path, plain))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
