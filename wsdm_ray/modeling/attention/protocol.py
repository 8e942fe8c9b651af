"""What a backend of attention answers and does: one protocol for scoring, one for training.

Shape suffixes: T tokens, H query heads, K key heads, W head dimension.
"""

from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from wsdm_ray.modeling.quantized_linear import QuantizedTensor
from wsdm_ray.packing.layouts import Layout

__all__ = ["AttentionBackend", "Heads", "TrainingBackend"]


class Heads(NamedTuple):
    """What one layer's attention is computed from: queries [H, T, W], keys and values [K, T, W].

    scale: the factor of the scores. softcap: the soft cap of the scores, or None. rotation: cosines and sines
        of each position, [T, W], for a backend that rotates the queries, else None. float8_scale: the scale
        of an output in float8, for a backend that can give one, or None.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    softcap: float | None
    rotation: tuple[Tensor, Tensor] | None = None
    float8_scale: float | None = None


class AttentionBackend(Protocol):
    """Attention of the fused decoder, for one batch after another."""

    rotates_queries: bool
    """`attend` rotates the queries, and so is given the rotation."""

    @property
    def alignment(self) -> int:
        """Groups that begin at multiples of so many tokens do not change each other's bits (`lay_out`)."""
        ...

    def update(self, layout: Layout) -> Self:
        """Take the masks of the next batch, of any layout; returns itself."""
        ...

    def attend(self, heads: Heads, layer_type: str) -> Tensor | QuantizedTensor:
        """Attention of all heads, side by side: [T, H * W]."""
        ...


class TrainingBackend(Protocol):
    """Attention of a network of transformers, with gradients: what trains, and scores what is not fused."""

    implementation: str
    """The name under which transformers finds it: its `attn_implementation`."""
    supports_softcap: bool
    """It computes soft-capped scores."""
    supports_dropout: bool
    """It drops attention weights in training, for every layout."""
    supports_varlen: bool
    """A packed row goes by `cu_seqlens`, without a mask of T * T."""

    def __init__(self, config: Any): ...

    def arguments(self, layout: Layout, dtype: torch.dtype, device: torch.device | str) -> dict[str, Any]:
        """What the backbone's forward takes so that each token attends as the mask rule allows."""
        ...
