"""The fused decoder on a GPU: near transformers, batch-invariant, compiled once, within its memory."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from tests.gpu.models import (
    DEVICE,
    FAMILIES,
    LENGTHS,
    make_config,
    make_scorer,
    network_of,
    random_pairs,
    random_scorer,
    scorer_of,
)
from wsdm_ray.modeling.attention import scoring_backend
from wsdm_ray.modeling.fused_layer import FUSED_LINEARS
from wsdm_ray.modeling.quantized_linear import on_hopper
from wsdm_ray.modeling.scorers import FusedClassifier, in_one_row
from wsdm_ray.packing.layouts import Layout, lay_out
from wsdm_ray.scoring.models import USABLE_SHARE

PRECISIONS = {"none": 0.03, "w8a8-int8": 0.1, "w8a8-fp8": 0.25}
"""The largest distance of last hidden states from float32 ones, relative to their norm."""
ROW_TOKENS = 3328
"""Tokens of every micro-batch, of which all pairs take fewer in any layout: bits depend on this number."""

every_precision = pytest.mark.parametrize("precision", PRECISIONS)
every_family = pytest.mark.parametrize("family", FAMILIES)


def laid_out(scorer: FusedClassifier, kind: str, rows: list[int], row_tokens: int = ROW_TOKENS) -> Layout:
    prompts, *suffixes = random_pairs(LENGTHS)
    layout = in_one_row(
        lay_out(kind, prompts, suffixes, np.array(rows), alignment=scorer.alignment), row_tokens
    )
    assert layout.tokens_BT.size == row_tokens
    return layout


@torch.inference_mode()
def last_hidden(scorer: FusedClassifier, layout: Layout) -> Tensor:
    """Normed hidden states of the last token of each ordering, [S, D]."""
    outputs: list[Tensor] = []
    hook = scorer.score.register_forward_pre_hook(lambda module, inputs: outputs.append(inputs[0]))
    scorer(layout)
    hook.remove()
    return torch.cat(outputs)[: len(layout.last_S)].float()


@torch.inference_mode()
def one_sequence_at_a_time(family: str) -> Tensor:
    """The same by transformers, one ordering a forward pass, in float32."""
    network, (prompts, *suffixes) = network_of(family), random_pairs(LENGTHS)
    sequences = [np.concatenate([prompts[i], suffix[i]]) for i in range(len(prompts)) for suffix in suffixes]
    ids = [torch.from_numpy(sequence.astype(np.int64)).to(DEVICE)[None] for sequence in sequences]
    return torch.cat(
        [network.model(input_ids=each, use_cache=False).last_hidden_state[:, -1] for each in ids]
    )


@every_precision
@every_family
def test_near_transformers(family, precision):
    scorer, exact = scorer_of(family, precision), one_sequence_at_a_time(family)
    for kind in ("padded", "packed", "shared"):
        hidden = last_hidden(scorer, laid_out(scorer, kind, [0, 1, 2, 3, 4]))
        assert (hidden - exact).norm() / exact.norm() < PRECISIONS[precision], kind


@every_precision
@every_family
def test_rows_are_bitwise_identical_in_any_batch(family, precision):
    scorer = scorer_of(family, precision)
    for kind in ("packed", "shared"):
        logits = []
        for rows in ([2], [4, 2], [2, 0, 1], [3, 1, 2, 0, 4]):
            with torch.inference_mode():
                batch = scorer(laid_out(scorer, kind, rows))
            logits.append(batch.unflatten(0, (len(rows), 2))[rows.index(2)])
        assert logits[0].isfinite().all()
        assert all(torch.equal(other, logits[0]) for other in logits[1:]), kind


@every_precision
@every_family
def test_hopper_kernels_run_it(family, precision):
    if not on_hopper(torch.device(DEVICE)):
        pytest.skip("the kernels are for GPUs of compute capability 9.0")
    decoder = scorer_of(family, precision).stack
    for layer in decoder.layers:
        for name in FUSED_LINEARS:
            assert layer.get_submodule(name).fused == (precision != "none")
    assert decoder.tiling.softcapped == (family == "gemma2")
    float8 = [layer.float8_scale is not None for layer in decoder.fused_layers()]
    assert float8 == [(family, precision) == ("gemma2", "w8a8-fp8")] * 4


@every_family
def test_warm_up_compiles_all_that_batches_run(family):
    scorer = scorer_of(family, "w8a8-fp8")
    before = counters["stats"]["unique_graphs"]
    scorer.warm_up(ROW_TOKENS + 128)
    warm = counters["stats"]["unique_graphs"]
    assert warm > before
    for kind, rows in (("shared", [0, 1, 2, 3, 4]), ("packed", [2, 4]), ("padded", [0, 1])):
        with torch.inference_mode():
            scorer(laid_out(scorer, kind, rows, ROW_TOKENS + 128))
    assert counters["stats"]["unique_graphs"] == warm


@every_precision
@every_family
def test_moved_to_a_cpu_and_back(family, precision):
    scorer = make_scorer(family, precision)
    decoder, layout = scorer.stack, laid_out(scorer, "packed", [2, 4])
    hidden = last_hidden(scorer, layout)
    own, held = sum(buffer.nbytes for buffer in decoder.buffers()), torch.cuda.memory_allocated()
    decoder.to("cpu")
    assert held - torch.cuda.memory_allocated() >= own
    linears = [layer.get_submodule(name) for layer in decoder.layers for name in FUSED_LINEARS]
    assert not any(linear.fused for linear in linears)
    tokens, positions, last = (
        torch.from_numpy(array.reshape(-1))
        for array in (layout.tokens_BT, layout.positions_BT, layout.last_S)
    )
    attention = scoring_backend(decoder.shape, "cpu", decoder.tiling).update(layout)
    with torch.inference_mode():
        on_cpu = decoder(tokens, positions, attention, last).float()
    assert (on_cpu - hidden.cpu()).norm() / hidden.norm() < PRECISIONS[precision]
    decoder.to(DEVICE)
    fused = precision != "none" and on_hopper(torch.device(DEVICE))
    assert all(linear.fused == fused for linear in linears)
    assert torch.equal(last_hidden(scorer, layout), hidden)


@every_precision
def test_a_batch_takes_about_as_much_memory_as_estimated(precision):
    """Two layers as wide as those of Gemma-2-9B, and as many tokens as a micro-batch of `score` has."""
    config = make_config(
        "gemma2", hidden_size=3584, intermediate_size=14336, num_hidden_layers=2, num_attention_heads=16,
        num_key_value_heads=8, sliding_window=4096,
    )  # fmt: skip
    scorer = random_scorer(config, precision)
    row_tokens = 132 * 128
    scorer.warm_up(row_tokens)
    layout = laid_out(scorer, "shared", [0, 1, 2, 3, 4], row_tokens)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    with torch.inference_mode():
        scorer(layout).cpu()
    peak = torch.cuda.max_memory_allocated() - held
    estimate = row_tokens * scorer.memory("shared").token
    # A micro-batch is planned to fill that share of the free memory; the rest is for what is not estimated.
    assert 0.5 * estimate < peak <= estimate / USABLE_SHARE
