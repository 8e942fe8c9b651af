"""The mask rule: which token may attend to which, for every layout.

A token attends to itself and to tokens before it in the row that are of its own group, and there of its own
branch or of branch 0, which all branches of the group share. In a sliding layer the distance of their
positions must be below the window.

Shape suffixes: B rows, T tokens of a row.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsdm_ray.modeling.families import layer_types_of
from wsdm_ray.packing.layouts import Layout

__all__ = [
    "MAX_BRANCHES",
    "attention_mask",
    "dense_masks",
    "layer_window",
    "mask_mod",
    "mask_terms",
    "to_device",
]

MAX_BRANCHES = 4
"""Branches of a group that a segment has room for, a power of 2; branch 0 is what all share."""


def mask_terms(groups_BT: np.ndarray, layout: Layout) -> np.ndarray:
    """What `mask_mod` compares, of each token: segment, index in the row, position; int32 [3, B, T].

    The segment is group and branch in one number.
    """
    if layout.branches_BT.max(initial=0) >= MAX_BRANCHES:
        raise ValueError(f"more than {MAX_BRANCHES - 1} branches of a group do not fit in a segment")
    segments_BT = MAX_BRANCHES * groups_BT + layout.branches_BT
    indices_BT = np.broadcast_to(np.arange(groups_BT.shape[1]), groups_BT.shape)
    return np.stack([segments_BT, indices_BT, layout.positions_BT]).astype(np.int32)


def mask_mod(
    segments: tuple[Tensor, Tensor],
    indices: tuple[Tensor, Tensor],
    positions: tuple[Tensor, Tensor],
    sliding_window: int | None,
) -> Tensor:
    """Whether a query may attend to a key: bool, of the shape that the arguments broadcast to.

    What a token attends to is in the row in the order of positions.

    Args:
        segments, indices, positions: of the query and of the key, as `mask_terms` gives them.
        sliding_window: tokens that a query attends to, itself included; None for all.
    """
    same = (segments[0] == segments[1]) | ((segments[0] & -MAX_BRANCHES) == segments[1])
    allowed = same & (indices[0] >= indices[1])
    if sliding_window is None:
        return allowed
    return allowed & (positions[0] - positions[1] < sliding_window)


def attention_mask(layout: Layout, sliding_window: int | None, device: torch.device | str) -> Tensor:
    """Which key each query may attend to: bool [B, T (query), T (key)]. Every token attends to itself."""
    terms = torch.from_numpy(mask_terms(layout.groups_BT, layout)).to(device)
    segments, indices, positions = ((row[..., :, None], row[..., None, :]) for row in terms)
    return mask_mod(segments, indices, positions, sliding_window)


def dense_masks(
    layout: Layout, config: Any, dtype: torch.dtype, device: torch.device | str
) -> Tensor | dict[str, Tensor]:
    """What the `attention_mask` argument of a backbone of transformers takes for `layout`.

    Returns:
        Additive masks of `dtype`, [B, 1, T, T]: one tensor for a family without layer types, else a dict with
        one for each layer type of the config.
    """

    def additive(sliding_window: int | None) -> Tensor:
        zero = torch.zeros(1, dtype=dtype, device=device)
        allowed = attention_mask(layout, sliding_window, device)
        return torch.where(allowed, zero, torch.finfo(dtype).min)[:, None]

    layer_types = layer_types_of(config)
    if layer_types is None:
        return additive(None)
    windows = {"full_attention": None, "sliding_attention": getattr(config, "sliding_window", None)}
    unknown = set(layer_types) - set(windows)
    if unknown:
        raise ValueError(f"there is no mask for layers of type {sorted(unknown)}")
    return {layer_type: additive(windows[layer_type]) for layer_type in sorted(set(layer_types))}


def layer_window(layer_type: str, sliding_window: int | None) -> int | None:
    """The window of a layer of that type, None where it has none."""
    return sliding_window if layer_type == "sliding_attention" else None


def to_device(array: np.ndarray, device: torch.device | str) -> Tensor:
    """A tensor on the device; the host does not wait until a GPU has it."""
    tensor = torch.from_numpy(array)
    if torch.device(device).type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
