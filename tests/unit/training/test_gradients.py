"""Gradients in buckets: sent during the backward pass, in one order on every worker, summed exactly."""

import gc
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from wsdm_ray.training.distributed import WorkerGroup
from wsdm_ray.training.gradients import UNIT, GradientReducer, make_buckets


@dataclass(frozen=True)
class GroupWithPost(WorkerGroup):
    """Two workers of which the other's messages are in `post`; what this one sends is put down."""

    size: int = 2
    post: list[torch.Tensor] = field(default_factory=list)
    sent: list[torch.Tensor] = field(default_factory=list)

    def start_all_reduce(self, tensor: torch.Tensor) -> Callable[[], object]:
        self.sent.append(tensor.clone())
        theirs = self.post[len(self.sent) - 1] if self.post else torch.zeros_like(tensor)
        return lambda: tensor.add_(theirs)


def layers() -> list[nn.Parameter]:
    source = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(4, 4, generator=source)) for _ in range(5)]


def run(parameters: list[nn.Parameter], seed: int) -> torch.Tensor:
    hidden = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
    for parameter in parameters:
        hidden = torch.tanh(hidden @ parameter)
    return hidden.square().sum()


def test_buckets_hold_the_last_parameters_first_and_no_more_than_fits():
    sizes = [10, 10, 30, 1, 2, 50]
    buckets = make_buckets([nn.Parameter(torch.zeros(size)) for size in sizes], bucket_bytes=8 * 31)
    found = [[parameter.numel() for parameter in bucket.parameters] for bucket in buckets]
    assert found == [[50], [2, 1], [30], [10, 10]]
    assert make_buckets([], 4) == []


def test_they_are_sent_while_the_last_backward_pass_runs():
    parameters, group = layers(), GroupWithPost()
    reducer = GradientReducer(group, parameters, bucket_bytes=8 * 32)
    with reducer.backward_pass(last=False):
        run(parameters, 0).backward()
    assert not group.sent, "more micro-batches follow"
    seen: list[int] = []
    parameters[0].register_hook(lambda gradient: seen.append(len(group.sent)))
    with reducer.backward_pass(last=True):
        run(parameters, 1).backward()
    assert seen == [2], "four of five layers were sent before the first one's gradient was there"
    assert len(group.sent) == 3
    reducer.finish()
    assert len(group.sent) == 3
    with reducer.backward_pass(last=False):
        run(parameters, 2).backward()
    assert len(group.sent) == 3, "of the next step, nothing yet"


def step(reducer: GradientReducer, parameters: list[nn.Parameter], seeds: Sequence[int]) -> None:
    for seed in seeds:
        with reducer.backward_pass(last=seed == seeds[-1]):
            run(parameters, seed).backward()
    reducer.finish()


