"""The kernel for capped scores: compiled for Hopper GPUs anywhere, run where there is one.

Elsewhere its docstring stands for it, as Triton's interpreter knows no Gluon.
"""

from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.modeling.hopper import AsWritten, Kernel, compiled_for_hopper, rows_type
from wsdm_ray.config import HeadConfig
from wsdm_ray.modeling.attention import BLOCK, DenseAttention, Heads, SoftcappedAttention, Tiling
from wsdm_ray.modeling.attention.mask_rule import MAX_BRANCHES
from wsdm_ray.modeling.attention.tiling import SOFTCAPPED
from wsdm_ray.modeling.classifier import load_network
from wsdm_ray.modeling.fused_decoder import FusedDecoder
from wsdm_ray.modeling.fused_layer import rotate
from wsdm_ray.modeling.quantized_linear import QuantizedTensor, on_hopper
from wsdm_ray.modeling.scorers import FusedClassifier, in_one_row
from wsdm_ray.packing.layouts import lay_out
from wsdm_ray.packing.ragged import Ragged

pytest.importorskip("triton", reason="there is no Triton for this system, and so no kernel to test")

KINDS = {"full_attention", "sliding_attention"}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the kernel runs, or, on a CPU, what its docstring says in its place."""
    if torch.cuda.is_available() and on_hopper(torch.device("cuda")):
        return "cuda"
    from wsdm_ray.modeling.attention import softcapped_kernel as module

    kernel = AsWritten(module.softcapped_kernel, attention_as_written)
    monkeypatch.setattr(module, "softcapped_kernel", kernel)
    return "cpu"


def kernel_of(kind: str) -> Kernel:
    from wsdm_ray.modeling.attention import softcapped_kernel as module

    options = {
        "BLOCK_N": SOFTCAPPED.keys, "HEAD_DIM": 256, "NUM_HEADS": 16, "GROUP_SIZE": 2,
        "HEADS_PER_PROGRAM": module.BLOCK_M // SOFTCAPPED.queries,
        "MAX_BRANCHES": MAX_BRANCHES, "BLOCK_M": module.BLOCK_M, "NUM_STAGES": module.NUM_STAGES,
    }  # fmt: skip
    rows = rows_type("bf16", SOFTCAPPED.keys, 256)
    integers = ("segments", "positions", "partial_counts", "partial_blocks", "full_counts", "full_blocks")
    types = {
        **dict.fromkeys(("q", "cos", "sin"), "*bf16"), "k_desc": rows, "v_desc": rows, "out": f"*{kind}",
        "out_scales": "*fp32", **dict.fromkeys(integers, "*i32"), "max_blocks": "i32",
        **dict.fromkeys(("q_head_stride", "q_token_stride"), "=i32"),
        **dict.fromkeys(("logit_scale", "cap"), "fp32"),
        "window": "i32", "out_scale": "fp32",
    }  # fmt: skip
    return Kernel("attention.softcapped_kernel", types, options, module.NUM_WARPS)


def test_it_compiles_for_hopper():
    for each in compiled_for_hopper([kernel_of("bf16"), kernel_of("fp8e4nv")]):
        check(each)


def check(found: dict[str, Any]) -> None:
    assert "0 bytes spill stores, 0 bytes spill loads" in found["assembler"]
    assert "serialized" not in found["assembler"], "products and exponentials overlap"
    registers = int(found["assembler"].split(" registers")[0].split()[-1])
    assert 2 * (found["shared"] + 1024) <= 228 * 1024, "two programs share a processor"
    assert 2 * 32 * kernel_of("bf16").warps * registers <= 64 * 1024


def attention_as_written(grid: tuple[int, ...], a: Any) -> None:
    """A block of queries at a time."""
    queries = a.BLOCK_M // a.HEADS_PER_PROGRAM
    assert grid == (len(a.partial_counts), a.NUM_HEADS // a.HEADS_PER_PROGRAM)
    assert (a.q_head_stride, a.q_token_stride) == a.q.stride()[:2]
    assert a.max_blocks == a.partial_blocks.shape[1] == a.full_blocks.shape[1]
    k, v = (each.base.float().unflatten(1, (-1, a.HEAD_DIM)).transpose(0, 1) for each in (a.k_desc, a.v_desc))
    assert list(a.k_desc.block_shape) == list(a.v_desc.block_shape) == [a.BLOCK_N, a.HEAD_DIM]
    q = a.logit_scale * rotate(a.q.float(), a.cos.float(), a.sin.float())
    for block in range(grid[0]):
        at = slice(queries * block, queries * (block + 1))
        partial, full = int(a.partial_counts[block]), int(a.full_counts[block])
        assert partial > 0
        firsts = [*a.partial_blocks[block, :partial].tolist(), *a.full_blocks[block, :full].tolist()]
        keys = (torch.tensor(firsts)[:, None] * a.BLOCK_N + torch.arange(a.BLOCK_N)).flatten()
        token = torch.arange(*at.indices(a.q.shape[1]))[:, None]
        segment = a.segments[at][:, None]
        allowed = (segment == a.segments[keys]) | ((segment & -a.MAX_BRANCHES) == a.segments[keys])
        allowed &= (token >= keys) & (a.positions[at][:, None] - a.positions[keys] < a.window)
        allowed |= torch.arange(len(keys)) >= partial * a.BLOCK_N
        wide_k, wide_v = (each[:, keys].repeat_interleave(a.GROUP_SIZE, 0) for each in (k, v))
        exp_scores = 2 ** (a.cap * torch.tanh(q[:, at] @ wide_k.transpose(1, 2))) * allowed
        sums = exp_scores @ wide_v / exp_scores.sum(-1, keepdim=True) / a.out_scale
        a.out[at] = sums.transpose(0, 1).flatten(1).to(a.out.dtype)
        if a.out.dtype == torch.float8_e4m3fn:
            a.out_scales[at] = a.out_scale


@pytest.mark.parametrize("float8", [False, True])
@pytest.mark.parametrize("groups", [2, 4, 6])
def test_any_even_number_of_heads(groups, float8, device):
    """Two heads of keys with so many of queries each, as one product gives them, against dense attention."""
    tokens, window = 4 * BLOCK, 80
    torch.manual_seed(groups)
    heads = (2 * torch.randn(tokens, (groups + 2) * 2, 256)).to(device).bfloat16().transpose(0, 1)
    q, k, v = heads.split([2 * groups, 2, 2])
    angles = (torch.arange(tokens)[:, None] / torch.arange(1, 129)).repeat(1, 2).to(device)
    rotation = (angles.cos().bfloat16(), angles.sin().bfloat16())
    wide = rotate(q.float(), *(each.float() for each in rotation))
    most = 1.01 * float(v.abs().max()) / 448
    sparse = SoftcappedAttention(tokens, KINDS, window, device, SOFTCAPPED)
    for sizes in (([9], [4]), ([100, 0], [61, 115]), ([512], [0])):  # also longer than the window
        prefix, suffix = (Ragged.from_lists([np.ones(size, np.int32) for size in each]) for each in sizes)
        given = lay_out("shared", prefix, [suffix, suffix], np.arange(len(sizes[0])), row_tokens=tokens)
        real = torch.from_numpy(given.groups_BT[0] >= 0).to(device)
        sparse.update(given)
        for kind in sorted(KINDS):
            found = sparse.attend(Heads(q, k, v, 0.06, 20.0, rotation, most if float8 else None), kind)
            exact = DenseAttention(KINDS, window, device).update(given)
            expected = exact.attend(Heads(wide, k.float(), v.float(), 0.06, 20.0), kind)
            if float8:
                assert isinstance(found, QuantizedTensor)
                assert found.values.dtype == torch.float8_e4m3fn
                assert torch.equal(found.scale, torch.full_like(found.scale, most))
                found = found.values.float() * found.scale[:, None]
            assert isinstance(found, torch.Tensor)
            assert found.isfinite().all()
            off = (found[real].float() - expected[real]).norm() / expected[real].norm()
            assert off < (0.03 if float8 else 0.005)


def test_neighbours_change_no_bit(device):
    tokens, mine, found = 6 * BLOCK, 90 + 2 * 70, []
    torch.manual_seed(0)
    own, others = (torch.randn(size, 4 * 256).to(device).bfloat16() for size in (mine, tokens))
    for before, after in (([], []), ([(40, 31)], []), ([(150, 2)], [(3, 60)]), ([], [(200, 100)])):
        prefix, suffix = (
            Ragged.from_lists([np.ones(size, np.int32) for size in sizes])
            for sizes in zip(*before, (90, 70), *after, strict=True)
        )
        given = lay_out(
            "shared", prefix, [suffix, suffix], np.arange(len(prefix)), row_tokens=tokens,
            alignment=SOFTCAPPED.alignment,
        )  # fmt: skip
        at = np.flatnonzero(given.groups_BT[0] == len(before))
        rows = others.clone()
        rows[at] = own
        q, k, v = rows.unflatten(1, (4, 256)).transpose(0, 1).split([2, 1, 1])
        angles = torch.from_numpy(given.positions_BT[0])[:, None] / torch.arange(1, 129)
        rotation = tuple(each.repeat(1, 2).to(device).bfloat16() for each in (angles.cos(), angles.sin()))
        attention = SoftcappedAttention(tokens, KINDS, 100, device, SOFTCAPPED).update(given)
        heads = Heads(q, k, v, 0.06, 20.0, (rotation[0], rotation[1]))
        out = [attention.attend(heads, kind) for kind in sorted(KINDS)]
        found.append(torch.stack([each[at] for each in out if isinstance(each, torch.Tensor)]))
    assert found[0].shape == (2, mine, 2 * 256)
    assert all(torch.equal(each, found[0]) for each in found[1:])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("precision", ["none", "w8a8-fp8"])
def test_in_a_whole_stack(precision, family_model, device):
    folder = str(family_model("gemma2", width=512))
    network: Any = load_network(
        folder, HeadConfig(), seed=0, device="cpu", dtype=torch.float32, quantization="none"
    )
    source = np.random.default_rng(0)
    prompts, *answers = (
        Ragged.from_lists([source.integers(3, 300, size).astype(np.int32) for size in sizes])
        for sizes in ((30, 0, 200), (50, 20, 90), (11, 64, 70))
    )
    given = in_one_row(lay_out("shared", prompts, tuple(answers), np.arange(3)), 5 * BLOCK)

    def logits(precision: str, tiling: Tiling, **place: Any) -> torch.Tensor:
        stack = FusedDecoder(
            network.model.get_parameter,
            network.config,
            network.model.rotary_emb,
            precision=precision,
            **place,
        )
        classifier = FusedClassifier(stack, network.score)
        if stack.embedding_VD.is_cuda:
            assert stack.tiling == SOFTCAPPED
        stack.tiling, classifier.sparse = tiling, "dtype" in place
        with torch.inference_mode():
            return classifier(given).cpu()

    exact = logits("none", Tiling())
    ours, flex = (
        (logits(precision, tiling, device=device, dtype=torch.bfloat16) - exact).norm() / exact.norm()
        for tiling in (SOFTCAPPED, Tiling())
    )
    assert ours < 1.5 * flex, (ours, flex)
    assert ours < {"none": 0.02, "w8a8-fp8": 0.3}[precision]
