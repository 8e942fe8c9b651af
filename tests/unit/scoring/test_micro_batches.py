"""What goes into a micro-batch, and how many tokens it has."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wsdm_ray.modeling.attention import BLOCK
from wsdm_ray.scoring.micro_batches import BatchShapes, plan_micro_batches

LAYOUTS = ("padded", "packed", "shared")


def test_static_shapes_beyond_the_budget_are_few():
    shapes = BatchShapes(static=True, initial_budget=10**6)
    sizes = {tokens: shapes.size(tokens, 256) for tokens in range(1, 16_385)}
    assert {sizes[tokens] for tokens in range(1, 257)} == {256}
    assert len(set(sizes.values())) < 32
    assert all(tokens <= size <= max(1.25 * tokens, tokens + 128, 256) for tokens, size in sizes.items())
    assert all(size % BLOCK == 0 for size in sizes.values())


def test_a_static_shape_is_not_larger_than_the_initial_budget():
    shapes = BatchShapes(static=True, initial_budget=16_896)
    assert shapes.least_size(16_385) == 16_896
    assert shapes.least_size(16_897) > 16_896


def test_without_static_shapes_nothing_is_filled_up():
    shapes = BatchShapes(static=False, initial_budget=1_000)
    assert shapes.least_size(37) == shapes.size(37, 500) == shapes.size(37, 20) == 37
    assert shapes.budget_step == 1


@given(
    st.lists(st.integers(1, 50), max_size=30),
    st.integers(1, 300),
    st.sets(st.integers(0, 29)),
    st.sampled_from(LAYOUTS),
)
def test_a_plan_holds_each_row_once_and_suspects_last(tokens, budget, suspects, layout):
    tokens_N = np.array(tokens, np.int64)
    rows = np.arange(len(tokens))[::2]
    plan = [indices.tolist() for indices in plan_micro_batches(layout, tokens_N, rows, budget, suspects)]
    assert sorted(row for indices in plan for row in indices) == rows.tolist()
    for indices in plan:
        cost = (
            len(indices) * max(tokens[i] for i in indices)
            if layout == "padded"
            else sum(tokens[i] for i in indices)
        )
        assert cost <= budget or len(indices) == 1
    last = [indices for indices in plan if suspects & set(indices)]
    assert all(len(indices) == 1 for indices in last)
    assert plan[len(plan) - len(last) :] == last
