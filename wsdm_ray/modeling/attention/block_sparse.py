"""Attention of the fused decoder with block-sparse masks, for GPUs.

    BlockSparseAttention    by FlexAttention
    SoftcappedAttention     by our kernel for soft-capped scores

Shape suffixes: T tokens of a batch, H query heads, W head dimension.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, Self

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
from wsdm_ray.modeling.attention.mask_rule import MAX_BRANCHES, layer_window, to_device
from wsdm_ray.modeling.attention.protocol import Heads
from wsdm_ray.modeling.attention.tiling import BLOCK, Tiling
from wsdm_ray.modeling.compilation import compile_deterministic
from wsdm_ray.modeling.quantized_linear import QuantizedTensor
from wsdm_ray.packing.layouts import Layout

__all__ = ["BlockSparseAttention", "SoftcappedAttention", "key_blocks"]


class BlockSparseAttention:
    """FlexAttention by block masks, whose tensors stay in place from batch to batch.

    Neither shapes nor functions change between batches of T tokens, so one compilation serves them all.

    Args:
        row_tokens: T, a multiple of `BLOCK`.
        tiling: the blocks of the masks.
    """

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
                mask_mod=token_rule(self.mask_terms, window),
                seq_lengths=(row_tokens, row_tokens),
            )

    @property
    def alignment(self) -> int:
        return self.tiling.alignment

    def update(self, layout: Layout) -> Self:
        """Take the masks of the next batch, of one row; returns itself."""
        terms = block_terms(layout, self.tiling.alignment)
        self.mask_terms.copy_(to_device(terms, self.mask_terms.device))
        blocks_of_window = {}
        for layer_type, block_mask in self.block_masks.items():
            window = narrowing_window(self.windows[layer_type], layout)
            if window not in blocks_of_window:
                blocks_of_window[window] = self.find_key_blocks(window)
            for tensor, blocks in zip(key_blocks(block_mask), blocks_of_window[window], strict=True):
                tensor[0, 0].copy_(blocks)
        return self

    def find_key_blocks(self, window: int | None) -> list[Tensor]:
        """For each block of queries, number and indices of its partial key blocks, then of its full ones.

        A block of queries in which one group ends and another begins has no full one, which come last. Where
        there may be such, no block counts as full, so that neighbours do not change the order.
        """
        queries, keys, *_ = self.tiling
        return find_key_blocks(
            self.mask_terms,
            window,
            (queries, keys),
            any_full=queries <= self.tiling.alignment,
            compiled=self.mask_terms.is_cuda,
        )

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


@functools.cache
def compiled_flex() -> Callable[..., Any]:
    return compile_deterministic(flex_attention, dynamic=False)
