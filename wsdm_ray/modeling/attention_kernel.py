"""Attention with capped scores for Hopper GPUs, in Gluon: Triton's language of layouts and barriers.

A cap bounds the scores, so their exponentials are in range as they are: no maximum is looked for, nothing is
scaled anew, and the powers of one block of keys can be computed while the tensor cores multiply those of the
block before with its values, for which Triton itself would wait.

    T tokens, H query heads, K key heads, W head width
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

from wsdm_ray.modeling.norm_kernels import on

__all__ = ["softcapped_attention"]

ROWS = 64
"""Queries times heads of a program, whose four warps then hold all sums, and the queries besides."""
WARPS = 4
STAGES = 2
"""Blocks of keys, and of values, in shared memory: two programs share a processor."""


@gluon.jit
def attention_kernel(
    q, cos, sin, k_desc, v_desc, out, scales, marks, positions,
    part_number, part_blocks, whole_number, whole_blocks, most_blocks,
    q_head, q_token, slope, cap, window, out_scale,
    KEYS: gl.constexpr, WIDTH: gl.constexpr, HEADS: gl.constexpr, GROUP: gl.constexpr,
    TOGETHER: gl.constexpr, BRANCHES: gl.constexpr, ROWS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """A block of queries of `TOGETHER` heads: of the blocks of keys that they see in part, then in whole.

    A line holds one query of one head, the heads of a token next to each other.

    Args:
        cos, sin: queries are still to be rotated by these [T, W], of which both halves are the same.
        scales: [T], filled with `out_scale` where out is float8.
        q_head, q_token: strides of q [H, T, W].
        slope: what scores are multiplied by before tanh; cap: what tanh is, as powers of 2.
        window: how far a token sees back, itself included.
        GROUP: heads of queries to one of keys.
    """
    scores_at: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, KEYS, 16])
    sums_at: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, WIDTH, 16])
    half: gl.constexpr = WIDTH // 2
    halves_at: gl.constexpr = gl.BlockedLayout([1, 8], [256 // half, half // 8], [gl.num_warps(), 1], [1, 0])
    out_at: gl.constexpr = gl.BlockedLayout([1, 8], [256 // WIDTH, WIDTH // 8], [gl.num_warps(), 1], [1, 0])
    first, side = gl.program_id(1) * TOGETHER, gl.program_id(1) * TOGETHER // GROUP * WIDTH

    # What is loaded from far comes before what waits for it.
    token, head = lines(first, TOGETHER, ROWS, halves_at)
    at = q + head.to(gl.int64) * q_head + token.to(gl.int64) * q_token
    column = gl.arange(0, half, gl.SliceLayout(0, halves_at))[None, :]
    low, high = gl.load(at + column), gl.load(at + half + column)
    turn, lift = gl.load(cos + token * WIDTH + column), gl.load(sin + token * WIDTH + column)
    parts = gl.load(part_number + gl.program_id(0))
    blocks = (
        part_blocks + gl.program_id(0) * most_blocks, whole_blocks + gl.program_id(0) * most_blocks,
        parts, parts + gl.load(whole_number + gl.program_id(0)),
    )  # fmt: skip
    turn, lift = turn.to(gl.float32) * slope, lift.to(gl.float32) * slope
    low, high = low.to(gl.float32), high.to(gl.float32)
    rotated = gl.allocate_shared_memory(
        gl.bfloat16, [ROWS, WIDTH], gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    )
    rotated.slice(0, half, 1).store((low * turn - high * lift).to(gl.bfloat16))
    rotated.slice(half, half, 1).store((high * turn + low * lift).to(gl.bfloat16))
    queries = rotated.load(gl.DotOperandLayout(0, scores_at, 2))

    shape: gl.constexpr = [STAGES, KEYS, WIDTH]
    barriers: gl.constexpr = mbarrier.MBarrierLayout()
    k = (k_desc, gl.allocate_shared_memory(gl.bfloat16, shape, k_desc.layout),
         gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers), side)  # fmt: skip
    v = (v_desc, gl.allocate_shared_memory(gl.bfloat16, shape, v_desc.layout),
         gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers), side)  # fmt: skip
    for stage in gl.static_range(STAGES):
        mbarrier.init(k[2].index(stage), count=1)
        mbarrier.init(v[2].index(stage), count=1)
    fence_async_shared()
    for stage in gl.static_range(STAGES):
        fetch(k, blocks, stage, KEYS, STAGES)
        fetch(v, blocks, stage, KEYS, STAGES)

    token, _ = lines(first, TOGETHER, ROWS, scores_at)
    line = (token, gl.load(marks + token), gl.load(positions + token))
    given = (marks, positions, window)
    sums = gl.zeros([ROWS, WIDTH], gl.float32, sums_at)
    # Every block of queries sees a block in part: its own.
    scores = warpgroup_mma(
        queries, arrived(k, 0, STAGES).permute((1, 0)), gl.zeros([ROWS, KEYS], gl.float32, scores_at),
        use_acc=False, is_async=True,
    )  # fmt: skip
    powers = exponentials(warpgroup_mma_wait(0, [scores]), cap)
    start = start_of(blocks, 0, True, KEYS)
    powers = gl.where(seen(line, given, start, KEYS, BRANCHES, scores_at), powers, 0.0)
    fetch(k, blocks, STAGES, KEYS, STAGES)
    total = gl.sum(powers, 1)
    powers = gl.convert_layout(powers.to(gl.bfloat16), gl.DotOperandLayout(0, sums_at, 2))
    for number in range(1, parts):
        sums, total, powers = go_on(
            queries, k, v, blocks, number, sums, total, powers, line, given, cap,
            True, KEYS, BRANCHES, STAGES, ROWS, scores_at, sums_at,
        )  # fmt: skip
    for number in range(parts, blocks[3]):
        sums, total, powers = go_on(
            queries, k, v, blocks, number, sums, total, powers, line, given, cap,
            False, KEYS, BRANCHES, STAGES, ROWS, scores_at, sums_at,
        )  # fmt: skip
    sums = warpgroup_mma(powers, arrived(v, blocks[3] - 1, STAGES), sums, is_async=True)
    sums = warpgroup_mma_wait(0, [sums])
    for stage in gl.static_range(STAGES):
        mbarrier.invalidate(k[2].index(stage))
        mbarrier.invalidate(v[2].index(stage))

    share = gl.convert_layout(1.0 / (total * out_scale), gl.SliceLayout(1, sums_at))
    found = gl.convert_layout((sums * share[:, None]).to(out.dtype.element_ty), out_at)
    token, head = lines(first, TOGETHER, ROWS, out_at)
    column = gl.arange(0, WIDTH, gl.SliceLayout(0, out_at))[None, :]
    gl.store(out + token.to(gl.int64) * (HEADS * WIDTH) + head * WIDTH + column, found)
    if out.dtype.element_ty == gl.float8e4nv:
        gl.store(scales + token, gl.full_like(token, 0).to(gl.float32) + out_scale, (head == 0))


@gluon.jit
def go_on(
    queries, k, v, blocks, number, sums, total, powers, line, given, cap,
    PART: gl.constexpr, KEYS: gl.constexpr, BRANCHES: gl.constexpr, STAGES: gl.constexpr,
    ROWS: gl.constexpr, scores_at: gl.constexpr, sums_at: gl.constexpr,
):  # fmt: skip
    """Add the values of the block before, and compute the powers of this one meanwhile."""
    scores = warpgroup_mma(
        queries, arrived(k, number, STAGES).permute((1, 0)), gl.zeros([ROWS, KEYS], gl.float32, scores_at),
        use_acc=False, is_async=True,
    )  # fmt: skip
    sums = warpgroup_mma(powers, arrived(v, number - 1, STAGES), sums, is_async=True)
    next_powers = exponentials(warpgroup_mma_wait(1, [scores]), cap)
    if PART:
        start = start_of(blocks, number, True, KEYS)
        next_powers = gl.where(seen(line, given, start, KEYS, BRANCHES, scores_at), next_powers, 0.0)
    total += gl.sum(next_powers, 1)
    # That powers are waited for too keeps their registers until they were read.
    sums, powers = warpgroup_mma_wait(0, [sums, powers])
    fetch(k, blocks, number + STAGES, KEYS, STAGES)
    fetch(v, blocks, number - 1 + STAGES, KEYS, STAGES)
    return sums, total, gl.convert_layout(next_powers.to(gl.bfloat16), gl.DotOperandLayout(0, sums_at, 2))


@gluon.jit
def lines(first, TOGETHER: gl.constexpr, ROWS: gl.constexpr, layout: gl.constexpr):
    """Token and head of each line: [ROWS, 1], twice."""
    line = gl.arange(0, ROWS, gl.SliceLayout(1, layout))[:, None]
    return gl.program_id(0) * (ROWS // TOGETHER) + line // TOGETHER, first + line % TOGETHER


@gluon.jit
def start_of(blocks, number, wanted, KEYS: gl.constexpr):
    """The first key of a block, by its number among those in part and then in whole."""
    at = gl.where(number < blocks[2], blocks[0] + number, blocks[1] + (number - blocks[2]))
    return gl.load(at, wanted, 0) * KEYS


@gluon.jit
def fetch(source, blocks, number, KEYS: gl.constexpr, STAGES: gl.constexpr):
    """Have a block of keys or values copied, where there is one of that number."""
    wanted, stage = number < blocks[3], number % STAGES
    start = start_of(blocks, number, wanted, KEYS)
    mbarrier.expect(source[2].index(stage), source[0].block_type.nbytes, wanted)
    tma.async_copy_global_to_shared(
        source[0], [start, source[3]], source[2].index(stage), source[1].index(stage), wanted
    )


@gluon.jit
def arrived(source, number, STAGES: gl.constexpr):
    """A block of keys or values that `fetch` had copied: [KEYS, W]."""
    mbarrier.wait(source[2].index(number % STAGES), (number // STAGES) & 1)
    return source[1].index(number % STAGES)


@gluon.jit
def seen(line, given, start, KEYS: gl.constexpr, BRANCHES: gl.constexpr, layout: gl.constexpr):
    """The rule of `attention.sees`: which keys from `start` on each line sees."""
    key = (start + gl.arange(0, KEYS, gl.SliceLayout(0, layout)))[None, :]
    mark = gl.load(given[0] + key)
    same = (line[1] == mark) | ((line[1] & -BRANCHES) == mark)
    return same & (line[0] >= key) & (line[2] - gl.load(given[1] + key) < given[2])


@gluon.jit
def exponentials(scores, cap):
    """2 ** (cap * tanh(scores)), by the GPU's own instruction for tanh."""
    tanh = gl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [scores], dtype=gl.float32, is_pure=True, pack=1
    )
    return gl.exp2(cap * tanh)


