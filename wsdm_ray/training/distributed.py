"""What the workers of a run do together: share micro-batches, exchange values, add up results.

Every worker holds the same weights, so with the sum of all gradients (`gradients`) every worker takes the
same step. A run of one worker communicates with nobody, and needs no process group of torch.distributed.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from wsdm_ray.training.batches import assign_batches

__all__ = ["WorkerGroup", "clip_gradients", "current_group"]

Value = TypeVar("Value")


@dataclass(frozen=True)
class WorkerGroup:
    """The workers of a run, seen by the one of rank `rank`."""

    rank: int = 0
    size: int = 1
    exchange: dist.ProcessGroup | None = None
    """What `all_gather` goes through: another thread may use it while this one adds up gradients."""

    @property
    def is_first(self) -> bool:
        """Whether this worker writes what the run writes once: log lines, metrics, checkpoints."""
        return self.rank == 0

    @property
    def can_exchange(self) -> bool:
        """Whether `all_gather` may be called."""
        return self.exchange is not None

    def own_batches(self, costs: list[int]) -> list[int]:
        """The numbers of the micro-batches that this worker runs.

        Args:
            costs: of all micro-batches, in tokens.
        """
        return assign_batches(costs, self.size)[self.rank]

    def most_batches(self, costs: list[int]) -> int:
        """How many micro-batches the worker with the most of them runs."""
        return max(map(len, assign_batches(costs, self.size)))

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor`, summed over all workers in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool, device: str) -> bool:
        """Whether the flag of one worker at least is set: the same answer for all of them.

        Args:
            device: where the workers add up tensors.
        """
        if self.size == 1:
            return flag
        return bool(self.all_reduce(torch.tensor([float(flag)], device=device)).item())

    def largest(self, number: int, device: str) -> int:
        """The largest of the workers' numbers: the same answer for all of them."""
        if self.size == 1:
            return number
        numbers = torch.zeros(self.size, device=device)
        numbers[self.rank] = number
        return int(self.all_reduce(numbers).max().item())

    def all_gather(self, value: Value, *, in_step: bool = False) -> list[Value]:
        """The value of each worker, by rank; workers must make their calls in the same order.

        Args:
            in_step: among the messages of the thread that takes steps, while another may gather, too.
        """
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=None if in_step else self.exchange)
        return values

    def start_all_reduce(self, tensor: torch.Tensor) -> Callable[[], object]:
        """Begin to sum `tensor` over all workers in place; what is returned waits until it is summed."""
        work = dist.all_reduce(tensor, async_op=True)
        assert work is not None
        return work.wait

    def start_broadcast(self, tensor: torch.Tensor, rank: int) -> Callable[[], object]:
        """Begin to fill `tensor` with that of the worker of `rank`; what is returned waits for it."""
        work = dist.broadcast(tensor, rank, async_op=True)
        assert work is not None
        return work.wait

    def start_all_gather(self, whole: torch.Tensor, part: torch.Tensor) -> Callable[[], object]:
        """Begin to fill `whole` with the parts of all workers, by rank; what is returned waits for it."""
        gather = getattr(dist, "all_gather_single", None)  # its name from PyTorch 2.13 on
        work = (gather or dist.all_gather_into_tensor)(whole, part, async_op=True)
        assert work is not None
        return work.wait


def current_group() -> WorkerGroup:
    """The group of this process: that of torch.distributed where it is set up, else this process alone.

    Every worker must ask as often as the others.
    """
    if not dist.is_initialized():
        return WorkerGroup()
    size, exchange = dist.get_world_size(), None
    if size > 1:
        exchange = dist.new_group(backend="gloo")
        assert isinstance(exchange, dist.ProcessGroup)
    return WorkerGroup(dist.get_rank(), size, exchange)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scale all gradients so that their common norm is at most `max_norm`; returns the norm before, for which
    the host does not wait.
    """
    return nn.utils.clip_grad_norm_(parameters, max_norm)
