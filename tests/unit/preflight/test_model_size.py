"""Weights counted by config.json are those that a model has."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from wsdm_ray.preflight.measured import SIZES
from wsdm_ray.preflight.model_size import parameters_of, trained_parameters

GEMMA = SIZES["gemma2-9b"]


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


def test_of_a_model_that_is_known():
    found = parameters_of(GEMMA)
    assert found == parameters_of({"text_config": GEMMA})
    assert found.linear + found.embedding == pytest.approx(9.24e9, rel=0.001)  # Gemma-2-9B, without norms


def test_of_an_adapter():
    q, down = 3_584 + 16 * 256, 14_336 + 3_584
    assert trained_parameters(GEMMA, 4, ("q_proj", "down_proj", "lm_head")) == 42 * 4 * (q + down)
