"""Products of 8-bit rows for Hopper GPUs, in Triton: what libraries write out in between stays in registers.

cuBLAS gives the products of int8 rows as int32, which to write and read again takes longer than to compute.
Here they leave as bfloat16 with their scales applied, those of the MLP's gate and up as one, multiplied. The
other way round, sums, norms, spreading and quantizing of rows are one reading each.

    T rows (tokens), D columns, N rows of the weight, F inner width
"""

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

__all__ = [
    "ALTERNATE",
    "MOST_BLOCKS",
    "add_norm",
    "add_norm_float8",
    "float8_rows",
    "gated_float8_rows",
    "gated_product",
    "product",
    "spread_rows",
]

ROWS, COLUMNS, DEPTH = 128, 256, 128
"""Of a tile of a product: its rows and columns, and what it reads of a sum at a time."""
ALTERNATE = COLUMNS // 2
"""Rows of an int8 gate that are followed by as many of up, so that a tile holds both."""

STAGES = 4
"""Reads of a tile that are under way at once: as many as 227 KiB of shared memory hold."""
GROUP = 16
"""Tiles above each other that run at about the same time, so that the cache serves what they share."""
WARPS = 8

MOST_BLOCKS = 256
"""Of columns in a row that `spread_kernel` can hold."""
SPREAD_LINES = 64
"""Blocks of columns that a program of `spread_kernel` holds, of one row or several, where one has no more."""
ROWS_COLUMNS = 2_048
"""Of a row that a warp of `rows_kernel` holds, where 4 to 16 of them can hold it."""


