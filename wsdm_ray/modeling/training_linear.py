"""Linear layers for training: a frozen weight, 8-bit or not, with adapters beside it.

    T tokens, R ranks of all adapters together

Layers with the same input are one weight, `out` rows in all. What it costs to hold and to multiply depends on
how the base is held:

    none       GEMMs in the type of activations
    bnb-int8   the same, of a weight that is dequantized for each GEMM
    nf4        the same
    w8a8-*     8-bit GEMMs both ways: activations are quantized row by row, and so is the gradient, after the
               scales of the weight's rows, over which it sums, were multiplied into it

Adapters, their gradients and what they add to the gradient of the input are never of 8 bits.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from wsdm_ray.modeling.kernel_launch import operator
from wsdm_ray.modeling.quantization_config import NF4_BLOCK
from wsdm_ray.modeling.quantized_linear import (
    LinearWeight,
    QuantizedTensor,
    hadamard_rotate,
    linear,
    multiply_rows,
    quantize_rows,
)

__all__ = ["AdaptedLinear", "Adapter", "FrozenWeight", "adapted_linear", "dropped"]


class FrozenWeight(NamedTuple):
    """The weight of linear layers with the same input, [out, in].

    values: of a float type [out, in]; int8 or float8 [out, in]; or 4 bits, two in a byte.
    scale: float32 [out] of 8-bit values, or of 4-bit values one each `NF4_BLOCK`; None of a float type.
    hadamard, fused: of `LinearWeight`.
    rows: 8-bit GEMMs, instead of GEMMs of the dequantized weight.
    shape: (out, in).
    """

    values: Tensor
    scale: Tensor | None
    hadamard: Tensor | None
    fused: bool
    rows: bool
    shape: tuple[int, int]


class Adapter(NamedTuple):
    """The LoRA factors of one layer: A [rank, in], B [out, rank]; scale: of their product.

    start: the first row of its output among those of its `AdaptedLinear`.
    """

    A: Tensor
    B: Tensor
    scale: float
    start: int


class AdaptedLinear(NamedTuple):
    """A frozen weight with adapters. dropout: the share of the input that adapters do not see in training."""

    weight: FrozenWeight
    bias: Tensor | None
    adapters: tuple[Adapter, ...]
    dropout: float


def adapted_linear(x: Tensor, layer: AdaptedLinear, seed: Tensor | None) -> Tensor:
    """`x` [T, in] times the weight transposed, with bias and adapters: [T, out].

    Args:
        seed: of `dropped`, int32 []; None drops nothing. One mask serves all adapters of the layer.
    """
    if layer.adapters:
        seen = x if seed is None or not layer.dropout else dropped(x, seed, layer.dropout)
        inner_TR = F.linear(seen, torch.cat([adapter.A.to(x.dtype) for adapter in layer.adapters]))
        second = second_factors(layer, x.dtype)
    else:
        inner_TR, second = x.new_empty(x.shape[0], 0), x.new_empty(layer.weight.shape[0], 0)
    if torch.is_grad_enabled():
        out = AdaptedGemm.apply(x, inner_TR, second, layer.weight[3:], *layer.weight[:3])
    else:  # where compiled, `apply` without gradients can take parameters for arguments without a context
        out = adapted_gemm(x, inner_TR, second, layer.weight)
    assert isinstance(out, Tensor)
    return out if layer.bias is None else out + layer.bias.to(out.dtype)


def second_factors(layer: AdaptedLinear, dtype: torch.dtype) -> Tensor:
    """B of all adapters with their scales as one matrix [out, R]: blocks on the diagonal, and zeros.

    One large GEMM with zeros is faster than several narrow ones on parts of an output.
    """
    ranks = sum(adapter.B.shape[1] for adapter in layer.adapters)
    blocks, row, first = [], 0, 0
    for adapter in layer.adapters:
        rows, rank = adapter.B.shape
        scaled = (adapter.B * adapter.scale).to(dtype)
        blocks.append(F.pad(scaled, (first, ranks - first - rank, adapter.start - row, 0)))
        row, first = adapter.start + rows, first + rank
    return F.pad(torch.cat(blocks), (0, 0, 0, layer.weight.shape[0] - row))


def dropped(x: Tensor, seed: Tensor, share: float) -> Tensor:
    """`x` [rows, columns] with about `share` of its values 0, and the others larger by as much.

    Which ones is a function of seed, row and column alone. So the backward pass can work the mask out again
    instead of keeping it, on any device, and needs no state of a random generator.

    Args:
        seed: int32 [].
    """
    rows = torch.arange(x.shape[0], dtype=torch.int32, device=x.device)[:, None]
    columns = torch.arange(x.shape[1], dtype=torch.int32, device=x.device)
    mixed = rows * -1_640_531_527 + columns * 668_265_263 + seed  # modulo 2**32, as all that follows
    mixed = (mixed ^ (mixed >> 15)) * -2_048_144_789  # the rounds of MurmurHash3's finalizer
    mixed = (mixed ^ (mixed >> 13)) * -1_028_477_387
    kept = ((mixed ^ (mixed >> 16)) & 0x7FFF_FFFF) >= int(share * 2**31)
    return torch.where(kept, x * (1 / (1 - share)), 0)


def adapted_gemm(x: Tensor, inner_TR: Tensor, second: Tensor, weight: FrozenWeight) -> Tensor:
    """x W^T + inner second^T, whose second part is added in place to the output of the first: [T, out].

    Args:
        second: [out, R].
    """
    out = frozen_gemm(x, weight)
    if second.shape[1]:
        torch.ops.wsdm_ray.add_low_rank(out, inner_TR, second)
    return out


class AdaptedGemm(torch.autograd.Function):
    """`adapted_gemm` with gradients of x, inner and second."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        inner_TR: Tensor,
        second: Tensor,
        frozen: tuple[bool, bool, tuple[int, int]],
        values: Tensor,
        scale: Tensor | None,
        hadamard: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(inner_TR, second, values, scale, hadamard)
        ctx.frozen = frozen
        return adapted_gemm(x, inner_TR, second, FrozenWeight(values, scale, hadamard, *frozen))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inner_TR, second, values, scale, hadamard = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        of_x = input_gradient(gradient, FrozenWeight(values, scale, hadamard, *ctx.frozen))
        return of_x, gradient @ second, gradient.t() @ inner_TR, None, None, None, None


