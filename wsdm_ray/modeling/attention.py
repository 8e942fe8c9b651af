"""Attention for any layout: by the bounds of sequences, by dense masks, or by masks sparse in blocks.

    bounds   variable-length attention; a row of whole sequences (packed), in a family without soft-capping
    dense    B * T * T elements, so token budgets on it stay in the ten thousands; anything else
    blocks   FlexAttention, or a kernel of ours for capped scores; for scoring on GPUs alone

Shape suffixes: T tokens, H query heads, K key heads, W head width.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from wsdm_ray.modeling.quantized_linear import QuantizedTensor, on_hopper
from wsdm_ray.packing.layouts import Layout

__all__ = [
    "BLOCK",
    "AttentionBackend",
    "BlockSparseAttention",
    "DenseAttention",
    "Heads",
    "Tiling",
    "attention_arguments",
    "attention_implementation",
    "attention_mask",
    "dense_masks",
    "supports_varlen",
    "tiling_of",
    "to_device",
]

BOUNDS = "wsdm_ray_bounds"
"""The name under which transformers finds `attend`."""


def attention_implementation(config: Any) -> str:
    """The name of the attention that transformers is to use: `attend`, or `eager` where it cannot serve."""
    register()
    return BOUNDS if supports_varlen(config) else "eager"


def supports_varlen(config: Any) -> bool:
    """Whether a family's attention can go by bounds: neither SDPA nor variable-length attention soft-caps."""
    return not getattr(config, "attn_logit_softcapping", None)


def attention_arguments(
    layout: Layout, config: Any, dtype: torch.dtype, device: torch.device | str
) -> dict[str, Any]:
    """What a backbone's forward takes so that the tokens of `layout` see whom they may."""
    if not supports_varlen(config) or len(layout.tokens_BT) > 1 or np.any(layout.branches_BT):
        return {"attention_mask": dense_masks(layout, config, dtype, device)}
    bounds = layout.cu_seqlens
    return {
        "attention_mask": torch.zeros(1, 1, 1, 1, device=device),  # ready, so that none is made
        "cu_seq_lens_q": torch.from_numpy(bounds).to(device),
        # A bound is enough, and of few values a compiled layer needs few guards.
        "max_length_q": 1 << (int(np.diff(bounds).max()) - 1).bit_length(),
    }


