"""Matrix products with weights as they are, or in 8 bit with a scale for each row of weights and activations.

Activations are quantized as they come, by their row's largest value, so a row's result does not depend on its
neighbours (LLM.int8() chooses its outlier columns by the batch).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

__all__ = ["Weight", "multiply", "pack_weight", "quantize_rows"]

LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
"""What the largest value of a row becomes."""

TYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}


class Weight(NamedTuple):
    """A weight of `out` rows and `in` columns.

    values: [out, in], of a float type, or int8 or float8 with `scale`; scale: float32 [out] or None; bias:
        [out] or None.
    """

    values: Tensor
    scale: Tensor | None
    bias: Tensor | None


def pack_weight(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    precision: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Weight:
    """Weights of linear layers that multiply the same input, as one of all their rows.

    Args:
        weights: [out, in] each, all of one `in`.
        biases: [out] each, as many as weights, or none.
        precision: `none` (then of `dtype`), `int8` or `fp8`.
    """
    bias = torch.cat(list(biases)).to(device, dtype) if biases else None
    values = torch.cat([weight.to(device) for weight in weights])
    if precision == "none":
        return Weight(values.to(dtype), None, bias)
    quantized, scale = quantize_rows(values, TYPES[precision])
    return Weight(quantized, scale, bias)


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
