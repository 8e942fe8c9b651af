"""The training decoder against the network of transformers that it runs, for every family and layout."""

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from wsdm_ray.config import HeadConfig, LoraConfig
from wsdm_ray.errors import ModelError
from wsdm_ray.modeling import sharded_weights, training_decoder
from wsdm_ray.modeling.attention.decoder_training import Attend, training_attention
from wsdm_ray.modeling.classifier import (
    add_lora,
    load_network,
    ordering_logits,
    preference_log_odds,
    trainable_parameters,
)
from wsdm_ray.modeling.families import FAMILIES
from wsdm_ray.modeling.frozen_weights import RowsLinear
from wsdm_ray.modeling.quantized_linear import pack_weight
from wsdm_ray.modeling.training_decoder import TrainingDecoder, at_least
from wsdm_ray.packing.layouts import Layout, lay_out
from wsdm_ray.packing.ragged import Ragged

LENGTHS = [(3, 5, 4), (30, 9, 2), (1, 1, 1), (12, 20, 11)]
"""Tokens of prompts and of both responses; some are longer than the sliding window of 16."""


def layout_of(kind: str, row_tokens: int = 0, pairs: Sequence[int] = range(len(LENGTHS))) -> Layout:
    random = np.random.default_rng(0)

    def ids(length: int) -> np.ndarray:
        return random.integers(3, 300, length, dtype=np.int32)

    prompts, firsts, seconds = ([ids(lengths[place]) for lengths in LENGTHS] for place in range(3))
    suffixes = [
        Ragged.from_lists([np.concatenate(both) for both in zip(*pair, strict=True)])
        for pair in ((firsts, seconds), (seconds, firsts))
    ]
    return lay_out(kind, Ragged.from_lists(prompts), suffixes, np.array(pairs), row_tokens=row_tokens)


@pytest.fixture(scope="module")
def network_of(family_model: Callable[..., Path]) -> Callable[..., nn.Module]:
    """A network of a family with adapters that change something, in float32."""

    def make(family: str, lora: LoraConfig | None = None, quantization: str = "none") -> nn.Module:
        width = 64 if quantization == "nf4" else 32
        network = load_network(
            str(family_model(family, width=width, layers=3)), HeadConfig(kind="linear", dropout=0.0), seed=0,
            device="cpu", dtype=torch.float32, quantization=quantization,
        )  # fmt: skip
        network = add_lora(network, lora or LoraConfig(r=4, alpha=8, dropout=0.0), seed=0)
        torch.manual_seed(1)
        for parameter in trainable_parameters(network).values():
            parameter.data.normal_(std=0.1)
        return network.train()

    return make


