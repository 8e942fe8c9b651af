"""Masks: who sees whom, by hand and by a loop that follows the rule word for word."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsdm_ray.modeling.attention import (
    BLOCK,
    BOUNDS,
    MOST_CAP,
    NARROW,
    SOFTCAPPED,
    TILINGS,
    WIDE,
    BlockSparseAttention,
    DenseAttention,
    Heads,
    Tiling,
    attend,
    attention_arguments,
    attention_implementation,
    attention_mask,
    dense_masks,
    key_blocks,
    tiling_of,
)
from wsdm_ray.modeling.fused_layer import rotate
from wsdm_ray.packing.layouts import Layout, lay_out
from wsdm_ray.packing.ragged import Ragged


class Config:
    """As much of a model's config as masks need."""

    def __init__(self, **values):
        vars(self).update(values)


def layout_of(
    kind: str, prefixes: list[int], suffixes: list[int], row_tokens: int = 0, alignment: int = 1
) -> Layout:
    """A layout of both orderings of pairs with prefixes and suffixes of these lengths."""
    prefix, suffix = (
        Ragged.from_lists([np.ones(size, np.int32) for size in sizes]) for sizes in (prefixes, suffixes)
    )
    pairs = np.arange(len(prefixes))
    return lay_out(kind, prefix, [suffix, suffix], pairs, row_tokens=row_tokens, alignment=alignment)


def rows(seen: torch.Tensor) -> list[str]:
    return ["".join(".x"[int(cell)] for cell in row) for row in seen.tolist()]


def test_shared_by_hand():
    # one pair: two prompt tokens, then two tokens of each ordering; a second pair; one of padding
    layout = layout_of("shared", [2, 0], [2, 1], row_tokens=9)
    assert rows(attention_mask(layout, None, "cpu")[0]) == [
        "x........",
        "xx.......",
        "xxx......",
        "xxxx.....",
        "xx..x....",
        "xx..xx...",
        "......x..",
        ".......x.",
        "........x",
    ]


def test_shared_with_a_window_by_hand():
    layout = layout_of("shared", [2], [2])
    # The second ordering's first token stands at position 2: it sees the prompt's second, not index 3.
    assert rows(attention_mask(layout, 2, "cpu")[0]) == [
        "x.....",
        "xx....",
        ".xx...",
        "..xx..",
        ".x..x.",
        "....xx",
    ]


def test_packed_by_hand():
    assert rows(attention_mask(layout_of("packed", [1], [1]), None, "cpu")[0]) == [
        "x...",
        "xx..",
        "..x.",
        "..xx",
    ]


def test_padded_by_hand():
    first, second, third, _ = attention_mask(layout_of("padded", [1, 0], [1, 1]), None, "cpu")
    assert rows(first) == rows(second) == ["x.", "xx"]
    assert rows(third) == ["x.", ".x"], "padding sees padding alone, so that no row is empty"


@pytest.mark.parametrize("kind", ["padded", "packed", "shared"])
@given(
    sizes=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), min_size=1, max_size=3),
    window=st.none() | st.integers(1, 5),
    padding=st.integers(0, 30),
)
def test_the_rule(kind, sizes, window, padding):
    layout = layout_of(kind, [size[0] for size in sizes], [size[1] for size in sizes], padding)
    seen = attention_mask(layout, window, "cpu").numpy()
    groups, branches, positions = layout.groups_BT, layout.branches_BT, layout.positions_BT
    for b, q, k in np.ndindex(seen.shape):
        distance = positions[b, q] - positions[b, k]
        expected = (
            groups[b, q] == groups[b, k]
            and branches[b, k] in (0, branches[b, q])
            and (distance >= 0 if groups[b, q] >= 0 else k <= q)
            and (window is None or distance < window)
        )
        assert seen[b, q, k] == expected
    assert seen.any(axis=2).all(), "softmax over nothing is not a number"


def test_one_mask_for_layers_that_attend_alike():
    mask = dense_masks(layout_of("packed", [1], [1]), Config(), torch.float32, "cpu")
    assert isinstance(mask, torch.Tensor)
    assert mask.shape == (1, 1, 4, 4)
    assert mask.dtype == torch.float32
    assert (mask == 0).sum() == 6
    assert mask.min() == torch.finfo(torch.float32).min


def test_a_mask_for_each_kind_of_layer():
    config = Config(layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=2)
    layout = layout_of("shared", [3], [2])
    masks = dense_masks(layout, config, torch.bfloat16, "cpu")
    assert isinstance(masks, dict)
    assert sorted(masks) == ["full_attention", "sliding_attention"]
    for kind, window in (("full_attention", None), ("sliding_attention", 2)):
        assert masks[kind].dtype == torch.bfloat16
        assert torch.equal(masks[kind][:, 0] == 0, attention_mask(layout, window, "cpu"))


