"""Backends of attention for networks of transformers, with gradients.

    VarlenAttention    by `cu_seqlens` for a packed row of whole sequences, else SDPA with a dense mask
    EagerAttention     transformers' own, with a dense mask; it writes out all scores

A dense mask has T * T elements a row, so token budgets on it stay in the ten thousands. Another backend is
one more class in `TRAINING_BACKENDS`.

Shape suffixes: B rows, T tokens, H query heads, K key heads, W head dimension.
"""

import functools
import itertools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from wsdm_ray.modeling.attention.mask_rule import dense_masks, to_device
from wsdm_ray.modeling.attention.protocol import TrainingBackend
from wsdm_ray.modeling.attention.varlen import varlen_on_gpu
from wsdm_ray.modeling.families import softcap_of
from wsdm_ray.packing.layouts import Layout

__all__ = [
    "VARLEN",
    "EagerAttention",
    "VarlenAttention",
    "training_backend",
    "varlen_attention",
]

VARLEN = "wsdm_ray_varlen"
"""The name under which transformers finds `varlen_attention`."""


class EagerAttention:
    """Attention of the family's own code in transformers: the only one of it that soft-caps."""

    implementation = "eager"
    supports_softcap = True
    supports_dropout = True
    supports_varlen = False

    def __init__(self, config: Any):
        self.config = config

    def arguments(self, layout: Layout, dtype: torch.dtype, device: torch.device | str) -> dict[str, Any]:
        return {"attention_mask": dense_masks(layout, self.config, dtype, device)}


class VarlenAttention:
    """`varlen_attention`, registered with transformers; layouts of shared prefixes or of rows take a mask."""

    implementation = VARLEN
    supports_softcap = False
    supports_dropout = False
    supports_varlen = True

    def __init__(self, config: Any):
        register_varlen()
        self.config = config

    def arguments(self, layout: Layout, dtype: torch.dtype, device: torch.device | str) -> dict[str, Any]:
        if len(layout.tokens_BT) > 1 or np.any(layout.branches_BT):
            return {"attention_mask": dense_masks(layout, self.config, dtype, device)}
        cu_seqlens = layout.cu_seqlens
        return {
            "attention_mask": torch.zeros(1, 1, 1, 1, device=device),  # a ready one, so that none is made
            "cu_seq_lens_q": to_device(cu_seqlens, device),
            # An upper bound is enough, and few different values mean few guards of a compiled layer.
            "max_length_q": 1 << (int(np.diff(cu_seqlens).max()) - 1).bit_length(),
        }


TRAINING_BACKENDS: tuple[type[TrainingBackend], ...] = (VarlenAttention, EagerAttention)
"""The first that supports what a config asks for is used."""


def training_backend(config: Any) -> TrainingBackend:
    """The backend for networks of a transformers config of a supported family."""
    softcapped, dropout = softcap_of(config) is not None, getattr(config, "attention_dropout", 0.0)
    return next(
        backend(config)
        for backend in TRAINING_BACKENDS
        if (backend.supports_softcap or not softcapped) and (backend.supports_dropout or not dropout)
    )


@functools.cache
def register_varlen() -> None:
    """Register `varlen_attention` with transformers, whose import takes seconds."""
    import transformers
    from transformers.masking_utils import sdpa_mask

    transformers.AttentionInterface.register(VARLEN, varlen_attention)
    transformers.AttentionMaskInterface.register(VARLEN, sdpa_mask)  # for plain calls of the network


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: by `cu_seq_lens_q` where it is given, else SDPA with the mask.

    Args:
        query: [B, H, T, W]; key, value: [B, K, T, W]; B is 1 with `cu_seq_lens_q`.
        sliding_window: tokens that a query of this layer attends to, itself included, by position.
        cu_seq_lens_q: int32 [sequences + 1], where sequences begin, and T.
        max_length_q: tokens of the longest sequence, or more.

    Returns:
        [B, T, H, W], and None for the weights.
    """
    if cu_seq_lens_q is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )  # pyright: ignore[reportReturnType]  # it returns no weights
    if torch.is_autocast_enabled(query.device.type):  # autocast does not know this operation
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    group_size = query.shape[1] // key.shape[1]
    q_HTW, k_HTW, v_HTW = query[0], *(x[0].repeat_interleave(group_size, 0) for x in (key, value))
    if query.is_cuda and query.dtype != torch.float32:
        return varlen_on_gpu(q_HTW, k_HTW, v_HTW, cu_seq_lens_q, max_length_q, scaling, sliding_window), None
    sequences = [
        causal_attention(q_HTW[:, a:b], k_HTW[:, a:b], v_HTW[:, a:b], scaling, sliding_window)
        for a, b in itertools.pairwise(cu_seq_lens_q.tolist())
    ]
    return torch.cat(sequences, 1).transpose(0, 1)[None], None


def causal_attention(
    q_HTW: Tensor, k_HTW: Tensor, v_HTW: Tensor, scale: float | None, sliding_window: int | None
) -> Tensor:
    """Causal attention of one sequence: [H, T, W]."""
    length = q_HTW.shape[1]
    if sliding_window is None or sliding_window >= length:
        return F.scaled_dot_product_attention(q_HTW, k_HTW, v_HTW, scale=scale, is_causal=True)
    every = torch.ones(length, length, dtype=torch.bool, device=q_HTW.device)
    allowed = every.tril().triu(1 - sliding_window)
    return F.scaled_dot_product_attention(q_HTW, k_HTW, v_HTW, attn_mask=allowed, scale=scale)
