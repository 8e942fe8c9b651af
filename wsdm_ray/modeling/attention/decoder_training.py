"""Attention of the training decoder, with gradients, for one micro-batch of one row.

    `varlen`           GPUs: whole sequences without soft-capped scores (layout `packed`)
    FlexAttention      GPUs: anything else
    dense masks        CPUs

Shape suffixes: T tokens, H query heads, K key heads, W head dimension.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wsdm_ray.modeling.attention.dense import DenseAttention
from wsdm_ray.modeling.attention.mask_rule import layer_window, to_device
from wsdm_ray.modeling.attention.protocol import Heads
from wsdm_ray.modeling.attention.varlen import varlen_on_gpu
from wsdm_ray.modeling.families import Shape
from wsdm_ray.packing.layouts import Layout

__all__ = ["Attend", "training_attention"]


class Attend(NamedTuple):
    """Attention of q [1, H, T, W], k and v [1, K, T, W] in a layer of a type.

    heads_first: q, k and v must be contiguous, and the output is [1, H, T, W], else [T, H * W]. FlexAttention
        gives gradients in this order; compiled, what follows reads it in the other within its first kernel.
    """

    run: Callable[[Tensor, Tensor, Tensor, str], Tensor]
    heads_first: bool


def training_attention(
    layout: Layout, shape: Shape, device: torch.device, usual_tokens: int | None = None
) -> Attend:
    """Attention in a layout of one row, whose masks are made once for all layers.

    Args:
        usual_tokens: of most rows; they are compiled apart.
    """
    windows = {each: layer_window(each, shape.sliding_window) for each in set(shape.layer_types)}
    if device.type == "cpu":
        dense = DenseAttention(windows, shape.sliding_window, device).update(layout)
        return Attend(
            lambda q, k, v, layer_type: dense.attend(
                Heads(q[0], k[0], v[0], shape.query_scale, shape.softcap), layer_type
            ),
            heads_first=False,
        )
    if shape.softcap is None and not np.any(layout.branches_BT):
        return varlen(layout, shape, windows, device)
    from wsdm_ray.modeling.attention.flex import block_masks, flex_training_attention

    masks = block_masks(layout, windows, device)
    usual = layout.tokens_BT.shape[1] == usual_tokens
    return Attend(
        lambda q, k, v, layer_type: flex_training_attention(
            q, k, v, masks[layer_type], shape.query_scale, shape.softcap, usual=usual
        ),
        heads_first=True,
    )


def varlen(layout: Layout, shape: Shape, windows: dict[str, int | None], device: torch.device) -> Attend:
    """By PyTorch's operation for sequences that lie side by side."""
    cu_seqlens = layout.cu_seqlens
    starts = to_device(cu_seqlens, device)
    longest = int(np.diff(cu_seqlens).max())
    group = shape.num_heads // shape.num_kv_heads

    def attend(q: Tensor, k: Tensor, v: Tensor, layer_type: str) -> Tensor:
        k, v = (each[0].repeat_interleave(group, 0) for each in (k, v))
        out = varlen_on_gpu(q[0], k, v, starts, longest, shape.query_scale, windows[layer_type])
        return out[0].flatten(1)

    return Attend(attend, heads_first=False)
