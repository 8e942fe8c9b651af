"""The head: its shape, its seed, and that only the last token reaches it."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.unit.modeling.sequences import random_pairs
from wsdm_ray.config import HeadConfig
from wsdm_ray.modeling.classifier import (
    load_network,
    ordering_logits,
    preference_log_odds,
)
from wsdm_ray.modeling.head import make_head
from wsdm_ray.packing.layouts import lay_out


def test_the_heads():
    mlp = make_head(HeadConfig(dropout=0.3), 8, seed=1)
    assert [type(layer) for layer in mlp] == [nn.Dropout, nn.Linear, nn.Dropout, nn.GELU, nn.Linear]
    assert mlp[0].p == mlp[2].p == 0.3
    assert {name: tuple(tensor.shape) for name, tensor in mlp.state_dict().items()} == {
        "1.weight": (4, 8), "1.bias": (4,), "4.weight": (2, 4), "4.bias": (2,),
    }  # fmt: skip
    linear = make_head(HeadConfig(kind="linear"), 8, seed=1)
    assert {name: tuple(tensor.shape) for name, tensor in linear.state_dict().items()} == {"weight": (2, 8)}
    assert {tensor.dtype for tensor in mlp.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_a_head_is_a_function_of_its_seed(kind):
    torch.manual_seed(5)
    first = make_head(HeadConfig(kind=kind), 8, seed=1).state_dict()
    state = torch.get_rng_state()
    second, other = (make_head(HeadConfig(kind=kind), 8, seed=seed).state_dict() for seed in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(next(iter(first.values())), next(iter(other.values())))
    assert torch.equal(state, torch.get_rng_state()), "others' random numbers are left alone"


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_only_the_last_token_reaches_the_head(family_model, kind):
    network: Any = load_network(
        str(family_model("llama")), HeadConfig(kind=kind), seed=0, device="cpu", dtype=torch.float32,
        quantization="none",
    )  # fmt: skip
    shapes = []
    network.score.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    prefix, suffixes = random_pairs([(5, 4), (2, 9)], 0)
    with torch.no_grad():
        logits = ordering_logits(network, lay_out("shared", prefix, suffixes, np.arange(2)))
    assert shapes == [(4, 32)]
    assert logits.shape == (4, 2)
    assert logits.dtype == torch.float32


def test_first_wins():
    assert preference_log_odds(torch.tensor([[2.0, 0.5], [0.0, 1.0]])).tolist() == [1.5, -1.0]
