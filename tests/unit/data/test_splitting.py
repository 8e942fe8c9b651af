"""Duplicates and the split: accounting, groups, stability."""

import collections

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from wsdm_ray.data.cleaning import REASONS
from wsdm_ray.data.splitting import choose_valid, digests, duplicate_reasons, first_repeated, pair_digests

DUPLICATE, CONFLICT = REASONS.index("duplicate"), REASONS.index("conflicting_duplicate")


def table_of(rows: list[tuple[str, str, str]]) -> pa.Table:
    prompts, a, b = zip(*rows, strict=True) if rows else ((), (), ())
    texts = {"prompt": prompts, "response_a": a, "response_b": b}
    return pa.table({name: pa.array(column, pa.string()) for name, column in texts.items()})


def reasons_of(rows: list[tuple[str, str, str, float]]) -> list[int]:
    table = table_of([row[:3] for row in rows])
    _, pairs, prob = pair_digests(table, np.array([row[3] for row in rows]))
    return duplicate_reasons(pairs, prob).tolist()


def test_duplicates_are_found_either_way_round():
    assert reasons_of([("p", "x", "y", 1.0), ("p", "y", "x", 0.0), ("p", "x", "z", 1.0)]) == [
        -1,
        DUPLICATE,
        -1,
    ]


def test_the_prompt_counts_in_its_normalized_form():
    rows = [("What is  it?", "x", "y", 1.0), (" what IS\nit?", "x", "y", 1.0), ("what is it", "x", "y", 1.0)]
    assert reasons_of(rows) == [-1, DUPLICATE, -1]


def test_every_copy_of_a_conflict_goes():
    rows = [("p", "x", "y", 1.0), ("p", "y", "x", 1.0), ("p", "x", "y", 1.0), ("q", "x", "y", 1.0)]
    assert reasons_of(rows) == [CONFLICT, CONFLICT, CONFLICT, -1]


def test_soft_labels_agree_to_the_last_bit_but_one():
    rows = [("p", "x", "y", 0.3), ("p", "y", "x", 0.7), ("q", "x", "y", 0.3), ("q", "x", "y", 0.31)]
    assert reasons_of(rows) == [-1, DUPLICATE, CONFLICT, CONFLICT]


def test_texts_do_not_run_together():
    rows = [("p", "xy", "z", 1.0), ("p", "x", "yz", 1.0), ("px", "y", "z", 1.0)]
    assert reasons_of(rows) == [-1, -1, -1]


TEXT = st.sampled_from(["x", "y", "z"])


@given(
    st.lists(
        st.tuples(st.sampled_from(["p", "P ", "q"]), TEXT, TEXT, st.sampled_from([0.0, 1.0])), max_size=30
    )
)
def test_each_pair_is_kept_once_or_not_at_all(rows):
    groups = collections.defaultdict(list)
    for index, (prompt, a, b, prob) in enumerate(rows):
        key = (prompt.strip().casefold(), *sorted((a, b)))
        groups[key].append((index, prob if a <= b else 1 - prob))
    expected = [0] * len(rows)
    for copies in groups.values():
        conflict = len({prob for _, prob in copies}) > 1
        for place, (index, _) in enumerate(copies):
            expected[index] = CONFLICT if conflict else DUPLICATE if place else -1
    assert reasons_of(rows) == expected


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=200),
    st.floats(0, 0.95),
    st.integers(-3, 3),
)
def test_no_prompt_stands_on_both_sides(names, fraction, seed):
    prompts = digests(names)
    valid = choose_valid(prompts, fraction, seed)
    assert not set(prompts[valid]) & set(prompts[~valid])
    assert not valid.all()
    assert valid.sum() <= 2 * np.ceil(fraction * len(names))
    assert (choose_valid(prompts, fraction, seed) == valid).all()
    order = np.random.default_rng(0).permutation(len(names))
    assert (choose_valid(prompts[order], fraction, seed) == valid[order]).all(), (
        "whatever the order of the rows"
    )


def test_the_fraction_is_reached():
    prompts = digests([i // 3 for i in range(3_000)])
    valid = choose_valid(prompts, 0.1, 0)
    assert 300 <= valid.sum() <= 302
    assert (choose_valid(prompts, 0.1, 1) != valid).any()
    assert choose_valid(prompts, 0.0, 0).sum() == 0


def test_a_group_too_large_stays_in_train():
    prompts = digests([0] * 500 + list(range(1, 501)))
    for seed in range(5):
        valid = choose_valid(prompts, 0.1, seed)
        assert not valid[:500].any()
        assert valid.sum() == 100


def test_more_groups_leave_the_others_on_their_side():
    few, more = digests(range(1_000)), digests(range(1_100))
    before, after = choose_valid(few, 0.1, 0), choose_valid(more, 0.1, 0)[:1_000]
    assert (before != after).sum() < 40


def test_first_repeated():
    assert first_repeated(digests([3, 1, 2])) is None
    assert first_repeated(digests([3, 1, 2, 1, 3])) == 3
    assert first_repeated(digests([])) is None
    assert first_repeated(digests(["a", "b", "a"])) == 2
