"""Unusual configs of every family: obeyed as transformers obeys them, or refused in one line.

A config is obeyed when a tiny random model of it has the logits of transformers' own forward pass, one
sequence at a time, both on the fused decoder and as a network of transformers with our attention.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from wsdm_ray.config import HeadConfig, TrainConfig
from wsdm_ray.errors import ModelError
from wsdm_ray.modeling.attention import training_backend
from wsdm_ray.modeling.classifier import load_network, model_config, ordering_logits
from wsdm_ray.modeling.families import FAMILIES, shape_of
from wsdm_ray.modeling.fused_decoder import FusedDecoder
from wsdm_ray.modeling.merging import read_base
from wsdm_ray.modeling.scorers import FusedClassifier
from wsdm_ray.packing.layouts import Layout, lay_out
from wsdm_ray.packing.ragged import Ragged
from wsdm_ray.training.check import check_base

GEMMAS = ("gemma2", "gemma3_text")
QWENS = ("qwen2", "qwen3")
LAYERS = ["sliding_attention", "full_attention"]
LLAMA3 = {
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 8, "beta_fast": 4.0, "beta_slow": 1.0}
LONG = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": 8}


def base_config(family: str) -> dict[str, Any]:
    """config.json of a tiny model, with four heads of 16 columns over two key heads, and a window of 5."""
    values: dict[str, Any] = {
        "model_type": family, "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 64, "pad_token_id": 0,
    }  # fmt: skip
    if family in GEMMAS:
        values |= {"layer_types": LAYERS, "sliding_window": 5, "query_pre_attn_scalar": 16}
    return values


def rope(family: str, rope_type: str, **parameters: Any) -> dict[str, Any]:
    """The fields of a rotary embedding: Gemma-3 has one for each layer type."""
    values = {"rope_type": rope_type, "rope_theta": 100.0, **parameters}
    return {"rope_parameters": {name: dict(values) for name in LAYERS} if family == "gemma3_text" else values}


Cases = dict[str, tuple[dict[str, Any], str | None]]
"""Name to what differs from `base_config`, and the field that is refused, None where it is obeyed."""


def unusual_configs(family: str) -> Cases:
    parts = (mlp_configs, rope_configs, head_configs, score_configs, layer_configs, other_configs)
    return {name: case for part in parts for name, case in part(family).items()}


def mlp_configs(family: str) -> Cases:
    field = FAMILIES[family].activation_field
    return {
        "silu": ({field: "silu"}, None),
        "swish": ({field: "swish"}, None),
        "tanh gelu": ({field: "gelu_pytorch_tanh"}, None),
        "new gelu": ({field: "gelu_new"}, None),
        "exact gelu": ({field: "gelu"}, field),
        "relu": ({field: "relu"}, field),
        "the other activation field": (
            {"hidden_act" if family in GEMMAS else "hidden_activation": "relu"}, None
        ),
        "MLP bias": ({"mlp_bias": True}, "mlp_bias" if family == "llama" else None),
    }  # fmt: skip


def rope_configs(family: str) -> Cases:
    field = "rope_parameters.full_attention" if family == "gemma3_text" else "rope_parameters"
    partial = {"partial_rotary_factor": 0.5}
    return {
        "rope theta": (rope(family, "default"), None),
        "linear rope": (rope(family, "linear", factor=4.0), None),
        "llama3 rope": (rope(family, "llama3", **LLAMA3), None),
        "yarn rope": (rope(family, "yarn", **YARN), None),
        "proportional rope": (rope(family, "proportional", **partial), None),
        "partial rope that is ignored": (rope(family, "default", **partial), None),
        "partial rope": (rope(family, "linear", factor=4.0, **partial), f"{field}.partial_rotary_factor"),
        "dynamic rope": (rope(family, "dynamic", factor=4.0), f"{field}.rope_type"),
        "longrope": (rope(family, "longrope", **LONG), f"{field}.rope_type"),
        "unknown rope": (rope(family, "spiral"), f"{field}.rope_type"),
    }


def head_configs(family: str) -> Cases:
    return {
        "as many key heads": ({"num_key_value_heads": 4}, None),
        "one key head": ({"num_key_value_heads": 1}, None),
        "key heads that do not divide": ({"num_key_value_heads": 3}, "num_key_value_heads"),
        "no key heads": ({"num_key_value_heads": 0}, "num_key_value_heads"),
        "other heads": ({"head_dim": 24}, None),
        "odd heads": ({"head_dim": 3}, "head_dim"),
        "attention bias": ({"attention_bias": True}, None if family == "qwen2" else "attention_bias"),
    }


def score_configs(family: str) -> Cases:
    scalar, softcap = "query_pre_attn_scalar", "attn_logit_softcapping"
    return {
        "query scale": ({scalar: 3}, None),
        "query scale of 0": ({scalar: 0}, scalar if family in GEMMAS else None),
        "soft cap": ({softcap: 0.5}, None),
        "no soft cap": ({softcap: None}, None),
        "soft cap of 0": ({softcap: 0.0}, softcap if family == "gemma2" else None),
        "soft cap of logits": ({"final_logit_softcapping": 0.5}, None),
        "dropout of attention": ({"attention_dropout": 0.5}, None),
    }


def layer_configs(family: str) -> Cases:
    reads = family in GEMMAS or family in QWENS
    windows = {"layer_types": LAYERS, "sliding_window": 5, "use_sliding_window": True}
    both = {"use_bidirectional_attention": True, "sliding_window": 5}
    return {
        "windows": (windows, None),
        "upper windows": ({"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}, None),
        "windows that are off": ({"use_sliding_window": False, "sliding_window": 5}, None),
        "windows without a size": (windows | {"sliding_window": None}, "sliding_window" if reads else None),
        "full layers": ({"layer_types": ["full_attention"] * 2}, None),
        "chunked layers": (
            {"layer_types": ["chunked_attention", "full_attention"]}, "layer_types" if reads else None
        ),
        "both directions": (both, "use_bidirectional_attention" if family in GEMMAS else None),
        "not causal": ({"is_causal": False}, "is_causal"),
        "layers that differ": ({"per_layer_config": {"0": {"intermediate_size": 32}}}, "per_layer_config"),
    }  # fmt: skip


def other_configs(family: str) -> Cases:
    return {
        "tied embeddings": ({"tie_word_embeddings": family not in GEMMAS}, None),
        "tensor parallel pretraining": ({"pretraining_tp": 2}, None),
        "a large epsilon": ({"rms_norm_eps": 0.5}, None),
    }


CASES = [(family, name) for family in sorted(FAMILIES) for name in unusual_configs(family)]


def write_config(folder: Path, values: dict[str, Any]) -> str:
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)


def random_network(config: Any) -> Any:
    """A classifier with weights so large that attention is uneven and activations are not linear."""
    network = transformers.AutoModelForSequenceClassification.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    network.config.use_cache = False
    return network.eval().requires_grad_(False)


def pair() -> tuple[list[np.ndarray], Layout]:
    """Both orderings of one pair, three windows long, and their layout with a shared prompt."""
    source = np.random.default_rng(0)
    prompt, first, second = (source.integers(1, 64, size).astype(np.int32) for size in (9, 11, 5))
    suffixes = [np.concatenate(answers) for answers in ((first, second), (second, first))]
    ragged = [Ragged.from_lists([values]) for values in (prompt, *suffixes)]
    layout = lay_out("shared", ragged[0], ragged[1:], np.arange(1))
    return [np.concatenate([prompt, suffix]) for suffix in suffixes], layout


def transformers_logits(network: Any, sequences: list[np.ndarray]) -> torch.Tensor:
    """Logits [S, 2] of transformers' own forward pass, one sequence at a time."""
    states = [
        network.model(input_ids=torch.from_numpy(ids.astype(np.int64))[None])[0][0, -1] for ids in sequences
    ]
    return network.score(torch.stack(states))


