"""What goes with products of 8-bit rows on Hopper GPUs, in Triton: sums, norms, spreading and quantizing.

T rows (tokens), D columns
"""

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = [
    "MOST_BLOCKS",
    "add_norm",
    "add_norm_float8",
    "float8_rows",
    "hadamard_int8_rows",
]

MOST_BLOCKS = 256
"""Of columns in a row that `hadamard_int8_kernel` can hold."""
SPREAD_LINES = 64
"""Blocks of columns that a program of `hadamard_int8_kernel` holds, of one row or several, where one has no
more.

Two such programs run on a processor; of those that hold more, one."""
ROWS_COLUMNS = 2_048
"""Of a row that a warp of `rows_kernel` holds, where 4 to 16 of them can hold it."""


@triton.jit
def hadamard_int8_kernel(
    x, matrix, values, scale, rows,
    WIDTH: tl.constexpr, BLOCKS: tl.constexpr, SIZE: tl.constexpr, AT_ONCE: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """`AT_ONCE` rows of x [rows, WIDTH] after others, in up to `BLOCKS` blocks of `SIZE` columns each.

    Programs stay, as the matrix is twice as large as what they read at a time.
    """
    line = tl.arange(0, AT_ONCE * BLOCKS)[:, None]
    row, column = line // BLOCKS, line % BLOCKS * SIZE + tl.arange(0, SIZE)[None, :]
    at = row * WIDTH + column
    every = tl.load(matrix + tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :])
    groups = tl.cdiv(rows, AT_ONCE)
    for group in tl.range(tl.program_id(0), groups, tl.num_programs(0), num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        first = tl.full((), group, tl.int64) * AT_ONCE
        inside = (first + row < rows) & (column < WIDTH)
        out = tl.dot(tl.load(x + first * WIDTH + at, inside, 0.0).to(every.dtype), every)
        largest = tl.reduce(tl.reshape(tl.reduce(tl.abs(out), 1, larger), (AT_ONCE, BLOCKS)), 1, larger)
        step = larger(largest, 1e-12) / 127.0
        parts = tl.reshape(tl.broadcast_to((1.0 / step)[:, None], (AT_ONCE, BLOCKS)), (AT_ONCE * BLOCKS, 1))
        # 1.5 * 2 ** 23 leaves no room for fractions: its last bits are the nearest whole number, of two the
        # even one.
        whole = (out * parts + 12582912.0).to(tl.int32, bitcast=True)
        tl.store(values + first * WIDTH + at, whole.to(tl.int8), inside)
        numbers = first + tl.arange(0, AT_ONCE)
        tl.store(scale + numbers, step, numbers < rows)


@triton.jit
def rows_kernel(
    x, y, after, before, summed, out, scale, epsilon,
    WIDTH: tl.constexpr, PADDED: tl.constexpr,
    ADD: tl.constexpr, AFTER: tl.constexpr, BEFORE: tl.constexpr, QUANTIZE: tl.constexpr,
):  # fmt: skip
    """A row of x [rows, WIDTH] a program.

    ADD: y is added to x, AFTER: normed first; the sum is written. BEFORE: norm what is written out. QUANTIZE:
    in 8 bit, with its scale.
    """
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, PADDED)
    at, inside = row * WIDTH + column, column < WIDTH
    given = tl.load(x + at, inside, 0.0).to(tl.float32)
    if ADD:
        more = tl.load(y + at, inside, 0.0).to(tl.float32)
        if AFTER:
            more = normed(more, after + column, inside, WIDTH, epsilon)
        total = (given + more).to(tl.bfloat16)
        tl.store(summed + at, total, inside)
        given = total.to(tl.float32)
    if BEFORE:
        given = normed(given, before + column, inside, WIDTH, epsilon)
    if QUANTIZE:
        step = larger(tl.reduce(tl.abs(given), 0, larger), 1e-12) / 448.0
        tl.store(out + at, (given / step).to(tl.float8e4nv), inside)
        tl.store(scale + row, step)
    else:
        tl.store(out + at, given.to(tl.bfloat16), inside)


