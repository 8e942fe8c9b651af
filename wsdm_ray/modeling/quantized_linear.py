"""Linear layers of unquantized weights, or of 8-bit weights and activations with one scale a row (w8a8).

Activations are quantized on the fly, each row by its own largest value, so results are batch-invariant.
(LLM.int8() chooses its outlier columns by the whole batch.)

A few columns of activations are far larger than all others. The steps of int8 are even, so such outliers
would leave little precision to the rest. Therefore blocks of columns go through a Hadamard rotation, in
activations and in weights: it distributes an outlier over its block. The rotation is orthogonal up to a
factor, so results stay the same. Float8 needs no rotation, because its steps grow with the values.
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
    "ACTIVATIONS",
    "HADAMARD_BLOCK",
    "HOPPER",
    "QUANT_MAX",
    "TYPES",
    "LinearWeight",
    "QuantizedTensor",
    "add_residual",
    "add_rms_norm",
    "fit_to_device",
    "float8_scale",
    "gated_linear",
    "hadamard",
    "hadamard_rotate",
    "linear",
    "multiply_rows",
    "on_hopper",
    "pack_weight",
    "quantize_rows",
    "quantize_weight",
    "rms_norm",
    "take_rows",
]

QUANT_MAX = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
"""The absolute value that the largest entry of a row is scaled to."""

TYPES = {"w8a8-fp8": torch.float8_e4m3fn, "w8a8-int8": torch.int8}
"""The storage type of each 8-bit precision."""

SIZE_MULTIPLES = {torch.float8_e4m3fn: 16, torch.int8: 8}
"""Both sizes of a weight must be multiples of this on GPUs."""

HOPPER = (9, 0)
"""The compute capability that `gemm_kernel` and `softcapped_kernel` are written for: H100, H200."""

HADAMARD_BLOCK = 128
"""Columns that one Hadamard block mixes at most; larger blocks gain little accuracy."""

WEIGHT_CHUNK_ROWS = 2_048
"""Rows of a weight that are quantized at a time, to keep the memory beside the weight small."""


class QuantizedTensor(NamedTuple):
    """Quantized rows: values, int8 or float8 [rows, in]; scale, float32 [rows]."""

    values: Tensor
    scale: Tensor


class LinearWeight(NamedTuple):
    """The weight of a linear layer with `out` rows and `in` columns.

    values: [out, in], of a float type, or int8 or float8 with `scale`; scale: float32 [out] or None; bias:
        [out] or None; hadamard: of int8 alone, the matrix [block, block] that rotates blocks of columns;
        fused: the kernels of `gemm_kernel` and `norm_kernels` run it, and rows of gate and up interleave.
    """

    values: Tensor
    scale: Tensor | None
    bias: Tensor | None
    hadamard: Tensor | None = None
    fused: bool = False


def pack_weight(
    weights: Iterable[Tensor | QuantizedTensor],
    biases: Sequence[Tensor],
    precision: str,
    *,
    gated: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LinearWeight:
    """The weights of linear layers with the same input, concatenated into one.

    Args:
        gated: they are gate and up, for `gated_linear`.
        weights: [out, in] each, all of one `in`, or already quantized to `precision`. An iterator's weights
            are held unquantized one at a time.
        biases: [out] each, as many as weights, or none.
        precision: `none` (weights are kept in `dtype`), `w8a8-int8` or `w8a8-fp8`.
        dtype: of activations.

    Raises:
        ModelError: a GPU has no 8-bit GEMM for these sizes.
    """
    bias = torch.cat(list(biases)).to(device, dtype) if biases else None

    def converted(weight: Tensor | QuantizedTensor) -> Tensor:
        return cast("Tensor", weight).to(device, dtype)

    def quantized(weight: Tensor | QuantizedTensor) -> QuantizedTensor:
        if isinstance(weight, QuantizedTensor):
            return QuantizedTensor(weight.values.to(device), weight.scale.to(device))
        return quantize_weight(weight.to(device), TYPES[precision])

    # By map: a comprehension would hold the previous weight while the next is made.
    if precision == "none":
        return LinearWeight(torch.cat(list(map(converted, weights))), None, bias)
    parts = list(map(quantized, weights))
    values, scale = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    matrix = hadamard(values).to(dtype) if values.dtype == torch.int8 else None
    return fit_to_device(LinearWeight(values, scale, bias, matrix), dtype, gated=gated)


def fit_to_device(weight: LinearWeight, dtype: torch.dtype, *, gated: bool) -> LinearWeight:
    """The same weight, run by kernels if its device has them, its gate and up rows in the order they need.

    Raises:
        ModelError: a GPU has no 8-bit GEMM for these sizes.
    """
    values, scale = weight.values, weight.scale
    if scale is None:
        return weight
    if values.is_cuda and any(size % SIZE_MULTIPLES[values.dtype] for size in values.shape):
        raise ModelError(
            f"a weight of {' x '.join(map(str, values.shape))}: GPUs have an 8-bit GEMM only for sizes that "
            f"are multiples of {SIZE_MULTIPLES[values.dtype]}; use --precision bf16"
        )
    fused = dtype == torch.bfloat16 and can_fuse(values, weight.hadamard, gated)
    if gated and fused != weight.fused:
        reorder = interleave_gate_up if fused else deinterleave_gate_up
        values, scale = reorder(values), reorder(scale)
    return weight._replace(values=values, scale=scale, fused=fused)


def can_fuse(values: Tensor, matrix: Tensor | None, gated: bool) -> bool:
    """Whether the Hopper kernels run an 8-bit weight of these sizes on its device."""
    if not on_hopper(values.device) or find_spec("triton") is None:
        return False
    from wsdm_ray.modeling.gemm_kernel import GATE_UP_INTERLEAVE
    from wsdm_ray.modeling.norm_kernels import MAX_BLOCKS  # needs Triton, and registers operators

    rows, columns = values.shape
    if columns % 16 or rows % (2 * GATE_UP_INTERLEAVE if gated else 8):
        return False
    return matrix is None or (len(matrix) >= 16 and columns // len(matrix) <= MAX_BLOCKS)


def on_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == HOPPER


def float8_scale(weight: LinearWeight, norm: Tensor, last: int) -> float:
    """A scale by which any output of the last rows of a float8 weight fits in float8.

    It follows from the bound that the norm puts on its output, so it is the same for every token. Most
    outputs are far below the bound. That costs little, because the steps of float8 shrink with the values:
    down to 1/28,672 of the maximum they are relatively as exact. Where a norm's largest weight is thousands
    of times the others, outputs can exceed the bound; they are clipped.

    Args:
        norm: the weight of the RMS norm before it, [columns].
        last: number of rows.
    """
    assert weight.scale is not None
    rows = weight.values[-last:].float() * norm
    bound = rows.norm(dim=1) * len(norm) ** 0.5 * weight.scale[-last:]
    bound = bound * (1 + 2**-3)  # quantized activations are off by a sixteenth unless they are tiny
    if weight.bias is not None:
        bound = bound + weight.bias[-last:].float().abs()
    return float(bound.max()) / QUANT_MAX[weight.values.dtype]


def interleave_gate_up(rows: Tensor) -> Tensor:
    """Rows of the gate and then of up, as blocks of both in turn."""
    from wsdm_ray.modeling.gemm_kernel import GATE_UP_INTERLEAVE

    return rows.unflatten(0, (2, -1, GATE_UP_INTERLEAVE)).transpose(0, 1).flatten(0, 2)


def deinterleave_gate_up(rows: Tensor) -> Tensor:
    """The inverse of `interleave_gate_up`."""
    from wsdm_ray.modeling.gemm_kernel import GATE_UP_INTERLEAVE

    return rows.unflatten(0, (-1, 2, GATE_UP_INTERLEAVE)).transpose(0, 1).flatten(0, 2)


def quantize_weight(weight: Tensor, dtype: torch.dtype) -> QuantizedTensor:
    """A weight [out, in] in 8 bits; for int8 after the Hadamard rotation, whose factor is in the scale."""
    matrix = hadamard(weight) if dtype == torch.int8 else None
    parts = [
        quantize_rows(hadamard_rotate(chunk.float(), matrix), dtype)
        for chunk in weight.split(WEIGHT_CHUNK_ROWS)
    ]
    values, scale = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return QuantizedTensor(values, scale if matrix is None else scale / len(matrix))


def hadamard(weight: Tensor) -> Tensor:
    """The largest Hadamard matrix, of up to `HADAMARD_BLOCK` rows, whose size divides a weight's columns.

    Float32, on the weight's device. The matrix times its transpose is its size times the identity.
    """
    columns = weight.shape[1]
    matrix = torch.ones(1, 1, device=weight.device)
    while len(matrix) < HADAMARD_BLOCK and columns % (2 * len(matrix)) == 0:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def hadamard_rotate(x: Tensor, matrix: Tensor | None) -> Tensor:
    """`x` [rows, columns], each block of its columns times `matrix`."""
    return x if matrix is None else (x.reshape(-1, len(matrix)) @ matrix).view(x.shape)


def quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Each row of `x` [rows, columns] in 8 bits, and its float32 scale [rows]: x is about values * scale."""
    wide = x.float()
    # By a constant: code that is compiled takes the value of a dict for an input.
    most = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    scale = wide.abs().amax(-1).clamp_min(1e-12) / most
    scaled = wide / scale[:, None]
    return (scaled.round() if dtype == torch.int8 else scaled).to(dtype), scale


