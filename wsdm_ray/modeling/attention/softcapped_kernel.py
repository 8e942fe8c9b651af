"""Attention with soft-capped scores for Hopper GPUs, in Gluon: Triton's language of layouts and barriers.

A soft cap bounds the scores, so their exponentials are in range without a running maximum, and nothing is
rescaled. The exponentials of one block of keys are therefore computed while the tensor cores multiply those
of the block before with its values. Triton's own compiler would wait between the two.

    T tokens, H query heads, K key heads, W head dimension
"""

# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# Gluon says that what it decorates returns nothing, and that layouts are no constants.

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from wsdm_ray.modeling.kernel_launch import on

__all__ = ["softcapped_attention"]

BLOCK_M = 64
"""Rows of one program: queries times heads. Its four warps hold all sums and the queries in registers."""
NUM_WARPS = 4
NUM_STAGES = 2
"""Blocks of keys, and of values, in shared memory. Two programs fit on one SM."""


@gluon.jit
def softcapped_kernel(
    q, cos, sin, k_desc, v_desc, out, out_scales, segments, positions,
    partial_counts, partial_blocks, full_counts, full_blocks, max_blocks,
    q_head_stride, q_token_stride, logit_scale, cap, window, out_scale,
    BLOCK_N: gl.constexpr, HEAD_DIM: gl.constexpr, NUM_HEADS: gl.constexpr, GROUP_SIZE: gl.constexpr,
    HEADS_PER_PROGRAM: gl.constexpr, MAX_BRANCHES: gl.constexpr, BLOCK_M: gl.constexpr,
    NUM_STAGES: gl.constexpr,
):  # fmt: skip
    """One block of queries of `HEADS_PER_PROGRAM` heads, over its partial and then its full blocks of keys.

    A row is one query of one head; the heads of a token are next to each other.

    Args:
        cos, sin: [T, W], both halves equal; the kernel rotates the queries.
        out_scales: float32 [T], filled with `out_scale` where `out` is float8.
        q_head_stride, q_token_stride: strides of q [H, T, W].
        logit_scale: factor of the scores before tanh; cap: factor after it, for exponentials of base 2.
        window: keys that a query attends to, counted back from itself and with itself.
        GROUP_SIZE: query heads of one key head.
    """
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, BLOCK_N, 16])
    sums_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, HEAD_DIM, 16])
    first_head = gl.program_id(1) * HEADS_PER_PROGRAM
    column = gl.program_id(1) * HEADS_PER_PROGRAM // GROUP_SIZE * HEAD_DIM

    # Loads from global memory are issued before anything that waits for them.
    halves = load_query_halves(
        q, cos, sin, q_head_stride, q_token_stride, first_head, HEADS_PER_PROGRAM, BLOCK_M, HEAD_DIM
    )
    blocks = block_list(partial_counts, partial_blocks, full_counts, full_blocks, max_blocks)
    queries = rotate_queries(halves, logit_scale, BLOCK_M, HEAD_DIM, scores_layout)
    k = allocate_ring(k_desc, column, BLOCK_N, HEAD_DIM, NUM_STAGES)
    v = allocate_ring(v_desc, column, BLOCK_N, HEAD_DIM, NUM_STAGES)
    start_rings(k, v, blocks, BLOCK_N, NUM_STAGES)

    token, _ = row_indices(first_head, HEADS_PER_PROGRAM, BLOCK_M, scores_layout)
    row = (token, gl.load(segments + token), gl.load(positions + token))
    keys = (segments, positions, window)
    sums = gl.zeros([BLOCK_M, HEAD_DIM], gl.float32, sums_layout)
    total, exp_scores = first_block(
        queries, k, blocks, row, keys, cap,
        BLOCK_N, MAX_BRANCHES, NUM_STAGES, BLOCK_M, scores_layout, sums_layout,
    )  # fmt: skip
    for number in range(1, blocks[2]):
        sums, total, exp_scores = next_block(
            queries, k, v, blocks, number, sums, total, exp_scores, row, keys, cap,
            True, BLOCK_N, MAX_BRANCHES, NUM_STAGES, BLOCK_M, scores_layout, sums_layout,
        )  # fmt: skip
    for number in range(blocks[2], blocks[3]):
        sums, total, exp_scores = next_block(
            queries, k, v, blocks, number, sums, total, exp_scores, row, keys, cap,
            False, BLOCK_N, MAX_BRANCHES, NUM_STAGES, BLOCK_M, scores_layout, sums_layout,
        )  # fmt: skip
    sums = warpgroup_mma(exp_scores, wait_for(v, blocks[3] - 1, NUM_STAGES), sums, is_async=True)
    sums = warpgroup_mma_wait(0, [sums])
    stop_rings(k, v, NUM_STAGES)
    store_output(
        out, out_scales, sums, total, out_scale, first_head, HEADS_PER_PROGRAM, BLOCK_M, HEAD_DIM, NUM_HEADS,
        sums_layout,
    )  # fmt: skip


