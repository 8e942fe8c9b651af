"""Attention of the fused decoder with block-sparse masks, for GPUs.

    BlockSparseAttention    by FlexAttention
    SoftcappedAttention     by our kernel for soft-capped scores

Shape suffixes: T tokens of a batch, H query heads, W head dimension.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from wsdm_ray.modeling.attention.fast_tanh import fast_tanh
from wsdm_ray.modeling.attention.mask_rule import (
    MAX_BRANCHES,
    layer_window,
    mask_mod,
    mask_terms,
    to_device,
)
from wsdm_ray.modeling.attention.protocol import Heads
from wsdm_ray.modeling.attention.tiling import BLOCK, Tiling
from wsdm_ray.modeling.quantized_linear import QuantizedTensor
from wsdm_ray.packing.layouts import Layout

__all__ = [
    "QUERIES_AT_ONCE",
    "BlockSparseAttention",
    "SoftcappedAttention",
    "block_flags",
    "counts_and_indices",
    "key_blocks",
    "softcap_mod",
]

QUERIES_AT_ONCE = 2_048
"""Queries whose mask of all keys is worked out at a time: the whole T * T would take gigabytes."""


class BlockSparseAttention:
    """FlexAttention by block masks, whose tensors stay in place from batch to batch.

    Neither shapes nor functions change between batches of T tokens, so one compilation serves them all.

    Args:
        row_tokens: T, a multiple of `BLOCK`.
        tiling: the blocks of the masks.
    """

    supports_softcap = True
    supports_backward = False
    rotates_queries = False

    def __init__(
        self,
        row_tokens: int,
        layer_types: Iterable[str],
        sliding_window: int | None,
        device: torch.device | str,
        tiling: Tiling | None = None,
    ):
        if row_tokens % BLOCK:
            raise ValueError(f"{row_tokens} tokens: must be a multiple of {BLOCK}")
        self.tiling = tiling or Tiling()
        block_size = (self.tiling.queries, self.tiling.keys)
        query_blocks, num_key_blocks = (row_tokens // size for size in block_size)
        self.mask_terms = torch.zeros(3, row_tokens, dtype=torch.int32, device=device)
        self.windows = {layer_type: layer_window(layer_type, sliding_window) for layer_type in layer_types}
        self.block_masks = {}
        for layer_type, window in self.windows.items():
            empty = [
                torch.zeros(1, 1, query_blocks, *shape, dtype=torch.int32, device=device)
                for shape in ((), (num_key_blocks,), (), (num_key_blocks,))
            ]
            self.block_masks[layer_type] = BlockMask.from_kv_blocks(
                *empty,
                BLOCK_SIZE=block_size,
                mask_mod=self.mask_mod(window),
                seq_lengths=(row_tokens, row_tokens),
            )

    @property
    def alignment(self) -> int:
        return self.tiling.alignment

    def mask_mod(self, window: int | None) -> Callable[..., Tensor]:
        """The mask rule for single tokens of the batch, as FlexAttention calls it."""
        segments, _, positions = self.mask_terms

        def rule(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return mask_mod(
                (segments[query], segments[key]), (query, key), (positions[query], positions[key]), window
            )

        return rule

    def update(self, layout: Layout) -> Self:
        """Take the masks of the next batch, of one row; returns itself.

        Padding is a group of its own in each block, so it attends to no more than that.
        """
        padding = -1 - np.arange(self.mask_terms.shape[1]) // self.tiling.alignment
        terms = mask_terms(np.where(layout.groups_BT < 0, padding, layout.groups_BT), layout)
        self.mask_terms.copy_(to_device(terms[:, 0], self.mask_terms.device))
        longest, blocks_of_window = int(layout.positions_BT.max()) + 1, {}
        for layer_type, block_mask in self.block_masks.items():
            window = self.windows[layer_type]
            window = None if window is None or window >= longest else window  # it would hide nothing
            if window not in blocks_of_window:
                blocks_of_window[window] = self.find_key_blocks(window)
            for tensor, blocks in zip(key_blocks(block_mask), blocks_of_window[window], strict=True):
                tensor[0, 0].copy_(blocks)
        return self

    def find_key_blocks(self, window: int | None) -> list[Tensor]:
        """For each block of queries, number and indices of its partial key blocks, then of its full ones."""
        run = compiled_block_flags() if self.mask_terms.is_cuda else block_flags
        block_size = (self.tiling.queries, self.tiling.keys)
        parts = [
            run(queries, self.mask_terms, window, block_size)
            for queries in self.mask_terms.split(QUERIES_AT_ONCE, 1)
        ]
        some, full = (torch.cat(flags) for flags in zip(*parts, strict=True))
        # Full blocks come last. A block of queries in which one group ends and another begins has none.
        # Where there may be such, no block counts as full, so that neighbours do not change the order.
        if self.tiling.queries > self.tiling.alignment:
            full = torch.zeros_like(full)
        partial = some & ~full
        return [tensor for flags in (partial, full) for tensor in counts_and_indices(flags)]

    def attend(self, heads: Heads, layer_type: str) -> Tensor | QuantizedTensor:
        assert heads.rotation is None
        q, k, v, softcap = heads.q, heads.k, heads.v, heads.softcap
        run, tanh = (compiled_flex(), fast_tanh()) if q.is_cuda else (flex_attention, torch.tanh)
        out = run(
            q[None],
            k[None],
            v[None],
            score_mod=None if softcap is None else softcap_mod(softcap, tanh),
            block_mask=self.block_masks[layer_type],
            scale=heads.scale,
            enable_gqa=len(q) != len(k),
            kernel_options=self.tiling.flex_options,
        )
        assert isinstance(out, Tensor)
        return out[0].transpose(0, 1).flatten(1)


class SoftcappedAttention(BlockSparseAttention):
    """Our kernel for soft-capped scores by the same block masks; it rotates the queries, and gives float8."""

    rotates_queries = True

    def attend(self, heads: Heads, layer_type: str) -> Tensor | QuantizedTensor:
        from wsdm_ray.modeling.attention.softcapped_kernel import softcapped_attention  # it needs Triton

        assert heads.rotation is not None
        assert heads.softcap is not None
        out, scales = softcapped_attention(
            heads.q,
            heads.k,
            heads.v,
            heads.rotation,
            self.mask_terms,
            [tensor[0, 0] for tensor in key_blocks(self.block_masks[layer_type])],
            (self.tiling.queries, self.tiling.keys),
            MAX_BRANCHES,
            self.windows[layer_type],
            heads.scale,
            heads.softcap,
            heads.float8_scale,
        )
        return out if scales is None else QuantizedTensor(out, scales)


def key_blocks(block_mask: BlockMask) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Number and indices of the partial key blocks of each block of queries, then of the full ones."""
    assert block_mask.full_kv_num_blocks is not None
    assert block_mask.full_kv_indices is not None
    return (
        block_mask.kv_num_blocks,
        block_mask.kv_indices,
        block_mask.full_kv_num_blocks,
        block_mask.full_kv_indices,
    )


