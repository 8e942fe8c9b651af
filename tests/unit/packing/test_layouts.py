"""Layouts: each ordering's tokens can be read back by groups, branches and positions alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsdm_ray.packing.layouts import Layout, lay_out
from wsdm_ray.packing.plan import batch_tokens, pair_tokens
from wsdm_ray.packing.ragged import Ragged

LAYOUTS = ("padded", "packed", "shared")
PAD = 99


@st.composite
def batches(draw) -> tuple[Ragged, list[Ragged], np.ndarray]:
    """Pairs of distinct tokens, one or two orderings, and which pairs a micro-batch holds, in which order."""
    rows, orderings = draw(st.integers(1, 6)), draw(st.integers(1, 2))
    counts = iter(range(1_000, 100_000))

    def ragged(least: int) -> Ragged:
        sizes = draw(st.lists(st.integers(least, 8), min_size=rows, max_size=rows))
        return Ragged.from_lists(
            [np.asarray([next(counts) for _ in range(size)], np.int32) for size in sizes]
        )

    prefix, suffixes = ragged(0), [ragged(1) for _ in range(orderings)]
    pairs = draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=rows, unique=True))
    return prefix, suffixes, np.asarray(pairs, np.int64)


def sequences(layout: Layout) -> list[list[int]]:
    """What each of `last_S` can see, by the layout's own rule, in the order of positions."""
    found = []
    for last in layout.last_S.tolist():
        row, at = divmod(last, layout.tokens_BT.shape[1])
        group, branch = layout.groups_BT[row, at], layout.branches_BT[row, at]
        mine = (layout.groups_BT[row] == group) & np.isin(layout.branches_BT[row], [0, branch])
        mine &= layout.positions_BT[row] <= layout.positions_BT[row, at]
        order = np.argsort(layout.positions_BT[row, mine], kind="stable")
        positions = layout.positions_BT[row, mine][order]
        assert positions.tolist() == list(range(len(positions))), "each position once, from 0"
        found.append(layout.tokens_BT[row, mine][order].tolist())
    return found


@pytest.mark.parametrize("kind", LAYOUTS)
@given(batches())
def test_every_ordering_can_be_read_back(kind, batch):
    prefix, suffixes, pairs = batch
    layout = lay_out(kind, prefix, suffixes, pairs, pad_id=PAD)
    expected = [[*prefix[pair], *suffix[pair]] for pair in pairs for suffix in suffixes]
    assert sequences(layout) == expected
    assert layout.tokens_BT.reshape(-1)[layout.last_S].tolist() == [tokens[-1] for tokens in expected]
    padding = layout.groups_BT < 0
    assert (layout.tokens_BT[padding] == PAD).all()
    assert layout.num_tokens == int((layout.tokens_BT != PAD).sum())
    assert layout.tokens_BT.dtype == layout.positions_BT.dtype == layout.last_S.dtype == np.int64
    assert layout.groups_BT.dtype == layout.branches_BT.dtype == np.int32


@pytest.mark.parametrize("kind", LAYOUTS)
@given(batches())
def test_how_often_a_token_stands_there(kind, batch):
    prefix, suffixes, pairs = batch
    layout = lay_out(kind, prefix, suffixes, pairs, pad_id=PAD)
    times = 1 if kind == "shared" else len(suffixes)
    tokens = layout.tokens_BT[layout.groups_BT >= 0].tolist()
    expected = [token for pair in pairs for token in prefix[pair].tolist() * times]
    expected += [token for pair in pairs for suffix in suffixes for token in suffix[pair]]
    assert sorted(tokens) == sorted(expected)
    rows = len(pairs) * len(suffixes) if kind == "padded" else 1
    assert len(layout.tokens_BT) == rows
    if kind != "padded":
        assert layout.tokens_BT.size == len(expected), "nothing is padded unless asked for"


@pytest.mark.parametrize("kind", LAYOUTS)
@given(batches(), st.integers(1, 200))
def test_rows_are_padded_to_a_width(kind, batch, width):
    prefix, suffixes, pairs = batch
    narrow = lay_out(kind, prefix, suffixes, pairs, pad_id=PAD)
    wide = lay_out(kind, prefix, suffixes, pairs, pad_id=PAD, row_tokens=width)
    assert wide.tokens_BT.shape[1] == max(width, narrow.tokens_BT.shape[1])
    assert sequences(wide) == sequences(narrow)
    assert wide.num_tokens == narrow.num_tokens


@pytest.mark.parametrize("kind", LAYOUTS)
@given(batches(), st.integers(1, 20))
def test_groups_begin_at_multiples_of_the_alignment(kind, batch, alignment):
    prefix, suffixes, pairs = batch
    dense = lay_out(kind, prefix, suffixes, pairs, pad_id=PAD)
    layout = lay_out(kind, prefix, suffixes, pairs, pad_id=PAD, alignment=alignment)
    assert sequences(layout) == sequences(dense)
    assert layout.num_tokens == dense.num_tokens
    assert (layout.tokens_BT[layout.groups_BT < 0] == PAD).all()
    assert layout.tokens_BT.shape[1] % alignment == 0
    groups = layout.groups_BT.reshape(-1)
    for group in range(groups.max() + 1):
        places = np.flatnonzero(groups == group)
        assert places[0] % alignment == 0
        assert places.tolist() == list(range(places[0], places[0] + len(places))), "no gap within a group"
    lengths = prefix.lengths[pairs], suffixes[0].lengths[pairs]
    same_length = all((each.lengths == suffixes[0].lengths).all() for each in suffixes)
    if same_length:  # as those of both orderings are
        tokens = pair_tokens(kind, *lengths, len(suffixes), alignment)
        assert layout.tokens_BT.size == batch_tokens(kind, tokens)


def test_shared_by_hand():
    prefix = Ragged.from_lists([np.array([1, 2]), np.array([3])])
    ab = Ragged.from_lists([np.array([11, 12]), np.array([13])])
    ba = Ragged.from_lists([np.array([12, 11]), np.array([14])])
    layout = lay_out("shared", prefix, [ab, ba], np.array([0, 1]), pad_id=PAD, row_tokens=10)
    assert layout.tokens_BT.tolist() == [[1, 2, 11, 12, 12, 11, 3, 13, 14, PAD]]
    assert layout.positions_BT.tolist() == [[0, 1, 2, 3, 2, 3, 0, 1, 1, 0]]
    assert layout.groups_BT.tolist() == [[0, 0, 0, 0, 0, 0, 1, 1, 1, -1]]
    assert layout.branches_BT.tolist() == [[0, 0, 1, 1, 2, 2, 0, 1, 2, 0]]
    assert layout.last_S.tolist() == [3, 5, 7, 8]


def test_packed_and_aligned_by_hand():
    prefix, suffix = (Ragged.from_lists([np.array(ids)]) for ids in ([1, 2], [3]))
    layout = lay_out("packed", prefix, [suffix, suffix], np.array([0]), pad_id=PAD, alignment=4)
    assert layout.tokens_BT.tolist() == [[1, 2, 3, PAD, 1, 2, 3, PAD]]
    assert layout.groups_BT.tolist() == [[0, 0, 0, -1, 1, 1, 1, -1]]
    assert layout.last_S.tolist() == [2, 6]
