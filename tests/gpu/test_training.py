"""Training on a GPU: the decoder's gradients, and int8 weights that are dequantized for each GEMM."""

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from tests.gpu.models import DEVICE, FAMILIES, LENGTHS, make_config, network_of, random_pairs
from wsdm_ray.config import HeadConfig, LoraConfig
from wsdm_ray.modeling.attention.varlen import varlen_on_gpu
from wsdm_ray.modeling.classifier import add_lora, ordering_logits, preference_log_odds, trainable_parameters
from wsdm_ray.modeling.frozen_weights import to_rows
from wsdm_ray.modeling.head import make_head
from wsdm_ray.modeling.quantized_linear import TYPES
from wsdm_ray.modeling.training_decoder import TrainingDecoder, padded_tokens
from wsdm_ray.packing.layouts import Layout, lay_out

pytest.importorskip("bitsandbytes", reason="needs bitsandbytes for int8 weights")
pytest.importorskip("peft", reason="needs PEFT for adapters")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_beside_int8_weights_lowers_the_loss(family, tmp_path):
    from wsdm_ray.modeling.classifier import load_network
    from wsdm_ray.modeling.weight_only_int8 import WeightOnlyInt8Linear, use_weight_only_int8

    network_of(family).save_pretrained(tmp_path)
    base = load_network(
        str(tmp_path), HeadConfig(kind="linear"), seed=0, device=DEVICE, dtype=torch.bfloat16,
        quantization="bnb-int8",
    )  # fmt: skip
    network = use_weight_only_int8(add_lora(base, LoraConfig(r=4, dropout=0.0), seed=0)).train()
    layers = make_config(family).num_hidden_layers
    assert sum(isinstance(module, WeightOnlyInt8Linear) for module in network.modules()) == 7 * layers

    prompts, *_ = random_pairs([(96, 1, 1)] * 4)
    tokens = torch.stack([torch.from_numpy(ids).long() for ids in prompts]).to(DEVICE)
    labels = torch.tensor([0, 1, 1, 0], device=DEVICE)

    def loss_of() -> torch.Tensor:
        with torch.autocast(DEVICE, torch.bfloat16):  # as in training
            logits = network(input_ids=tokens, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.float(), labels)

    weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-3)
    before = loss_of()
    before.backward()
    for name, weight in weights.items():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        if "lora_B" in name or "score" in name:  # A has no gradient while B is zero
            assert weight.grad.any(), name
    optimizer.step()
    assert loss_of() < before


def adapted(family: str, dtype: torch.dtype, rows: str = "") -> torch.nn.Module:
    """`network_of` with adapters that change something, the same in every type."""
    network = copy.deepcopy(network_of(family)).to(dtype)
    if rows:
        to_rows(network.get_submodule("model"), rows, dtype)
    network.config.use_cache = False
    head = HeadConfig(kind="linear", dropout=0.0, precision="fp32")
    network.score = make_head(head, network.config.hidden_size, 0).to(DEVICE)
    wrapped = add_lora(network, LoraConfig(r=16, alpha=16, dropout=0.0), seed=0)
    torch.manual_seed(1)
    for parameter in trainable_parameters(wrapped).values():
        parameter.data.copy_(torch.randn(parameter.shape) * 0.02)
    return wrapped.train()


def layout_of(kind: str, pairs: Sequence[int] = range(len(LENGTHS)), tokens: int = 1_500) -> Layout:
    prompts, *suffixes = random_pairs(LENGTHS)
    row_tokens = 0 if kind == "padded" else padded_tokens(tokens, 2_048)
    return lay_out(kind, prompts, suffixes, np.array(pairs), row_tokens=row_tokens)


