"""Attention of sequences that lie side by side in a row, on GPUs in 16 bits: PyTorch's FlashAttention.

It gives the same bits at every call. In the backward pass blocks of keys add to the gradients of queries by
atomic operations, in any order, unless PyTorch is asked for deterministic algorithms. It is asked for a whole
process, where other operations become slower or are refused. So it is asked while this kernel is launched.

Shape suffixes: T tokens, H heads, W head dimension.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["varlen_on_gpu"]


def varlen_on_gpu(
    q_HTW: Tensor,
    k_HTW: Tensor,
    v_HTW: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    scale: float | None,
    sliding_window: int | None,
) -> Tensor:
    """Causal attention of all sequences of a row: [1, T, H, W].

    Args:
        cu_seqlens: int32 [sequences + 1], where sequences begin, and T.
        max_length: tokens of the longest sequence, or more.
        sliding_window: tokens that a query attends to, itself included; None: all before it.
    """
    q_THW, k_THW, v_THW = (x.transpose(0, 1).contiguous() for x in (q_HTW, k_HTW, v_HTW))
    before = -1 if sliding_window is None else sliding_window - 1
    out_THW, _ = varlen_attention(q_THW, k_THW, v_THW, cu_seqlens, max_length, scale, before)
    return out_THW[None]


@torch.library.custom_op("wsdm_ray::varlen_attention", mutates_args=())
def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, scale: float | None, before: int
) -> tuple[Tensor, Tensor]:
    """The output, [T, H, W], and the logarithms of the sums of exponents, float32 [H, T].

    Args:
        before: tokens before a query that it attends to; -1: all.
    """
    lengths = (starts, starts, longest, longest)
    out, log_sums, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, *lengths, 0.0, before < 0, False, **window_of(before), scale=scale
    )
    return out, log_sums


@varlen_attention.register_fake
def _(q: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


@torch.library.custom_op("wsdm_ray::varlen_attention_backward", mutates_args=())
def varlen_attention_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sums: Tensor,
    starts: Tensor,
    longest: int,
    scale: float | None,
    before: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v."""
    lengths = (starts, starts, longest, longest)
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=q.device), q.new_empty(0)
    with deterministic_algorithms():
        return torch.ops.aten._flash_attention_backward(
            gradient.contiguous(), q, k, v, out, log_sums, *lengths, 0.0, before < 0, *no_dropout,
            **window_of(before), scale=scale,
        )  # fmt: skip


@varlen_attention_backward.register_fake
def _(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, starts, *ctx.numbers = inputs
    ctx.save_for_backward(q, k, v, *output, starts)


def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    gradients = varlen_attention_backward(gradient, *ctx.saved_tensors, *ctx.numbers)
    return *gradients, None, None, None, None


varlen_attention.register_autograd(backward, setup_context=keep)


def window_of(before: int) -> dict[str, int]:
    """What a query attends to, as PyTorch takes it."""
    return {"window_size_left": before, "window_size_right": 0}


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """A context in which PyTorch takes deterministic algorithms, or raises where it has none."""
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("error")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
