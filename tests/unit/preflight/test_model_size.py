"""Weights counted by config.json are those that a model has."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from wsdm_ray.preflight.measured import MODELS
from wsdm_ray.preflight.model_size import parameters_of, trained_parameters

GEMMA = {
    "vocab_size": 256_000, "hidden_size": 3_584, "intermediate_size": 14_336, "num_hidden_layers": 42,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
}  # fmt: skip


@pytest.mark.parametrize("family", ["gemma2", "llama", "qwen2"])
def test_they_are_those_of_the_files(family_model, family):
    folder: Path = family_model(family)
    linear = embedding = 0
    with safe_open(folder / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118  (not a dict)
            shape = file.get_slice(name).get_shape()
            if "embed" in name:
                embedding += shape[0] * shape[1]
            elif len(shape) == 2 and "layers" in name:
                linear += shape[0] * shape[1]
    found = parameters_of(json.loads((folder / "config.json").read_text()))
    assert (found.linear, found.embedding) == (linear, embedding)


def test_of_models_that_were_timed():
    assert parameters_of(GEMMA) == parameters_of({"text_config": GEMMA}) == MODELS["gemma2-9b"]
    llama = {
        "vocab_size": 128_256, "hidden_size": 4_096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8,
    }  # fmt: skip
    assert parameters_of(llama) == MODELS["llama3-8b"]
    qwen = {
        "vocab_size": 152_064, "hidden_size": 5_120, "intermediate_size": 13_824, "num_hidden_layers": 48,
        "num_attention_heads": 40, "num_key_value_heads": 8,
    }  # fmt: skip
    assert parameters_of(qwen) == MODELS["qwen25-14b"]


def test_of_an_adapter():
    q, down = 3_584 + 16 * 256, 14_336 + 3_584
    assert trained_parameters(GEMMA, 4, ("q_proj", "down_proj", "lm_head")) == 42 * 4 * (q + down)
