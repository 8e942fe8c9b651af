"""Gradients in buckets: sent during the backward pass, in one order on every worker, summed exactly."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from wsdm_ray.training.distributed import WorkerGroup
from wsdm_ray.training.gradients import GradientReducer, make_buckets


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
    buckets = make_buckets([nn.Parameter(torch.zeros(size)) for size in sizes], bucket_bytes=4 * 31)
    found = [[parameter.numel() for parameter in bucket.parameters] for bucket in buckets]
    assert found == [[50], [2, 1], [30], [10, 10]]
    assert make_buckets([], 4) == []


def test_they_are_sent_while_the_last_backward_pass_runs():
    parameters, group = layers(), GroupWithPost()
    reducer = GradientReducer(group, parameters, bucket_bytes=4 * 32)
    run(parameters, 0).backward()
    assert not group.sent, "more micro-batches follow"
    seen: list[int] = []
    parameters[0].register_hook(lambda gradient: seen.append(len(group.sent)))
    reducer.overlap()
    run(parameters, 1).backward()
    assert seen == [2], "four of five layers were sent before the first one's gradient was there"
    assert len(group.sent) == 3
    reducer.finish()
    assert len(group.sent) == 3
    run(parameters, 2).backward()
    assert len(group.sent) == 3, "of the next step, nothing yet"


@pytest.mark.parametrize("bucket_bytes", [1, 4 * 32, 2**20])
def test_two_workers_get_the_bits_of_one_message(bucket_bytes):
    """One has two micro-batches, the other one, or none."""
    for other_seeds in ([2], []):
        workers = [layers(), layers()]
        gradients = []
        for seeds in ([0, 1], other_seeds):
            alone = layers()
            for seed in seeds:
                run(alone, seed).backward()
            gradients.append([torch.zeros(4, 4) if p.grad is None else p.grad for p in alone])
        posts: list[list[torch.Tensor]] = [[], []]
        for _ in range(2):  # what each sends is known when both have run once
            sent = []
            for rank, seeds in enumerate(([0, 1], other_seeds)):
                for parameter in workers[rank]:
                    parameter.grad = None
                group = GroupWithPost(rank, post=posts[1 - rank])
                reducer = GradientReducer(group, workers[rank], bucket_bytes)
                for seed in seeds:
                    if seed == seeds[-1]:
                        reducer.overlap()
                    run(workers[rank], seed).backward()
                reducer.finish()
                sent.append(group.sent)
            posts = sent
        for place in range(5):
            total = gradients[0][place] + gradients[1][place]
            for parameters in workers:
                found = parameters[place].grad
                assert found is not None
                assert torch.equal(found, total)


def test_the_order_is_that_of_the_buckets_whatever_comes_first():
    parameters, group = [nn.Parameter(torch.full((1,), float(k))) for k in range(3)], GroupWithPost()
    reducer = GradientReducer(group, parameters, bucket_bytes=1)
    reducer.overlap()
    parameters[0].sum().backward()  # the last bucket
    parameters[2].sum().backward()
    assert [len(group.sent), reducer.sent] == [1, 1]
    (3 * parameters[1]).sum().backward()
    assert [float(message) for message in group.sent] == [1, 3, 1]
    reducer.finish()


def test_one_worker_alone_sends_nothing(monkeypatch):
    monkeypatch.delattr(WorkerGroup, "start_all_reduce")
    parameters = layers()
    reducer = GradientReducer(WorkerGroup(), parameters)
    reducer.overlap()
    run(parameters[:4], 0).backward()
    reducer.finish()
    assert parameters[4].grad is not None
    assert not parameters[4].grad.any()