@gluon.jit
def row_indices(first_head, HEADS_PER_PROGRAM: gl.constexpr, BLOCK_M: gl.constexpr, layout: gl.constexpr):
    """Token and head of each row: [BLOCK_M, 1] each."""
    row = gl.arange(0, BLOCK_M, gl.SliceLayout(1, layout))[:, None]
    token = gl.program_id(0) * (BLOCK_M // HEADS_PER_PROGRAM) + row // HEADS_PER_PROGRAM
    return token, first_head + row % HEADS_PER_PROGRAM


@gluon.jit
def load_query_halves(
    q, cos, sin, q_head_stride, q_token_stride, first_head,
    HEADS_PER_PROGRAM: gl.constexpr, BLOCK_M: gl.constexpr, HEAD_DIM: gl.constexpr,
):  # fmt: skip
    """Both halves of the queries, and their cosines and sines: [BLOCK_M, HEAD_DIM / 2] each."""
    half: gl.constexpr = HEAD_DIM // 2
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // half, half // 8], [gl.num_warps(), 1], [1, 0])
    token, head = row_indices(first_head, HEADS_PER_PROGRAM, BLOCK_M, layout)
    start = q + head.to(gl.int64) * q_head_stride + token.to(gl.int64) * q_token_stride
    column = gl.arange(0, half, gl.SliceLayout(0, layout))[None, :]
    low, high = gl.load(start + column), gl.load(start + half + column)
    return low, high, gl.load(cos + token * HEAD_DIM + column), gl.load(sin + token * HEAD_DIM + column)


@gluon.jit
def block_list(partial_counts, partial_blocks, full_counts, full_blocks, max_blocks):
    """The key blocks of this program: pointers to partial and full ones, number of partial ones, of all."""
    partial = gl.load(partial_counts + gl.program_id(0))
    return (
        partial_blocks + gl.program_id(0) * max_blocks,
        full_blocks + gl.program_id(0) * max_blocks,
        partial,
        partial + gl.load(full_counts + gl.program_id(0)),
    )


@gluon.jit
def rotate_queries(
    halves, logit_scale, BLOCK_M: gl.constexpr, HEAD_DIM: gl.constexpr, scores_layout: gl.constexpr
):
    """The queries rotated by position and scaled, as the matrix product takes them: [BLOCK_M, HEAD_DIM]."""
    half: gl.constexpr = HEAD_DIM // 2
    low, high, cos, sin = halves
    cos, sin = cos.to(gl.float32) * logit_scale, sin.to(gl.float32) * logit_scale
    low, high = low.to(gl.float32), high.to(gl.float32)
    shared = gl.allocate_shared_memory(
        gl.bfloat16,
        [BLOCK_M, HEAD_DIM],
        gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2),
    )
    shared.slice(0, half, 1).store((low * cos - high * sin).to(gl.bfloat16))
    shared.slice(half, half, 1).store((high * cos + low * sin).to(gl.bfloat16))
    return shared.load(gl.DotOperandLayout(0, scores_layout, 2))