def quantize_activations(x: Tensor | QuantizedTensor, weight: LinearWeight) -> QuantizedTensor:
    """Activations in the type of an 8-bit weight; already quantized ones are returned unchanged."""
    if isinstance(x, QuantizedTensor):
        return x
    if not weight.fused:
        return QuantizedTensor(*quantize_rows(hadamard_rotate(x, weight.hadamard), weight.values.dtype))
    if weight.hadamard is None:
        return QuantizedTensor(*torch.ops.wsdm_ray.float8_rows(x.contiguous()))
    return QuantizedTensor(*torch.ops.wsdm_ray.hadamard_int8_rows(x.contiguous(), weight.hadamard))


def linear(x: Tensor | QuantizedTensor, weight: LinearWeight) -> Tensor:
    """`x` [rows, in] times the weight's transpose, plus its bias: [rows, out], in the type of `x`.

    Bfloat16 if `x` is quantized, as `add_rms_norm` returns it.
    """
    if weight.scale is None:
        return F.linear(cast("Tensor", x), weight.values, weight.bias)
    dtype = torch.bfloat16 if isinstance(x, QuantizedTensor) else x.dtype
    return multiply_rows(quantize_activations(x, weight), weight, dtype)


def multiply_rows(x: QuantizedTensor, weight: LinearWeight, dtype: torch.dtype) -> Tensor:
    """`linear` of quantized rows, whatever rotation they have: [rows, out].

    Args:
        dtype: of the output where no kernel of ours runs it, which gives bfloat16.
    """
    rows, scale = x
    assert weight.scale is not None
    if weight.fused:
        return torch.ops.wsdm_ray.gemm(rows, scale, weight.values, weight.scale, weight.bias)
    if weight.values.dtype == torch.int8:
        sums = torch._int_mm(rows, weight.values.t())  # pyright: ignore[reportPrivateImportUsage]
        out = (sums.float() * scale[:, None] * weight.scale).to(dtype)
    elif not rows.is_cuda:  # not every CPU has a float8 GEMM with one scale a row
        out = (F.linear(rows.float(), weight.values.float()) * scale[:, None] * weight.scale).to(dtype)
    else:
        out = torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
            rows, weight.values.t(), scale_a=scale[:, None], scale_b=weight.scale[None],
            out_dtype=torch.bfloat16, use_fast_accum=True,
        ).to(dtype)  # fmt: skip
    return out if weight.bias is None else out + weight.bias


