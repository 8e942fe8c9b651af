"""Compiled functions that give the same bits on all GPUs of a kind."""

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["compile_deterministic"]


def compile_deterministic(
    function: Callable[..., Any],
    *,
    backend: Any = "inductor",
    dynamic: bool | None = None,
    fullgraph: bool = False,
) -> Callable[..., Any]:
    """`torch.compile`, with kernels that are chosen by rule.

    By default inductor times several for a sum, which add up in different orders, and keeps the fastest. So
    processes that found others the fastest, as on two nodes or two days, differ in the last bits.
    """
    options: dict[str, Any] | None = {"deterministic": True} if backend == "inductor" else None
    return torch.compile(function, backend=backend, dynamic=dynamic, fullgraph=fullgraph, options=options)
