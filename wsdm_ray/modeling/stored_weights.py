"""Weights of linear layers as a checkpoint stores them, quantized and back."""

from collections.abc import Mapping

import torch

from wsdm_ray.modeling.precision import W8A8
from wsdm_ray.modeling.quantized_linear import (
    TYPES,
    QuantizedTensor,
    hadamard,
    hadamard_rotate,
    quantize_weight,
)

__all__ = ["dequantized", "quantized", "stored_rows"]


def quantized(weight: torch.Tensor, precision: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What a quantized layer stores of its weight, by the name after the layer's.

    Args:
        weight: floating [out, in], on the CPU, where the same weight gives the same bytes on any machine.
        precision: `bnb-int8` (of the weight in float16), `nf4` (of the weight in `dtype`, with double
            quantization), `w8a8-fp8` or `w8a8-int8` (a scale for each row).
    """
    from bitsandbytes import functional

    if precision in W8A8:
        return stored_rows(quantize_weight(weight, TYPES[precision], spread=precision == "w8a8-int8"))
    if precision == "bnb-int8":
        values, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
        return {"weight": values, "SCB": scales, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    values, state = functional.quantize_4bit(weight.to(dtype), quant_type="nf4", compress_statistics=True)
    return {"weight": values} | {
        f"weight.{name}": value for name, value in state.as_dict(packed=True).items()
    }


def stored_rows(rows: QuantizedTensor) -> dict[str, torch.Tensor]:
    """What a layer stores of a weight with a scale for each row, by the name after the layer's."""
    values = rows.values
    if values.dtype == torch.int8:  # in blocks, a shape that no other reader takes for the weight's own
        values = values.unflatten(1, (-1, len(hadamard(values))))
    return {"weight": values, "weight_scale": rows.scale[:, None]}


def dequantized(stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The float32 weight [out, in] of the tensors that `quantized` gives, or of an unquantized `weight`."""
    from bitsandbytes import functional

    weight = stored["weight"]
    if "SCB" in stored:
        return functional.int8_vectorwise_dequant(weight, stored["SCB"])
    if "weight_scale" in stored:
        rows = weight.flatten(1).float() * stored["weight_scale"]
        # The rotation twice is the identity times the size of its blocks, which the scale was divided by.
        return hadamard_rotate(rows, hadamard(rows)) if weight.dtype == torch.int8 else rows
    statistics = {name.removeprefix("weight."): value for name, value in stored.items() if name != "weight"}
    if not statistics:
        return weight.float()
    state = functional.QuantState.from_dict(statistics, device=weight.device)
    return functional.dequantize_4bit(weight, state).float()
