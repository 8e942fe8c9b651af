"""Linear layers with bitsandbytes' int8 weights and unquantized activations.

LLM.int8() quantizes activations too. It searches the whole batch for outlier columns and multiplies them
apart, so that a row's result depends on the other rows of its batch, and every GEMM waits for the search.
Here a weight is dequantized for each GEMM, which for thousands of tokens costs little beside the GEMM itself.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from bitsandbytes.nn.modules import Linear8bitLt
from torch import Tensor, nn

__all__ = ["WeightOnlyInt8Linear", "use_weight_only_int8"]


class WeightOnlyInt8Linear(Linear8bitLt):
    """A `Linear8bitLt` that dequantizes its weight instead of quantizing its input."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        out = DequantizedLinear.apply(x, self.state.CB, self.state.SCB)
        assert isinstance(out, Tensor)
        return out if self.bias is None else out + self.bias.to(out.dtype)


class DequantizedLinear(torch.autograd.Function):
    """`x` [..., in] times the transpose of a weight, which autograd keeps in 8 bits for the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, int8: Tensor, absmax: Tensor) -> Tensor:
        ctx.save_for_backward(int8, absmax)
        return F.linear(x, dequantize(int8, absmax, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ dequantize(*ctx.saved_tensors, dtype=gradient.dtype), None, None


def dequantize(int8: Tensor, absmax: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight [out, in] of `int8` values [out, in], in each row of which 127 means `absmax` [out]."""
    return int8.to(dtype).mul_((absmax / 127)[:, None])


def use_weight_only_int8(network: nn.Module) -> nn.Module:
    """`network`, each of its `Linear8bitLt` made a `WeightOnlyInt8Linear` in place."""
    for module in network.modules():
        if type(module) is Linear8bitLt:
            if module.weight.CB is not None:  # pyright: ignore[reportAttributeAccessIssue]
                module.init_8bit_state()  # as its own first forward does
            module.__class__ = WeightOnlyInt8Linear
    return network