def test_an_unknown_kind_of_layer():
    with pytest.raises(ValueError, match=r"layers of kind \['linear_attention'\] have no mask here"):
        dense_masks(
            layout_of("packed", [1], [1]), Config(layer_types=["linear_attention"]), torch.float32, "cpu"
        )


def test_soft_capped_scores_are_computed_eagerly():
    assert attention_implementation(Config(attn_logit_softcapping=50.0)) == "eager"
    assert attention_implementation(Config(attn_logit_softcapping=None)) == BOUNDS
    assert attention_implementation(Config()) == BOUNDS


KINDS = {"full_attention", "sliding_attention"}
EVERY_TILING = [Tiling(), WIDE, NARROW, SOFTCAPPED]


def blocks_of(attention: BlockSparseAttention, kind: str) -> np.ndarray:
    """What a block mask says of each block: 0 unseen, 1 seen in part, 2 seen in whole."""
    mask = attention.masks[kind]
    found = np.zeros(mask.kv_indices.shape[2:], int)
    for value, counts, places in (
        (1, mask.kv_num_blocks, mask.kv_indices),
        (2, mask.full_kv_num_blocks, mask.full_kv_indices),
    ):
        for query, count in enumerate(counts[0, 0].tolist()):
            found[query, places[0, 0, query, :count].numpy()] = value
    return found