@triton.jit
def product_kernel(
    x_desc, w_desc, out_desc, x_scale, w_scale, bias, rows, columns, depth,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
    PROGRAMS: tl.constexpr, STAGES: tl.constexpr, BIAS: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """Tiles of int8 x [rows, depth] times w [columns, depth] transposed, by programs that stay.

    GATE: `gelu` or `silu` where blocks of gate and up alternate, or `none`.
    """
    half: tl.constexpr = COLUMNS // 2
    high, wide = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    for tile in tl.range(tl.program_id(0), high * wide, PROGRAMS, flatten=True):
        first = tile // (GROUP * wide) * GROUP
        size = min(high - first, GROUP)
        place = tile % (GROUP * wide)
        m, n = (first + place % size) * ROWS, place // size * COLUMNS
        sums = tl.zeros((ROWS, COLUMNS), tl.int32)
        for k in tl.range(0, tl.cdiv(depth, DEPTH), num_stages=STAGES):
            x = x_desc.load([m, k * DEPTH])
            w = w_desc.load([n, k * DEPTH])
            sums = tl.dot(x, w.T, sums, out_dtype=tl.int32)
        row, column = m + tl.arange(0, ROWS), n + tl.arange(0, COLUMNS)
        out = sums.to(tl.float32) * tl.load(x_scale + row, row < rows, 0.0)[:, None]
        out = out * tl.load(w_scale + column, column < columns, 0.0)[None, :]
        if BIAS:
            out += tl.load(bias + column, column < columns, 0.0).to(tl.float32)[None, :]
        # Threads hold both halves of a row, so nothing moves.
        left, right = tl.split(tl.permute(tl.reshape(out, (ROWS, 2, half)), (0, 2, 1)))
        if GATE == "none":
            out_desc.store([m, n], left.to(tl.bfloat16))
            out_desc.store([m, n + half], right.to(tl.bfloat16))
        else:
            out_desc.store([m, n // 2], (activated(left, GATE) * right).to(tl.bfloat16))


@triton.jit
def spread_kernel(
    x, matrix, values, scale, rows,
    WIDTH: tl.constexpr, BLOCKS: tl.constexpr, SIZE: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """`AT_ONCE` rows of x [rows, WIDTH], in up to `BLOCKS` blocks of `SIZE` columns each."""
    line = tl.arange(0, AT_ONCE * BLOCKS)[:, None]
    row, column = line // BLOCKS, line % BLOCKS * SIZE + tl.arange(0, SIZE)[None, :]
    first = tl.program_id(0).to(tl.int64) * AT_ONCE
    at = row * WIDTH + column
    inside = (first + row < rows) & (column < WIDTH)
    given = tl.load(x + first * WIDTH + at, inside, 0.0).to(matrix.dtype.element_ty)
    out = tl.dot(given, tl.load(matrix + tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]))
    largest = tl.reduce(tl.reshape(tl.reduce(tl.abs(out), 1, larger), (AT_ONCE, BLOCKS)), 1, larger)
    step = larger(largest, 1e-12) / 127.0
    # Adding 1.5 * 2 ** 23 leaves no room for fractions: to the nearest whole number, of two the even one.
    steps = tl.reshape(tl.broadcast_to(step[:, None], (AT_ONCE, BLOCKS)), (AT_ONCE * BLOCKS, 1))
    whole = (out / steps + 12582912.0) - 12582912.0
    tl.store(values + first * WIDTH + at, whole.to(tl.int8), inside)
    every = first + tl.arange(0, AT_ONCE)
    tl.store(scale + every, step, every < rows)


@triton.jit
def rows_kernel(
    x, y, after, before, summed, out, scale, epsilon,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, GATE: tl.constexpr,
    ADD: tl.constexpr, AFTER: tl.constexpr, BEFORE: tl.constexpr, QUANTIZE: tl.constexpr,
):  # fmt: skip
    """A row of x [rows, WIDTH] a program.

    GATE: `gelu` or `silu` where x holds gates and ups side by side, or `none`. ADD: y is added to x, AFTER:
    normed first; the sum is written. BEFORE: norm what is written out. QUANTIZE: in 8 bit, with its scale.
    """
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, PADDED)
    at, inside = row * WIDTH + column, column < WIDTH
    if GATE == "none":
        given = tl.load(x + at, inside, 0.0).to(tl.float32)
    else:
        gate = tl.load(x + row * WIDTH + at, inside, 0.0).to(tl.float32)
        given = activated(gate, GATE) * tl.load(x + (row + 1) * WIDTH + at, inside, 0.0).to(tl.float32)
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
def activated(gate, GATE: tl.constexpr):
    """GELU in its tanh form, whose 1 + tanh(y) is 2 sigmoid(2 y), or SiLU."""
    slope = gate
    if GATE == "gelu":
        slope = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    return gate * tl.sigmoid(slope)


@triton.jit
def normed(wide, weight, inside, WIDTH: tl.constexpr, epsilon):
    """A row of float32, RMS-normed and rounded to bfloat16."""
    out = wide * tl.rsqrt(tl.sum(wide * wide) / WIDTH + epsilon) * tl.load(weight, inside, 0.0)
    return out.to(tl.bfloat16).to(tl.float32)


def multiplied(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    *,
    gate: str = "none",
) -> Tensor:
    """What `product_kernel` gives: bfloat16 [T, N], or [T, N / 2] with a gate."""
    (rows, depth), columns = x.shape, len(weight)
    width = columns if gate == "none" else columns // 2
    out = torch.empty(rows, width, dtype=torch.bfloat16, device=x.device)
    programs = min(processors(x.device), triton.cdiv(rows, ROWS) * triton.cdiv(columns, COLUMNS))
    with on(x.device):
        product_kernel[(programs,)](
            TensorDescriptor.from_tensor(x, [ROWS, DEPTH]),
            TensorDescriptor.from_tensor(weight, [COLUMNS, DEPTH]),
            TensorDescriptor.from_tensor(out, [ROWS, COLUMNS // 2]),
            x_scale, scale, scale if bias is None else bias, rows, columns, depth,
            ROWS=ROWS, COLUMNS=COLUMNS, DEPTH=DEPTH, GROUP=GROUP, PROGRAMS=programs, STAGES=STAGES,
            BIAS=bias is not None, GATE=gate,
            num_warps=WARPS,  # pyright: ignore[reportCallIssue]
        )  # fmt: skip
    return out


@torch.library.custom_op("wsdm_ray::product", mutates_args=())
def product(x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Rows times the weight transposed, plus the bias: bfloat16 [T, N].

    Args:
        x, weight: int8 [T, D] and [N, D].
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
        weight: int8 [2 F, D], whose rows are `ALTERNATE` of the gate, as many of up, and so on.
    """
    return multiplied(x, x_scale, weight, scale, None, gate="gelu" if gelu else "silu")


@gated_product.register_fake
def _(x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, gelu: bool) -> Tensor:
    return x.new_empty(len(x), len(weight) // 2, dtype=torch.bfloat16)


@torch.library.custom_op("wsdm_ray::spread_rows", mutates_args=())
def spread_rows(x: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
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
    with on(x.device):
        spread_kernel[(triton.cdiv(rows, at_once),)](
            x, matrix, values, scale, rows, WIDTH=width, BLOCKS=blocks, SIZE=len(matrix), AT_ONCE=at_once,
            num_warps=4 if at_once * blocks <= SPREAD_LINES else 8,  # pyright: ignore[reportCallIssue]
        )  # fmt: skip
    return values, scale


@spread_rows.register_fake
def _(x: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, dtype=torch.int8), x.new_empty(len(x), dtype=torch.float32)


def by_rows(
    x: Tensor,
    y: Tensor | None = None,
    after: Tensor | None = None,
    before: Tensor | None = None,
    epsilon: float = 0.0,
    *,
    gate: str = "none",
    quantize: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `rows_kernel` gives of contiguous x and y: the sum, what is made of it, the scale of that.

    x itself where nothing is added, and no scale where nothing is quantized.
    """
    rows, width = len(x), x.shape[1] if gate == "none" else x.shape[1] // 2
    summed = x if y is None else torch.empty_like(x)
    out = x.new_empty(rows, width, dtype=torch.float8_e4m3fn if quantize else x.dtype)
    scale = x.new_empty(rows if quantize else 0, dtype=torch.float32)
    padded = triton.next_power_of_2(width)
    with on(x.device):
        rows_kernel[(rows,)](
            x, x if y is None else y, scale if after is None else after, scale if before is None else before,
            summed, out, scale, epsilon, WIDTH=width, PADDED=padded, GATE=gate, ADD=y is not None,
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


@torch.library.custom_op("wsdm_ray::gated_float8_rows", mutates_args=())
def gated_float8_rows(x: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    """GELU (tanh form) or SiLU of gates, times ups, as float8 [T, F], and the scale of rows [T].

    Args:
        x: bfloat16 [T, 2 F], the gates before the ups.
    """
    return by_rows(x, gate="gelu" if gelu else "silu")[1:]


@gated_float8_rows.register_fake
def _(x: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    values = x.new_empty(len(x), x.shape[1] // 2, dtype=torch.float8_e4m3fn)
    return values, x.new_empty(len(x), dtype=torch.float32)


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
