"""FlexAttention with gradients, for GPUs: any layout of one row, with soft-capped scores or without.

The mask is block-sparse, so its cost grows with what tokens attend to, not with the square of the row. Not
covered: scoring, whose masks stay in place (`block_sparse`).

Shape suffixes: T tokens of the row, H query heads, K key heads, W head dimension.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from wsdm_ray.modeling.attention.block_masks import (
    block_terms,
    find_key_blocks,
    narrowing_window,
    softcap_mod,
    token_rule,
)
from wsdm_ray.modeling.attention.fast_tanh import fast_tanh
from wsdm_ray.modeling.attention.mask_rule import to_device
from wsdm_ray.modeling.attention.tiling import BLOCK, SMALL
from wsdm_ray.modeling.compilation import compile_deterministic
from wsdm_ray.modeling.quantized_linear import on_hopper
from wsdm_ray.packing.layouts import Layout

__all__ = ["block_masks", "flex_training_attention", "kernel_options"]

FORWARD_OPTIONS = {
    256: {"fwd_BLOCK_M": 128, "fwd_BLOCK_N": 64, "fwd_num_warps": 8, "fwd_num_stages": 2},
    128: {"fwd_BLOCK_M": 128, "fwd_BLOCK_N": 64, "fwd_num_warps": 8, "fwd_num_stages": 3},
}
BACKWARD_OPTIONS = {
    256: {
        "bwd_BLOCK_M1": 32, "bwd_BLOCK_N1": 64, "bwd_BLOCK_M2": 64, "bwd_BLOCK_N2": 32,
        "bwd_num_warps": 8, "bwd_num_stages": 3,
    },
}  # fmt: skip
"""FlexAttention's `kernel_options` on Hopper by head dimension, measured on an H100 and H200. With its own
choice the backward at a head dimension of 256 takes minutes to compile."""

SMALL_OPTIONS = {f"fwd_{name}": value for name, value in SMALL.flex_options.items()} | {
    "bwd_BLOCK_M1": 32, "bwd_BLOCK_N1": 32, "bwd_BLOCK_M2": 32, "bwd_BLOCK_N2": 32,
    "bwd_num_warps": 8, "bwd_num_stages": 2,
}  # fmt: skip
"""Those of other GPUs for head dimensions above 128. Where a program has 99 KiB of shared memory (compute
capability 8.6, 8.9, 12.0), blocks for Hopper and PyTorch's own choice, of up to 149 KiB, do not start. These
take 69 KiB, as compiled for such GPUs; they were not run."""


def kernel_options(head_dim: int, hopper: bool) -> dict[str, int]:
    """FlexAttention's `kernel_options` for bfloat16; what they leave out is PyTorch's own choice."""
    if hopper:
        return FORWARD_OPTIONS.get(head_dim, {}) | BACKWARD_OPTIONS.get(head_dim, {})
    return SMALL_OPTIONS if head_dim > 128 else {}  # PyTorch's own takes 97 KiB at most


def block_masks(
    layout: Layout, windows: Mapping[str, int | None], device: torch.device | str
) -> dict[str, BlockMask]:
    """The block mask of each layer type, for a layout of one row, of a multiple of `BLOCK` tokens.

    Args:
        windows: by layer type, the keys that a query attends to, itself included; None for all.
    """
    tokens = layout.tokens_BT.shape[1]
    if len(layout.tokens_BT) > 1 or tokens % BLOCK:
        raise ValueError(f"a layout of {layout.tokens_BT.shape}: must be one row of a multiple of {BLOCK}")
    terms_3T = to_device(block_terms(layout, BLOCK), device)
    made: dict[int | None, BlockMask] = {}

    def mask_of(window: int | None) -> BlockMask:
        window = narrowing_window(window, layout)
        if window not in made:
            made[window] = block_mask(terms_3T, window)
        return made[window]

    return {layer_type: mask_of(window) for layer_type, window in windows.items()}


def block_mask(terms_3T: Tensor, window: int | None) -> BlockMask:
    """The block mask of a row, from its `block_terms` on the device."""
    tokens = terms_3T.shape[1]
    return BlockMask.from_kv_blocks(
        *(tensor[None, None] for tensor in find_key_blocks(terms_3T, window, (BLOCK, BLOCK))),
        BLOCK_SIZE=BLOCK,
        mask_mod=token_rule(terms_3T, window),
        seq_lengths=(tokens, tokens),
    )


def flex_training_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float, softcap: float | None, *, usual: bool
) -> Tensor:
    """Attention with gradients: [1, H, T, W].

    Args:
        q: [1, H, T, W]; k, v: [1, K, T, W]; T a multiple of `BLOCK`.
        usual: whether most rows have so many tokens, for which attention is then compiled alone.
    """
    out = (flex_of_usual_rows() if usual else flex_of_other_rows())(
        q,
        k,
        v,
        score_mod=None if softcap is None else softcap_mod(softcap, fast_tanh()),
        block_mask=mask,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
        kernel_options=kernel_options(q.shape[-1], on_hopper(q.device)),
    )
    assert isinstance(out, Tensor)
    return out


# Two functions, as PyTorch looks for what it compiled by a function's code: either would find the other's.
@functools.cache
def flex_of_usual_rows() -> Callable[..., Any]:
    """Compiled for one number of tokens, which makes it a fifth faster than for any."""

    def usual_rows(*given: Any, **options: Any) -> Any:
        return flex_attention(*given, **options)

    return compile_deterministic(usual_rows, dynamic=False)


@functools.cache
def flex_of_other_rows() -> Callable[..., Any]:
    """Compiled once for all numbers of tokens: each new one would take seconds, and other workers wait."""

    def other_rows(*given: Any, **options: Any) -> Any:
        return flex_attention(*given, **options)

    return compile_deterministic(other_rows, dynamic=True)