@gluon.jit
def allocate_ring(desc, column, BLOCK_N: gl.constexpr, HEAD_DIM: gl.constexpr, NUM_STAGES: gl.constexpr):
    """Shared memory for blocks of keys or values: descriptor, buffers, barriers, first column."""
    buffers = gl.allocate_shared_memory(gl.bfloat16, [NUM_STAGES, BLOCK_N, HEAD_DIM], desc.layout)
    barriers = gl.allocate_shared_memory(gl.int64, [NUM_STAGES, 1], mbarrier.MBarrierLayout())
    return desc, buffers, barriers, column


@gluon.jit
def start_rings(k, v, blocks, BLOCK_N: gl.constexpr, NUM_STAGES: gl.constexpr):
    """Make the barriers ready and start the copies of the first blocks."""
    for stage in gl.static_range(NUM_STAGES):
        mbarrier.init(k[2].index(stage), count=1)
        mbarrier.init(v[2].index(stage), count=1)
    fence_async_shared()
    for stage in gl.static_range(NUM_STAGES):
        start_copy(k, blocks, stage, BLOCK_N, NUM_STAGES)
        start_copy(v, blocks, stage, BLOCK_N, NUM_STAGES)


@gluon.jit
def stop_rings(k, v, NUM_STAGES: gl.constexpr):
    """Give the barriers up."""
    for stage in gl.static_range(NUM_STAGES):
        mbarrier.invalidate(k[2].index(stage))
        mbarrier.invalidate(v[2].index(stage))


@gluon.jit
def block_start(blocks, number, wanted, BLOCK_N: gl.constexpr):
    """The first key of a block, by its number among the partial and then the full ones."""
    place = gl.where(number < blocks[2], blocks[0] + number, blocks[1] + (number - blocks[2]))
    return gl.load(place, wanted, 0) * BLOCK_N


@gluon.jit
def start_copy(ring, blocks, number, BLOCK_N: gl.constexpr, NUM_STAGES: gl.constexpr):
    """Start the copy of a block of keys or values to shared memory, if there is a block of that number."""
    wanted, stage = number < blocks[3], number % NUM_STAGES
    start = block_start(blocks, number, wanted, BLOCK_N)
    mbarrier.expect(ring[2].index(stage), ring[0].block_type.nbytes, wanted)
    tma.async_copy_global_to_shared(
        ring[0], [start, ring[3]], ring[2].index(stage), ring[1].index(stage), wanted
    )