def gradients_of(network: nn.Module, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of a loss that depends on each logit in a way of its own."""
    parameters = trainable_parameters(network)
    weights = torch.linspace(-1.0, 2.0, len(logits))
    loss = (preference_log_odds(logits) * weights).sum() + (logits**2).sum()
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], limit: float) -> None:
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm() / gradient.norm()
        assert error < limit, f"{name}: {error}"


@pytest.mark.parametrize("kind", ["packed", "shared"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_as_transformers_with_padding(family, kind, network_of):
    network = network_of(family)
    decoder = TrainingDecoder(network, torch.float32, compiled=False)
    expected = ordering_logits(network, layout_of("padded"))
    found = decoder.logits(layout_of(kind, row_tokens=250))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)  # sums in another order
    assert_near(gradients_of(network, found), gradients_of(network, expected), 1e-4)


def test_recomputed_activations_change_nothing(network_of):
    network = network_of("gemma2", LoraConfig(r=4, alpha=8, dropout=0.3))
    decoder = TrainingDecoder(network, torch.float32, compiled=False)
    found, kept = [], [0, 0]
    for place, recomputed in enumerate((0, 2)):
        decoder.recomputed = recomputed
        torch.manual_seed(3)

        def keep(tensor: torch.Tensor, place: int = place) -> torch.Tensor:
            kept[place] += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = decoder.logits(layout_of("shared"))
        found.append(gradients_of(network, logits))
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name
    assert kept[1] < 0.5 * kept[0], "of three layers two keep their input alone"


def plain_linear(layer: Any) -> nn.Linear:
    """A linear layer of bitsandbytes with its weight dequantized by bitsandbytes."""
    from bitsandbytes.functional import dequantize_4bit

    out = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    if hasattr(layer.weight, "quant_state"):
        out.weight.data = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    else:
        layer.init_8bit_state()
        out.weight.data = layer.state.CB.float() * layer.state.SCB[:, None] / 127
    out.bias = layer.bias
    return out.requires_grad_(False)


@pytest.mark.parametrize("quantization", ["bnb-int8", "nf4"])
def test_a_base_of_bitsandbytes_is_dequantized(quantization, network_of):
    network = network_of("qwen2", quantization=quantization)
    decoder = TrainingDecoder(network, torch.float32, compiled=False)
    found = decoder.logits(layout_of("shared"))
    plain = network_of("qwen2", quantization=quantization)
    for module in list(plain.modules()):
        if hasattr(module, "base_layer"):
            module.base_layer = plain_linear(module.base_layer)
    expected = ordering_logits(plain, layout_of("padded"))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)
    assert_near(gradients_of(network, found), gradients_of(plain, expected), 1e-3)


def to_rows(network: nn.Module, precision: str) -> None:
    """Hold what adapters stand beside in rows of 8 bits."""
    backbone = network.get_base_model().get_submodule("model")
    for name, module in list(backbone.named_modules()):
        if isinstance(base := getattr(module, "base_layer", None), nn.Linear):
            packed = pack_weight([base.weight.data], [], precision)
            backbone.get_submodule(name).base_layer = RowsLinear(packed, torch.float32)


@pytest.mark.parametrize("precision", ["w8a8-int8", "w8a8-fp8"])
def test_8_bit_both_ways_is_near(precision, network_of):
    network = network_of("gemma2")
    layout = layout_of("shared")
    expected = ordering_logits(network, layout)
    gradients = gradients_of(network, expected)
    to_rows(network, precision)
    plain = TrainingDecoder(network, torch.float32, compiled=False)
    found = plain.logits(layout)
    limit = 0.05 if precision == "w8a8-int8" else 0.15  # a quarter of a percent, or of three, a product
    assert (found - expected).norm() / expected.norm() < limit
    found_gradients = gradients_of(network, found)
    assert_near(found_gradients, gradients, 2 * limit)
    assert max((found_gradients[name] - each).abs().max() for name, each in gradients.items()) > 1e-5


def traced(decoder: TrainingDecoder) -> tuple[CompileCounter, CompileCounter]:
    """Trace what a GPU compiles, and then run it as it is: no compiler takes its time here. Returns what
    counts the traces of `before` and of `after`."""
    counters = CompileCounter(), CompileCounter()
    decoder.before, decoder.after = (
        torch.compile(part, fullgraph=True, backend=counter)
        for part, counter in zip((decoder.before, decoder.after), counters, strict=True)
    )
    return counters


def in_contiguous_heads(*given: Any) -> Attend:
    """The decoder's own attention, of heads in the order in which FlexAttention has them."""
    attend = training_attention(*given)

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer_type: str) -> torch.Tensor:
        assert all(each.is_contiguous() for each in (q, k, v))
        out = attend.run(q, k, v, layer_type)
        return out.unflatten(1, (q.shape[1], -1)).transpose(0, 1)[None].contiguous()

    return Attend(run, heads_first=True)


@pytest.mark.parametrize("family", ["gemma2", "qwen2"])
def test_attention_of_contiguous_heads_changes_nothing(family, network_of, monkeypatch):
    network, layout = network_of(family), layout_of("shared")
    decoder = TrainingDecoder(network, torch.float32, compiled=False)
    expected = decoder.logits(layout)
    gradients = gradients_of(network, expected)
    monkeypatch.setattr(training_decoder, "training_attention", in_contiguous_heads)
    found = decoder.logits(layout)
    torch.testing.assert_close(found, expected)
    assert_near(gradients_of(network, found), gradients, 1e-5)


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, while it traces
def test_evaluation_compiles_after_training(network_of):
    network = network_of("qwen2")
    decoder, layout = TrainingDecoder(network, torch.float32, compiled=False), layout_of("shared")
    expected = decoder.logits(layout)
    traced(decoder)
    decoder.logits(layout).sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(decoder.logits(layout), expected)


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, while it traces
@pytest.mark.parametrize("held", ["none", "nf4", "w8a8-int8", "w8a8-fp8"])
def test_all_numbers_of_tokens_and_of_sequences_are_compiled_once(held, network_of):
    network = network_of("gemma2", quantization="nf4" if held == "nf4" else "none")
    if held.startswith("w8a8"):
        to_rows(network, held)
    decoder = TrainingDecoder(network, torch.float32, compiled=False)
    before, after = traced(decoder)
    for pairs, row_tokens in [((1, 3), 0), ((0, 1, 3), 0), ((0, 1, 2, 3), 128), ((1, 2), 64)]:
        decoder.logits(layout_of("shared", row_tokens, pairs)).sum().backward()
    assert (before.frame_count, after.frame_count) == (1, 1)


