"""What the engine makes of failures, with a fake scorer: a row has its value or says why, whatever fails."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.scoring.fakes import (
    OOM_ERRORS,
    FakeScorer,
    Logits,
    breaking,
    failing_late,
    noting,
    pairs_of,
    token_logits,
    with_memory_for,
)
from wsdm_ray.errors import ConfigError, ModelError
from wsdm_ray.packing.layouts import Layout
from wsdm_ray.schema import orderings_of
from wsdm_ray.scoring.engine import Scores, log_odds
from wsdm_ray.scoring.recovery import DeviceLostError
from wsdm_ray.text.encoding import EncodedPairs

BOTH = orderings_of("both")


def score(
    pairs: EncodedPairs,
    budget: int = 100,
    logits: Logits = token_logits,
    max_in_flight: int = 1,
    **options: Any,
) -> Scores:
    scorer = FakeScorer(logits, max_in_flight=max_in_flight)
    return log_odds(scorer, pairs, BOTH, layout="padded", token_budget=budget, **options)


def test_pairs_that_are_all_over_the_budget_are_errors_of_their_rows():
    found = score(pairs_of([30, 30, 30]), 50)
    assert all("takes 60 tokens in the layout padded" in error for error in found.errors_N)
    assert found.forward_tokens == 0


@pytest.mark.parametrize("error", OOM_ERRORS, ids=str)
def test_where_memory_runs_out_the_budget_is_halved_and_all_goes_on(error):
    pairs = pairs_of([9, 9, 8, 8, 7, 6, 5, 4])
    expected = score(pairs, 160)
    sizes: list[int] = []
    found = score(pairs, 160, with_memory_for(45, sizes, error))
    # The longest pair takes 18 tokens, all of them 144.
    assert (found.token_budget, found.halvings) == (40, 2)
    assert found.errors_N.tolist() == [None] * 8
    np.testing.assert_array_equal(found.log_odds_NO, expected.log_odds_NO)
    assert [size > 45 for size in sizes[:3]] == [True, True, False], "no third attempt was too large"
    assert found.forward_tokens == sum(size for size in sizes if size <= 45)


@given(st.lists(st.integers(3, 40), max_size=20), st.integers(1, 400), st.integers(6, 300), st.integers(1, 3))
def test_whatever_the_memory_a_row_has_its_value_or_says_why(lengths, budget, room, max_in_flight):
    pairs = pairs_of(lengths)
    expected = score(pairs, 1_000).log_odds_NO
    fits = [length <= room for length in lengths]
    options: dict[str, Any] = {"logits": with_memory_for(room, []), "max_in_flight": max_in_flight}
    if len(lengths) > 1 and not any(fits):
        with pytest.raises(ModelError, match="pairs of a unit fail, each alone: out of memory at"):
            score(pairs, budget, initial_budget=1_000, **options)
        return
    found = score(pairs, budget, initial_budget=1_000, **options)
    for row, length in enumerate(lengths):
        if fits[row]:
            assert found.errors_N[row] is None
            np.testing.assert_array_equal(found.log_odds_NO[row], expected[row])
        else:
            assert (
                found.errors_N[row] == f"out of memory at {length} tokens; score it with a lower --max-tokens"
            )
            assert np.isnan(found.log_odds_NO[row]).all()
    assert found.token_budget == budget >> found.halvings


def test_what_was_started_behind_a_batch_that_fails_late_starts_again():
    pairs = pairs_of([9, 9, 8, 8, 7, 6, 5, 4])
    expected = score(pairs, 160)
    batches: list[list[int]] = []
    remaining = [RuntimeError("late")]

    def logits(layout: Layout) -> torch.Tensor:
        found = noting(batches)(layout)
        return failing_late(found, remaining.pop()) if remaining else found

    found = score(pairs, 80, logits, max_in_flight=2)
    first, behind = batches[:2]
    assert sorted(first + behind) == [*range(8)]
    assert len(first) > 1
    assert batches[2:-1] == [[pair] for pair in first], "the pairs of the failed one are retried one by one"
    assert batches[-1] == behind
    assert found.errors_N.tolist() == [None] * 8
    np.testing.assert_array_equal(found.log_odds_NO, expected.log_odds_NO)


def test_a_pair_that_does_not_fit_runs_its_orderings_one_by_one():
    pairs = pairs_of([30, 10])
    expected = score(pairs)
    sizes: list[int] = []
    found = score(pairs, logits=with_memory_for(40, sizes))
    np.testing.assert_array_equal(found.log_odds_NO, expected.log_odds_NO)
    assert found.errors_N.tolist() == [None, None]
    assert found.forward_tokens == 30 + 30 + 20
    assert (found.token_budget, found.halvings) == (100, 0), "a pair alone lowers no budget"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("no kernel for this shape\nsecond line"), "no kernel for this shape"),
        (IndexError("index out of range in self"), "index out of range in self"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_pair_that_fails_alone_spoils_no_other(error, reason):
    pairs = pairs_of([9, 8, 7, 6, 5])
    expected = score(pairs)
    found = score(pairs, logits=breaking(token_logits, 102, error))
    assert found.errors_N.tolist() == [None, None, f"the model fails on this row ({reason})", None, None]
    assert (found.halvings, found.token_budget) == (0, 100)
    good = [0, 1, 3, 4]
    np.testing.assert_array_equal(found.log_odds_NO[good], expected.log_odds_NO[good])


def raising(error: Exception) -> Logits:
    def logits(layout: Layout) -> torch.Tensor:
        raise error

    return logits


def test_what_fails_on_every_pair_is_no_pairs_fault():
    fails = raising(RuntimeError("FlashAttention only supports Ampere GPUs or newer."))
    with pytest.raises(ModelError) as caught:
        score(pairs_of([5, 4, 3]), logits=fails)
    assert str(caught.value) == (
        "all 3 pairs of a unit fail, each alone: the model fails on this row (FlashAttention only supports "
        "Ampere GPUs or newer.); try --precision fp32"
    )
    [error] = score(pairs_of([5]), logits=fails).errors_N
    assert error.startswith("the model fails on this row (Flash"), "one pair is not enough to tell"


@pytest.mark.parametrize("error", [ConfigError("an option"), TypeError("a defect")])
def test_errors_of_ours_and_defects_keep_their_kind(error):
    with pytest.raises(type(error), match=str(error)):
        score(pairs_of([5, 4]), logits=raising(error))


@pytest.mark.parametrize(
    "reason", ["device-side assert triggered", "an illegal memory access was encountered"]
)
def test_a_lost_gpu_names_the_pairs_of_its_batch(reason):
    pairs = pairs_of([20, 9, 9, 9, 5])
    error = torch.AcceleratorError(f"CUDA error: {reason}\nCompile with TORCH_USE_CUDA_DSA")
    lost = breaking(token_logits, 102, error)
    with pytest.raises(DeviceLostError) as caught:
        score(pairs, 54, lost)
    assert caught.value.pairs == [1, 2, 3]
    assert caught.value.reason == f"CUDA error: {reason}"
    with pytest.raises(DeviceLostError) as caught:
        score(pairs, 54, lost, max_in_flight=2)
    assert caught.value.pairs == [0, 1, 2, 3], "whichever of those that ran it was"
    with pytest.raises(DeviceLostError) as caught:
        score(pairs, 54, lost, max_in_flight=2, suspects={1, 2, 3})
    assert caught.value.pairs == [2], "suspects run one at a time"


@pytest.mark.parametrize("at", ["wait", "free_memory"])
def test_a_gpu_that_is_lost_while_batches_run_names_all_of_them(monkeypatch, at):
    lost = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def late(layout: Layout) -> torch.Tensor:
        return failing_late(token_logits(layout), lost)

    def fail() -> None:
        raise lost

    if at == "free_memory":  # the second batch fails on the host, when the first has lost the GPU
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "empty_cache", fail)
    logits = late if at == "wait" else breaking(token_logits, 102, RuntimeError("no kernel"))
    with pytest.raises(DeviceLostError) as caught:
        score(pairs_of([20, 9, 9, 9, 5]), 54, logits, max_in_flight=2)
    assert caught.value.pairs == [0, 1, 2, 3]


def test_nothing_is_started_behind_a_batch_that_failed():
    batches: list[list[int]] = []
    logits = noting(batches, breaking(token_logits, 101, RuntimeError("no kernel")))
    found = score(pairs_of([20, 19, 18, 17]), 40, logits, max_in_flight=2)
    assert batches == [[0], [1], [2], [3]], "each was started once"
    assert [error is None for error in found.errors_N] == [True, False, True, True]