@gluon.jit
def wait_for(ring, number, NUM_STAGES: gl.constexpr):
    """A block of keys or values, when its copy is complete: [BLOCK_N, HEAD_DIM]."""
    mbarrier.wait(ring[2].index(number % NUM_STAGES), (number // NUM_STAGES) & 1)
    return ring[1].index(number % NUM_STAGES)


@gluon.jit
def first_block(
    queries, k, blocks, row, keys, cap,
    BLOCK_N: gl.constexpr, MAX_BRANCHES: gl.constexpr, NUM_STAGES: gl.constexpr,
    BLOCK_M: gl.constexpr, scores_layout: gl.constexpr, sums_layout: gl.constexpr,
):  # fmt: skip
    """The sum of exponentials of the first block, [BLOCK_M], and these, as the next product takes them.

    The first block is partial: every block of queries attends to itself in part.
    """
    scores = warpgroup_mma(
        queries, wait_for(k, 0, NUM_STAGES).permute((1, 0)),
        gl.zeros([BLOCK_M, BLOCK_N], gl.float32, scores_layout), use_acc=False, is_async=True,
    )  # fmt: skip
    exp_scores = exponentials(warpgroup_mma_wait(0, [scores]), cap)
    start = block_start(blocks, 0, True, BLOCK_N)
    exp_scores = gl.where(mask_mod(row, keys, start, BLOCK_N, MAX_BRANCHES, scores_layout), exp_scores, 0.0)
    start_copy(k, blocks, NUM_STAGES, BLOCK_N, NUM_STAGES)
    total = gl.sum(exp_scores, 1)
    return total, gl.convert_layout(exp_scores.to(gl.bfloat16), gl.DotOperandLayout(0, sums_layout, 2))


@gluon.jit
def next_block(
    queries, k, v, blocks, number, sums, total, exp_scores, row, keys, cap,
    PARTIAL: gl.constexpr, BLOCK_N: gl.constexpr, MAX_BRANCHES: gl.constexpr, NUM_STAGES: gl.constexpr,
    BLOCK_M: gl.constexpr, scores_layout: gl.constexpr, sums_layout: gl.constexpr,
):  # fmt: skip
    """Add the values of the block before, and compute the exponentials of this one meanwhile."""
    scores = warpgroup_mma(
        queries, wait_for(k, number, NUM_STAGES).permute((1, 0)),
        gl.zeros([BLOCK_M, BLOCK_N], gl.float32, scores_layout), use_acc=False, is_async=True,
    )  # fmt: skip
    sums = warpgroup_mma(exp_scores, wait_for(v, number - 1, NUM_STAGES), sums, is_async=True)
    next_exp = exponentials(warpgroup_mma_wait(1, [scores]), cap)
    if PARTIAL:
        start = block_start(blocks, number, True, BLOCK_N)
        next_exp = gl.where(mask_mod(row, keys, start, BLOCK_N, MAX_BRANCHES, scores_layout), next_exp, 0.0)
    total += gl.sum(next_exp, 1)
    # Waiting for `exp_scores` too keeps their registers until the product has read them.
    sums, exp_scores = warpgroup_mma_wait(0, [sums, exp_scores])
    start_copy(k, blocks, number + NUM_STAGES, BLOCK_N, NUM_STAGES)
    start_copy(v, blocks, number - 1 + NUM_STAGES, BLOCK_N, NUM_STAGES)
    return sums, total, gl.convert_layout(next_exp.to(gl.bfloat16), gl.DotOperandLayout(0, sums_layout, 2))


@gluon.jit
def mask_mod(row, keys, start, BLOCK_N: gl.constexpr, MAX_BRANCHES: gl.constexpr, layout: gl.constexpr):
    """The rule of `mask_rule.mask_mod`: which keys from `start` on each row attends to."""
    key = (start + gl.arange(0, BLOCK_N, gl.SliceLayout(0, layout)))[None, :]
    segment = gl.load(keys[0] + key)
    same = (row[1] == segment) | ((row[1] & -MAX_BRANCHES) == segment)
    return same & (row[0] >= key) & (row[2] - gl.load(keys[1] + key) < keys[2])


@gluon.jit
def exponentials(scores, cap):
    """2 ** (cap * tanh(scores)), by the GPU's own instruction for tanh."""
    tanh = gl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [scores], dtype=gl.float32, is_pure=True, pack=1
    )
    return gl.exp2(cap * tanh)


@gluon.jit
def store_output(
    out, out_scales, sums, total, out_scale, first_head,
    HEADS_PER_PROGRAM: gl.constexpr, BLOCK_M: gl.constexpr, HEAD_DIM: gl.constexpr,
    NUM_HEADS: gl.constexpr, sums_layout: gl.constexpr,
):  # fmt: skip
    """Write the weighted means of the values, in float8 divided by `out_scale`."""
    layout: gl.constexpr = gl.BlockedLayout(
        [1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [gl.num_warps(), 1], [1, 0]
    )
    weight = gl.convert_layout(1.0 / (total * out_scale), gl.SliceLayout(1, sums_layout))
    means = gl.convert_layout((sums * weight[:, None]).to(out.dtype.element_ty), layout)
    token, head = row_indices(first_head, HEADS_PER_PROGRAM, BLOCK_M, layout)
    column = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, layout))[None, :]
    gl.store(out + token.to(gl.int64) * (NUM_HEADS * HEAD_DIM) + head * HEAD_DIM + column, means)
    if out.dtype.element_ty == gl.float8e4nv:
        gl.store(out_scales + token, gl.full_like(token, 0).to(gl.float32) + out_scale, (head == 0))


