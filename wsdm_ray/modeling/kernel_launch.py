"""Operators of our own, and the launch of their Triton kernels, at little cost to the host.

A step of training launches thousands of kernels, and where the host is the slower of the two, the GPU waits.
PyTorch's `custom_op` goes through Python three times a call, and Triton works out anew, at every launch, what
a kernel was compiled for.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["launch", "on", "operator"]

LIBRARY = torch.library.Library("wsdm_ray", "FRAGMENT")

COMPILED: dict[tuple[Any, ...], Any] = {}
"""Compiled kernels, by all that they were compiled for."""


def operator(*, mutates: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Register a function on tensors as the operator `wsdm_ray::NAME` for all devices.

    Compiled code needs its `register_fake`, if it returns anything. It has no gradient, of which PyTorch only
    warns, so it belongs in an `autograd.Function` or under `no_grad`.

    Args:
        mutates: its arguments that it changes.
    """

    def register(function: Callable[..., Any]) -> Any:
        name = function.__name__
        LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=mutates))
        LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        return getattr(torch.ops.wsdm_ray, name)

    return register


def launch(
    kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: tuple[Any, ...], num_warps: int
) -> None:
    """Launch a kernel of Triton or Gluon on the device of its first tensor.

    Args:
        grid: programs.
        arguments: tensors, their descriptors, integers and floats, as the kernel takes them first.
        constants: its `constexpr`s, which it takes last.
    """
    device = next(each.device for each in arguments if isinstance(each, Tensor))
    key = (kernel, device, num_warps, constants, *map(compiled_for, arguments))
    compiled = COMPILED.get(key)
    with on(device):
        if compiled is None:
            COMPILED[key] = kernel[grid](*arguments, *constants, num_warps=num_warps)
        else:  # with a grid of three, as Triton makes it
            compiled[grid + (1,) * (3 - len(grid))](*arguments, *constants)


def compiled_for(argument: Any) -> Any:
    """What Triton compiles a kernel for, of one argument."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if isinstance(argument, int):
        return argument == 1, argument % 16 == 0, argument >> 31
    if isinstance(argument, float):
        return float
    return argument.base.dtype, tuple(argument.block_shape), argument.layout  # a descriptor


def on(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which Triton, which launches on the current GPU, launches on this one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
