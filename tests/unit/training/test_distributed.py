"""What workers do together: shares of the micro-batches, sums of gradients."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from wsdm_ray.config import HeadConfig
from wsdm_ray.training.distributed import WorkerGroup, clip_gradients, current_group
from wsdm_ray.training.gradients import GradientReducer


@dataclass(frozen=True)
class GroupWithIdleWorker(WorkerGroup):
    """Two workers of which the other has no micro-batch."""

    size: int = 2

    def own_batches(self, costs: list[int]) -> list[int]:
        return list(range(len(costs)))

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def start_all_reduce(self, tensor: torch.Tensor) -> Callable[[], object]:
        return lambda: tensor


@dataclass(frozen=True)
class GroupOfTwins(WorkerGroup):
    """Two workers that compute the same."""

    size: int = 2

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.mul_(2)

    def start_all_reduce(self, tensor: torch.Tensor) -> Callable[[], object]:
        """The sum is there when it is waited for, not before."""
        return lambda: tensor.mul_(2)


def test_a_process_of_its_own_is_the_first_of_one():
    group = current_group()
    assert group == WorkerGroup(0, 1)
    assert group.is_first
    assert not WorkerGroup(1, 2).is_first
    assert group.all_reduce(torch.tensor([3.0])).tolist() == [3.0]
    assert group.own_batches([5, 9, 7]) == [0, 1, 2]


def test_what_is_gathered_in_a_step_keeps_out_of_the_way_of_other_threads(monkeypatch):
    """Whose messages would come in an order of each worker's own."""
    through: list[object] = []
    monkeypatch.setattr(
        "torch.distributed.all_gather_object", lambda values, value, group: through.append(group)
    )
    exchange: Any = object()
    group = WorkerGroup(0, 2, exchange)
    group.all_gather("ids of the next step")
    group.all_gather("the optimizer's state", in_step=True)
    assert through == [exchange, None]


def test_every_micro_batch_has_one_worker():
    shares = [WorkerGroup(rank, 3).own_batches([9, 1, 4, 4, 8]) for rank in range(3)]
    assert sorted(number for share in shares for number in share) == [0, 1, 2, 3, 4]
    assert all(shares)


def test_the_worker_with_the_most_micro_batches_says_how_many():
    for costs in ([9, 1, 4, 4, 8], [1], [2, 2], []):
        shares = [WorkerGroup(rank, 3).own_batches(costs) for rank in range(3)]
        assert WorkerGroup(1, 3).most_batches(costs) == max(map(len, shares))


def test_gradients_are_summed_each_in_its_shape_and_type():
    adapter, head = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    idle = nn.Parameter(torch.ones(2))
    adapter.grad = torch.arange(6.0).view(2, 3)
    head.grad = torch.full((4,), 0.5, dtype=torch.bfloat16)
    GradientReducer(GroupOfTwins(), [adapter, head, idle]).finish()
    assert adapter.grad.tolist() == [[0, 2, 4], [6, 8, 10]]
    assert head.grad.dtype == torch.bfloat16
    assert head.grad.tolist() == [1, 1, 1, 1]
    assert idle.grad is not None
    assert idle.grad.tolist() == [0, 0], "a worker without a micro-batch adds nothing"


def test_gradients_are_clipped_by_their_common_norm():
    parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clip_gradients(parameters, 10.0) == 5.0
    assert parameters[0].grad.tolist() == [3.0]
    assert clip_gradients(parameters, 1.0) == 5.0
    assert [parameter.grad.item() for parameter in parameters if parameter.grad is not None] == (
        pytest.approx([0.6, 0.8], rel=1e-5)
    )


def test_a_step_beside_an_idle_worker_is_that_of_one_worker(trainer_of):
    options = {"head": HeadConfig(dropout=0.0, precision="bf16"), "max_steps": 1, "micro_batches": 2}
    [expected] = trainer_of(**options).steps()
    [found] = trainer_of(**options, group=GroupWithIdleWorker()).steps()
    assert found.loss == pytest.approx(expected.loss, rel=1e-2)
    assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-2)


def test_a_flag_of_one_worker_is_known_to_all():
    assert GroupWithIdleWorker().any(True, "cpu")
    assert not GroupWithIdleWorker().any(False, "cpu")

    @dataclass(frozen=True)
    class GroupWithOther(GroupWithIdleWorker):
        """The other worker's flag is set."""

        def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
            return tensor.add_(1)

    assert GroupWithOther().any(False, "cpu")
    assert GroupWithIdleWorker(rank=1).largest(3, "cpu") == 3
    assert GroupWithIdleWorker(rank=1).largest(0, "cpu") == 0
    assert WorkerGroup().largest(3, "cpu") == 3

    @dataclass(frozen=True)
    class GroupWithLarger(GroupWithIdleWorker):
        """The other worker has seven."""

        def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
            tensor[1 - self.rank] += 7
            return tensor

    assert [GroupWithLarger(rank=rank).largest(3, "cpu") for rank in (0, 1)] == [7, 7]
    assert [WorkerGroup().any(flag, "cpu") for flag in (True, False)] == [True, False]