def softcapped_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rotation: tuple[Tensor, Tensor],
    mask_terms: Tensor,
    key_blocks: Sequence[Tensor],
    block_size: tuple[int, int],
    max_branches: int,
    sliding_window: int | None,
    scale: float,
    softcap: float,
    float8_scale: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attention of all heads with soft-capped scores, side by side: [T, H * W].

    Args:
        q: bfloat16 [H, T, W], last stride 1, not rotated yet; an even number of heads to one of k.
        k, v: bfloat16 [K, T, W], keys rotated; copied if a token's heads are not adjacent in memory.
        rotation: cosines and sines of each position, [T, W], both halves equal.
        mask_terms: int32 [3, T], of `mask_rule.mask_terms`.
        key_blocks: of each block of queries, number and indices of its partial key blocks, at least one, then
            of its full ones: int32 [query blocks], [query blocks, any number], twice.
        block_size: queries and keys of a block.
        max_branches: branches of a group that a segment has room for, a power of 2.
        softcap: at most `tiling.MAX_KERNEL_SOFTCAP`.
        float8_scale: for an output in float8, its scale.

    Returns:
        The output in bfloat16 and None, or in float8 and its scale for each row, float32 [T].
    """
    (heads, tokens, head_dim), (block_q, block_k) = q.shape, block_size
    heads_per_program, group_size = BLOCK_M // block_q, heads // len(k)
    assert q.stride(2) == 1
    assert rotation[0].is_contiguous()
    assert rotation[1].is_contiguous()
    assert heads_per_program * block_q == BLOCK_M
    assert group_size % heads_per_program == 0
    assert tokens % block_q == tokens % block_k == 0
    dtype = torch.bfloat16 if float8_scale is None else torch.float8_e4m3fn
    out = q.new_empty(tokens, heads * head_dim, dtype=dtype)
    scales = None if float8_scale is None else q.new_empty(tokens, dtype=torch.float32)
    (cos, sin), (partial_counts, partial_blocks, full_counts, full_blocks) = rotation, key_blocks
    with on(q.device):
        softcapped_kernel[(tokens // block_q, heads // heads_per_program)](
            q=q, cos=cos, sin=sin, k_desc=block_descriptor(k, block_k), v_desc=block_descriptor(v, block_k),
            out=out, out_scales=out if scales is None else scales,
            segments=mask_terms[0], positions=mask_terms[2],
            partial_counts=partial_counts, partial_blocks=partial_blocks,
            full_counts=full_counts, full_blocks=full_blocks, max_blocks=partial_blocks.shape[-1],
            q_head_stride=q.stride(0), q_token_stride=q.stride(1),
            logit_scale=scale / softcap, cap=softcap * math.log2(math.e),
            window=tokens if sliding_window is None else sliding_window, out_scale=float8_scale or 1.0,
            BLOCK_N=block_k, HEAD_DIM=head_dim, NUM_HEADS=heads, GROUP_SIZE=group_size,
            HEADS_PER_PROGRAM=heads_per_program, MAX_BRANCHES=max_branches,
            BLOCK_M=BLOCK_M, NUM_STAGES=NUM_STAGES, num_warps=NUM_WARPS,
        )  # fmt: skip
    return out, scales


def block_descriptor(heads: Tensor, block_k: int) -> TensorDescriptor:
    """Keys or values [K, T, W] as the kernel copies them: blocks of `block_k` tokens of one head."""
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    return TensorDescriptor.from_tensor(heads.transpose(0, 1).flatten(1), [block_k, heads.shape[2]], layout)
