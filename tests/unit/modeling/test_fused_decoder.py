"""The stack against the stock forward pass, one sequence at a time, for every family."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounter

from wsdm_ray.config import HeadConfig
from wsdm_ray.modeling.attention import AttentionBackend, Heads
from wsdm_ray.modeling.classifier import load_network
from wsdm_ray.modeling.families import FAMILIES
from wsdm_ray.modeling.fused_decoder import FusedDecoder
from wsdm_ray.modeling.fused_layer import rotate
from wsdm_ray.modeling.quantized_linear import (
    LinearWeight,
    QuantizedTensor,
    float8_scale,
    gelu_by_sigmoid,
    linear,
    pack_weight,
    quantize_rows,
    rms_norm,
    take_rows,
)
from wsdm_ray.modeling.scorers import FusedClassifier, in_one_row, round_up_to_block
from wsdm_ray.packing.layouts import lay_out
from wsdm_ray.packing.ragged import Ragged

WINDOW = 16
"""Of the tiny models' sliding layers."""


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def network(request: pytest.FixtureRequest, family_model: Callable[..., Path]) -> Any:
    return plain_network(family_model(request.param, layers=3))


def plain_network(folder: Path) -> Any:
    return load_network(
        str(folder), HeadConfig(), seed=0, device="cpu", dtype=torch.float32, quantization="none"
    )


def stack_of(network: nn.Module, precision: str = "none") -> FusedClassifier:
    backbone: Any = network.get_submodule("model")
    stack = FusedDecoder(backbone.get_parameter, network.config, backbone.rotary_emb, precision=precision)
    return FusedClassifier(stack, network.get_submodule("score"))


def pairs_of(lengths: list[tuple[int, int, int]], seed: int = 0) -> tuple[Ragged, Ragged, Ragged]:
    """Prompts, and the rest of both orderings, of (prompt, one answer, the other) tokens."""
    source = np.random.default_rng(seed)
    prompts, first, second = [], [], []
    for prompt, a, b in lengths:
        prompts.append(source.integers(3, 300, prompt).astype(np.int32))
        answers = [source.integers(3, 300, size).astype(np.int32) for size in (a, b)]
        first.append(np.concatenate(answers))
        second.append(np.concatenate(answers[::-1]))
    return Ragged.from_lists(prompts), Ragged.from_lists(first), Ragged.from_lists(second)


@torch.no_grad()
def one_at_a_time(network: nn.Module, pairs: tuple[Ragged, Ragged, Ragged]) -> np.ndarray:
    """Logits [S, 2] of each sequence by transformers' own forward pass, alone."""
    found = []
    for i in range(len(pairs[0])):
        for suffix in pairs[1:]:
            ids = torch.from_numpy(np.concatenate([pairs[0][i], suffix[i]]).astype(np.int64))
            hidden = network.model(input_ids=ids[None], use_cache=False).last_hidden_state[0, -1]  # pyright: ignore
            found.append(network.score(hidden).numpy())  # pyright: ignore
    return np.stack(found)


@torch.no_grad()
def in_one_pass(
    stack: FusedClassifier, kind: str, pairs: tuple[Ragged, Ragged, Ragged], row_tokens: int = 0
) -> np.ndarray:
    every = np.arange(len(pairs[0]))
    layout = lay_out(kind, pairs[0], pairs[1:], every)
    return stack(in_one_row(layout, row_tokens) if row_tokens else layout).numpy()


def passed(lengths: list[tuple[int, int, int]]) -> tuple[Ragged, tuple[Ragged, ...], np.ndarray]:
    """What `lay_out` takes."""
    pairs = pairs_of(lengths)
    return pairs[0], pairs[1:], np.arange(len(lengths))


LENGTHS = [
    (0, 3, 4),  # a prompt that was cut away
    (5, 1, 1),
    (40, 30, 20),  # three windows long
    (WINDOW, 1, 2),
    (2, 70, 9),
]


@pytest.mark.parametrize("kind", ["padded", "packed", "shared"])
@pytest.mark.parametrize("row_tokens", [0, 1024])
def test_every_family_as_one_sequence_at_a_time(network, kind, row_tokens):
    pairs = pairs_of(LENGTHS)
    found = in_one_pass(stack_of(network), kind, pairs, row_tokens)
    np.testing.assert_allclose(found, one_at_a_time(network, pairs), atol=1e-5)