def gradients_of(network: torch.nn.Module, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    parameters = trainable_parameters(network)
    weights = torch.linspace(-1.0, 2.0, len(logits), device=DEVICE)
    loss = (preference_log_odds(logits) * weights).sum()
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


@pytest.mark.parametrize(
    ("family", "kind", "rows", "compiled", "limit"),
    [
        ("gemma2", "packed", "", False, 0.05),
        ("gemma2", "shared", "", False, 0.05),
        ("llama", "packed", "", False, 0.05),
        ("llama", "shared", "", False, 0.05),
        ("gemma2", "shared", "w8a8-int8", True, 0.1),
        ("llama", "packed", "w8a8-fp8", True, 0.25),
    ],
)
def test_gradients_of_the_decoder_are_those_of_float32(family, kind, rows, compiled, limit):
    exact = adapted(family, torch.float32)
    exact_logits = ordering_logits(exact, layout_of("padded"))
    expected = gradients_of(exact, exact_logits)
    network = adapted(family, torch.bfloat16, rows)
    decoder = TrainingDecoder(network, torch.bfloat16, compiled=compiled)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        logits = decoder.logits(layout_of(kind))
    weights = {place_of(linear.weight.values) for layer in decoder.layers for linear in layer[:4]}
    if rows:
        of_8_bits = {place_of(each) for each in kept if each.dtype in TYPES.values()}
        assert of_8_bits == weights, "none is kept twice"
    found = gradients_of(network, logits)
    decoder.recomputed = 2
    again = gradients_of(network, decoder.logits(layout_of(kind)))
    errors = {name: float((found[name] - each).norm() / each.norm()) for name, each in expected.items()}
    assert max(errors.values()) < limit, max(errors.items(), key=lambda item: item[1])
    for name, each in found.items():
        assert torch.equal(again[name], each), name
    with torch.no_grad():  # as validation runs it
        unrecorded = decoder.logits(layout_of(kind))
    for name, each in (("recorded", logits), ("unrecorded", unrecorded)):
        error = float((each - exact_logits).norm() / exact_logits.norm())
        assert error < limit, f"{name}: {error}"
    if rows != "w8a8-fp8":  # compiled apart, one rounding to float8 differs, and with it all that follow
        torch.testing.assert_close(unrecorded, logits.detach())


def test_attention_of_packed_rows_repeats_to_the_bit():
    torch.manual_seed(0)
    q, k, v, gradient = torch.randn(4, 16, 8_192, 128, device=DEVICE, dtype=torch.bfloat16)
    starts = torch.tensor([0, 6_000, 8_192], dtype=torch.int32, device=DEVICE)

    def gradients() -> tuple[torch.Tensor, ...]:
        inputs = [each.clone().requires_grad_() for each in (q, k, v)]
        out = varlen_on_gpu(*inputs, starts, 6_000, None, None)
        return torch.autograd.grad(out, inputs, gradient.transpose(0, 1)[None])

    first = gradients()
    for _ in range(10):
        for one, other in zip(gradients(), first, strict=True):
            assert torch.equal(one, other)
    assert torch.get_deterministic_debug_mode() == 0


def place_of(tensor: torch.Tensor) -> int:
    """Where its storage is."""
    return tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("rows", ["", "w8a8-int8", "w8a8-fp8"])
def test_all_numbers_of_tokens_and_of_sequences_are_compiled_once(rows):
    decoder = TrainingDecoder(adapted("llama", torch.bfloat16, rows), torch.bfloat16, compiled=False)
    counters = CompileCounterWithBackend("inductor"), CompileCounterWithBackend("inductor")
    decoder.before, decoder.after = (
        torch.compile(part, fullgraph=True, backend=counter)
        for part, counter in zip((decoder.before, decoder.after), counters, strict=True)
    )
    for pairs, tokens in [((1, 3), 700), ((0, 1, 3), 1_000), (range(5), 1_500), ((1, 2), 900)]:
        decoder.logits(layout_of("shared", pairs, tokens)).sum().backward()
    assert [counter.frame_count for counter in counters] == [1, 1]


@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_attention_is_compiled_for_the_usual_rows_and_once_for_all_others(family):
    decoder = TrainingDecoder(
        adapted(family, torch.bfloat16), torch.bfloat16, compiled=False, usual_tokens=2_048
    )

    def compilations(lengths: Sequence[int]) -> int:
        """How many more graphs these take than were compiled in this process."""
        before = counters["stats"]["unique_graphs"]
        for tokens in lengths:
            layout = layout_of("shared", (1, 3), tokens)
            assert layout.tokens_BT.shape[1] == padded_tokens(tokens, 2_048)
            decoder.logits(layout).sum().backward()
        return counters["stats"]["unique_graphs"] - before

    torch._dynamo.reset()
    assert compilations([2_000]) == 1
    assert compilations([1_000]) == 1
    assert compilations([1_200, 2_048, 1_500, 1_790, 900]) == 0
