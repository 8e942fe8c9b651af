"""A persistent GEMM of 8-bit rows for Hopper GPUs, in Gluon: Triton's language of layouts and barriers.

One producer warp loads tiles of both operands ahead, and eight consumer warps multiply them, so loads wait
only for free buffers. Scales, bias and the gated activation are applied in registers: cuBLAS returns an int8
GEMM as int32, and writing and reading that again takes longer than the GEMM itself.

    M rows (tokens), K columns of the input, N rows of the weight, F intermediate size
"""

# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# Gluon's type hints say that its decorator returns nothing, and that layouts are no constants.

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

from wsdm_ray.modeling.kernel_launch import launch, operator
from wsdm_ray.modeling.norm_kernels import num_sms

__all__ = ["GATE_UP_INTERLEAVE", "gated_gemm", "gemm"]

BLOCK_M, BLOCK_N, BLOCK_K = 128, 256, 128
"""Rows and columns of an output tile, and columns of the operands that are loaded at a time."""
GATE_UP_INTERLEAVE = BLOCK_N // 2
"""Rows of the gate that are followed by as many of up, so that one tile holds both."""

NUM_STAGES = 4
"""Loads in flight: as many as 227 KiB of shared memory hold."""
GROUP_M = 16
"""Tiles of one column that run at about the same time, so that they share the weight in the L2 cache."""
NUM_WARPS = 8
"""Consumer warps of a program."""

LAYOUT_8, LAYOUT_16 = (
    gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=bits, rank=2) for bits in (8, 16)
)
"""Of tiles in shared memory, by the bits of a value."""


