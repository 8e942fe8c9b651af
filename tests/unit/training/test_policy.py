"""What `auto` means for training."""

import dataclasses
from typing import Any

import pytest
import transformers

from wsdm_ray.config import TrainConfig
from wsdm_ray.errors import ConfigError
from wsdm_ray.modeling.families import FAMILIES, Shape
from wsdm_ray.training.policy import (
    ResolvedOptions,
    budget_that_fits,
    compile_pays_off,
    fastest_layout,
    fastest_quantization,
    layers_to_recompute,
    least_activation_bytes,
    resolve_options,
)

GEMMA2_9B = Shape(
    family=FAMILIES["gemma2"], hidden_size=3_584, num_heads=16, num_kv_heads=8, head_dim=256,
    query_scale=1 / 16, softcap=50.0, norm_epsilon=1e-6, layer_types=("full_attention",) * 42,
    sliding_window=None, activation="gelu_pytorch_tanh",
)  # fmt: skip


def resolved(config: dict[str, Any], **machine: Any) -> ResolvedOptions:
    whole = {
        "quantization": "nf4", "device": "cuda", "precision": "bf16", "softcapped": False,
        "attention_dropout": False, "total_steps": 1_000,
    }  # fmt: skip
    return resolve_options(TrainConfig(base="b", train=("t",), output="o", **config), **(whole | machine))


def test_the_fastest_layout():
    assert fastest_layout(decoder=True, softcapped=False) == "packed"
    assert fastest_layout(decoder=True, softcapped=True) == "shared"
    assert fastest_layout(decoder=False, softcapped=True) == "padded"


def test_compiling_pays_off_in_long_runs_of_the_decoder_on_a_gpu():
    assert compile_pays_off(True, "cuda", 100)
    assert not compile_pays_off(True, "cuda", 99)
    assert not compile_pays_off(True, "cpu", 100)
    assert not compile_pays_off(False, "cuda", 100)


def test_options_that_say_what_they_want_are_obeyed():
    packed = ResolvedOptions(
        layout="packed", precision="bf16", quantization="nf4", compile="yes", decoder=True
    )
    assert resolved({}) == packed
    assert resolved({"compile": "no"}).compile == "no"
    assert resolved({"layout": "shared"}) == dataclasses.replace(packed, layout="shared")
    assert resolved({}, softcapped=True).layout == "shared"
    assert resolved({}, total_steps=50).compile == "no"
    assert resolved({}, total_steps=50, softcapped=True) == dataclasses.replace(
        packed, layout="shared", compile="no"
    )


@pytest.mark.parametrize(
    ("config", "machine"),
    [
        ({}, {"device": "cpu", "precision": "fp32"}),
        ({}, {"precision": "fp32"}),
        ({}, {"attention_dropout": True}),
        ({"int8_activations": True}, {"quantization": "bnb-int8"}),
        ({"layout": "padded"}, {}),
    ],
)
def test_transformers_runs_what_the_decoder_does_not(config, machine):
    options = resolved(config, **machine)
    assert (options.decoder, options.layout, options.compile) == (False, "padded", "no")
    with pytest.raises(ConfigError, match="--shard-base: takes GPUs in bf16"):
        resolved({"shard_base": True} | config, **machine)


def test_an_unquantized_base_is_held_in_what_was_measured_to_be_fastest():
    qwen25_7b = {
        "hidden_size": 3_584, "intermediate_size": 18_944,
        "num_attention_heads": 28, "num_key_value_heads": 4,
    }  # fmt: skip

    def held(*gpus: str, options: dict[str, Any] | None = None, **others: Any) -> str:
        config = TrainConfig(base="b", train=("t",), output="o", **(options or {}))
        return fastest_quantization(config, transformers.Qwen2Config(**(qwen25_7b | others)), frozenset(gpus))

    assert held("H100") == held("H200") == held("H100", "H200") == "w8a8-int8"
    assert held() == held("A100") == held("H100", "A100") == "bnb-int8"
    for options in ({"layout": "padded"}, {"precision": "fp32"}, {"int8_activations": True}):
        assert held("H100", options=options) == "bnb-int8", options
    assert held("H100", attention_dropout=0.1) == "bnb-int8", "the training decoder has none"
    assert held("H100", hidden_size=1_536, num_attention_heads=12) == "bnb-int8", "small ones were slower"


@pytest.mark.parametrize("quantization", ["w8a8-int8", "w8a8-fp8"])
def test_8_bit_gemms_take_the_decoder_everywhere(quantization):
    machine = {"quantization": quantization, "device": "cpu", "precision": "fp32", "softcapped": True}
    options = resolved({"shard_base": True}, **machine)
    assert (options.decoder, options.layout, options.compile) == (True, "shared", "no")
    for config, machine, option in (
        ({"layout": "padded"}, {}, "--layout padded"),
        ({"precision": "fp32"}, {"precision": "fp32"}, "--precision fp32: .*; use auto"),
        ({}, {"precision": "fp32"}, "--precision auto: .*; use one of compute capability 8.0 or later"),
        ({}, {"attention_dropout": True}, "attention_dropout"),
    ):
        with pytest.raises(ConfigError, match=option):
            resolved(config, quantization=quantization, **machine)


def test_as_many_layers_recompute_as_memory_asks_for():
    def layers(gigabytes: float, tokens: int, *, compiled: bool = True) -> int:
        return layers_to_recompute(gigabytes * 1e9, tokens, GEMMA2_9B, 14_336, 64, compiled=compiled)

    # 120 kB a token and layer; on an H200, 16,384 tokens took 94 GB with what the backward pass needs.
    assert layers(94, 16_384) == 0
    assert 0 < layers(80, 16_384) < 12
    assert layers(65, 8_192) == 0
    assert layers(1, 16_384) == 42
    assert layers(30, 16_384) < layers(20, 16_384) < 42
    # Not compiled, 31 layers of 16,384 tokens did not fit beside 11 that recompute.
    assert layers(65, 16_384) < 20 < layers(65, 16_384, compiled=False) <= 42
    least = least_activation_bytes(16_384, GEMMA2_9B, 14_336, 64, compiled=True) / 1e9
    assert (layers(least, 16_384), layers(least + 2, 16_384)) == (42, 41), "with less, no number is enough"


def test_the_token_budget_is_halved_until_a_micro_batch_fits():
    for free, expected in ((1e9, 1_000), (1000.0, 1_000), (999.0, 500), (499.0, 250), (249.0, 200), (0, 200)):
        assert budget_that_fits(1_000, 200, free, float) == expected
    assert budget_that_fits(200, 200, 0.0, float) == 200
