"""Truncation: budgets that fit, that waste nothing much, and that treat the two answers alike."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wsdm_ray.text.truncation import balanced_budgets, truncate_middle

lengths = st.one_of(st.integers(0, 50), st.integers(0, 5_000))
triples = st.lists(st.tuples(lengths, lengths, lengths), min_size=1, max_size=20)
rooms = st.integers(3, 3_000)
shares = st.floats(0.01, 0.99)


def budgets(rows, room: int, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Lengths int64 [N, 3], and the budgets of prompt, a and b."""
    have = np.asarray(rows, np.int64)
    return have, *balanced_budgets(have[:, 0], have[:, 1], have[:, 2], room, share)


@given(triples, rooms, shares)
def test_budgets_fit(rows, room, share):
    have, prompt, a, b = budgets(rows, room, share)
    keep = np.stack([prompt, a, b], axis=1)
    assert (keep >= 0).all()
    assert (keep <= have).all()
    assert (keep.sum(axis=1) <= room).all()
    fits = have.sum(axis=1) <= room
    assert (keep[fits] == have[fits]).all()
    # Two halves of an odd number leave one token free; nothing else is wasted.
    assert (keep.sum(axis=1) >= np.minimum(have.sum(axis=1), room) - 1).all()


@given(triples, rooms, shares)
def test_answers_are_treated_alike(rows, room, share):
    have, prompt, a, b = budgets(rows, room, share)
    swapped_prompt, swapped_b, swapped_a = balanced_budgets(have[:, 0], have[:, 2], have[:, 1], room, share)
    np.testing.assert_array_equal(prompt, swapped_prompt)
    np.testing.assert_array_equal(a, swapped_a)
    np.testing.assert_array_equal(b, swapped_b)
    both_cut = (a < have[:, 1]) & (b < have[:, 2])
    np.testing.assert_array_equal(a[both_cut], b[both_cut])


@given(triples, rooms, shares)
def test_the_prompt_keeps_its_share(rows, room, share):
    have, prompt, a, b = budgets(rows, room, share)
    sure = np.minimum(have[:, 0], int(room * share))
    assert (prompt >= sure).all()
    # More than its share only where the answers are whole.
    assert ((prompt <= sure) | ((a == have[:, 1]) & (b == have[:, 2]))).all()


def test_budgets_by_hand():
    prompt, a, b = balanced_budgets(
        np.array([10, 100, 100, 100, 5]),
        np.array([10, 100, 10, 100, 500]),
        np.array([10, 100, 100, 10, 20]),
        100,
        0.25,
    )
    assert prompt.tolist() == [10, 25, 25, 25, 5]
    assert a.tolist() == [10, 37, 10, 65, 75]
    assert b.tolist() == [10, 37, 65, 10, 20]


@given(st.integers(0, 40), st.integers(0, 50))
def test_head_and_tail(length, keep):
    ids = np.arange(length, dtype=np.int32)
    kept = truncate_middle(ids, keep)
    assert len(kept) == min(length, keep)
    assert kept.dtype == np.int32
    gaps = np.flatnonzero(np.diff(kept) != 1)
    assert len(gaps) <= 1, "one hole, in the middle"
    if length > keep:
        head = -(-keep // 2)
        assert kept.tolist() == [*range(head), *range(length - keep + head, length)]