def attend(
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
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: by bounds where they are given, else by a mask.

    Args:
        query: [B, H, T, W]; key, value: [B, K, T, W]; B is 1 with bounds.
        sliding_window: tokens that each sees, itself with them, by place: the layer's.
        cu_seq_lens_q: int32 [sequences + 1], where sequences begin, and T.
        max_length_q: tokens of the longest sequence, or more.

    Returns:
        [B, T, H, W], and nothing for the weights.
    """
    if cu_seq_lens_q is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )  # pyright: ignore[reportReturnType]  # of no weights
    if torch.is_autocast_enabled(query.device.type):  # which knows nothing of this operation
        query, key, value = (
            each.to(torch.get_autocast_dtype(query.device.type)) for each in (query, key, value)
        )
    group = query.shape[1] // key.shape[1]
    k_HTW, v_HTW = (each[0].repeat_interleave(group, 0) for each in (key, value))
    if query.is_cuda and query.dtype != torch.float32:
        from torch.nn.attention.varlen import varlen_attn  # takes seconds, which nothing else has to wait for

        q_THW, k_THW, v_THW = (each.transpose(0, 1).contiguous() for each in (query[0], k_HTW, v_HTW))
        window = (-1 if sliding_window is None else sliding_window - 1, 0)
        out = varlen_attn(
            q_THW, k_THW, v_THW, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q,
            scale=scaling, window_size=window,
        )  # fmt: skip
        assert isinstance(out, Tensor)
        return out[None], None
    parts = [
        attend_alone(
            query[0, :, start:end], k_HTW[:, start:end], v_HTW[:, start:end], scaling, sliding_window
        )
        for start, end in itertools.pairwise(cu_seq_lens_q.tolist())
    ]
    return torch.cat(parts, 1).transpose(0, 1)[None], None


def attend_alone(
    q_HTW: Tensor, k_HTW: Tensor, v_HTW: Tensor, scale: float | None, window: int | None
) -> Tensor:
    """Causal attention of one sequence: [H, T, W]."""
    length = q_HTW.shape[1]
    if window is None or window >= length:
        return F.scaled_dot_product_attention(q_HTW, k_HTW, v_HTW, scale=scale, is_causal=True)
    seen = torch.ones(length, length, dtype=torch.bool, device=q_HTW.device).tril().triu(1 - window)
    return F.scaled_dot_product_attention(q_HTW, k_HTW, v_HTW, attn_mask=seen, scale=scale)


@functools.cache
def register() -> None:
    """Tell transformers of `attend`, whose import takes seconds that processes without a network save."""
    import transformers
    from transformers.masking_utils import sdpa_mask

    transformers.AttentionInterface.register(BOUNDS, attend)
    transformers.AttentionMaskInterface.register(BOUNDS, sdpa_mask)  # for plain calls of the network


def attention_mask(layout: Layout, window: int | None, device: torch.device | str) -> torch.Tensor:
    """Which key each query may attend to: bool [B, T (query), T (key)]. Every token sees itself."""
    places = torch.from_numpy(places_of(layout.groups_BT, layout)).to(device)
    marks, order, positions = ((row[..., :, None], row[..., None, :]) for row in places)
    return may_attend(marks, order, positions, window)


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
        seen = attention_mask(layout, window, device)
        return torch.where(seen, mask, torch.finfo(dtype).min)[:, None]

    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        return additive(None)
    windows = {"full_attention": None, "sliding_attention": getattr(config, "sliding_window", None)}
    unknown = set(layer_types) - set(windows)
    if unknown:
        raise ValueError(f"layers of kind {sorted(unknown)} have no mask here")
    return {kind: additive(windows[kind]) for kind in sorted(set(layer_types))}


class Heads(NamedTuple):
    """What attention is of: queries [H, T, W], keys and values [K, T, W].

    scale: what scores are multiplied by. softcap: what they are kept below, if at all. rotation: cosines and
        sines of each position, [T, W], where queries are still to be rotated. float8_scale: what the output
        may be divided by to be float8, where this way can.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    softcap: float | None
    rotation: tuple[Tensor, Tensor] | None = None
    float8_scale: float | None = None


class AttentionBackend(Protocol):
    """Who sees whom in a pass of one row, and the attention that follows it.

    rotates: whether `attend` rotates the queries, and so is given the rotation.
    """

    rotates: bool

    def attend(self, heads: Heads, kind: str) -> Tensor | QuantizedTensor:
        """Attention of all heads, side by side: [T, H * W]; `kind` is the layer's."""
        ...


class DenseAttention:
    """Masks as bool [B, 1, L, L] of B rows of L tokens, one for each kind of layer: for CPUs.

    The T tokens are those of all rows, end to end.
    """

    rotates = False

    def __init__(self, layout: Layout, layer_types: set[str], window: int | None, device: torch.device | str):
        self.masks = {
            kind: attention_mask(layout, window_of(kind, window), device)[:, None] for kind in layer_types
        }

    def attend(self, heads: Heads, kind: str) -> Tensor:
        assert heads.rotation is None
        group, mask, softcap = len(heads.q) // len(heads.k), self.masks[kind], heads.softcap
        q, k, v = (
            each.unflatten(1, (len(mask), -1)).transpose(0, 1)  # [B, H, L, W]
            for each in (heads.q, *(each.repeat_interleave(group, 0) for each in (heads.k, heads.v)))
        )
        if softcap is None:
            out = F.scaled_dot_product_attention(q, k, v, mask, scale=heads.scale)
        else:
            scores = softcap * torch.tanh(q @ k.transpose(2, 3) * heads.scale / softcap)
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            out = scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v
        return out.transpose(1, 2).flatten(0, 1).flatten(1)


class BlockSparseAttention:
    """Block-sparse masks, whose tensors stay in place from pass to pass: for GPUs.

    A pass of T tokens is `update`d before its layers run; as neither shapes nor functions change, one
    compilation serves all passes of that T.

    Args:
        row_tokens: T, a multiple of `BLOCK`.
        tiling: of the masks' blocks.
    """

    def __init__(
        self,
        row_tokens: int,
        layer_types: set[str],
        window: int | None,
        device: torch.device | str,
        tiling: "Tiling | None" = None,
    ):
        if row_tokens % BLOCK:
            raise ValueError(f"{row_tokens} tokens: must be a multiple of {BLOCK}")
        self.tiling = tiling or Tiling()
        self.rotates = self.tiling.softcapped
        block = (self.tiling.queries, self.tiling.keys)
        queries, keys = (row_tokens // side for side in block)
        self.places = torch.zeros(3, row_tokens, dtype=torch.int32, device=device)
        self.windows = {kind: window_of(kind, window) for kind in layer_types}
        self.masks = {}
        for kind, width in self.windows.items():
            empty = [
                torch.zeros(1, 1, queries, *shape, dtype=torch.int32, device=device)
                for shape in ((), (keys,), (), (keys,))
            ]
            self.masks[kind] = BlockMask.from_kv_blocks(
                *empty, BLOCK_SIZE=block, mask_mod=self.sees(width), seq_lengths=(row_tokens, row_tokens)
            )

    def sees(self, window: int | None) -> Callable[..., Tensor]:
        """The rule for single places of the pass."""
        marks, _, positions = self.places

        def rule(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return may_attend(
                (marks[query], marks[key]), (query, key), (positions[query], positions[key]), window
            )

        return rule

    def update(self, layout: Layout) -> "BlockSparseAttention":
        """Take the pass that comes next; returns itself.

        Padding is a group of its own in each block: it costs no more than these.
        """
        alone = -1 - np.arange(self.places.shape[1]) // self.tiling.alignment
        rows = places_of(np.where(layout.groups_BT < 0, alone, layout.groups_BT), layout)
        self.places.copy_(to_device(rows[:, 0], self.places.device))
        longest, found = int(layout.positions_BT.max()) + 1, {}
        for kind, mask in self.masks.items():
            window = self.windows[kind]
            window = None if window is None or window >= longest else window  # one that takes nothing away
            if window not in found:
                found[window] = self.blocks(window)
            for place, blocks in zip(key_blocks(mask), found[window], strict=True):
                place[0, 0].copy_(blocks)
        return self

    def blocks(self, window: int | None) -> list[Tensor]:
        """For each block of queries, number and places of the key blocks it sees in part, then in whole."""
        # The whole T * T would take gigabytes.
        run = compiled_tiles() if self.places.is_cuda else tiles
        block = (self.tiling.queries, self.tiling.keys)
        parts = [run(rows, self.places, window, block) for rows in self.places.split(ROWS_AT_ONCE, 1)]
        some, whole = (torch.cat(each) for each in zip(*parts, strict=True))
        # Blocks seen in whole come last, and a block of queries in which one group ends and another begins
        # sees none in whole: where there are such, none counts as whole, so that neighbours change no order.
        if self.tiling.queries > self.tiling.alignment:
            whole = torch.zeros_like(whole)
        part = some & ~whole
        return [each for flags in (part, whole) for each in ordered(flags)]

    def attend(self, heads: Heads, kind: str) -> Tensor | QuantizedTensor:
        mask, tiling = self.masks[kind], self.tiling
        q, k, v, scale, softcap, rotation, float8_scale = heads
        assert (rotation is not None) == self.rotates
        if rotation is not None:
            from wsdm_ray.modeling.attention_kernel import softcapped_attention  # which takes Triton

            assert softcap is not None
            out, scales = softcapped_attention(
                q, k, v, rotation, self.places, [each[0, 0] for each in key_blocks(mask)],
                (tiling.queries, tiling.keys), BRANCHES, self.windows[kind], scale, softcap, float8_scale,
            )  # fmt: skip
            return out if scales is None else QuantizedTensor(out, scales)
        run, tanh = (compiled_flex(), quick_tanh()) if q.is_cuda else (flex_attention, torch.tanh)
        out = run(
            q[None],
            k[None],
            v[None],
            score_mod=None if softcap is None else softcap_mod(softcap, tanh),
            block_mask=mask,
            scale=scale,
            enable_gqa=len(q) != len(k),
            kernel_options=tiling.flex,
        )
        assert isinstance(out, Tensor)
        return out[0].transpose(0, 1).flatten(1)


def key_blocks(mask: BlockMask) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Number and places of the key blocks that a block of queries sees in part, then in whole."""
    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_indices is not None
    return mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.full_kv_indices


def to_device(array: np.ndarray, device: torch.device | str) -> Tensor:
    """A tensor on the device; the host does not wait until a GPU has it."""
    tensor = torch.from_numpy(array)
    if torch.device(device).type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


BLOCK = 128
"""Tokens that a pass with masks of blocks has a multiple of."""
ROWS_AT_ONCE = 2_048
"""Queries whose attention of all keys is worked out at a time."""


class Tiling(NamedTuple):
    """Sides of a block of masks, in tokens, and how attention goes by them.

    The smaller the blocks, the less is computed of what nobody sees.

    flex: FlexAttention's `kernel_options`; None is its own choice. softcapped: `attention_kernel` does it.
    """

    queries: int = BLOCK
    keys: int = BLOCK
    flex: Any = None
    softcapped: bool = False

    @property
    def alignment(self) -> int:
        """Tokens of which groups have to begin at multiples, for their keys to be cut into the same blocks
        wherever they are in a pass: attention then adds up the same numbers in the same order.
        """
        return self.keys


WIDE = Tiling(128, 64, {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 2, "USE_TMA": True})
NARROW = Tiling(64, 64, {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 3})
SOFTCAPPED = Tiling(32, 32, softcapped=True)
TILINGS = {(256, True): SOFTCAPPED, (256, False): WIDE, (128, False): NARROW, (64, False): NARROW}
"""By the width of heads and whether scores are soft-capped, in bfloat16: half to four fifths of the time that
FlexAttention's own choice takes on an H100 or H200. `SOFTCAPPED` takes three quarters of the time of `WIDE`
on an H100, within passes two thirds, and rotates the queries besides."""

MOST_CAP = 64.0
"""Of scores that `SOFTCAPPED` is for: 2 ** 31 of their exponentials add up in float32 and bfloat16 holds
each, of which none is so small that it counts as 0."""


def tiling_of(
    head_dim: int, group: int, softcap: float | None, dtype: torch.dtype, device: torch.device
) -> Tiling:
    """The best tiling that is known; FlexAttention's own choice on GPUs that were not measured.

    Args:
        group: heads of queries to one of keys.
    """
    if not on_hopper(device) or dtype != torch.bfloat16:
        return Tiling()
    tiling = TILINGS.get((head_dim, softcap is not None), Tiling())
    if tiling.softcapped and (
        softcap is None or softcap > MOST_CAP or group % 2
    ):  # it takes heads two by two
        return WIDE
    return tiling


def tiles(rows: Tensor, keys: Tensor, window: int | None, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Which blocks of keys any query of a block sees at all, and which every query sees in whole.

    Args:
        rows, keys: int32 [3, queries], [3, T]: of `places_of`.
        block: its queries and keys.

    Returns:
        Bool [blocks of queries, blocks of keys], twice.
    """
    marks, order, positions = (
        (row[:, None], key[None]) for row, key in zip(rows.unbind(), keys.unbind(), strict=True)
    )
    seen = may_attend(marks, order, positions, window).view(-1, block[0], keys.shape[1] // block[1], block[1])
    return seen.any(3).any(1), seen.all(3).all(1)


BRANCHES = 4
"""Branches of a group, with that of what all share, that a mark has room for."""


def places_of(groups_BT: np.ndarray, layout: Layout) -> np.ndarray:
    """What `may_attend` goes by, of each token: mark, index in the row, position; int32 [3, B, T].

    The mark is group and branch in one number.
    """
    if layout.branches_BT.max(initial=0) >= BRANCHES:
        raise ValueError(f"more than {BRANCHES - 1} branches of a group have no marks")
    marks_BT = BRANCHES * groups_BT + layout.branches_BT
    order_BT = np.broadcast_to(np.arange(groups_BT.shape[1]), groups_BT.shape)
    return np.stack([marks_BT, order_BT, layout.positions_BT]).astype(np.int32)


def may_attend(
    marks: tuple[Tensor, Tensor],
    order: tuple[Tensor, Tensor],
    positions: tuple[Tensor, Tensor],
    window: int | None,
) -> Tensor:
    """The rule of who sees whom (`layouts`), of (query, key) each.

    What a token sees stands in the row in the order of positions.
    """
    same = (marks[0] == marks[1]) | ((marks[0] & -BRANCHES) == marks[1])
    seen = same & (order[0] >= order[1])
    return seen if window is None else seen & (positions[0] - positions[1] < window)


def window_of(kind: str, window: int | None) -> int | None:
    return window if kind == "sliding_attention" else None


def ordered(flags: Tensor) -> tuple[Tensor, Tensor]:
    """How many flags of each row are set, and their places, those first: int32 [rows], [rows, columns]."""
    places = flags.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return flags.sum(-1).to(torch.int32), places.to(torch.int32)


@functools.cache
def softcap_mod(softcap: float, tanh: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """One function a cap, so that it is compiled once."""

    def cap(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * tanh(score / softcap)

    return cap


@functools.cache
def quick_tanh() -> Callable[[Tensor], Tensor]:
    """`tanh` for FlexAttention on a GPU: a single instruction, off by a two-thousandth of the value at most.

    The compiler's own takes a third of the attention's time where scores are soft-capped.
    """
    from torch._inductor.lowering import make_pointwise, register_lowering
    from torch._inductor.virtualized import ops

    @torch.library.custom_op("wsdm_ray::quick_tanh", mutates_args=())
    def tanh(x: Tensor) -> Tensor:
        return torch.tanh(x)

    tanh.register_fake(torch.empty_like)
    tanh.register_vmap(lambda info, in_dims, x: (tanh(x), in_dims[0]))

    def lowered(x: Any) -> Any:
        instruction = {"asm": "tanh.approx.f32 $0, $1;", "constraints": "=f,f"}
        return make_pointwise(functools.partial(ops.inline_asm_elementwise, **instruction))(x)

    register_lowering(torch.ops.wsdm_ray.quick_tanh.default, type_promotion_kind=None)(lowered)
    return tanh


@functools.cache
def compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)


@functools.cache
def compiled_tiles() -> Callable[..., Any]:
    """Uncompiled, a pass of 16,384 tokens writes out gigabytes of intermediate steps."""
    return torch.compile(tiles, dynamic=False)
