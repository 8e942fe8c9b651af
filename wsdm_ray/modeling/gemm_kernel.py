"""Products of 8-bit rows for Hopper GPUs, in Gluon: Triton's language of layouts and barriers.

One warp copies tiles of both sides ahead, eight multiply, so that copies wait for nothing but room. Scales,
bias and the MLP's gate are applied in registers: cuBLAS gives the products of int8 rows as int32, which to
write and read again takes longer than to compute.

    T rows (tokens), D columns, N rows of the weight, F inner width
"""

# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# Gluon says that what it decorates returns nothing, and that layouts are no constants.

import torch
import triton
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

from wsdm_ray.modeling.norm_kernels import on, processors

__all__ = ["GATE_UP_INTERLEAVE", "gated_product", "product"]

ROWS, COLUMNS, DEPTH = 128, 256, 128
"""Of a tile of a product: its rows and columns, and what is copied of a sum at a time."""
GATE_UP_INTERLEAVE = COLUMNS // 2
"""Rows of a gate that are followed by as many of up, so that a tile holds both."""

STAGES = 4
"""Copies that are under way at once: as many as 227 KiB of shared memory hold."""
GROUP = 16
"""Tiles above each other that run at about the same time, so that the cache serves what they share."""
WARPS = 8


@gluon.jit
def gemm_kernel(
    x_desc, w_desc, out_desc, x_scale, w_scale, bias, rows, columns, depth,
    ROWS: gl.constexpr, COLUMNS: gl.constexpr, DEPTH: gl.constexpr, STAGES: gl.constexpr,
    GROUP: gl.constexpr, BIAS: gl.constexpr, GATE: gl.constexpr,
):  # fmt: skip
    """Tiles of x [rows, depth] times w [columns, depth] transposed, by programs that stay.

    Args:
        x_scale, w_scale: what rows and columns of the products are multiplied by; bias: added then.
        GATE: `gelu` or `silu` where blocks of gate and up alternate, or `none`.
    """
    halves: gl.constexpr = [ROWS, COLUMNS // 2]
    barriers: gl.constexpr = mbarrier.MBarrierLayout()
    stages = (
        gl.allocate_shared_memory(x_desc.dtype, [STAGES, ROWS, DEPTH], x_desc.layout),
        gl.allocate_shared_memory(w_desc.dtype, [STAGES, COLUMNS, DEPTH], w_desc.layout),
        gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers),
        gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers),
    )
    out_tile = gl.allocate_shared_memory(out_desc.dtype, halves, out_desc.layout)
    for stage in gl.static_range(STAGES):
        mbarrier.init(stages[2].index(stage), count=1)
        mbarrier.init(stages[3].index(stage), count=1)
    fence_async_shared()
    sizes = (rows, columns, depth)
    gl.warp_specialize(
        [
            (multiply_tiles, (
                stages, out_desc, out_tile, x_scale, w_scale, bias, sizes,
                ROWS, COLUMNS, DEPTH, STAGES, GROUP, BIAS, GATE,
            )),
            (copy_tiles, (x_desc, w_desc, stages, sizes, ROWS, COLUMNS, DEPTH, STAGES, GROUP)),
        ],
        [1], [24],
    )  # fmt: skip