@operator(mutates=("out",))
def add_low_rank(out: Tensor, inner: Tensor, second: Tensor) -> None:
    """Add inner [T, R] times second [out, R] transposed to `out` [T, out], in place."""
    out.addmm_(inner, second.t())


def frozen_gemm(x: Tensor, weight: FrozenWeight) -> Tensor:
    """`x` [T, in] times a weight transposed: [T, out]."""
    if weight.rows:
        return linear(x, LinearWeight(weight.values, weight.scale, None, weight.hadamard, weight.fused))
    return F.linear(x, dequantized(weight, x.dtype))


def input_gradient(gradient: Tensor, weight: FrozenWeight) -> Tensor:
    """The gradient of a GEMM's input from that of its output: [T, in].

    Args:
        gradient: [T, out].
    """
    if not weight.rows:
        return gradient @ dequantized(weight, gradient.dtype, gradient)
    values, scale = weight.values, weight.scale
    assert scale is not None
    rows = QuantizedTensor(*quantize_rows(gradient.float() * scale, values.dtype))
    # 8-bit GEMMs take both factors with the axis that is summed over last.
    transposed = values.view(torch.uint8).t().contiguous().view(values.dtype)
    ones = torch.ones(len(transposed), device=gradient.device)
    fused = weight.fused and values.dtype == torch.int8  # cuBLAS is faster in float8
    out = multiply_rows(rows, LinearWeight(transposed, ones, None, fused=fused), gradient.dtype)
    return hadamard_rotate(out, weight.hadamard)


def dequantized(weight: FrozenWeight, dtype: torch.dtype, after: Tensor | None = None) -> Tensor:
    """The weight in a float type: [out, in].

    Args:
        after: what must be there first. Compiled, the backward pass would take the forward pass's weight of 4
            bits and keep it until then in 16.
    """
    values, scale = weight.values, weight.scale
    if scale is None:
        return values
    if values.dtype == torch.int8:
        return (values.float() * scale[:, None]).to(dtype)
    return torch.ops.wsdm_ray.dequantize_nf4(values, scale, list(weight.shape), dtype, after)


@operator()
def dequantize_nf4(
    values: Tensor, scale: Tensor, shape: Sequence[int], dtype: torch.dtype, after: Tensor | None
) -> Tensor:
    """bitsandbytes' 4-bit values as a weight of `shape` and `dtype`; `after` as of `dequantized`."""
    return torch.ops.bitsandbytes.dequantize_4bit(values, scale, NF4_BLOCK, "nf4", shape, dtype)


@torch.library.register_fake("wsdm_ray::dequantize_nf4")
def _(
    values: Tensor, scale: Tensor, shape: Sequence[int], dtype: torch.dtype, after: Tensor | None
) -> Tensor:
    return values.new_empty(*shape, dtype=dtype)
