"""Plans: every pair once, never over the budget, full micro-batches, the same plan for the same lengths."""

import itertools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsdm_ray.packing.plan import batch_tokens, pair_tokens, plan_batches, plan_for_workers
from wsdm_ray.training.batches import assign_batches

LAYOUTS = ("padded", "packed", "shared")
layouts = st.sampled_from(LAYOUTS)
tokens_lists = st.lists(st.integers(1, 200), max_size=60)


def real_lengths(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of prefix and of suffix: log-normal prompts and answers, 16 tokens of tags, cut at 2,048."""
    random = np.random.default_rng(seed)
    prompt = np.clip(random.lognormal(np.log(70), 1.4, rows), 4, 6000).astype(int)
    answers = np.clip(random.lognormal(np.log(330), 0.85, (2, rows)), 4, 4000).astype(int).sum(axis=0)
    prefix = np.minimum(prompt, np.maximum(508, 2032 - answers)) + 6
    return prefix, np.minimum(answers, 2032 - (prefix - 6)) + 10


def assert_valid(plan: list[np.ndarray], layout: str, tokens: np.ndarray, budget: int) -> None:
    assert sorted(pair for each in plan for pair in each.tolist()) == list(range(len(tokens)))
    for each in plan:
        assert len(each)
        assert each.dtype == np.int64
        assert batch_tokens(layout, tokens[each]) <= budget


def test_pair_tokens_by_hand():
    prefix, suffix = np.array([10, 3]), np.array([5, 7])
    assert pair_tokens("padded", prefix, suffix, 2).tolist() == [30, 20]
    assert pair_tokens("packed", prefix, suffix, 2).tolist() == [30, 20]
    assert pair_tokens("shared", prefix, suffix, 2).tolist() == [20, 17]
    assert pair_tokens("shared", prefix, suffix, 1).tolist() == [15, 10]
    assert pair_tokens("padded", prefix, suffix, 2, 8).tolist() == [32, 32]
    assert pair_tokens("packed", prefix, suffix, 2, 8).tolist() == [32, 32]
    assert pair_tokens("shared", prefix, suffix, 2, 8).tolist() == [24, 24]


def test_pass_tokens_by_hand():
    tokens = np.array([30, 20, 26])
    assert batch_tokens("padded", tokens) == 3 * 30
    assert batch_tokens("packed", tokens) == batch_tokens("shared", tokens) == 76
    assert batch_tokens("padded", tokens[:0]) == 0


@given(layouts, tokens_lists, st.integers(200, 1_000))
def test_every_pair_once_within_the_budget(layout, lengths, budget):
    tokens = np.asarray(lengths, np.int64)
    plan = plan_batches(layout, tokens, budget)
    assert_valid(plan, layout, tokens, budget)
    again = plan_batches(layout, tokens.copy(), budget)
    assert [each.tolist() for each in plan] == [each.tolist() for each in again]


@given(st.lists(st.integers(1, 200), min_size=1, max_size=60), st.integers(200, 1_000))
def test_padded_batches_waste_no_place(lengths, budget):
    tokens = np.asarray(lengths, np.int64)
    plan = plan_batches("padded", tokens, budget)
    for each, following in itertools.pairwise(plan):
        assert (len(each) + 1) * tokens[each].max() > budget, "one more pair would have fitted"
        assert tokens[following].max() <= tokens[each].min(), "longest first"


@given(layouts, tokens_lists, st.integers(200, 1_000), st.integers(1, 80))
def test_each_of_several_workers_has_a_micro_batch(layout, lengths, budget, workers):
    tokens = np.asarray(lengths, np.int64)
    plan = plan_for_workers(layout, tokens, budget, workers)
    assert_valid(plan, layout, tokens, budget)
    assert len(plan) >= min(workers, len(tokens))


def test_pairs_of_one_length_are_cut_for_workers():
    plan = plan_for_workers("packed", np.full(7, 100), 1_000, 3)
    assert sorted(map(len, plan)) == [1, 3, 3]
    assert [*map(len, plan_for_workers("packed", np.full(4, 100), 1_000, 3))] == [1, 1, 2]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_worker_has_the_fewest_micro_batches(layout):
    tokens = pair_tokens(layout, *real_lengths(128, 0), 2)
    for one, other in zip(
        plan_for_workers(layout, tokens, 8_192, 1), plan_batches(layout, tokens, 8_192), strict=True
    ):
        assert np.array_equal(one, other)


def test_the_last_micro_batches_are_evened_out():
    def loads(layout: str, tokens: list[int], budget: int, workers: int) -> list[int]:
        tokens_N = np.array(tokens)
        return sorted(
            batch_tokens(layout, tokens_N[each])
            for each in plan_for_workers(layout, tokens_N, budget, workers)
        )

    assert loads("packed", [3_000, 3_000, 2_000, 500], 8_192, 2) == [3_500, 5_000], "as many as workers"
    assert loads("packed", [1_000] * 9, 8_000, 2) == [4_000, 5_000]
    assert loads("packed", [8_000, 8_000, 3_000, 2_000, 500], 8_192, 2) == [2_500, 3_000, 8_000, 8_000]
    assert loads("packed", [4_000, 4_000, 2_000, 2_000, 1_000, 100], 4_000, 2) == [2_100, 3_000, 4_000, 4_000]
    assert loads("padded", [400, 400, 300, 300, *[100] * 8], 800, 2) == [400, 400, 600, 800]


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_workers_share_a_step_evenly(workers):
    """Of ten steps of 128 pairs of real lengths, by tokens."""

    def times_one(plan_of: Callable[..., list[np.ndarray]]) -> float:
        """How many times as fast so many workers are as one."""
        alone = together = 0
        for seed in range(10):
            tokens = pair_tokens("shared", *real_lengths(128, seed), 2)
            plan = plan_of("shared", tokens, 8_192, workers)
            assert_valid(plan, "shared", tokens, 8_192)
            costs = [batch_tokens("shared", tokens[each]) for each in plan]
            alone += sum(costs)
            together += max(
                sum(costs[number] for number in share) for share in assign_batches(costs, workers)
            )
        return alone / together

    even = times_one(plan_for_workers)
    assert even > 0.97 * workers
    assert even > times_one(lambda layout, tokens, budget, _: plan_batches(layout, tokens, budget)) + 0.01


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pair_over_the_budget_is_named(layout):
    with pytest.raises(ValueError, match="pair 1 takes 201 tokens, over the budget of 200"):
        plan_batches(layout, np.array([200, 201, 500]), 200)


@pytest.mark.parametrize("alignment", [1, 32, 64])
@pytest.mark.parametrize("seed", range(3))
def test_batches_are_97_percent_full_on_real_lengths(seed, alignment):
    prefix, suffix = real_lengths(2_000, seed)
    real = pair_tokens("shared", prefix, suffix, 2)
    tokens = pair_tokens("shared", prefix, suffix, 2, alignment)
    plan = plan_batches("shared", tokens, 16_384)
    assert_valid(plan, "shared", tokens, 16_384)
    assert real.sum() / (len(plan) * 16_384) >= 0.97, "padding between pairs counts as none"


def test_a_pair_is_placed_without_a_scan_of_all_batches():
    tokens = pair_tokens("shared", *real_lengths(2_000, 0), 2)
    lines = 0

    def count(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        plan = plan_batches("shared", tokens, 16_384)
    finally:
        sys.settrace(before)
    assert len(plan) > 100
    assert lines < 20 * len(tokens), "of Python, where a scan would run 100 for each pair"