def gradients_of(parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    found = [parameter.grad for parameter in parameters if parameter.grad is not None]
    assert len(found) == len(parameters)
    return found


@pytest.mark.parametrize("bucket_bytes", [1, 8 * 32, 2**20])
@pytest.mark.parametrize("shares", [([0, 1], [2]), ([2], [1, 0]), ([1, 2, 0], [])])
def test_two_workers_get_the_bits_of_one(bucket_bytes, shares):
    """Whoever runs which micro-batch, in which order, and of all of them or none."""
    alone = layers()
    step(GradientReducer(WorkerGroup(), alone), alone, [0, 1, 2])
    posts: list[list[torch.Tensor]] = [[], []]
    for _ in range(2):  # what each sends is known when both have run once
        sent, workers = [], [layers(), layers()]
        for rank, seeds in enumerate(shares):
            group = GroupWithPost(rank, post=posts[1 - rank])
            step(GradientReducer(group, workers[rank], bucket_bytes), workers[rank], seeds)
            sent.append(group.sent)
        posts = sent
    for parameters in workers:
        assert all(map(torch.equal, gradients_of(parameters), gradients_of(alone)))


def sum_of(gradients: Sequence[float]) -> float:
    """The gradient that a parameter has after a pass of each of these."""
    parameter = nn.Parameter(torch.zeros(1))
    reducer = GradientReducer(WorkerGroup(), [parameter])
    for gradient in gradients:
        with reducer.backward_pass(last=False):
            (gradient * parameter).sum().backward()
    reducer.finish()
    return float(gradients_of([parameter])[0])


def exact_sum(gradients: Sequence[float]) -> float:
    """In integers, rounded to float32 once."""
    units = sum(round(Fraction(gradient) / Fraction(UNIT)) for gradient in gradients)
    return float(np.float32(units * UNIT))


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_sums_are_exact_in_any_order(gradients, shuffler):
    expected = exact_sum(gradients)
    assert expected == pytest.approx(sum(gradients), rel=1e-6, abs=len(gradients) * UNIT)
    for _ in range(2):
        assert sum_of(gradients) == expected
        shuffler.shuffle(gradients)


def test_what_float64_would_add_up_in_an_order_of_its_own():
    """1 and half of what float32 can add to it; what is nothing beside 1 makes it more, if added first."""
    gradients = [1.0, 2**-24, *[2**-54] * 4]
    assert np.float32(sum(gradients)) < np.float32(sum(gradients[::-1]))
    for order in (gradients, gradients[::-1]):
        assert sum_of(order) == 1


def test_a_pass_that_reaches_some_parameters_of_a_bucket():
    parameters, expected = layers(), layers()
    reducer = GradientReducer(WorkerGroup(), parameters)
    for reached in (slice(0, 5), slice(1, 3), slice(2, 5)):
        with reducer.backward_pass(last=False):
            run(parameters[reached], 0).backward()
        assert all(parameter.grad is None for parameter in parameters)
        run(expected[reached], 0).backward()
    reducer.finish()
    for found, one in zip(gradients_of(parameters), gradients_of(expected), strict=True):
        torch.testing.assert_close(found, one)


@pytest.mark.parametrize(
    ("gradients", "total"),
    [
        ([2.1e-6], float(np.float32(2.1e-6))),  # all that float32 has of it
        ([2047.0, 2**-42, -2047.0], 2**-42),
        ([2**-44, 2**-44, 2**-44, 2**-44], 0.0),
    ],
)
def test_how_small_a_gradient_counts(gradients, total):
    assert sum_of(gradients) == total


def test_parameters_are_freed_with_the_network():
    parameters = layers()
    reducer = GradientReducer(WorkerGroup(), parameters)
    step(reducer, parameters, [0])
    last = weakref.ref(parameters[-1])
    del reducer, parameters
    gc.collect()
    assert last() is None


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_stays_so(value):
    assert not math.isfinite(sum_of([1.0, value, 1.0]))


def test_each_gradient_has_the_type_of_its_parameter():
    adapter, head = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    reducer = GradientReducer(WorkerGroup(), [adapter, head])
    for scale in (1.0, 2**-9):
        with reducer.backward_pass(last=False):
            ((scale * adapter).sum() + (scale * head).sum()).backward()
    reducer.finish()
    assert torch.equal(gradients_of([adapter])[0], torch.full((2, 3), 1 + 2**-9))
    assert torch.equal(gradients_of([head])[0], torch.ones(4, dtype=torch.bfloat16)), (
        "rounded once, at the end"
    )


def test_the_order_is_that_of_the_buckets_whatever_comes_first():
    parameters, group = [nn.Parameter(torch.full((1,), float(k))) for k in range(3)], GroupWithPost()
    reducer = GradientReducer(group, parameters, bucket_bytes=1)
    with reducer.backward_pass(last=True):
        parameters[0].sum().backward()  # the last bucket
        parameters[2].sum().backward()
        assert [len(group.sent), reducer.sent] == [1, 1]
        (3 * parameters[1]).sum().backward()
    assert [float(message) for message in group.sent] == [1, 3, 1]
    reducer.finish()


def test_a_gradient_that_comes_after_its_sum_was_sent_is_an_error():
    parameters = layers()
    reducer = GradientReducer(GroupWithPost(), parameters)

    def twice() -> None:
        with reducer.backward_pass(last=True):
            run(parameters, 0).backward()
            run(parameters, 1).backward()

    with pytest.raises(AssertionError, match="sent"):
        twice()


def test_one_worker_alone_sends_nothing(monkeypatch):
    monkeypatch.delattr(WorkerGroup, "start_all_reduce")
    parameters = layers()
    step(GradientReducer(WorkerGroup(), parameters), parameters[:4], [0])
    assert parameters[4].grad is not None
    assert not parameters[4].grad.any()


def test_what_no_pass_of_a_step_reached_is_left_to_autograd():
    """As the pass does that only compiles."""
    parameters = layers()
    reducer = GradientReducer(WorkerGroup(), parameters)
    run(parameters, 3).backward()
    assert all(gradient.any() for gradient in gradients_of(parameters))
    for parameter in parameters:
        parameter.grad = None
    step(reducer, parameters, [0])
    alone = layers()
    step(GradientReducer(WorkerGroup(), alone), alone, [0])
    assert all(map(torch.equal, gradients_of(parameters), gradients_of(alone)))


def test_a_pass_that_ends_in_an_error_spoils_no_later_step():
    parameters, alone = layers(), layers()
    reducer = GradientReducer(WorkerGroup(), parameters, bucket_bytes=1)

    def fail() -> None:
        with reducer.backward_pass(last=True):
            run(parameters[:2], 1).backward()
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="memory"):
        fail()
    run(parameters[:2], 1).backward()
    assert parameters[0].grad is not None, "of no step"
    reducer.finish()
    for parameter in parameters:
        parameter.grad = None
    step(reducer, parameters, [0])
    step(GradientReducer(WorkerGroup(), alone), alone, [0])
    assert all(map(torch.equal, gradients_of(parameters), gradients_of(alone)))
