"""Small random models of sizes that the kernels for Hopper GPUs run, and random pairs for them."""

import copy
import functools
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from wsdm_ray.config import HeadConfig
from wsdm_ray.modeling.classifier import meta_model
from wsdm_ray.modeling.fused_decoder import FusedDecoder
from wsdm_ray.modeling.head import make_head
from wsdm_ray.modeling.scorers import FusedClassifier
from wsdm_ray.packing.ragged import Ragged

__all__ = [
    "DEVICE",
    "FAMILIES",
    "LENGTHS",
    "free_port",
    "make_config",
    "make_scorer",
    "network_of",
    "random_pairs",
    "random_scorer",
    "scorer_of",
]

DEVICE = "cuda"
VOCABULARY = 512
FAMILIES: dict[str, dict[str, Any]] = {
    # Soft-capped scores and a sliding window: the attention kernel.
    "gemma2": {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 128},
    # Neither: FlexAttention.
    "llama": {"head_dim": 128},
}
LENGTHS = [
    (0, 3, 4),  # a prompt that was cut away
    (5, 1, 1),
    (160, 30, 50),  # longer than the window
    (40, 7, 2),
    (2, 170, 90),
]
"""Tokens of (prompt, one response, the other)."""


def make_config(family: str, **sizes: int) -> Any:
    common = {
        "vocab_size": VOCABULARY, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "attn_implementation": "eager",
    }  # fmt: skip
    return transformers.AutoConfig.for_model(family, **(common | FAMILIES[family] | sizes))


@functools.cache
def network_of(family: str) -> Any:
    """A random classifier of transformers in float32, whose normed rows vary in size as trained ones do."""
    torch.manual_seed(0)
    config = make_config(family)
    network = transformers.AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name:
                parameter.add_(torch.rand(parameter.shape))
    return network.requires_grad_(False).eval().to(DEVICE)


def make_scorer(family: str, precision: str) -> FusedClassifier:
    """`network_of` on the fused decoder, in bfloat16."""
    network = network_of(family)
    return fused(network.config, network.model.get_parameter, network.model.rotary_emb, precision)


scorer_of = functools.cache(make_scorer)
"""`make_scorer`, once for all tests."""


def fused(
    config: Any, parameter: Callable[[str], Tensor], rotary: nn.Module, precision: str
) -> FusedClassifier:
    decoder = FusedDecoder(
        parameter, config, copy.deepcopy(rotary), precision=precision, device=DEVICE, dtype=torch.bfloat16
    )
    return FusedClassifier(decoder, make_head(HeadConfig(kind="linear"), config.hidden_size, 0)).eval()


def random_pairs(lengths: list[tuple[int, int, int]]) -> tuple[Ragged, Ragged, Ragged]:
    """Prompts, and the rest of both orderings, of (prompt, one response, the other) tokens."""
    source = np.random.default_rng(0)
    prompts, first, second = [], [], []
    for prompt, a, b in lengths:
        prompts.append(source.integers(3, VOCABULARY, prompt).astype(np.int32))
        responses = [source.integers(3, VOCABULARY, size).astype(np.int32) for size in (a, b)]
        first.append(np.concatenate(responses))
        second.append(np.concatenate(responses[::-1]))
    return Ragged.from_lists(prompts), Ragged.from_lists(first), Ragged.from_lists(second)


def free_port() -> int:
    """A port of this machine at which processes may meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def random_scorer(config: Any, precision: str) -> FusedClassifier:
    """Random weights of a config, made on the GPU one at a time."""
    backbone = meta_model(config).get_submodule("model")

    def parameter(name: str) -> Tensor:
        shape = backbone.get_parameter(name).shape
        return torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) * shape[-1] ** -0.5

    return fused(config, parameter, backbone.get_submodule("rotary_emb"), precision)
