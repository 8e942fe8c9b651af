"""The mask rule as block-sparse masks: which blocks of keys each block of queries attends to.

What scoring, whose masks stay in place, and training, which makes new ones, have in common.

Shape suffixes: T tokens of a row.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsdm_ray.modeling.attention.mask_rule import mask_mod, mask_terms
from wsdm_ray.modeling.compilation import compile_deterministic
from wsdm_ray.packing.layouts import Layout

__all__ = ["block_terms", "find_key_blocks", "narrowing_window", "softcap_mod", "token_rule"]

QUERIES_AT_ONCE = 2_048
"""Queries whose mask of all keys is worked out at a time: the whole T * T would take gigabytes."""


def block_terms(layout: Layout, block: int) -> np.ndarray:
    """The `mask_terms` of a layout of one row: int32 [3, T].

    Padding is a group of its own in each `block` tokens, so it attends to no more than that.
    """
    padding = -1 - np.arange(layout.groups_BT.shape[1]) // block
    terms = mask_terms(np.where(layout.groups_BT < 0, padding, layout.groups_BT), layout)
    return np.ascontiguousarray(terms[:, 0])


def narrowing_window(window: int | None, layout: Layout) -> int | None:
    """`window`, None where it would hide nothing of the layout."""
    longest = int(layout.positions_BT.max()) + 1
    return None if window is None or window >= longest else window


def token_rule(terms_3T: Tensor, window: int | None) -> Callable[..., Tensor]:
    """The mask rule for single tokens of a row, as FlexAttention calls it."""
    segments, _, positions = terms_3T

    def rule(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask_mod(
            (segments[query], segments[key]), (query, key), (positions[query], positions[key]), window
        )

    return rule


def find_key_blocks(
    terms_3T: Tensor,
    window: int | None,
    block_size: tuple[int, int],
    *,
    any_full: bool = True,
    compiled: bool = False,
) -> list[Tensor]:
    """For each block of queries, number and indices of its partial key blocks, then of its full ones.

    Args:
        terms_3T: of `block_terms`, on the device.
        block_size: queries and keys of a block, in tokens.
        any_full: False: no block counts as full.
        compiled: compile what finds them, for each number of tokens.
    """
    run = compiled_block_flags() if compiled else block_flags
    parts = [run(queries, terms_3T, window, block_size) for queries in terms_3T.split(QUERIES_AT_ONCE, 1)]
    some, full = (torch.cat(flags) for flags in zip(*parts, strict=True))
    if not any_full:
        full = torch.zeros_like(full)
    return [tensor for flags in (some & ~full, full) for tensor in counts_and_indices(flags)]


def block_flags(
    queries: Tensor, keys: Tensor, window: int | None, block_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Which blocks of keys any query of a block attends to at all, and which every query attends to in full.

    Args:
        queries, keys: int32 [3, queries], [3, T]: of `block_terms`.
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


@functools.cache
def compiled_block_flags() -> Callable[..., Any]:
    """Uncompiled, a batch of 16,384 tokens writes out gigabytes of intermediate results."""
    return compile_deterministic(block_flags, dynamic=False)


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
