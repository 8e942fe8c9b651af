"""The decision after a failed micro-batch, without running one."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.scoring.fakes import OOM_ERRORS
from wsdm_ray.errors import ModelError
from wsdm_ray.modeling.attention import BLOCK
from wsdm_ray.modeling.memory_errors import is_oom
from wsdm_ray.scoring.recovery import (
    Action,
    FailedBatch,
    Failure,
    Recovery,
    check_not_all_failed,
    describe_error,
    is_device_lost,
    over_budget_error,
    recover,
    row_error,
)


def failed(**changes: Any) -> FailedBatch:
    """A micro-batch of four pairs in both orderings that ran out of memory at 100 tokens."""
    values: dict[str, Any] = {
        "is_oom": True, "num_pairs": 4, "num_orderings": 2, "num_tokens": 100, "size": 100, "least_size": 100,
    }  # fmt: skip
    return FailedBatch(**(values | changes))


@pytest.mark.parametrize(
    ("batch", "action", "token_budget", "halvings"),
    [
        # Out of memory: the budget is halved until it is below what failed.
        (failed(), Action.HALVE_BUDGET, 80, 1),
        (failed(num_tokens=80, size=80, least_size=80), Action.HALVE_BUDGET, 40, 2),
        (failed(num_tokens=20, size=20, least_size=20), Action.HALVE_BUDGET, 10, 4),
        # A single pair that was filled up can be filled up less.
        (failed(num_pairs=1, num_tokens=20, size=160, least_size=20), Action.HALVE_BUDGET, 80, 1),
        # A single pair without padding: its orderings, then nothing is left.
        (failed(num_pairs=1), Action.SPLIT_ORDERINGS, 160, 0),
        (failed(num_pairs=1, num_orderings=1), Action.GIVE_UP, 160, 0),
        # Any other error is of one of the pairs.
        (failed(is_oom=False), Action.ISOLATE_PAIRS, 160, 0),
        (failed(is_oom=False, num_pairs=2, num_orderings=1), Action.ISOLATE_PAIRS, 160, 0),
        (failed(is_oom=False, num_pairs=1), Action.GIVE_UP, 160, 0),
        (failed(is_oom=False, num_pairs=1, size=160, least_size=20), Action.GIVE_UP, 160, 0),
    ],
)
def test_decisions(batch, action, token_budget, halvings):
    assert recover(batch, 160) == Recovery(action=action, token_budget=token_budget, halvings=halvings)


def test_budgets_of_static_shapes_are_whole_blocks():
    budgets = [16_896]
    while budgets[-1] > BLOCK:
        decision = recover(failed(num_tokens=9, size=budgets[-1], least_size=128), budgets[-1], BLOCK)
        budgets.append(decision.token_budget)
        assert decision.halvings == 1
    assert budgets == [16_896, 8_448, 4_224, 2_048, 1_024, 512, 256, 128]
    last = recover(failed(num_tokens=128, size=128, least_size=128), 128, BLOCK)
    assert last == Recovery(action=Action.HALVE_BUDGET, token_budget=64, halvings=1)


@given(
    st.booleans(), st.integers(1, 50), st.integers(1, 2), st.integers(1, 5_000), st.integers(0, 3_000),
    st.integers(0, 3_000), st.integers(1, 20_000), st.sampled_from([1, BLOCK]),
)  # fmt: skip
def test_every_failure_ends(is_oom, num_pairs, num_orderings, num_tokens, least, more, budget, step):
    """Each decision makes less of the batch, or ends it; only a lack of memory lowers the budget."""
    least_size = num_tokens + least
    batch = FailedBatch(
        is_oom=is_oom, num_pairs=num_pairs, num_orderings=num_orderings, num_tokens=num_tokens,
        size=least_size + more, least_size=least_size,
    )  # fmt: skip
    decision = recover(batch, budget, step)
    if decision.action is Action.HALVE_BUDGET:
        assert is_oom
        assert decision.token_budget < min(budget, batch.size)
        assert decision.token_budget <= budget >> decision.halvings
        assert decision.halvings > 0
    else:
        assert (decision.token_budget, decision.halvings) == (budget, 0)
    if num_pairs > 1:
        assert decision.action is (Action.HALVE_BUDGET if is_oom else Action.ISOLATE_PAIRS)
    if decision.action is Action.SPLIT_ORDERINGS:
        assert is_oom
        assert num_orderings == 2
    assert (decision.action is Action.GIVE_UP) <= (num_pairs == 1)


def test_kinds_of_errors():
    assert all(is_oom(error) and not is_device_lost(error) for error in OOM_ERRORS)
    lost = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    assert is_device_lost(lost)
    assert not is_oom(lost)
    other = RuntimeError("no kernel for this shape\nsecond line")
    assert not is_oom(other)
    assert not is_device_lost(other)
    assert describe_error(other) == "no kernel for this shape"
    assert describe_error(ValueError()) == "ValueError"
    assert len(describe_error(ValueError("x" * 1_000))) == 200


def test_what_fails_on_every_pair_is_no_pairs_fault():
    same = row_error(Failure("no kernel", False), 9)
    oom = [row_error(Failure("", True), tokens) for tokens in (9, 8)]
    over_budget = over_budget_error(9, "padded", 8)
    for errors in ([same], [same, None], [same, oom[0]], [over_budget] * 3, []):
        check_not_all_failed(np.array(errors, object))
    with pytest.raises(ModelError, match=r"^all 2 pairs of a unit fail.*; try --precision fp32$"):
        check_not_all_failed(np.array([same, over_budget, same], object))
    with pytest.raises(ModelError, match=r"choose a --precision that takes less memory$"):
        check_not_all_failed(np.array(oom, object))
