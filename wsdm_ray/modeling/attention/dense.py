"""Attention of the fused decoder with dense masks, for CPUs and for batches of any size.

Shape suffixes: B rows, L tokens of a row, H query heads, W head dimension.
"""

from collections.abc import Iterable
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from wsdm_ray.modeling.attention.mask_rule import attention_mask, layer_window
from wsdm_ray.modeling.attention.protocol import Heads
from wsdm_ray.packing.layouts import Layout

__all__ = ["DenseAttention"]


class DenseAttention:
    """Attention by masks of all pairs of tokens: bool [B, 1, L, L], one for each layer type.

    The T tokens of `Heads` are those of all B rows, end to end.
    """

    rotates_queries = False
    alignment = 1

    def __init__(self, layer_types: Iterable[str], sliding_window: int | None, device: torch.device | str):
        self.windows = {layer_type: layer_window(layer_type, sliding_window) for layer_type in layer_types}
        self.device = device
        self.masks: dict[str, Tensor] = {}

    def update(self, layout: Layout) -> Self:
        self.masks = {
            layer_type: attention_mask(layout, window, self.device)[:, None]
            for layer_type, window in self.windows.items()
        }
        return self

    def attend(self, heads: Heads, layer_type: str) -> Tensor:
        assert heads.rotation is None
        group_size, mask, softcap = len(heads.q) // len(heads.k), self.masks[layer_type], heads.softcap
        q, k, v = (
            x.unflatten(1, (len(mask), -1)).transpose(0, 1)  # [B, H, L, W]
            for x in (heads.q, *(x.repeat_interleave(group_size, 0) for x in (heads.k, heads.v)))
        )
        if softcap is None:
            out = F.scaled_dot_product_attention(q, k, v, mask, scale=heads.scale)
        else:
            scores = softcap * torch.tanh(q @ k.transpose(2, 3) * heads.scale / softcap)
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            out = scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v
        return out.transpose(1, 2).flatten(0, 1).flatten(1)
