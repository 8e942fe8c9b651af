"""A new adapter: on the named layers, a function of its seed, compiled once."""

import numpy as np
import pytest
import torch

from tests.unit.modeling.sequences import random_pairs
from wsdm_ray.config import HeadConfig, LoraConfig
from wsdm_ray.errors import ConfigError
from wsdm_ray.modeling.classifier import (
    add_lora,
    compile_layers,
    load_network,
    ordering_logits,
    preference_log_odds,
    trainable_parameters,
    unwrap_peft,
)
from wsdm_ray.packing.layouts import lay_out


@pytest.mark.parametrize("quantization", ["none", "bnb-int8", "nf4"])
def test_an_adapter_on_exactly_the_named_layers(family_model, quantization):
    import peft

    network = load_network(
        str(family_model("gemma2", 64)),
        HeadConfig(),
        seed=0,
        device="cpu",
        dtype=torch.float32,
        quantization=quantization,
    )
    wrapped = add_lora(network, LoraConfig(r=2, targets=("q_proj", "down_proj")), seed=0)
    adapted = {
        name.removeprefix("base_model.model.model.")
        for name, module in wrapped.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    assert adapted == {
        f"layers.{layer}.{name}" for layer in range(2) for name in ("self_attn.q_proj", "mlp.down_proj")
    }
    names = trainable_parameters(wrapped)
    assert len([name for name in names if "lora_A" in name]) == len(adapted)
    assert len([name for name in names if "lora_B" in name]) == len(adapted)
    head = [name for name in names if "lora_" not in name]
    assert sorted(name.split("modules_to_save.default.")[1] for name in head) == [
        "1.bias", "1.weight", "4.bias", "4.weight",
    ]  # fmt: skip
    assert {parameter.dtype for parameter in names.values()} == {torch.float32}

    prefix, suffixes = random_pairs([(5, 4)], 0)
    wrapped.train()
    ordering_logits(wrapped, lay_out("padded", prefix, suffixes, np.array([0]))).sum().backward()
    for name, parameter in names.items():
        assert parameter.grad is not None, name
        # B starts as zeros, so that at first nothing flows back to A.
        assert ("lora_A" in name) == (not parameter.grad.any()), name


def test_a_new_adapter_changes_nothing(family_model):
    def load():
        return load_network(
            str(family_model("qwen3")),
            HeadConfig(),
            seed=0,
            device="cpu",
            dtype=torch.float32,
            quantization="none",
        )

    prefix, suffixes = random_pairs([(5, 4)], 0)
    layout = lay_out("shared", prefix, suffixes, np.array([0]))
    with torch.no_grad():
        plain = ordering_logits(load(), layout)
        wrapped = add_lora(load(), LoraConfig(), seed=0).eval()
        assert torch.equal(ordering_logits(wrapped, layout), plain)
    assert type(unwrap_peft(wrapped)).__name__ == "Qwen3ForSequenceClassification"


def test_an_adapter_is_a_function_of_its_seed(family_model):
    def parameters(seed: int):
        network = load_network(
            str(family_model("llama")),
            HeadConfig(),
            seed=0,
            device="cpu",
            dtype=torch.float32,
            quantization="none",
        )
        return trainable_parameters(add_lora(network, LoraConfig(r=2), seed))

    torch.manual_seed(0)
    first = parameters(1)
    torch.manual_seed(9)
    second, other = parameters(1), parameters(2)
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("targets", [("q_proj", "qkv_proj"), ("score",), ("all-linear",)])
def test_a_target_that_no_layer_has(family_model, targets):
    network = load_network(
        str(family_model("llama")),
        HeadConfig(),
        seed=0,
        device="cpu",
        dtype=torch.float32,
        quantization="none",
    )
    with pytest.raises(ConfigError) as caught:
        add_lora(network, LoraConfig(targets=targets), seed=0)
    assert str(caught.value) == (
        f"--lora.targets {targets[-1]}: no such layer; there are "
        "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    )


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_one_compilation_serves_all_layers_and_passes_of_training(family_model, family):
    from torch._dynamo.testing import CompileCounter

    network = load_network(
        str(family_model(family)), HeadConfig(dropout=0.0), seed=0, device="cpu", dtype=torch.float32,
        quantization="none",
    )  # fmt: skip
    network = add_lora(network, LoraConfig(r=4, alpha=8, dropout=0.0), 0).train()
    layouts = [
        lay_out("padded", *random_pairs(sizes, 3), np.arange(len(sizes)))
        for sizes in ([(5, 9), (3, 20)], [(1, 4), (7, 30), (2, 2)], [(4, 4), (4, 5)])
    ]

    def gradients() -> list[torch.Tensor]:
        for parameter in trainable_parameters(network).values():
            parameter.grad = None
        for layout in layouts:
            preference_log_odds(ordering_logits(network, layout)).square().sum().backward()
        return [parameter.grad for parameter in trainable_parameters(network).values()]

    expected = gradients()
    counter = CompileCounter()
    compile_layers(network, counter)
    ordering_logits(network, layouts[0])
    compiled = counter.frame_count
    assert compiled > 0
    found = gradients()
    assert counter.frame_count == compiled
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, expected, strict=True))
    with torch.no_grad():
        ordering_logits(network.eval(), layouts[0])
    assert counter.frame_count == compiled
