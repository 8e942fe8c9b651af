"""Matrix products with weights as they are, or in 8 bit with a scale for each row of weights and activations.

Activations are quantized as they come, by their row's largest value, so a row's result does not depend on its
neighbours (LLM.int8() chooses its outlier columns by the batch).

A few columns of activations are far larger than all others, and in int8, whose steps are even, they would
leave little of the others. So blocks of columns are first multiplied by a Hadamard matrix, of ones and minus
ones, in activations and in weights: it spreads what is in one column over all of its block, and being
orthogonal but for a factor it leaves the products as they are. Floats of 8 bit have no use for it, as their
steps grow with the numbers.
"""

import math
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from wsdm_ray.errors import ModelError

__all__ = [
    "HOPPER",
    "TYPES",
    "LinearWeight",
    "QuantizedTensor",
    "add",
    "add_norm",
    "float8_scale",
    "gated_linear",
    "linear",
    "pack_weight",
    "quantize_rows",
    "quantize_weight",
    "rms_norm",
    "take_rows",
]

LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
"""What the largest value of a row becomes."""

TYPES = {"w8a8-fp8": torch.float8_e4m3fn, "w8a8-int8": torch.int8}

MULTIPLES = {torch.float8_e4m3fn: 16, torch.int8: 8}
"""What GPUs need the sizes of a weight to be multiples of."""

HOPPER = (9, 0)
"""The compute capability that `product_kernel` and `attention_kernel` are made for: H100, H200."""

HADAMARD_BLOCK = 128
"""Columns of a block that share their large values: more gain little."""

ROWS_AT_ONCE = 2_048
"""Rows of a weight that are quantized at a time: what that takes beside the weight stays small."""


class QuantizedTensor(NamedTuple):
    """A weight, or what it multiplies, in 8 bit: values, int8 or float8 [rows, in]; scale, float32 [rows]."""

    values: Tensor
    scale: Tensor


class LinearWeight(NamedTuple):
    """A weight of `out` rows and `in` columns.

    values: [out, in], of a float type, or int8 or float8 with `scale`; scale: float32 [out] or None; bias:
        [out] or None; spread: of int8 alone, the Hadamard matrix that blocks of columns were multiplied by,
        [block, block]; fused: products are by `product_kernel`, what goes with them by `kernels`, and rows of
        gate and up alternate.
    """

    values: Tensor
    scale: Tensor | None
    bias: Tensor | None
    spread: Tensor | None = None
    fused: bool = False


