"""Attention masks for any layout, as dense tensors that every transformers family takes.

Not covered: block-sparse masks. A dense mask takes B * T * T elements, so token budgets on it stay in the ten
thousands.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from wsdm_ray.packing.layouts import Layout

__all__ = ["Visibility", "attention_implementation", "dense_masks", "visible"]


def attention_implementation(config: Any) -> str:
    """`eager` for a family whose attention scores are soft-capped (SDPA has no such path), else `sdpa`."""
    return "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"


def visible(layout: Layout, window: int | None, device: torch.device | str) -> torch.Tensor:
    """Which key each query may attend to: bool [B, T (query), T (key)]. Every token sees itself."""
    groups, branches, positions = (
        torch.from_numpy(array).to(device, torch.int32)
        for array in (layout.groups_BT, layout.branches_BT, layout.positions_BT)
    )
    distance = positions[:, :, None] - positions[:, None, :]
    seen = (groups[:, :, None] == groups[:, None, :]) & (distance >= 0)
    if bool(np.any(layout.branches_BT)):
        seen &= (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
    if window is not None:
        seen &= distance < window
    return seen


def dense_masks(
    layout: Layout, config: Any, dtype: torch.dtype, device: torch.device | str
) -> torch.Tensor | dict[str, torch.Tensor]:
    """What the backbone's `attention_mask` argument takes for `layout`.

    Returns:
        Additive masks of `dtype`, [B, 1, T, T]: one tensor for a family whose layers all attend alike, else a
        dict with one for each kind of layer in `config.layer_types`.
    """

    def additive(window: int | None) -> torch.Tensor:
        mask = torch.zeros(1, dtype=dtype, device=device)
        seen = visible(layout, window, device)
        return torch.where(seen, mask, torch.finfo(dtype).min)[:, None]

    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return additive(None)
    windows = {"full_attention": None, "sliding_attention": getattr(config, "sliding_window", None)}
    unknown = set(kinds) - set(windows)
    if unknown:
        raise ValueError(f"layers of kind {sorted(unknown)} have no mask here")
    return {kind: additive(windows[kind]) for kind in sorted(set(kinds))}


class Visibility:
    """Who sees whom in a pass, and the attention that follows it, for a pass of one row.

    Masks are dense, bool [T, T], one for each kind of layer.
    """

    def __init__(self, layout: Layout, kinds: set[str], window: int | None, device: torch.device | str):
        self.masks = {
            kind: visible(layout, window if kind == "sliding_attention" else None, device)[0]
            for kind in kinds
        }

    def attend(
        self, q_HTW: Tensor, k_KTW: Tensor, v_KTW: Tensor, kind: str, scale: float, softcap: float | None
    ) -> Tensor:
        """Attention of all heads, side by side: [T, H * W]."""
        group = len(q_HTW) // len(k_KTW)
        k_HTW, v_HTW = (heads.repeat_interleave(group, 0) for heads in (k_KTW, v_KTW))
        if softcap is None:
            out = F.scaled_dot_product_attention(q_HTW, k_HTW, v_HTW, self.masks[kind], scale=scale)
        else:
            scores = softcap * torch.tanh(q_HTW @ k_HTW.transpose(1, 2) * scale / softcap)
            scores = scores.masked_fill(~self.masks[kind], torch.finfo(scores.dtype).min)
            out = scores.softmax(-1, dtype=torch.float32).to(q_HTW.dtype) @ v_HTW
        return out.transpose(0, 1).flatten(1)
