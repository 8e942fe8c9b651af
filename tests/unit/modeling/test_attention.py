"""Masks by hand and by a loop that follows the rule word for word; backends against each other."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask

from tests.unit.modeling.attention_layouts import Config, layout_of
from wsdm_ray.modeling.attention import (
    BLOCK,
    BlockSparseAttention,
    DenseAttention,
    Heads,
    SoftcappedAttention,
    Tiling,
    attention_mask,
    dense_masks,
    scoring_backend,
    tiling_of,
)
from wsdm_ray.modeling.attention.block_masks import token_rule
from wsdm_ray.modeling.attention.block_sparse import key_blocks
from wsdm_ray.modeling.attention.flex import block_masks
from wsdm_ray.modeling.attention.tiling import MAX_KERNEL_SOFTCAP, NARROW, SMALL, SOFTCAPPED, TILINGS, WIDE
from wsdm_ray.modeling.families import Family, Shape
from wsdm_ray.modeling.fused_layer import rotate
from wsdm_ray.packing.layouts import lay_out, round_up
from wsdm_ray.packing.ragged import Ragged


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
    config = Config(
        model_type="qwen2", layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=2
    )
    layout = layout_of("shared", [3], [2])
    masks = dense_masks(layout, config, torch.bfloat16, "cpu")
    assert isinstance(masks, dict)
    assert sorted(masks) == ["full_attention", "sliding_attention"]
    for kind, window in (("full_attention", None), ("sliding_attention", 2)):
        assert masks[kind].dtype == torch.bfloat16
        assert torch.equal(masks[kind][:, 0] == 0, attention_mask(layout, window, "cpu"))


def test_an_unknown_kind_of_layer():
    config = Config(model_type="qwen2", layer_types=["linear_attention"])
    with pytest.raises(ValueError, match=r"no mask for layers of type \['linear_attention'\]"):
        dense_masks(layout_of("packed", [1], [1]), config, torch.float32, "cpu")


def test_layer_types_that_a_family_does_not_read_are_ignored():
    config = Config(layer_types=["sliding_attention"], sliding_window=1)
    assert isinstance(dense_masks(layout_of("packed", [1], [1]), config, torch.float32, "cpu"), torch.Tensor)


def test_what_scores_is_chosen_by_the_device_and_by_the_scores():
    shape = Shape(
        family=Family(), hidden_size=8, num_heads=2, num_kv_heads=1, head_dim=4, query_scale=0.5,
        softcap=50.0, norm_epsilon=0.0, layer_types=("full_attention",), sliding_window=None,
        activation="silu",
    )  # fmt: skip
    for tiling, row_tokens, expected, rotates, alignment in (
        (Tiling(), None, DenseAttention, False, 1),
        (SOFTCAPPED, None, DenseAttention, False, 1),
        (Tiling(), BLOCK, BlockSparseAttention, False, BLOCK),
        (WIDE, BLOCK, BlockSparseAttention, False, 64),
        (SOFTCAPPED, BLOCK, SoftcappedAttention, True, 32),
    ):
        backend = scoring_backend(shape, "cpu", tiling, row_tokens)
        assert type(backend) is expected
        assert backend.rotates_queries == rotates
        assert backend.alignment == alignment


KINDS = {"full_attention", "sliding_attention"}
EVERY_TILING = [Tiling(), WIDE, NARROW, SOFTCAPPED]


def blocks_of(mask: BlockMask) -> np.ndarray:
    """What a block mask says of each block: 0 unseen, 1 seen in part, 2 seen in whole."""
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
            assert (blocks_of(attention.block_masks[kind]) == tiles.any(-1) * 1 + whole * 1).all()
            rule = token_rule(attention.mask_terms, attention.windows[kind])
            places = torch.arange(6 * BLOCK)
            assert (rule(places[0], places[0], places[:, None], places[None]).numpy() == seen).all()


@pytest.mark.parametrize("window", [16, 349, 350])  # of up to 350 tokens
@pytest.mark.parametrize("layout", ["packed", "shared"])
def test_the_masks_of_training_say_what_the_rule_says(layout, window):
    given = layout_of(layout, [200, 3], [150, 20], row_tokens=6 * BLOCK)
    masks = block_masks(given, {"full_attention": None, "sliding_attention": window}, "cpu")
    assert (masks["full_attention"] is masks["sliding_attention"]) == (window == 350), "one mask is made once"
    blocks = -1 - np.arange(6 * BLOCK) // BLOCK  # padding is a group of its own in each
    given = dataclasses.replace(given, groups_BT=np.where(given.groups_BT < 0, blocks, given.groups_BT))
    for kind, mask in masks.items():
        seen = attention_mask(given, window if kind == "sliding_attention" else None, "cpu")[0].numpy()
        tiles = seen.reshape(6, BLOCK, 6, BLOCK).swapaxes(1, 2).reshape(6, 6, -1)
        assert (blocks_of(mask) == tiles.any(-1) * 1 + tiles.all(-1) * 1).all()
        places = torch.arange(6 * BLOCK)
        rule = mask.mask_mod(places[0], places[0], places[:, None], places[None])
        assert (rule.numpy() == seen).all()


def test_the_masks_of_training_are_of_one_row_of_whole_blocks():
    with pytest.raises(ValueError, match="one row of a multiple of 128"):
        block_masks(layout_of("packed", [50], [50], row_tokens=100), {}, "cpu")


def keys_in_turn(
    attention: BlockSparseAttention, kind: str, query: int, first: int
) -> list[tuple[int, bool, bytes]]:
    """The blocks of keys that a query sees anything of, in the order of the sums: how far they are from
    `first`, whether the rule is asked, and what it says of their keys.
    """
    keys, row, found = attention.tiling.keys, query // attention.tiling.queries, []
    part, part_places, whole, whole_places = (each[0, 0] for each in key_blocks(attention.block_masks[kind]))
    rule = token_rule(attention.mask_terms, attention.windows[kind])
    for asked, count, places in ((True, part, part_places), (False, whole, whole_places)):
        for block in places[row, : int(count[row])].tolist():
            at = torch.arange(block * keys, block * keys + keys)
            seen = (
                rule(at[0], at[0], torch.tensor(query), at) if asked else torch.ones(keys, dtype=torch.bool)
            )
            if seen.any():
                found.append((block * keys - first, asked, seen.numpy().tobytes()))
    return found


def turns(
    layout: str, tiling: Tiling, before: list[tuple[int, int]], after: list[tuple[int, int]]
) -> dict[tuple[int, int, str], list[tuple[int, bool, bytes]]]:
    """`keys_in_turn` of some queries of a pair between others, of (prefix, suffix) tokens each."""
    groups = 1 if layout == "shared" else 2
    prefixes, suffixes = zip(*before, (90, 70), *after, strict=True)
    sizes = (layout, list(prefixes), list(suffixes))
    needed = layout_of(*sizes, alignment=tiling.alignment).tokens_BT.shape[1]
    tokens = round_up(needed + 1, BLOCK)  # padding is among them
    given = layout_of(*sizes, tokens, tiling.alignment)
    attention = BlockSparseAttention(tokens, KINDS, 100, "cpu", tiling).update(given)
    found = {}
    for group in range(groups):
        places = np.flatnonzero(given.groups_BT[0] == len(before) * groups + group)
        for kind, at in itertools.product(KINDS, (0, 31, 64, 100, len(places) - 1)):
            found[group, at, kind] = keys_in_turn(attention, kind, int(places[at]), int(places[0]))
    return found


@functools.cache
def turns_alone(layout: str, number: int) -> dict[tuple[int, int, str], list[tuple[int, bool, bytes]]]:
    """`turns` of the pair alone, by the tiling of that number in `EVERY_TILING`: a tiling has no hash."""
    return turns(layout, EVERY_TILING[number], [], [])


@pytest.mark.parametrize("tiling", EVERY_TILING, ids=["plain", "wide", "narrow", "capped"])
@pytest.mark.parametrize("layout", ["packed", "shared"])
@settings(max_examples=8)
@example([(1, 1)], [])  # one block alone: blocks of more queries than keys have another half of them
@given(*[st.lists(st.tuples(st.integers(0, 150), st.integers(1, 90)), max_size=2)] * 2)
def test_neighbours_do_not_change_what_is_added_up_in_which_order(layout, tiling, before, after):
    assert turns(layout, tiling, before, after) == turns_alone(layout, EVERY_TILING.index(tiling))


@pytest.mark.parametrize(("window", "looks"), [(349, [349, None]), (350, [None])])
def test_a_window_that_takes_nothing_away_is_none(window, looks, monkeypatch):
    attention = BlockSparseAttention(6 * BLOCK, KINDS, window, "cpu")
    asked = []
    monkeypatch.setattr(
        attention,
        "find_key_blocks",
        lambda window: asked.append(window) or BlockSparseAttention.find_key_blocks(attention, window),
    )
    attention.update(layout_of("shared", [200], [150], row_tokens=6 * BLOCK))
    assert sorted(asked, key=str) == looks
    sliding, full = (
        key_blocks(attention.block_masks[kind]) for kind in ("sliding_attention", "full_attention")
    )
    same = all(torch.equal(*each) for each in zip(sliding, full, strict=True))
    assert same == (looks == [None])


def test_padding_sees_no_more_than_its_block():
    given = layout_of("packed", [50], [50], row_tokens=6 * BLOCK)
    attention = BlockSparseAttention(6 * BLOCK, KINDS, None, "cpu").update(given)
    seen = np.eye(6)
    seen[1, 0] = 1  # the second sequence begins in the first block
    assert (blocks_of(attention.block_masks["full_attention"]) == seen).all()


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
    dense = DenseAttention(KINDS, 16, "cpu").update(given).attend(heads, kind)
    sparse = BlockSparseAttention(2 * BLOCK, KINDS, 16, "cpu").update(given).attend(heads, kind)
    torch.testing.assert_close(sparse, dense, atol=1e-5, rtol=1e-5)
    assert dense.shape == (256, 64)


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
    wide = SMALL if dtype != torch.float32 else Tiling()  # that fits into GPUs with less shared memory
    for (width, capped), tiling in TILINGS.items():
        other = wide if width == 256 else Tiling()
        assert tiling_of(width, 2, 50.0 if capped else None, dtype, gpu) == (tiling if known else other)
        assert BLOCK % tiling.queries == BLOCK % tiling.keys == 0
    assert tiling_of(80, 2, None, dtype, gpu) == Tiling()
    assert tiling_of(256, 2, 50.0, torch.bfloat16, torch.device("cpu")) == Tiling()
    assert tiling_of(256, 2, MAX_KERNEL_SOFTCAP, dtype, gpu) == tiling_of(256, 2, 50.0, dtype, gpu)
    by_flex = WIDE if known else wide
    assert tiling_of(256, 2, MAX_KERNEL_SOFTCAP + 1, dtype, gpu) == by_flex
    assert tiling_of(256, 3, 50.0, dtype, gpu) == by_flex, "heads go two by two"


def test_exponentials_of_capped_scores_are_in_range():
    largest = torch.tensor(MAX_KERNEL_SOFTCAP).exp()
    assert (largest * 2**31).isfinite()
    assert (-torch.tensor(MAX_KERNEL_SOFTCAP)).exp() > torch.finfo(torch.float32).tiny
    assert not (torch.tensor(MAX_KERNEL_SOFTCAP + 4).exp() * 2**31).isfinite()


def test_more_branches_than_fit_in_a_segment():
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
    given = layout_of("shared", [150, 0, 40], [110, 70, 90], row_tokens=6 * BLOCK)
    torch.manual_seed(0)
    heads = torch.randn(6 * BLOCK, 8, width, dtype=dtype).to(device).transpose(0, 1)
    q, k, v = heads.split([4, 2, 2])
    real = torch.from_numpy(given.groups_BT[0] >= 0).to(device)
    assert not real.all(), "padding is among them"
    scores = (width**-0.5, 50.0 if capped else None)
    backend = SoftcappedAttention if tiling.softcapped else BlockSparseAttention
    sparse = backend(6 * BLOCK, KINDS, 100, device, tiling).update(given)
    angles = (torch.arange(6 * BLOCK)[:, None] / torch.arange(1, width // 2 + 1)).repeat(1, 2).to(device)
    rotation = (angles.cos().to(dtype), angles.sin().to(dtype))
    rotated = q if sparse.rotates_queries else rotate(q, *rotation)
    late = rotation if sparse.rotates_queries else None
    attended = sparse.attend(Heads(rotated, k, v, *scores, late), kind)
    assert isinstance(attended, torch.Tensor)
    found = attended[real].float()
    q, k, v = rotate(q.float(), *(each.float() for each in rotation)), k.float(), v.float()
    expected = DenseAttention(KINDS, 100, device).update(given).attend(Heads(q, k, v, *scores), kind)[real]
    torch.testing.assert_close(found, expected, atol=near, rtol=near)