def pack_weight(
    weights: Iterable[Tensor | QuantizedTensor],
    biases: Sequence[Tensor],
    precision: str,
    *,
    gated: bool = False,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LinearWeight:
    """Weights of linear layers that multiply the same input, as one of all their rows.

    Args:
        gated: they are those of gate and up, for `gated_linear`.
        weights: [out, in] each, all of one `in`, or such that are in the rows of `precision` already. Of
            those that an iterator makes, one at a time is held as it came.
        biases: [out] each, as many as weights, or none.
        precision: `none` (then of `dtype`), `w8a8-int8` or `w8a8-fp8`.

    Raises:
        ModelError: a GPU has no products of these sizes in 8 bit.
    """
    bias = torch.cat(list(biases)).to(device, dtype) if biases else None

    def as_it_is(weight: Tensor | QuantizedTensor) -> Tensor:
        return cast("Tensor", weight).to(device, dtype)

    def rows_of(weight: Tensor | QuantizedTensor) -> QuantizedTensor:
        if isinstance(weight, QuantizedTensor):
            return QuantizedTensor(weight.values.to(device), weight.scale.to(device))
        return quantize_weight(weight.to(device), TYPES[precision], spread=precision == "w8a8-int8")

    # By map, as a comprehension would hold the weight before while the next is made.
    if precision == "none":
        return LinearWeight(torch.cat(list(map(as_it_is, weights))), None, bias)
    every = list(map(rows_of, weights))
    values, scale = (torch.cat(each) for each in zip(*every, strict=True))
    if values.is_cuda and any(size % MULTIPLES[values.dtype] for size in values.shape):
        raise ModelError(
            f"a product of {' x '.join(map(str, values.shape))}: GPUs have it in 8 bit only where its sizes "
            f"are multiples of {MULTIPLES[values.dtype]}; use --precision bf16"
        )
    spread = hadamard(values).to(dtype) if precision == "w8a8-int8" else None
    fused = dtype == torch.bfloat16 and can_fuse(values, spread, gated)
    if fused and gated:
        values, scale = (interleave_gate_up(each) for each in (values, scale))
    return LinearWeight(values, scale, bias, spread, fused)


def can_fuse(values: Tensor, spread: Tensor | None, gated: bool) -> bool:
    """Whether there are kernels for an 8-bit weight, on the GPUs that they were made for."""
    if not on_hopper(values.device) or find_spec("triton") is None:
        return False
    from wsdm_ray.modeling.gemm_kernel import GATE_UP_INTERLEAVE
    from wsdm_ray.modeling.norm_kernels import MOST_BLOCKS  # which takes Triton, and defines operations

    rows, columns = values.shape
    if columns % 16 or rows % (2 * GATE_UP_INTERLEAVE if gated else 8):
        return False
    return spread is None or (len(spread) >= 16 and columns // len(spread) <= MOST_BLOCKS)


def on_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == HOPPER


def float8_scale(weight: LinearWeight, norm: Tensor, last: int) -> float:
    """What products of normed rows with the last rows of a float8 weight are divided by to fit in float8.

    By the norm's own bound, so it is the same for all rows. That numbers are mostly far below it costs
    little, as the steps of floats grow with them: down to a 28,672nd of it they are as exact as the largest.
    Where a norm's largest weight is thousands of times the others, numbers can pass it: they are cut there.

    Args:
        norm: what normed rows are multiplied by, [columns].
        last: how many rows.
    """
    assert weight.scale is not None
    rows = weight.values[-last:].float() * norm
    most = rows.norm(dim=1) * len(norm) ** 0.5 * weight.scale[-last:]
    most = most * (1 + 2**-3)  # rows of activations are rounded, by a sixteenth unless they are tiny
    if weight.bias is not None:
        most = most + weight.bias[-last:].float().abs()
    return float(most.max()) / LARGEST[weight.values.dtype]


def interleave_gate_up(rows: Tensor) -> Tensor:
    """Rows of a gate and then of up, as blocks of both in turn."""
    from wsdm_ray.modeling.gemm_kernel import GATE_UP_INTERLEAVE

    return rows.unflatten(0, (2, -1, GATE_UP_INTERLEAVE)).transpose(0, 1).flatten(0, 2)


def quantize_weight(weight: Tensor, kind: torch.dtype, *, spread: bool = False) -> QuantizedTensor:
    """A weight in 8 bit, a few rows at a time.

    Args:
        spread: multiply blocks of columns by `hadamard`, the scale divided by its factor.
    """
    matrix = hadamard(weight) if spread else None
    parts = [
        quantize_rows(hadamard_rotate(part.float(), matrix), kind) for part in weight.split(ROWS_AT_ONCE)
    ]
    values, scale = (torch.cat(each) for each in zip(*parts, strict=True))
    return QuantizedTensor(values, scale if matrix is None else scale / len(matrix))


def hadamard(weight: Tensor) -> Tensor:
    """The largest Hadamard matrix, of `HADAMARD_BLOCK` rows or fewer, whose blocks fill a weight's columns.

    Float32, on the weight's device. Its product with its transpose is the identity times its size.
    """
    columns = weight.shape[1]
    matrix = torch.ones(1, 1, device=weight.device)
    while len(matrix) < HADAMARD_BLOCK and columns % (2 * len(matrix)) == 0:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def hadamard_rotate(x: Tensor, matrix: Tensor | None) -> Tensor:
    """`x` [rows, columns], each block of its columns times `matrix`."""
    return x if matrix is None else (x.reshape(-1, len(matrix)) @ matrix).view(x.shape)


def quantize_rows(x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Each row of `x` [rows, columns] in 8 bit, and its float32 scale [rows]: x is about values * scale."""
    wide = x.float()
    scale = wide.abs().amax(-1).clamp_min(1e-12) / LARGEST[kind]
    scaled = wide / scale[:, None]
    return (scaled.round() if kind == torch.int8 else scaled).to(kind), scale


def quantize_activations(x: Tensor | QuantizedTensor, weight: LinearWeight) -> QuantizedTensor:
    """Rows as an 8-bit weight multiplies them; those that are so already stay."""
    if isinstance(x, QuantizedTensor):
        return x
    if not weight.fused:
        return QuantizedTensor(*quantize_rows(hadamard_rotate(x, weight.spread), weight.values.dtype))
    if weight.spread is None:
        return QuantizedTensor(*torch.ops.wsdm_ray.float8_rows(x.contiguous()))
    return QuantizedTensor(*torch.ops.wsdm_ray.hadamard_int8_rows(x.contiguous(), weight.spread))


def linear(x: Tensor | QuantizedTensor, weight: LinearWeight) -> Tensor:
    """`x` [rows, in] times the weight's transpose, plus its bias: [rows, out], in the type of `x`.

    Of `QuantizedTensor`, as `add_norm` gives them, bfloat16.
    """
    if weight.scale is None:
        return F.linear(cast("Tensor", x), weight.values, weight.bias)
    rows, scale = quantize_activations(x, weight)
    if weight.fused:
        return torch.ops.wsdm_ray.product(rows, scale, weight.values, weight.scale, weight.bias)
    dtype = torch.bfloat16 if isinstance(x, QuantizedTensor) else x.dtype
    if weight.values.dtype == torch.int8:
        sums = torch._int_mm(rows, weight.values.t())  # pyright: ignore[reportPrivateImportUsage]
        out = (sums.float() * scale[:, None] * weight.scale).to(dtype)
    elif not rows.is_cuda:  # not every CPU has them with a scale for each row
        out = (F.linear(rows.float(), weight.values.float()) * scale[:, None] * weight.scale).to(dtype)
    else:
        out = torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
            rows, weight.values.t(), scale_a=scale[:, None], scale_b=weight.scale[None],
            out_dtype=torch.bfloat16, use_fast_accum=True,
        ).to(dtype)  # fmt: skip
    return out if weight.bias is None else out + weight.bias


def gated_linear(x: Tensor | QuantizedTensor, weight: LinearWeight, *, with_gelu: bool) -> Tensor:
    """GELU (tanh form) or SiLU of x's products with the gate, times those with up: [rows, out / 2]."""
    if weight.fused:
        rows, scale = quantize_activations(x, weight)
        return torch.ops.wsdm_ray.gated_product(rows, scale, weight.values, weight.scale, with_gelu)
    gate, up = linear(x, weight).chunk(2, 1)
    return (gelu(gate) if with_gelu else F.silu(gate)) * up


def add_norm(
    x: Tensor, y: Tensor, after: Tensor | None, before: Tensor, epsilon: float, weight: LinearWeight
) -> tuple[Tensor, Tensor | QuantizedTensor]:
    """x plus y, and that sum RMS-normed, as `weight` multiplies it: [rows, columns] each.

    Args:
        after: the weight of y's own norm, if it has one; before: of the sum's.
    """
    if not weight.fused:
        x = add(x, y, after, epsilon)
        return x, rms_norm(x, before, epsilon)
    if weight.spread is None:
        x, values, scale = torch.ops.wsdm_ray.add_norm_float8(x, y, after, before, epsilon)
        return x, QuantizedTensor(values, scale)
    x, normed = torch.ops.wsdm_ray.add_norm(x, y, after, before, epsilon)
    return x, quantize_activations(normed, weight)


def add(x: Tensor, y: Tensor, after: Tensor | None, epsilon: float) -> Tensor:
    """x plus y, y RMS-normed first where it has a norm of its own."""
    return x + (y if after is None else rms_norm(y, after, epsilon))


def take_rows(x: Tensor | QuantizedTensor, rows: Tensor) -> Tensor | QuantizedTensor:
    """Some rows of x, by their indices."""
    return QuantizedTensor(x.values[rows], x.scale[rows]) if isinstance(x, QuantizedTensor) else x[rows]


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon) * weight).to(x.dtype)


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form."""
    return gelu_by_sigmoid(x) if x.is_cuda else F.gelu(x, approximate="tanh")


def gelu_by_sigmoid(x: Tensor) -> Tensor:
    """The same with 2 sigmoid(2 y) for 1 + tanh(y), as compilers make a slow tanh for GPUs."""
    wide, slope = x.float(), 2 * (2 / math.pi) ** 0.5
    return (wide * torch.sigmoid(slope * (wide + 0.044715 * wide**3))).to(x.dtype)
