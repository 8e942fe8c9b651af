"""Batches: every row once an epoch, and all of it a function of seed and step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsdm_ray.training.batches import assign_batches, num_steps, pairs_in_steps, step_rows, steps_per_epoch


@given(st.integers(0, 2**32), st.integers(1, 90), st.integers(1, 40), st.integers(0, 3))
def test_each_row_once_an_epoch(seed, rows, pairs_per_step, epoch):
    steps = steps_per_epoch(rows, pairs_per_step)
    taken = [step_rows(seed, epoch * steps + step, rows, pairs_per_step) for step in range(steps)]
    assert sorted(np.concatenate(taken)) == list(range(rows))
    assert [len(each) for each in taken[:-1]] == [pairs_per_step] * (steps - 1)
    assert len(taken[-1]) == (rows - 1) % pairs_per_step + 1, "the last partial step is taken, too"
    assert taken[0].dtype == np.int64


@given(st.integers(0, 2**32), st.integers(0, 50), st.integers(1, 90), st.integers(1, 40))
def test_a_function_of_seed_and_step(seed, step, rows, pairs_per_step):
    first = step_rows(seed, step, rows, pairs_per_step)
    np.random.default_rng(0).random(7)
    np.random.seed(1)
    np.testing.assert_array_equal(step_rows(seed, step, rows, pairs_per_step), first)


def test_seeds_and_epochs_differ():
    orders = [step_rows(seed, epoch, 50, 50).tolist() for seed in range(2) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 6


@pytest.mark.parametrize(
    ("rows", "pairs", "epochs", "most", "expected"),
    [
        (100, 16, 1.0, None, 7),
        (96, 16, 1.0, None, 6),
        (96, 16, 2.0, None, 12),
        (100, 16, 0.5, None, 4),
        (100, 16, 0.001, None, 1),
        (100, 16, 3.0, 5, 5),
        (100, 16, 1.0, 50, 7),
        (10, 1, 0.3, None, 3),
        (1, 16, 1.0, None, 1),
    ],
)
def test_num_steps(rows, pairs, epochs, most, expected):
    assert num_steps(rows, pairs, epochs, most) == expected


@given(st.lists(st.integers(1, 1_000), max_size=30), st.integers(1, 8))
def test_each_pass_goes_to_one_worker(costs, workers):
    shares = assign_batches(costs, workers)
    assert len(shares) == workers
    assert sorted(number for share in shares for number in share) == list(range(len(costs)))
    loads = [sum(costs[number] for number in share) for share in shares]
    # No worker has more than another and one pass besides (the greedy rule's bound).
    assert max(loads) - min(loads) <= max(costs, default=0)
    if len(costs) >= workers:
        assert all(shares), "none is idle"
    assert shares == assign_batches(list(costs), workers)


def test_shares_by_hand():
    assert assign_batches([5, 9, 4, 3], 2) == [[1, 3], [0, 2]]
    assert assign_batches([7, 7, 7], 1) == [[0, 1, 2]]
    assert assign_batches([7], 3) == [[0], [], []]


@pytest.mark.parametrize(("steps", "expected"), [(1, 4), (3, 10), (4, 14), (6, 20), (0, 0)])
def test_pairs_in_steps(steps, expected):
    assert pairs_in_steps(steps, rows=10, pairs_per_step=4) == expected