def gated_linear(x: Tensor | QuantizedTensor, weight: LinearWeight, *, activation: str) -> Tensor:
    """The activation of x times the gate, times x times up: [rows, out / 2].

    Args:
        activation: `gelu_pytorch_tanh` or `silu`, as transformers names them.
    """
    if weight.fused:
        rows, scale = quantize_activations(x, weight)
        return torch.ops.wsdm_ray.gated_gemm(rows, scale, weight.values, weight.scale, activation)
    gate, up = linear(x, weight).chunk(2, 1)
    return ACTIVATIONS[activation](gate) * up


def add_rms_norm(
    x: Tensor, y: Tensor, post_norm: Tensor | None, next_norm: Tensor, epsilon: float, weight: LinearWeight
) -> tuple[Tensor, Tensor | QuantizedTensor]:
    """x + y, and the RMS norm of that sum as an input of `weight`: [rows, columns] each.

    Args:
        post_norm: the weight of the norm of y, if it has one; next_norm: of the norm of the sum.
    """
    if not weight.fused:
        x = add_residual(x, y, post_norm, epsilon)
        return x, rms_norm(x, next_norm, epsilon)
    if weight.hadamard is None:
        x, values, scale = torch.ops.wsdm_ray.add_rms_norm_float8(x, y, post_norm, next_norm, epsilon)
        return x, QuantizedTensor(values, scale)
    x, normed = torch.ops.wsdm_ray.add_rms_norm(x, y, post_norm, next_norm, epsilon)
    return x, quantize_activations(normed, weight)


def add_residual(x: Tensor, y: Tensor, post_norm: Tensor | None, epsilon: float) -> Tensor:
    """x + y, with y RMS-normed first if it has a norm of its own."""
    return x + (y if post_norm is None else rms_norm(y, post_norm, epsilon))


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
    """`gelu` with 2 sigmoid(2 y) for 1 + tanh(y), because compilers generate a slow tanh for GPUs."""
    wide, slope = x.float(), 2 * (2 / math.pi) ** 0.5
    return (wide * torch.sigmoid(slope * (wide + 0.044715 * wide**3))).to(x.dtype)


ACTIVATIONS = {"gelu_pytorch_tanh": gelu, "silu": F.silu}
"""The activation functions of a gated MLP by transformers' names."""