@pytest.mark.parametrize("tiling", EVERY_TILING, ids=["plain", "wide", "narrow", "capped"])
@pytest.mark.parametrize("window", [16, 300, 349, 350])  # of up to 350 tokens
@pytest.mark.parametrize("layout", ["packed", "shared"])
def test_blocks_say_what_the_rule_says(layout, window, tiling):
    attention = BlockSparseAttention(6 * BLOCK, KINDS, window, "cpu", tiling)
    queries, keys = (6 * BLOCK // side for side in (tiling.queries, tiling.keys))
    for sizes in (([200, 3], [150, 20]), ([10], [40])):  # the second pass overwrites the first
        given = layout_of(layout, *sizes, row_tokens=6 * BLOCK)
        attention.update(given)
        blocks = -1 - np.arange(6 * BLOCK) // tiling.alignment  # padding is a group of its own in each
        given = dataclasses.replace(given, groups_BT=np.where(given.groups_BT < 0, blocks, given.groups_BT))
        for kind in KINDS:
            seen = attention_mask(given, window if kind == "sliding_attention" else None, "cpu")[0].numpy()
            tiles = seen.reshape(queries, tiling.queries, keys, tiling.keys).swapaxes(1, 2)
            tiles = tiles.reshape(queries, keys, -1)
            whole = tiles.all(-1) & (tiling.queries <= tiling.keys)
            assert (blocks_of(attention, kind) == tiles.any(-1) * 1 + whole * 1).all()
            rule = attention.sees(attention.windows[kind])
            places = torch.arange(6 * BLOCK)
            assert (rule(places[0], places[0], places[:, None], places[None]).numpy() == seen).all()


def keys_in_turn(
    attention: BlockSparseAttention, kind: str, query: int, first: int
) -> list[tuple[int, bool, bytes]]:
    """The blocks of keys that a query sees anything of, in the order of the sums: how far they are from
    `first`, whether the rule is asked, and what it says of their keys.
    """
    keys, row, found = attention.tiling.keys, query // attention.tiling.queries, []
    part, part_places, whole, whole_places = (each[0, 0] for each in key_blocks(attention.masks[kind]))
    rule = attention.sees(attention.windows[kind])
    for asked, count, places in ((True, part, part_places), (False, whole, whole_places)):
        for block in places[row, : int(count[row])].tolist():
            at = torch.arange(block * keys, block * keys + keys)
            seen = (
                rule(at[0], at[0], torch.tensor(query), at) if asked else torch.ones(keys, dtype=torch.bool)
            )
            if seen.any():
                found.append((block * keys - first, asked, seen.numpy().tobytes()))
    return found


@pytest.mark.parametrize("tiling", EVERY_TILING, ids=["plain", "wide", "narrow", "capped"])
@pytest.mark.parametrize("layout", ["packed", "shared"])
@settings(max_examples=8)
@example([(1, 1)], [])  # one block alone: blocks of more queries than keys have another half of them
@given(*[st.lists(st.tuples(st.integers(0, 150), st.integers(1, 90)), max_size=2)] * 2)
def test_neighbours_do_not_change_what_is_added_up_in_which_order(layout, tiling, before, after):
    mine, window, tokens, groups = (90, 70), 100, 20 * BLOCK, 1 if layout == "shared" else 2

    def turns(
        before: list[tuple[int, int]], after: list[tuple[int, int]]
    ) -> dict[tuple[int, int, str], list[tuple[int, bool, bytes]]]:
        """`keys_in_turn` of some queries of `mine`."""
        prefixes, suffixes = zip(*before, mine, *after, strict=True)
        given = layout_of(layout, list(prefixes), list(suffixes), tokens, tiling.alignment)
        attention = BlockSparseAttention(tokens, KINDS, window, "cpu", tiling).update(given)
        found = {}
        for group in range(groups):
            places = np.flatnonzero(given.groups_BT[0] == len(before) * groups + group)
            for kind, at in itertools.product(KINDS, (0, 31, 64, 100, len(places) - 1)):
                found[group, at, kind] = keys_in_turn(attention, kind, int(places[at]), int(places[0]))
        return found

    assert turns(before, after) == turns([], [])


@pytest.mark.parametrize(("window", "looks"), [(349, [349, None]), (350, [None])])
def test_a_window_that_takes_nothing_away_is_none(window, looks, monkeypatch):
    attention = BlockSparseAttention(6 * BLOCK, KINDS, window, "cpu")
    asked = []
    monkeypatch.setattr(
        attention, "blocks", lambda each: asked.append(each) or BlockSparseAttention.blocks(attention, each)
    )
    attention.update(layout_of("shared", [200], [150], row_tokens=6 * BLOCK))
    assert sorted(asked, key=str) == looks
    sliding, full = (key_blocks(attention.masks[kind]) for kind in ("sliding_attention", "full_attention"))
    same = all(torch.equal(*each) for each in zip(sliding, full, strict=True))
    assert same == (looks == [None])


def test_padding_sees_no_more_than_its_block():
    given = layout_of("packed", [50], [50], row_tokens=6 * BLOCK)
    attention = BlockSparseAttention(6 * BLOCK, KINDS, None, "cpu").update(given)
    seen = np.eye(6)
    seen[1, 0] = 1  # the second sequence begins in the first block
    assert (blocks_of(attention, "full_attention") == seen).all()


def test_blocks_of_tokens_that_do_not_divide():
    with pytest.raises(ValueError, match="100 tokens: must be a multiple of 128"):
        BlockSparseAttention(100, KINDS, 16, "cpu")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_sparse_and_dense_attention_agree(kind, softcap):
    given = layout_of("shared", [70, 0], [40, 9], row_tokens=2 * BLOCK)
    torch.manual_seed(0)
    q, k, v = torch.randn(4, 256, 16), torch.randn(2, 256, 16), torch.randn(2, 256, 16)
    heads = Heads(q, k, v, 0.25, softcap)
    dense = DenseAttention(given, KINDS, 16, "cpu").attend(heads, kind)
    sparse = BlockSparseAttention(2 * BLOCK, KINDS, 16, "cpu").update(given).attend(heads, kind)
    torch.testing.assert_close(sparse, dense, atol=1e-5, rtol=1e-5)
    assert dense.shape == (256, 64)


@pytest.mark.parametrize("window", [None, 3])
@given(
    sizes=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), min_size=1, max_size=4),
    padding=st.integers(0, 5),
)
def test_attention_by_bounds_is_attention_by_masks(window, sizes, padding):
    prefixes, suffixes = zip(*sizes, strict=True)
    used = 2 * sum(prefixes) + 2 * sum(suffixes)
    layout = layout_of("packed", list(prefixes), list(suffixes), row_tokens=used + padding)
    arguments = attention_arguments(layout, Config(), torch.float32, "cpu")
    assert arguments.pop("attention_mask").numel() == 1
    random = torch.Generator().manual_seed(0)
    tokens = used + padding
    q, k, v = (torch.randn(1, heads, tokens, 8, generator=random, requires_grad=True) for heads in (4, 2, 2))
    module: Any = torch.nn.Identity()
    module.num_key_value_groups = 2
    mask = torch.where(attention_mask(layout, window, "cpu"), 0.0, torch.finfo(torch.float32).min)[:, None]
    expected, _ = attend(module, q, k, v, mask, scaling=0.3)
    found, _ = attend(module, q, k, v, None, scaling=0.3, sliding_window=window, **arguments)
    real = torch.from_numpy(layout.groups_BT[0] >= 0)
    # Sums in another order.
    torch.testing.assert_close(found[:, real], expected[:, real], atol=1e-6, rtol=1e-5)
    weights = torch.randn(expected.shape, generator=random) * real[:, None, None]
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), (q, k, v)),
        torch.autograd.grad((expected * weights).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_attention_goes_by_masks_where_bounds_do_not_tell():
    for layout, config in (
        (layout_of("shared", [2], [2]), Config()),
        (layout_of("padded", [2], [2]), Config()),
        (layout_of("packed", [2], [2]), Config(attn_logit_softcapping=50.0)),
    ):
        assert set(attention_arguments(layout, config, torch.float32, "cpu")) == {"attention_mask"}


@pytest.mark.parametrize(
    ("capability", "dtype", "known"),
    [
        ((9, 0), torch.bfloat16, True),
        ((10, 0), torch.bfloat16, False),
        ((9, 0), torch.float32, False),
        ((9, 0), torch.float16, False),  # exponentials of capped scores are out of its range
    ],
)
def test_tilings_are_for_gpus_like_those_they_were_measured_on(monkeypatch, capability, dtype, known):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu = torch.device("cuda")
    for (width, capped), tiling in TILINGS.items():
        assert tiling_of(width, 2, 50.0 if capped else None, dtype, gpu) == (tiling if known else Tiling())
        assert BLOCK % tiling.queries == BLOCK % tiling.keys == 0
    assert tiling_of(80, 2, None, dtype, gpu) == Tiling()
    assert tiling_of(256, 2, 50.0, torch.bfloat16, torch.device("cpu")) == Tiling()
    assert tiling_of(256, 2, MOST_CAP, dtype, gpu) == tiling_of(256, 2, 50.0, dtype, gpu)
    by_flex = WIDE if known else Tiling()
    assert tiling_of(256, 2, MOST_CAP + 1, dtype, gpu) == by_flex
    assert tiling_of(256, 3, 50.0, dtype, gpu) == by_flex, "heads go two by two"


def test_exponentials_of_capped_scores_are_in_range():
    largest = torch.tensor(MOST_CAP).exp()
    assert (largest * 2**31).isfinite()
    assert (-torch.tensor(MOST_CAP)).exp() > torch.finfo(torch.float32).tiny
    assert not (torch.tensor(MOST_CAP + 4).exp() * 2**31).isfinite()


def test_more_branches_than_marks_tell_apart():
    prefix, suffix = (Ragged.from_lists([np.ones(2, np.int32)] * 2) for _ in range(2))
    layout = lay_out("shared", prefix, [suffix] * 4, np.arange(2))
    with pytest.raises(ValueError, match="more than 3 branches"):
        attention_mask(layout, None, "cpu")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize(("width", "capped"), [*TILINGS, (96, False)])
def test_tilings_agree_with_dense_attention(width, capped, kind):
    """Compiled and in 16 bits where the machine has a GPU, else the same blocks on the CPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, near = (torch.bfloat16, 0.02) if device.type == "cuda" else (torch.float32, 1e-5)
    tiling = TILINGS.get((width, capped), Tiling())._replace(softcapped=False)
    if device.type == "cuda":
        tiling = tiling_of(width, 2, 50.0 if capped else None, dtype, device)
    given = layout_of("shared", [200, 0, 40], [150, 90, 130], row_tokens=9 * BLOCK)
    torch.manual_seed(0)
    heads = torch.randn(9 * BLOCK, 8, width, dtype=dtype).to(device).transpose(0, 1)
    q, k, v = heads.split([4, 2, 2])
    real = torch.from_numpy(given.groups_BT[0] >= 0).to(device)
    assert not real.all(), "padding is among them"
    scores = (width**-0.5, 50.0 if capped else None)
    sparse = BlockSparseAttention(9 * BLOCK, KINDS, 100, device, tiling).update(given)
    angles = (torch.arange(9 * BLOCK)[:, None] / torch.arange(1, width // 2 + 1)).repeat(1, 2).to(device)
    rotation = (angles.cos().to(dtype), angles.sin().to(dtype))
    rotated = q if sparse.rotates else rotate(q, *rotation)
    late = rotation if sparse.rotates else None
    attended = sparse.attend(Heads(rotated, k, v, *scores, late), kind)
    assert isinstance(attended, torch.Tensor)
    found = attended[real].float()
    q, k, v = rotate(q.float(), *(each.float() for each in rotation)), k.float(), v.float()
    expected = DenseAttention(given, KINDS, 100, device).attend(Heads(q, k, v, *scores), kind)[real]
    torch.testing.assert_close(found, expected, atol=near, rtol=near)
