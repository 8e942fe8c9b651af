"""Matrix products with weights as they are, or in 8 bit with a scale for each row of weights and activations.

Activations are quantized as they come, by their row's largest value, so a row's result does not depend on its
neighbours (LLM.int8() chooses its outlier columns by the batch).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from wsdm_ray.errors import ModelError

__all__ = ["TYPES", "Rows", "Weight", "in_rows", "multiply", "pack_weight", "quantize_rows"]

LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
"""What the largest value of a row becomes."""

TYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}

MULTIPLES = {torch.float8_e4m3fn: 16, torch.int8: 8}
"""What GPUs need the sizes of a weight to be multiples of."""

ROWS_AT_ONCE = 2_048
"""Rows of a weight that are quantized at a time: what that takes beside the weight stays small."""


class Rows(NamedTuple):
    """A weight in 8 bit: values, int8 or float8 [out, in]; scale, float32 [out]."""

    values: Tensor
    scale: Tensor


class Weight(NamedTuple):
    """A weight of `out` rows and `in` columns.

    values: [out, in], of a float type, or int8 or float8 with `scale`; scale: float32 [out] or None; bias:
        [out] or None.
    """

    values: Tensor
    scale: Tensor | None
    bias: Tensor | None


def pack_weight(
    weights: Iterable[Tensor | Rows],
    biases: Sequence[Tensor],
    precision: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Weight:
    """Weights of linear layers that multiply the same input, as one of all their rows.

    Args:
        weights: [out, in] each, all of one `in`, or such that are in the 8 bit of `precision` already. Of
            those that an iterator makes, one at a time is held as it came.
        biases: [out] each, as many as weights, or none.
        precision: `none` (then of `dtype`), `int8` or `fp8`.

    Raises:
        ModelError: a GPU has no products of these sizes in 8 bit.
    """
    bias = torch.cat(list(biases)).to(device, dtype) if biases else None
    if precision == "none":
        floats = cast("Iterable[Tensor]", weights)
        return Weight(torch.cat([weight.to(device, dtype) for weight in floats]), None, bias)
    every = [
        weight if isinstance(weight, Rows) else in_rows(weight.to(device), TYPES[precision])
        for weight in weights
    ]
    values = torch.cat([rows.values.to(device) for rows in every])
    scale = torch.cat([rows.scale.to(device) for rows in every])
    if values.is_cuda and any(size % MULTIPLES[values.dtype] for size in values.shape):
        raise ModelError(
            f"a product of {' x '.join(map(str, values.shape))}: GPUs have it in 8 bit only where its sizes "
            f"are multiples of {MULTIPLES[values.dtype]}; use --precision bf16"
        )
    return Weight(values, scale, bias)


def in_rows(weight: Tensor, kind: torch.dtype) -> Rows:
    """A weight in 8 bit, a few rows at a time."""
    parts = [quantize_rows(part, kind) for part in weight.split(ROWS_AT_ONCE)]
    return Rows(*(torch.cat(each) for each in zip(*parts, strict=True)))


def quantize_rows(x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Each row of `x` [rows, columns] in 8 bit, and its float32 scale [rows]: x is about values * scale."""
    wide = x.float()
    scale = wide.abs().amax(-1).clamp_min(1e-12) / LARGEST[kind]
    scaled = wide / scale[:, None]
    return (scaled.round() if kind == torch.int8 else scaled).to(kind), scale


def multiply(x: Tensor, weight: Weight) -> Tensor:
    """`x` [rows, in] times the weight's transpose, plus its bias: [rows, out], in the type of `x`."""
    if weight.scale is None:
        return F.linear(x, weight.values, weight.bias)
    kind = weight.values.dtype
    rows, scale = quantize_rows(x, kind)
    if kind == torch.int8:
        sums = torch._int_mm(rows, weight.values.t())  # pyright: ignore[reportPrivateImportUsage]
        out = (sums.float() * scale[:, None] * weight.scale).to(x.dtype)
    else:
        out = torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
            rows, weight.values.t(), scale_a=scale[:, None], scale_b=weight.scale[None],
            out_dtype=torch.bfloat16, use_fast_accum=True,
        ).to(x.dtype)  # fmt: skip
    return out if weight.bias is None else out + weight.bias