def softcapped_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rotation: tuple[Tensor, Tensor],
    places: Tensor,
    blocks: Sequence[Tensor],
    sides: tuple[int, int],
    branches: int,
    window: int | None,
    scale: float,
    softcap: float,
    float8_scale: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attention of all heads with capped scores, side by side: [T, H * W].

    Args:
        q: bfloat16 [H, T, W], whose last stride is 1, not rotated yet; an even number of heads to one of k.
        k, v: bfloat16 [K, T, W], keys rotated; copied where the heads of a token do not stand together.
        rotation: cosines and sines of each position, [T, W], of which both halves are the same.
        places: int32 [3, T], of `attention.places_of`.
        blocks: how many blocks of keys a block of queries sees in part, at least one, and which, then in
            whole: int32 [blocks of queries], [blocks of queries, any number], twice.
        sides: queries and keys of a block; half of `ROWS` queries.
        branches: that a mark has room for, a power of 2.
        softcap: up to `attention.MOST_CAP`.
        float8_scale: to have it in float8, of that scale.

    Returns:
        It, in bfloat16 and None, or in float8 and its scale for each row, float32 [T].
    """
    (heads, tokens, width), (queries, keys) = q.shape, sides
    together, group = ROWS // queries, heads // len(k)
    assert q.stride(2) == 1
    assert all(each.is_contiguous() for each in rotation)
    assert together * queries == ROWS
    assert group % together == 0
    assert tokens % queries == tokens % keys == 0
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    k_rows, v_rows = (
        TensorDescriptor.from_tensor(each.transpose(0, 1).flatten(1), [keys, width], layout)
        for each in (k, v)
    )
    dtype = torch.bfloat16 if float8_scale is None else torch.float8_e4m3fn
    out = q.new_empty(tokens, heads * width, dtype=dtype)
    scales = None if float8_scale is None else q.new_empty(tokens, dtype=torch.float32)
    (cos, sin), (part_number, part_blocks, whole_number, whole_blocks) = rotation, blocks
    with on(q.device):
        attention_kernel[(tokens // queries, heads // together)](
            q=q, cos=cos, sin=sin, k_desc=k_rows, v_desc=v_rows,
            out=out, scales=out if scales is None else scales, marks=places[0], positions=places[2],
            part_number=part_number, part_blocks=part_blocks,
            whole_number=whole_number, whole_blocks=whole_blocks, most_blocks=part_blocks.shape[-1],
            q_head=q.stride(0), q_token=q.stride(1),
            slope=scale / softcap, cap=softcap * math.log2(math.e),
            window=tokens if window is None else window, out_scale=float8_scale or 1.0,
            KEYS=keys, WIDTH=width, HEADS=heads, GROUP=group, TOGETHER=together, BRANCHES=branches,
            ROWS=ROWS, STAGES=STAGES, num_warps=WARPS,
        )  # fmt: skip
    return out, scales
