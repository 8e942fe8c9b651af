"""What surrounds the 8-bit GEMMs on Hopper GPUs, in Triton: residual sums, RMS norms, Hadamard rotation,
quantization.

    T rows (tokens), D columns
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from wsdm_ray.modeling.kernel_launch import launch, operator

__all__ = [
    "MAX_BLOCKS",
    "add_rms_norm",
    "add_rms_norm_float8",
    "float8_rows",
    "hadamard_int8_rows",
    "num_sms",
]

MAX_BLOCKS = 256
"""Blocks of columns in a row that `hadamard_int8_kernel` can hold."""
BLOCKS_PER_PROGRAM = 64
"""Blocks of columns, of one row or several, that a small program of `hadamard_int8_kernel` holds.

Two small programs run on an SM, or one that holds a longer row."""
COLUMNS_PER_WARP = 2_048
"""Columns of a row that a warp of `add_norm_quantize_kernel` holds, within 4 to 16 warps a row."""


@triton.jit
def hadamard_int8_kernel(
    x, matrix, values, scale, rows,
    WIDTH: tl.constexpr, BLOCKS: tl.constexpr, SIZE: tl.constexpr, ROWS_AT_ONCE: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """`ROWS_AT_ONCE` rows of x [rows, WIDTH] at a time, in up to `BLOCKS` blocks of `SIZE` columns each.

    The kernel is persistent, because the matrix is twice as large as what a step reads.
    """
    line = tl.arange(0, ROWS_AT_ONCE * BLOCKS)[:, None]
    row, column = line // BLOCKS, line % BLOCKS * SIZE + tl.arange(0, SIZE)[None, :]
    offset = row * WIDTH + column
    hadamard = tl.load(matrix + tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :])
    groups = tl.cdiv(rows, ROWS_AT_ONCE)
    for group in tl.range(tl.program_id(0), groups, tl.num_programs(0), num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        first = tl.full((), group, tl.int64) * ROWS_AT_ONCE
        inside = (first + row < rows) & (column < WIDTH)
        rotated = tl.dot(tl.load(x + first * WIDTH + offset, inside, 0.0).to(hadamard.dtype), hadamard)
        block_max = tl.reshape(tl.reduce(tl.abs(rotated), 1, nan_max), (ROWS_AT_ONCE, BLOCKS))
        step = nan_max(tl.reduce(block_max, 1, nan_max), 1e-12) / 127.0
        inverse = tl.broadcast_to((1.0 / step)[:, None], (ROWS_AT_ONCE, BLOCKS))
        inverse = tl.reshape(inverse, (ROWS_AT_ONCE * BLOCKS, 1))
        # Adding 1.5 * 2 ** 23 leaves no bits for a fraction: the last bits are the nearest whole number, and
        # the even one of two.
        whole = (rotated * inverse + 12582912.0).to(tl.int32, bitcast=True)
        tl.store(values + first * WIDTH + offset, whole.to(tl.int8), inside)
        numbers = first + tl.arange(0, ROWS_AT_ONCE)
        tl.store(scale + numbers, step, numbers < rows)


@triton.jit
def add_norm_quantize_kernel(
    x, y, post_norm, next_norm, total, out, scale, epsilon,
    WIDTH: tl.constexpr, PADDED: tl.constexpr,
    ADD: tl.constexpr, POST_NORM: tl.constexpr, NEXT_NORM: tl.constexpr, QUANTIZE: tl.constexpr,
):  # fmt: skip
    """One row of x [rows, WIDTH] a program.

    ADD: y is added to x, and the sum is written to `total`. POST_NORM: y is RMS-normed first. NEXT_NORM: what
    is written to `out` is RMS-normed. QUANTIZE: `out` is float8, with its scale.
    """
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, PADDED)
    offset, inside = row * WIDTH + column, column < WIDTH
    result = tl.load(x + offset, inside, 0.0).to(tl.float32)
    if ADD:
        added = tl.load(y + offset, inside, 0.0).to(tl.float32)
        if POST_NORM:
            added = normed(added, post_norm + column, inside, WIDTH, epsilon)
        rounded = (result + added).to(tl.bfloat16)
        tl.store(total + offset, rounded, inside)
        result = rounded.to(tl.float32)
    if NEXT_NORM:
        result = normed(result, next_norm + column, inside, WIDTH, epsilon)
    if QUANTIZE:
        step = nan_max(tl.reduce(tl.abs(result), 0, nan_max), 1e-12) / 448.0
        tl.store(out + offset, (result / step).to(tl.float8e4nv), inside)
        tl.store(scale + row, step)
    else:
        tl.store(out + offset, result.to(tl.bfloat16), inside)


@triton.jit
def nan_max(one, other):
    """The larger, or NaN if either is NaN: int8 has no NaN, so a row's scale must show it."""
    return tl.maximum(one, other, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def normed(row, weight, inside, WIDTH: tl.constexpr, epsilon):
    """A float32 row, RMS-normed and rounded to bfloat16."""
    out = row * tl.rsqrt(tl.sum(row * row) / WIDTH + epsilon) * tl.load(weight, inside, 0.0)
    return out.to(tl.bfloat16).to(tl.float32)


@operator()
def hadamard_int8_rows(x: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Rows, each block of their columns times `matrix`, in int8 [T, D], and their float32 scale [T].

    Args:
        x: bfloat16 [T, D].
        matrix: in the type of the GEMM with it, bfloat16, [block, block]; block is a power of 2, 16 or more,
            and divides D.
    """
    rows, width = x.shape
    values = torch.empty(rows, width, dtype=torch.int8, device=x.device)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    blocks = 1 << (width // len(matrix) - 1).bit_length()
    rows_at_once = max(BLOCKS_PER_PROGRAM // blocks, 1)
    small = rows_at_once * blocks <= BLOCKS_PER_PROGRAM
    programs = min((2 if small else 1) * num_sms(x.device), -(-rows // rows_at_once))
    stages = 3 if blocks <= 2 * BLOCKS_PER_PROGRAM else 2
    constants = (width, blocks, len(matrix), rows_at_once, stages)
    launch(hadamard_int8_kernel, (programs,), (x, matrix, values, scale, rows), constants, 4 if small else 8)
    return values, scale


@torch.library.register_fake("wsdm_ray::hadamard_int8_rows")
def _(x: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, dtype=torch.int8), x.new_empty(x.shape[0], dtype=torch.float32)


def add_norm_quantize(
    x: Tensor,
    y: Tensor | None = None,
    post_norm: Tensor | None = None,
    next_norm: Tensor | None = None,
    epsilon: float = 0.0,
    *,
    quantize: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """The outputs of `add_norm_quantize_kernel` for contiguous x and y: `total`, `out` and `scale`.

    `total` is x itself without y, and `scale` is empty without `quantize`.
    """
    rows, width = x.shape
    total = x if y is None else torch.empty_like(x)
    out = x.new_empty(rows, width, dtype=torch.float8_e4m3fn if quantize else x.dtype)
    scale = x.new_empty(rows if quantize else 0, dtype=torch.float32)
    padded = 1 << (width - 1).bit_length()
    arguments = (
        x, x if y is None else y, scale if post_norm is None else post_norm,
        scale if next_norm is None else next_norm, total, out, scale, epsilon,
    )  # fmt: skip
    constants = (width, padded, y is not None, post_norm is not None, next_norm is not None, quantize)
    launch(
        add_norm_quantize_kernel, (rows,), arguments, constants, min(max(padded // COLUMNS_PER_WARP, 4), 16)
    )
    return total, out, scale


@operator()
def float8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of x, bfloat16 [T, D], in float8, and their float32 scale [T]."""
    return add_norm_quantize(x)[1:]


@torch.library.register_fake("wsdm_ray::float8_rows")
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, dtype=torch.float8_e4m3fn), x.new_empty(x.shape[0], dtype=torch.float32)


@operator()
def add_rms_norm(
    x: Tensor, y: Tensor, post_norm: Tensor | None, next_norm: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """x + y, with y RMS-normed first if it has a norm, and the RMS norm of that sum: bfloat16 [T, D] each.

    Args:
        x, y: bfloat16 [T, D]; post_norm, next_norm: weights of the norms of y and of the sum, float32 [D].
    """
    return add_norm_quantize(x, y, post_norm, next_norm, epsilon, quantize=False)[:2]


@torch.library.register_fake("wsdm_ray::add_rms_norm")
def _(
    x: Tensor, y: Tensor, post_norm: Tensor | None, next_norm: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@operator()
def add_rms_norm_float8(
    x: Tensor, y: Tensor, post_norm: Tensor | None, next_norm: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`add_rms_norm` whose normed rows are float8, with their scale [T]."""
    return add_norm_quantize(x, y, post_norm, next_norm, epsilon)


@torch.library.register_fake("wsdm_ray::add_rms_norm_float8")
def _(
    x: Tensor, y: Tensor, post_norm: Tensor | None, next_norm: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    values = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    return torch.empty_like(x), values, x.new_empty(x.shape[0], dtype=torch.float32)


@functools.cache
def num_sms(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 4 for Triton's interpreter on a CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