@triton.jit
def larger(one, other):
    """NaN where either is: what is not finite must show in a row's scale, as int8 has no NaN."""
    return tl.maximum(one, other, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def normed(wide, weight, inside, WIDTH: tl.constexpr, epsilon):
    """A row of float32, RMS-normed and rounded to bfloat16."""
    out = wide * tl.rsqrt(tl.sum(wide * wide) / WIDTH + epsilon) * tl.load(weight, inside, 0.0)
    return out.to(tl.bfloat16).to(tl.float32)


@torch.library.custom_op("wsdm_ray::hadamard_int8_rows", mutates_args=())
def hadamard_int8_rows(x: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Rows, each block of their columns times `matrix`, in int8 [T, D], and their scale [T].

    Args:
        x: bfloat16 [T, D].
        matrix: of the type of the products with it, bfloat16, [block, block]; a power of 2 of 16 or more that
            divides D.
    """
    rows, width = x.shape
    values = torch.empty(rows, width, dtype=torch.int8, device=x.device)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    blocks = triton.next_power_of_2(width // len(matrix))
    at_once = max(SPREAD_LINES // blocks, 1)
    small = at_once * blocks <= SPREAD_LINES
    programs = min((2 if small else 1) * processors(x.device), triton.cdiv(rows, at_once))
    with on(x.device):
        hadamard_int8_kernel[(programs,)](
            x, matrix, values, scale, rows, WIDTH=width, BLOCKS=blocks, SIZE=len(matrix), AT_ONCE=at_once,
            STAGES=3 if blocks <= 2 * SPREAD_LINES else 2,
            num_warps=4 if small else 8,  # pyright: ignore[reportCallIssue]
        )  # fmt: skip
    return values, scale


@hadamard_int8_rows.register_fake
def _(x: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, dtype=torch.int8), x.new_empty(len(x), dtype=torch.float32)


def by_rows(
    x: Tensor,
    y: Tensor | None = None,
    after: Tensor | None = None,
    before: Tensor | None = None,
    epsilon: float = 0.0,
    *,
    quantize: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `rows_kernel` gives of contiguous x and y: the sum, what is made of it, the scale of that.

    x itself where nothing is added, and no scale where nothing is quantized.
    """
    rows, width = x.shape
    summed = x if y is None else torch.empty_like(x)
    out = x.new_empty(rows, width, dtype=torch.float8_e4m3fn if quantize else x.dtype)
    scale = x.new_empty(rows if quantize else 0, dtype=torch.float32)
    padded = triton.next_power_of_2(width)
    with on(x.device):
        rows_kernel[(rows,)](
            x, x if y is None else y, scale if after is None else after, scale if before is None else before,
            summed, out, scale, epsilon, WIDTH=width, PADDED=padded, ADD=y is not None,
            AFTER=after is not None, BEFORE=before is not None, QUANTIZE=quantize,
            num_warps=min(max(padded // ROWS_COLUMNS, 4), 16),  # pyright: ignore[reportCallIssue]
        )  # fmt: skip
    return summed, out, scale


@torch.library.custom_op("wsdm_ray::float8_rows", mutates_args=())
def float8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of x, bfloat16 [T, D], as float8, and their scale [T]."""
    return by_rows(x)[1:]


@float8_rows.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, dtype=torch.float8_e4m3fn), x.new_empty(len(x), dtype=torch.float32)


@torch.library.custom_op("wsdm_ray::add_norm", mutates_args=())
def add_norm(
    x: Tensor, y: Tensor, after: Tensor | None, before: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """x plus y, y RMS-normed first where `after` is given, and that sum RMS-normed: bfloat16 [T, D], twice.

    Args:
        x, y: bfloat16 [T, D]; after, before: what normed rows are multiplied by, float32 [D].
    """
    return by_rows(x, y, after, before, epsilon, quantize=False)[:2]


@add_norm.register_fake
def _(x: Tensor, y: Tensor, after: Tensor | None, before: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@torch.library.custom_op("wsdm_ray::add_norm_float8", mutates_args=())
def add_norm_float8(
    x: Tensor, y: Tensor, after: Tensor | None, before: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`add_norm` whose normed rows are float8, with their scale [T]."""
    return by_rows(x, y, after, before, epsilon)


@add_norm_float8.register_fake
def _(
    x: Tensor, y: Tensor, after: Tensor | None, before: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    values = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    return torch.empty_like(x), values, x.new_empty(len(x), dtype=torch.float32)


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current GPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@functools.cache
def processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
