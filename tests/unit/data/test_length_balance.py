"""Balanced lengths: half of the weighted votes of a bin are for the longer response."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsdm_ray.data.length_balance import LENGTH_RATIOS, MOST, balance_lengths, balanced_weights
from wsdm_ray.data.votes import Votes


def share_for_longer(a_N, b_N, prob_N, weights_N, rows) -> float:
    towards_N = np.where(a_N > b_N, prob_N, 1 - prob_N)
    return float((weights_N * towards_N)[rows].sum() / weights_N[rows].sum())


@given(
    votes=st.lists(
        st.tuples(st.integers(0, 60), st.integers(0, 60), st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0])),
        min_size=1, max_size=60,
    )
)  # fmt: skip
def test_within_every_bin_both_sides_pull_alike_and_together_as_before(votes):
    a_N, b_N, prob_N = (np.array(column) for column in zip(*votes, strict=True))
    weights_N = np.linspace(0.5, 2.0, len(votes))
    found_N = balanced_weights(a_N, b_N, prob_N, weights_N)
    ratio_N = np.maximum(a_N, b_N) / np.maximum(np.minimum(a_N, b_N), 1)
    edges = [0.0, *LENGTH_RATIOS, np.inf]
    for low, high in pairwise(edges):
        in_bin = (ratio_N >= low) & (ratio_N < high)
        pull_N = np.sign(a_N - b_N) * (prob_N - 0.5) * in_bin
        if not (pull_N > 0).any() or not (pull_N < 0).any():
            assert np.array_equal(found_N[in_bin], weights_N[in_bin])
        elif (found_N < MOST * weights_N * (1 - 1e-9)).all():
            assert (found_N * pull_N).sum() == pytest.approx(0, abs=1e-9)
            rows = in_bin & (a_N != b_N)
            assert share_for_longer(a_N, b_N, prob_N, found_N, rows) == pytest.approx(0.5)
            assert np.abs(found_N * pull_N).sum() == pytest.approx(np.abs(weights_N * pull_N).sum())
    assert np.array_equal(found_N[a_N == b_N], weights_N[a_N == b_N])
    swapped_N = balanced_weights(b_N, a_N, 1 - prob_N, weights_N)
    assert np.allclose(found_N, swapped_N), "whichever response comes first"


def test_counts_decide_where_all_votes_are_hard():
    a_N, b_N = np.full(4, 30), np.full(4, 10)
    assert balanced_weights(a_N, b_N, np.array([1.0, 1, 1, 0]), np.ones(4)) == pytest.approx(
        [4 / 6, 4 / 6, 4 / 6, 4 / 2]
    )
    few_N = np.array([0.0] + [1.0] * 99)
    assert balanced_weights(np.full(100, 30), np.full(100, 10), few_N, np.ones(100))[0] == MOST


def test_the_strength_is_the_share_of_the_balanced_weights():
    texts = {"response_a": ["\u00e9" * 30] * 4, "response_b": ["b" * 10] * 4}  # characters, not bytes
    votes = Votes(pa.table(texts), np.array([1.0, 1, 1, 0]))
    weights_N = np.ones(4)
    assert balance_lengths(votes, weights_N, 0.0) is weights_N
    assert balance_lengths(votes, weights_N, 1.0) == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])
    half_N = balance_lengths(votes, weights_N, 0.5)
    assert half_N == pytest.approx([5 / 6, 5 / 6, 5 / 6, 1.5])
    assert half_N.mean() == pytest.approx(1)