@gluon.jit
def gemm_kernel(
    x_desc, w_desc, out_desc, x_scale, w_scale, bias, M, N, K,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr, NUM_STAGES: gl.constexpr,
    GROUP_M: gl.constexpr, HAS_BIAS: gl.constexpr, ACTIVATION: gl.constexpr,
):  # fmt: skip
    """Tiles of x [M, K] times w [N, K] transposed, by a persistent kernel.

    Args:
        x_scale, w_scale: factors of the rows and columns of the output; bias: added after them.
        ACTIVATION: `gelu_pytorch_tanh` or `silu` if rows of gate and up interleave, else `none`.
    """
    half_tile: gl.constexpr = [BLOCK_M, BLOCK_N // 2]
    barriers: gl.constexpr = mbarrier.MBarrierLayout()
    stages = (
        gl.allocate_shared_memory(x_desc.dtype, [NUM_STAGES, BLOCK_M, BLOCK_K], x_desc.layout),
        gl.allocate_shared_memory(w_desc.dtype, [NUM_STAGES, BLOCK_N, BLOCK_K], w_desc.layout),
        gl.allocate_shared_memory(gl.int64, [NUM_STAGES, 1], barriers),
        gl.allocate_shared_memory(gl.int64, [NUM_STAGES, 1], barriers),
    )
    out_tile = gl.allocate_shared_memory(out_desc.dtype, half_tile, out_desc.layout)
    for stage in gl.static_range(NUM_STAGES):
        mbarrier.init(stages[2].index(stage), count=1)
        mbarrier.init(stages[3].index(stage), count=1)
    fence_async_shared()
    sizes = (M, N, K)
    gl.warp_specialize(
        [
            (multiply_tiles, (
                stages, out_desc, out_tile, x_scale, w_scale, bias, sizes,
                BLOCK_M, BLOCK_N, BLOCK_K, NUM_STAGES, GROUP_M, HAS_BIAS, ACTIVATION,
            )),
            (load_tiles, (x_desc, w_desc, stages, sizes, BLOCK_M, BLOCK_N, BLOCK_K, NUM_STAGES, GROUP_M)),
        ],
        [1], [24],
    )  # fmt: skip


@gluon.jit
def load_tiles(
    x_desc, w_desc, stages, sizes, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr,
    NUM_STAGES: gl.constexpr, GROUP_M: gl.constexpr,
):  # fmt: skip
    """The producer: load what `multiply_tiles` reads, in its order, into buffers that it has released."""
    x_tiles, w_tiles, full, empty = stages
    tiles_M, tiles_N = gl.cdiv(sizes[0], BLOCK_M), gl.cdiv(sizes[1], BLOCK_N)
    steps = gl.cdiv(sizes[2], BLOCK_K)
    count = 0
    for tile in range(gl.program_id(0), tiles_M * tiles_N, gl.num_programs(0)):
        m, n = tile_position(tile, tiles_M, tiles_N, GROUP_M)
        for step in range(steps):
            stage = count % NUM_STAGES
            mbarrier.wait(empty.index(stage), ((count // NUM_STAGES) & 1) ^ 1)
            mbarrier.expect(full.index(stage), x_desc.block_type.nbytes + w_desc.block_type.nbytes)
            x_offset, w_offset = [m * BLOCK_M, step * BLOCK_K], [n * BLOCK_N, step * BLOCK_K]
            tma.async_copy_global_to_shared(x_desc, x_offset, full.index(stage), x_tiles.index(stage))
            tma.async_copy_global_to_shared(w_desc, w_offset, full.index(stage), w_tiles.index(stage))
            count += 1


@gluon.jit
def multiply_tiles(
    stages, out_desc, out_tile, x_scale, w_scale, bias, sizes,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr, NUM_STAGES: gl.constexpr,
    GROUP_M: gl.constexpr, HAS_BIAS: gl.constexpr, ACTIVATION: gl.constexpr,
):  # fmt: skip
    """The consumers: multiply what `load_tiles` loads, and store the output."""
    x_tiles, w_tiles, full, empty = stages
    is_int8: gl.constexpr = x_tiles.dtype == gl.int8
    sum_type: gl.constexpr = gl.int32 if is_int8 else gl.float32
    # Triton refuses int8 instructions of more than 224 columns.
    sums_layout: gl.constexpr = gl.NVMMADistributedLayout(
        [3, 0], [gl.num_warps(), 1], [16, BLOCK_N // 2 if is_int8 else BLOCK_N, 32]
    )
    half: gl.constexpr = BLOCK_N // 2
    tiles_M, tiles_N = gl.cdiv(sizes[0], BLOCK_M), gl.cdiv(sizes[1], BLOCK_N)
    steps = gl.cdiv(sizes[2], BLOCK_K)
    count = 0
    for tile in range(gl.program_id(0), tiles_M * tiles_N, gl.num_programs(0)):
        m, n = tile_position(tile, tiles_M, tiles_N, GROUP_M)
        sums = gl.zeros([BLOCK_M, BLOCK_N], sum_type, sums_layout)
        for step in range(steps):
            stage = count % NUM_STAGES
            mbarrier.wait(full.index(stage), (count // NUM_STAGES) & 1)
            w_tile = w_tiles.index(stage).permute((1, 0))
            sums = warpgroup_mma(x_tiles.index(stage), w_tile, sums, is_async=True)
            # Wait for the step before, and leave this one running.
            sums = warpgroup_mma_wait(1, [sums])
            mbarrier.arrive(empty.index((count + NUM_STAGES - 1) % NUM_STAGES), count=1, pred=step > 0)
            count += 1
        sums = warpgroup_mma_wait(0, [sums])
        mbarrier.arrive(empty.index((count + NUM_STAGES - 1) % NUM_STAGES), count=1)

        row = m * BLOCK_M + gl.arange(0, BLOCK_M, gl.SliceLayout(1, sums_layout))
        column = n * BLOCK_N + gl.arange(0, BLOCK_N, gl.SliceLayout(0, sums_layout))
        out = sums.to(gl.float32) * gl.load(x_scale + row, row < sizes[0], 0.0)[:, None]
        out = out * gl.load(w_scale + column, column < sizes[1], 0.0)[None, :]
        if HAS_BIAS:
            out += gl.load(bias + column, column < sizes[1], 0.0).to(gl.float32)[None, :]
        # A thread holds both halves of a row, so this moves no data.
        left, right = gl.split(gl.permute(gl.reshape(out, [BLOCK_M, 2, half]), (0, 2, 1)))
        if ACTIVATION == "none":
            store_tile(out_desc, out_tile, left, m * BLOCK_M, n * BLOCK_N)
            store_tile(out_desc, out_tile, right, m * BLOCK_M, n * BLOCK_N + half)
        else:
            store_tile(out_desc, out_tile, activate(left, ACTIVATION) * right, m * BLOCK_M, n * half)
    tma.store_wait(0)


@gluon.jit
def tile_position(tile, tiles_M, tiles_N, GROUP_M: gl.constexpr):
    """Row and column of a tile, in groups of `GROUP_M` rows that go through all columns."""
    first = tile // (GROUP_M * tiles_N) * GROUP_M
    size = gl.minimum(tiles_M - first, GROUP_M)
    index = tile % (GROUP_M * tiles_N)
    return first + index % size, index // size


@gluon.jit
def store_tile(out_desc, out_tile, values, m, n):
    """Store values through shared memory, once the store before has read it."""
    tma.store_wait(0)
    out_tile.store(values.to(out_desc.dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(out_desc, [m, n], out_tile)


@gluon.jit
def activate(gate, ACTIVATION: gl.constexpr):
    """GELU in its tanh form, whose 1 + tanh(y) is 2 sigmoid(2 y), or SiLU."""
    slope = gate
    if ACTIVATION == "gelu_pytorch_tanh":
        slope = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    return gate / (1.0 + gl.exp(-slope))


def launch_gemm(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    *,
    activation: str = "none",
) -> Tensor:
    """The output of `gemm_kernel`: bfloat16 [M, N], or [M, N / 2] with an activation."""
    (M, K), N = x.shape, len(weight)
    out = x.new_empty(M, N if activation == "none" else N // 2, dtype=torch.bfloat16)
    programs = min(num_sms(x.device), -(-M // BLOCK_M) * -(-N // BLOCK_N))
    descriptors = (
        TensorDescriptor.from_tensor(x, [BLOCK_M, BLOCK_K], LAYOUT_8),
        TensorDescriptor.from_tensor(weight, [BLOCK_N, BLOCK_K], LAYOUT_8),
        TensorDescriptor.from_tensor(out, [BLOCK_M, BLOCK_N // 2], LAYOUT_16),
    )
    arguments = (*descriptors, x_scale, scale, scale if bias is None else bias, M, N, K)
    constants = (BLOCK_M, BLOCK_N, BLOCK_K, NUM_STAGES, GROUP_M, bias is not None, activation)
    launch(gemm_kernel, (programs,), arguments, constants, NUM_WARPS)
    return out


@operator()
def gemm(x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Rows times the weight transposed, plus the bias: bfloat16 [M, N].

    Args:
        x, weight: both int8 or both float8, [M, K] and [N, K]; K a multiple of 16, N of 8.
        x_scale, scale: float32, [M] and [N].
        bias: [N].
    """
    return launch_gemm(x, x_scale, weight, scale, bias)


@torch.library.register_fake("wsdm_ray::gemm")
def _(x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], dtype=torch.bfloat16)


@operator()
def gated_gemm(x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, activation: str) -> Tensor:
    """The activation of rows times the gate, times rows times up: bfloat16 [M, F].

    Args:
        weight: [2 F, K], whose rows are `GATE_UP_INTERLEAVE` of the gate, as many of up, and so on.
        activation: `gelu_pytorch_tanh` or `silu`.
    """
    return launch_gemm(x, x_scale, weight, scale, None, activation=activation)


@torch.library.register_fake("wsdm_ray::gated_gemm")
def _(x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, activation: str) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0] // 2, dtype=torch.bfloat16)