@pytest.mark.parametrize(("family", "name"), CASES)
def test_a_config_is_obeyed_as_transformers_does_or_refused(family, name, tmp_path):
    changes, refused = unusual_configs(family)[name]
    folder = write_config(tmp_path, base_config(family) | changes)
    if refused is not None:
        with pytest.raises(ModelError) as raised:
            model_config(folder)
        message = str(raised.value)
        assert message.startswith(f"{folder}: ")
        assert "\n" not in message
        assert refused in message
        return
    config = model_config(folder)
    network, (sequences, layout) = random_network(config), pair()
    expected = transformers_logits(network, sequences)
    assert expected.std() > 0.1
    decoder = FusedDecoder(network.model.get_parameter, config, network.model.rotary_emb)
    fused = FusedClassifier(decoder, network.score)(layout)
    torch.testing.assert_close(fused, expected, atol=2e-5, rtol=2e-5)
    network.set_attn_implementation(training_backend(config).implementation)
    ours = ordering_logits(network, layout)
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=2e-5)


def test_enough_unusual_configs():
    for family in FAMILIES:
        refused = [field for _, field in unusual_configs(family).values()]
        assert len(refused) >= 15
        assert 10 <= sum(field is None for field in refused) <= len(refused) - 10


def test_a_refusal_names_the_field_its_value_and_a_remedy(tmp_path):
    folder = write_config(tmp_path, base_config("llama") | rope("llama", "dynamic", factor=2.0))
    with pytest.raises(ModelError) as raised:
        model_config(folder)
    assert str(raised.value) == (
        f"{folder}: llama with rope_parameters.rope_type = 'dynamic' in its config.json: a row's probability "
        "would depend on the longest row of its batch; use another model"
    )


def test_every_way_to_read_a_model_asks(tmp_path):
    folder = write_config(tmp_path, base_config("qwen3") | {"attention_bias": True})
    for read in (
        model_config,
        read_base,
        lambda folder: check_base(
            TrainConfig(base=folder, train=("votes",), output=str(tmp_path / "output"))
        ),
        lambda folder: load_network(
            folder, HeadConfig(), seed=0, device="cpu", dtype=torch.float32, quantization="none"
        ),
    ):
        with pytest.raises(ModelError, match="attention_bias = True"):
            read(folder)


def test_what_transformers_refuses_is_one_line(tmp_path):
    folder = write_config(tmp_path, base_config("llama") | {"num_attention_heads": 5})
    with pytest.raises(ModelError, match="not a multiple of the number of attention") as raised:
        model_config(folder)
    assert "\n" not in str(raised.value)


def test_an_unknown_family_or_layer_type():
    config = transformers.AutoConfig.for_model(**base_config("qwen2"))
    config.layer_types = ["full_attention", "chunked_attention"]
    with pytest.raises(ModelError, match=r"layer_types = \['chunked_attention'\]"):
        shape_of(config)
    config.layer_types, config.sliding_window, config.use_sliding_window = None, 24, True
    with pytest.raises(ModelError, match=r"layer_types = None in its config\.json: there must be a type"):
        shape_of(config)
    config.model_type = "mamba"
    with pytest.raises(ModelError, match="model type mamba is not one of gemma2, gemma3_text, llama"):
        shape_of(config)
