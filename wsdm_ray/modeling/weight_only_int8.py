"""Linear layers with bitsandbytes' int8 weights, and activations as they are.

LLM.int8() quantizes activations too and multiplies outlier columns, which it looks for in the whole batch,
apart: a row's result depends on its neighbours, and every product waits for the search. Here a weight is
dequantized for each product, which for thousands of tokens costs little beside the product itself.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from bitsandbytes.nn.modules import Linear8bitLt
from torch import Tensor, nn

__all__ = ["WeightOnlyInt8Linear", "use_weight_only_int8"]


class WeightOnlyInt8Linear(Linear8bitLt):
    """A `Linear8bitLt` whose products dequantize its weight instead of quantizing its input."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        out = DequantizedLinear.apply(x, self.state.CB, self.state.SCB)
        assert isinstance(out, Tensor)
        return out if self.bias is None else out + self.bias.to(out.dtype)


class DequantizedLinear(torch.autograd.Function):
    """`x` [..., in] times the transpose of a weight that keeps its 8 bits between forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, largest: Tensor) -> Tensor:
        ctx.save_for_backward(values, largest)
        return F.linear(x, dequantized(values, largest, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ dequantized(*ctx.saved_tensors, dtype=gradient.dtype), None, None


def dequantized(values: Tensor, largest: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight [out, in] that int8 `values` stand for, where `largest` [out] is what 127 means in a row."""
    return values.to(dtype).mul_((largest / 127)[:, None])


def use_weight_only_int8(network: nn.Module) -> nn.Module:
    """`network`, its int8 layers made `WeightOnlyInt8Linear` in place."""
    for module in network.modules():
        if type(module) is Linear8bitLt:
            if module.weight.CB is not None:  # pyright: ignore[reportAttributeAccessIssue]
                module.init_8bit_state()  # as its own first forward does
            module.__class__ = WeightOnlyInt8Linear
    return network