def block_flags(
    queries: Tensor, keys: Tensor, window: int | None, block_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Which blocks of keys any query of a block attends to at all, and which every query attends to in full.

    Args:
        queries, keys: int32 [3, queries], [3, T]: of `mask_terms`.
        block_size: queries and keys of a block.

    Returns:
        Bool [blocks of queries, blocks of keys], twice.
    """
    segments, indices, positions = (
        (query[:, None], key[None]) for query, key in zip(queries.unbind(), keys.unbind(), strict=True)
    )
    allowed = mask_mod(segments, indices, positions, window)
    allowed = allowed.view(-1, block_size[0], keys.shape[1] // block_size[1], block_size[1])
    return allowed.any(3).any(1), allowed.all(3).all(1)


def counts_and_indices(flags: Tensor) -> tuple[Tensor, Tensor]:
    """How many flags of each row are set, and their columns, those first: int32 [rows], [rows, columns]."""
    indices = flags.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return flags.sum(-1).to(torch.int32), indices.to(torch.int32)


@functools.cache
def softcap_mod(softcap: float, tanh: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """FlexAttention's `score_mod` of a soft cap: one function a cap, so that it is compiled once."""

    def score_mod(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * tanh(score / softcap)

    return score_mod


@functools.cache
def compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)


@functools.cache
def compiled_block_flags() -> Callable[..., Any]:
    """Uncompiled, a batch of 16,384 tokens writes out gigabytes of intermediate results."""
    return torch.compile(block_flags, dynamic=False)