class Alone:
    """One worker that shares its weights with nobody: they come and go all the same."""

    rank, size = 0, 1

    def start_all_gather(self, whole: torch.Tensor, part: torch.Tensor) -> Callable[[], object]:
        whole.copy_(part)
        return lambda: None


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, while it traces
@pytest.mark.parametrize(
    ("held", "recomputed", "compiled"),
    [
        ("none", 0, True),
        ("nf4", 1, False),
        ("bnb-int8", 3, False),
        ("w8a8-int8", 1, True),
        ("w8a8-fp8", 0, False),
    ],
)
def test_weights_that_come_and_go_change_no_bit(held, recomputed, compiled, network_of, monkeypatch):
    """Also where compiled functions keep weights for the backward pass."""
    monkeypatch.setattr(sharded_weights, "LEAST_BYTES", 1)
    network = network_of("gemma2", quantization=held if held in ("nf4", "bnb-int8") else "none")
    if held.startswith("w8a8"):
        to_rows(network, held)
    decoder, layout = TrainingDecoder(network, torch.float32, compiled=False), layout_of("shared")
    if compiled:
        decoder.before, decoder.after = (
            torch.compile(part, fullgraph=True, backend="aot_eager")
            for part in (decoder.before, decoder.after)
        )
    decoder.recomputed = recomputed
    expected = decoder.logits(layout)
    gradients = gradients_of(network, expected)
    on_device = weakref.ref(decoder.embedding)
    decoder.shard_weights(Alone())
    assert decoder.embedding_apart
    assert on_device() is None, "embeddings are in memory of the CPU alone"
    weights = [linear.weight.values for layer in decoder.layers for linear in layer[:4]]
    with decoder.weights.passes(1, backward=True):
        found = decoder.logits(layout)
        assert torch.equal(found, expected)
        for name, gradient in gradients_of(network, found).items():
            assert torch.equal(gradient, gradients[name]), name
    assert not any(values.untyped_storage().nbytes() for values in weights)
    with torch.no_grad(), decoder.weights.passes(1, backward=False):
        torch.testing.assert_close(decoder.logits(layout), expected)
    assert not any(values.untyped_storage().nbytes() for values in weights)


def test_tokens_that_only_fill_up_the_last_layer_change_nothing(network_of):
    """PyTorch's int8 GEMM on GPUs takes no fewer rows than 17, and a micro-batch may have one ordering."""
    network = network_of("gemma2")
    to_rows(network, "w8a8-int8")
    decoder = TrainingDecoder(network, torch.float32, compiled=False)
    assert decoder.least_rows == 1, "on a CPU"
    layout = layout_of("shared")
    expected = decoder.logits(layout)
    gradients = gradients_of(network, expected)
    decoder.least_rows = 32
    found = decoder.logits(layout)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert_near(gradients_of(network, found), gradients, 1e-5)
    assert at_least(torch.tensor([5, 6]), 4).tolist() == [5, 6, 5, 5]


@pytest.mark.parametrize("quantization", ["bnb-int8", "nf4"])
def test_a_group_of_which_one_layer_is_not_quantized_is_refused(quantization, network_of):
    """As `llm_int8_skip_modules` leaves it: its numbers have no scale."""
    network = network_of("qwen2", quantization=quantization)
    layer = network.get_base_model().get_submodule("model.layers.0.self_attn.q_proj")
    layer.base_layer = plain_linear(layer.base_layer)
    with pytest.raises(
        ModelError, match=r"of self_attn.q_proj, .*, which training runs as one, some are quantized"
    ):
        TrainingDecoder(network, torch.float32, compiled=False)