@settings(max_examples=15)
@given(
    lengths=st.lists(
        st.tuples(st.integers(0, 40), st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=5
    ),
    kind=st.sampled_from(["padded", "packed", "shared"]),
)
def test_any_lengths(network, lengths, kind):
    pairs = pairs_of(lengths, seed=len(lengths))
    np.testing.assert_allclose(
        in_one_pass(stack_of(network), kind, pairs), one_at_a_time(network, pairs), atol=1e-5
    )


@pytest.mark.parametrize("precision", ["w8a8-int8", "w8a8-fp8"])
def test_quantized_linears_are_near_and_do_not_depend_on_neighbours(network, precision):
    pairs = pairs_of(LENGTHS)
    stack = stack_of(network, precision)
    found, exact = in_one_pass(stack, "shared", pairs), one_at_a_time(network, pairs)
    near = {"w8a8-int8": 0.1, "w8a8-fp8": 0.5}[precision]
    assert np.abs(found - exact).max() < near * exact.std()
    alone = pairs_of(LENGTHS[:3])
    np.testing.assert_allclose(in_one_pass(stack, "shared", alone), found[:6], atol=1e-5)


@pytest.mark.parametrize("precision", ["none", "w8a8-int8", "w8a8-fp8"])
def test_weights_are_buffers_that_move_together(network, precision):
    backbone = copy.deepcopy(network.get_submodule("model"))
    decoder = FusedDecoder(backbone.get_parameter, network.config, backbone.rotary_emb, precision=precision)
    names = dict(decoder.named_buffers())
    assert {"embedding_VD", "norm_D", "layers.2.qkv.values", "layers.0.norms.attention_in"} <= set(names)
    assert ("layers.2.qkv.scale" in names) == (precision != "none")
    assert not list(decoder.parameters())
    sizes = [tensor.nbytes for tensor in tensors_of(decoder)]
    assert sum(buffer.nbytes for buffer in names.values()) == sum(sizes)
    bytes_of_a_number = 4 if precision == "none" else 1
    linears = sum(
        weight.numel() for name, weight in backbone.named_parameters() if name.endswith("_proj.weight")
    )
    assert (
        sum(names[name].nbytes for name in names if name.endswith(".values")) == bytes_of_a_number * linears
    )

    decoder.to(torch.device("meta"))
    assert {tensor.device.type for tensor in tensors_of(decoder)} == {"meta"}
    assert [tensor.nbytes for tensor in tensors_of(decoder)] == sizes


def tensors_of(decoder: FusedDecoder) -> list[torch.Tensor]:
    """All tensors that a forward pass uses."""
    found = [decoder.embedding_VD, decoder.norm_D, *decoder.rotary.buffers()]
    for layer in decoder.fused_layers():
        linears = (layer.qkv, layer.o, layer.gate_up, layer.down)
        found += [tensor for linear in linears for tensor in linear if isinstance(tensor, torch.Tensor)]
        found += layer.norms.values()
    return found


def test_a_forward_pass_uses_the_moved_tensors(network):
    scorer, pairs = stack_of(network, "w8a8-int8"), pairs_of(LENGTHS)
    scorer.stack.rotary = copy.deepcopy(scorer.stack.rotary)
    expected = in_one_pass(scorer, "shared", pairs)
    before = tensors_of(scorer.stack)
    scorer._apply(torch.clone)  # what `.to()` does, with a function that always makes new tensors
    for tensor in before:
        tensor.zero_()
    np.testing.assert_array_equal(in_one_pass(scorer, "shared", pairs), expected)
    scorer.stack.layers[1].get_submodule("down").get_buffer("scale").zero_()
    assert not np.array_equal(in_one_pass(scorer, "shared", pairs), expected)


def test_the_types_of_a_decoder_are_fixed(network):
    decoder = stack_of(network, "w8a8-fp8").stack
    with pytest.raises(TypeError, match=r"types are fixed: torch.float32 cannot become torch.bfloat16"):
        decoder.to(torch.bfloat16)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_sparse_attention_in_the_whole_stack(network):
    stack, pairs = stack_of(network), pairs_of(LENGTHS[1:3])
    stack.sparse, expected = True, one_at_a_time(network, pairs)
    for kind in ("padded", "packed", "shared"):  # one after the other in the same tensors
        np.testing.assert_allclose(in_one_pass(stack, kind, pairs, 384), expected, atol=1e-5)
    assert list(stack.attention_backends) == [384]


@pytest.mark.parametrize("kind", ["packed", "shared"])
def test_a_row_is_the_same_in_any_batch(network, kind):
    """Nearly: a CPU's GEMM sums in an order that depends on its number of rows. `tests/gpu` has the bits."""
    stack, pairs, found = stack_of(network), pairs_of(LENGTHS), []
    for rows in ([2], [4, 2], [2, 0, 1], [3, 1, 2, 0, 4]):
        layout = lay_out(kind, pairs[0], pairs[1:], np.array(rows), alignment=stack.alignment)
        with torch.inference_mode():
            logits = stack(in_one_row(layout, 1024))
        found.append(logits.unflatten(0, (len(rows), 2))[rows.index(2)])
    for each in found:
        torch.testing.assert_close(each, found[0], atol=1e-5, rtol=0)


def test_one_row_of_a_pass():
    prompts, first, second = pairs_of([(1, 1, 1), (2, 2, 1)])
    rows = lay_out("padded", prompts, [first, second], np.arange(2))
    one = in_one_row(rows, 25)
    assert one.tokens_BT.shape == one.groups_BT.shape == (1, 25)
    assert one.groups_BT.tolist() == [[0, 0, 0, -1, -1, 1, 1, 1, -1, -1, *[2] * 5, *[3] * 5, *[-1] * 5]]
    assert one.last_S.tolist() == rows.last_S.tolist() == [2, 7, 14, 19]
    assert one.num_tokens == rows.num_tokens == 16
    assert in_one_row(one, 7).tokens_BT.tolist() == one.tokens_BT.tolist()
    assert [round_up_to_block(tokens) for tokens in (0, 1, 128, 129)] == [0, 128, 128, 256]


@pytest.mark.parametrize("precision", ["none", "w8a8-int8"])
def test_one_compilation_serves_all_layers_and_passes(precision, family_model):
    network = plain_network(family_model("gemma3_text", layers=5))
    stack = stack_of(network, precision)
    counter = CompileCounter()
    stack.stack.compile_layers(counter)
    assert len(stack.stack.layers) == 5
    assert len(set(stack.stack.shape.layer_types)) == 2
    with torch.inference_mode():
        first = stack(in_one_row(lay_out("shared", *passed(LENGTHS)), 1024)).numpy()
        assert counter.frame_count == 3, "qkv_projection, mlp_and_next_qkv, and mlp_block on the last tokens"
        stack(in_one_row(lay_out("packed", *passed(LENGTHS[:2])), 1024))
        stack(in_one_row(lay_out("padded", *passed(LENGTHS[:1])), 1024))
        stack(
            in_one_row(lay_out("shared", *passed([(0, 1, 1)] * 150)), 1024)
        )  # more last tokens than LAST_ROWS
    assert counter.frame_count == 3
    np.testing.assert_allclose(
        first, in_one_pass(stack_of(network, precision), "shared", pairs_of(LENGTHS)), atol=1e-5
    )


class Rotating:
    """Attention that rotates queries itself, as the kernel on GPUs does; its output in 8 bits if wanted."""

    rotates_queries = True

    def __init__(self, exact: AttentionBackend, float8: bool):
        self.exact, self.float8 = exact, float8

    def attend(self, heads: Heads, kind: str) -> torch.Tensor | QuantizedTensor:
        assert heads.rotation is not None
        out = self.exact.attend(heads._replace(q=rotate(heads.q, *heads.rotation), rotation=None), kind)
        assert isinstance(out, torch.Tensor)
        return QuantizedTensor(*quantize_rows(out, torch.float8_e4m3fn)) if self.float8 else out


@pytest.mark.parametrize("precision", ["none", "w8a8-fp8"])
def test_attention_that_rotates_queries_and_gives_float8(network, precision, monkeypatch):
    stack, pairs, float8 = stack_of(network, precision), pairs_of(LENGTHS), precision == "w8a8-fp8"
    expected, attention_backend = in_one_pass(stack, "shared", pairs), stack.attention_backend
    monkeypatch.setattr(
        stack, "attention_backend", lambda layout: Rotating(attention_backend(layout), float8)
    )
    found = in_one_pass(stack, "shared", pairs)
    near = 0.25 if float8 else 1e-5  # linear layers of 8-bit inputs return bfloat16
    assert np.abs(found - expected).max() < near * expected.std()
    counter = CompileCounter()
    stack.stack.compile_layers(counter)
    np.testing.assert_allclose(in_one_pass(stack, "shared", pairs), found, atol=1e-5)
    in_one_pass(stack, "shared", pairs)
    assert counter.frame_count == 3, "qkv_projection, mlp_and_next_qkv, and mlp_block on the last tokens"


def test_some_rows_by_hand():
    rows = QuantizedTensor(torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.tensor([0.1, 0.2, 0.3]))
    found = take_rows(rows, torch.tensor([2, 0]))
    assert isinstance(found, QuantizedTensor)
    assert found.values.tolist() == [[5, 6], [1, 2]]
    assert torch.equal(found.scale, rows.scale[[2, 0]])
    assert torch.equal(take_rows(rows.values, torch.tensor([1])), rows.values[1:2])


def test_gelu_by_sigmoid_is_gelu():
    x = torch.cat([torch.linspace(-30, 30, 4001), torch.tensor([-1e30, 1e30, 0.0])])
    torch.testing.assert_close(gelu_by_sigmoid(x), F.gelu(x, approximate="tanh"), atol=1e-6, rtol=1e-6)
    assert gelu_by_sigmoid(x.bfloat16()).dtype == torch.bfloat16


def test_warm_up_compiles_what_passes_run(network, monkeypatch):
    stack = stack_of(network)
    counter = CompileCounter()
    stack.stack.compile_layers(counter)
    looked, attention_backend = set(), stack.attention_backend
    monkeypatch.setattr(
        stack,
        "attention_backend",
        lambda layout: looked.add(layout.positions_BT.max()) or attention_backend(layout),
    )
    stack.warm_up(384)
    assert counter.frame_count == 3
    assert looked == {0, stack.stack.shape.sliding_window or 0}, "with masks of a window and without"
    with torch.inference_mode():
        stack(in_one_row(lay_out("shared", *passed(LENGTHS[:2])), 384))
    assert counter.frame_count == 3


def test_rows_in_8_bit_by_hand():
    x = torch.tensor([[127.0, -63.5, 0.4], [0.0, 0.0, 0.0], [2.54, 0.01, -2.54]])
    values, scale = quantize_rows(x, torch.int8)
    assert values.tolist() == [[127, -64, 0], [0, 0, 0], [127, 0, -127]]
    assert scale.tolist() == pytest.approx([1.0, 0.0, 0.02], abs=1e-9)
    values, scale = quantize_rows(torch.tensor([[896.0, 2.0, 100.0]]), torch.float8_e4m3fn)
    assert values.float().tolist() == [[448.0, 1.0, 48.0]]  # 50 is not among the 8-bit numbers
    assert scale.tolist() == [2.0]


@pytest.mark.parametrize("bias", [False, True])
def test_no_output_of_normed_rows_exceeds_its_float8_scale(bias):
    torch.manual_seed(0)
    biases = [2 * torch.randn(24)] if bias else []
    weight, norm = pack_weight([torch.randn(24, 64)], biases, "w8a8-fp8"), torch.rand(64) + 0.5
    exact = weight.values[-8:].float() * weight.scale[-8:, None]
    worst = rms_norm(exact * norm, norm, 0.0)  # along each row of the weight
    scale = float8_scale(weight, norm, 8)
    found = linear(torch.cat([worst, -worst]), weight)[:, -8:] / scale
    assert 448 / 1.5 < found.abs().max() <= 448
    assert float8_scale(weight, 2 * norm, 8) > scale


@pytest.mark.parametrize(("precision", "near"), [("none", 1e-6), ("w8a8-int8", 0.02), ("w8a8-fp8", 0.06)])
def test_fused_weights_are_the_separate_layers(precision, near):
    torch.manual_seed(0)
    parts = [nn.Linear(64, size) for size in (32, 48)]
    x = torch.randn(40, 64)
    with torch.no_grad():
        expected = torch.cat([part(x) for part in parts], 1)
        weights, biases = ([getattr(part, name) for part in parts] for name in ("weight", "bias"))
        found = linear(x, pack_weight(weights, biases, precision))
    assert found.dtype == torch.float32
    assert float((found - expected).abs().max() / expected.std()) < near * 3
    assert float((found - expected).square().mean().sqrt() / expected.std()) < near


def test_a_weight_without_a_bias():
    weight = pack_weight([torch.ones(4, 8)], [], "none")
    assert isinstance(weight, LinearWeight)
    assert weight.bias is None
    assert linear(torch.ones(2, 8), weight).shape == (2, 4)