@gluon.jit
def copy_tiles(
    x_desc, w_desc, stages, sizes,
    ROWS: gl.constexpr, COLUMNS: gl.constexpr, DEPTH: gl.constexpr, STAGES: gl.constexpr, GROUP: gl.constexpr,
):  # fmt: skip
    """Copy what `multiply_tiles` reads, in its order, wherever it is done with what was there."""
    x_tiles, w_tiles, full, empty = stages
    high, wide, steps = gl.cdiv(sizes[0], ROWS), gl.cdiv(sizes[1], COLUMNS), gl.cdiv(sizes[2], DEPTH)
    count = 0
    for tile in range(gl.program_id(0), high * wide, gl.num_programs(0)):
        m, n = place_of(tile, high, wide, GROUP)
        for step in range(steps):
            stage = count % STAGES
            mbarrier.wait(empty.index(stage), ((count // STAGES) & 1) ^ 1)
            mbarrier.expect(full.index(stage), x_desc.block_type.nbytes + w_desc.block_type.nbytes)
            x_at, w_at = [m * ROWS, step * DEPTH], [n * COLUMNS, step * DEPTH]
            tma.async_copy_global_to_shared(x_desc, x_at, full.index(stage), x_tiles.index(stage))
            tma.async_copy_global_to_shared(w_desc, w_at, full.index(stage), w_tiles.index(stage))
            count += 1


@gluon.jit
def multiply_tiles(
    stages, out_desc, out_tile, x_scale, w_scale, bias, sizes,
    ROWS: gl.constexpr, COLUMNS: gl.constexpr, DEPTH: gl.constexpr, STAGES: gl.constexpr,
    GROUP: gl.constexpr, BIAS: gl.constexpr, GATE: gl.constexpr,
):  # fmt: skip
    """Multiply what `copy_tiles` copies, and write it out."""
    x_tiles, w_tiles, full, empty = stages
    whole: gl.constexpr = x_tiles.dtype == gl.int8
    kind: gl.constexpr = gl.int32 if whole else gl.float32
    # Triton refuses instructions of more than 224 columns of int8.
    sums_at: gl.constexpr = gl.NVMMADistributedLayout(
        [3, 0], [gl.num_warps(), 1], [16, COLUMNS // 2 if whole else COLUMNS, 32]
    )
    half: gl.constexpr = COLUMNS // 2
    high, wide, steps = gl.cdiv(sizes[0], ROWS), gl.cdiv(sizes[1], COLUMNS), gl.cdiv(sizes[2], DEPTH)
    count = 0
    for tile in range(gl.program_id(0), high * wide, gl.num_programs(0)):
        m, n = place_of(tile, high, wide, GROUP)
        sums = gl.zeros([ROWS, COLUMNS], kind, sums_at)
        for step in range(steps):
            stage = count % STAGES
            mbarrier.wait(full.index(stage), (count // STAGES) & 1)
            w_tile = w_tiles.index(stage).permute((1, 0))
            sums = warpgroup_mma(x_tiles.index(stage), w_tile, sums, is_async=True)
            # The step before is done then, and this one goes on.
            sums = warpgroup_mma_wait(1, [sums])
            mbarrier.arrive(empty.index((count + STAGES - 1) % STAGES), count=1, pred=step > 0)
            count += 1
        sums = warpgroup_mma_wait(0, [sums])
        mbarrier.arrive(empty.index((count + STAGES - 1) % STAGES), count=1)

        row = m * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, sums_at))
        column = n * COLUMNS + gl.arange(0, COLUMNS, gl.SliceLayout(0, sums_at))
        out = sums.to(gl.float32) * gl.load(x_scale + row, row < sizes[0], 0.0)[:, None]
        out = out * gl.load(w_scale + column, column < sizes[1], 0.0)[None, :]
        if BIAS:
            out += gl.load(bias + column, column < sizes[1], 0.0).to(gl.float32)[None, :]
        # Threads hold both halves of a row, so nothing moves.
        left, right = gl.split(gl.permute(gl.reshape(out, [ROWS, 2, half]), (0, 2, 1)))
        if GATE == "none":
            write(out_desc, out_tile, left, m * ROWS, n * COLUMNS)
            write(out_desc, out_tile, right, m * ROWS, n * COLUMNS + half)
        else:
            write(out_desc, out_tile, activated(left, GATE) * right, m * ROWS, n * half)
    tma.store_wait(0)


@gluon.jit
def place_of(tile, high, wide, GROUP: gl.constexpr):
    """Where a tile is, of so many above and beside each other."""
    first = tile // (GROUP * wide) * GROUP
    size = gl.minimum(high - first, GROUP)
    place = tile % (GROUP * wide)
    return first + place % size, place // size


@gluon.jit
def write(out_desc, out_tile, values, m, n):
    """Have values written from shared memory, once what was there has been read."""
    tma.store_wait(0)
    out_tile.store(values.to(out_desc.dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(out_desc, [m, n], out_tile)


@gluon.jit
def activated(gate, GATE: gl.constexpr):
    """GELU in its tanh form, whose 1 + tanh(y) is 2 sigmoid(2 y), or SiLU."""
    slope = gate
    if GATE == "gelu":
        slope = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    return gate / (1.0 + gl.exp(-slope))


def multiplied(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    *,
    gate: str = "none",
) -> Tensor:
    """What `gemm_kernel` gives: bfloat16 [T, N], or [T, N / 2] with a gate."""
    (rows, depth), columns = x.shape, len(weight)
    width = columns if gate == "none" else columns // 2
    out = torch.empty(rows, width, dtype=torch.bfloat16, device=x.device)
    bytes_at, halves_at = (
        gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=bits, rank=2) for bits in (8, 16)
    )
    programs = min(processors(x.device), triton.cdiv(rows, ROWS) * triton.cdiv(columns, COLUMNS))
    with on(x.device):
        gemm_kernel[(programs,)](
            x_desc=TensorDescriptor.from_tensor(x, [ROWS, DEPTH], bytes_at),
            w_desc=TensorDescriptor.from_tensor(weight, [COLUMNS, DEPTH], bytes_at),
            out_desc=TensorDescriptor.from_tensor(out, [ROWS, COLUMNS // 2], halves_at),
            x_scale=x_scale, w_scale=scale, bias=scale if bias is None else bias,
            rows=rows, columns=columns, depth=depth,
            ROWS=ROWS, COLUMNS=COLUMNS, DEPTH=DEPTH, STAGES=STAGES, GROUP=GROUP,
            BIAS=bias is not None, GATE=gate, num_warps=WARPS,
        )  # fmt: skip
    return out


@torch.library.custom_op("wsdm_ray::product", mutates_args=())
def product(x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Rows times the weight transposed, plus the bias: bfloat16 [T, N].

    Args:
        x, weight: both int8 or both float8, [T, D] and [N, D]; D a multiple of 16, N of 8.
        x_scale, scale: float32, [T] and [N].
        bias: [N].
    """
    return multiplied(x, x_scale, weight, scale, bias)


@product.register_fake
def _(x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(len(x), len(weight), dtype=torch.bfloat16)


@torch.library.custom_op("wsdm_ray::gated_product", mutates_args=())
def gated_product(x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, gelu: bool) -> Tensor:
    """GELU (tanh form) or SiLU of products with a gate, times those with up: bfloat16 [T, F].

    Args:
        weight: [2 F, D], whose rows are `GATE_UP_INTERLEAVE` of the gate, as many of up, and so on.
    """
    return multiplied(x, x_scale, weight, scale, None, gate="gelu" if gelu else "silu")


@gated_product.register_fake
def _(x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, gelu: bool) -> Tensor:
    return x.new_empty(len(x), len(weight) // 2, dtype=torch.bfloat16)
