"""Gradients summed over the micro-batches and the workers of a step, exactly, while backward passes run.

They are rounded to multiples of `UNIT` and added up in float64, which is exact. So a sum is the same bits in
any order, and a step the same on any number of workers (after Demmel and Nguyen, 2013: pre-rounding).

Parameters are in buckets, the last ones first, as a backward pass reaches them. In the last pass of a worker,
a bucket is sent when all of its gradients are there and all buckets before it were sent, so every worker
sends them in the same order.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from wsdm_ray.training.distributed import WorkerGroup

__all__ = ["GradientReducer", "round_to"]

UNIT = 2.0**-42
"""What gradients are multiples of: 2.3e-13, next to AdamW's epsilon of 1e-8. Sums below 2,048 are exact, and
so are gradients over 2e-6 themselves, where float32 is as coarse; larger sums are rounded like any other."""

BUCKET_BYTES = 32 * 2**20
"""Small messages are slow, and a single one would wait for the end of the backward pass."""


@dataclass
class Bucket:
    """Parameters whose gradients travel in one message."""

    parameters: list[nn.Parameter]
    total: Tensor | None = None
    """The message: float64 [gradients of the bucket]; None before the first pass of a step."""
    missing: set[int] = field(default_factory=set)
    """Of the parameters that this backward pass has not reached yet: their `id`."""
    wait: Callable[[], object] | None = None
    """Once it is sent."""

    def collect(self) -> Tensor:
        """Add the gradients to the total, which is returned; the parameters have none then."""
        assert self.wait is None, "a total that was sent"
        # A head may be bfloat16 beside float32 adapters.
        gradients = torch.cat([gradient_of(parameter).flatten() for parameter in self.parameters]).float()
        rounded = round_to(gradients, UNIT)
        self.total = rounded.double() if self.total is None else self.total.add_(rounded)
        for parameter in self.parameters:
            parameter.grad = None
        return self.total

    def spread(self) -> None:
        """Give each parameter its gradient of the total, which is forgotten."""
        total = self.collect() if self.total is None else self.total
        sizes = [parameter.numel() for parameter in self.parameters]
        gradients = total.float().split(sizes)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter).to(parameter.dtype)
        self.total = self.wait = None


class GradientReducer:
    """Sums the gradient of each parameter over all micro-batches of all workers.

    Every backward pass of a step is within `backward_pass`; `finish` comes after the last.
    """

    def __init__(
        self, group: WorkerGroup, parameters: Iterable[nn.Parameter], bucket_bytes: int = BUCKET_BYTES
    ):
        self.group = group
        self.buckets = make_buckets(list(parameters), bucket_bytes)
        self.running = self.sending = False
        self.sent = 0
        """Buckets of this step that were sent."""
        own = weakref.ref(self)  # Python frees no parameter that its own hook holds
        for number, bucket in enumerate(self.buckets):
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(hook_of(own, number))

    @contextmanager
    def backward_pass(self, *, last: bool) -> Iterator[None]:
        """A context of the backward pass of a micro-batch, which reaches each parameter once at most.

        Args:
            last: no other of this worker follows, so each bucket is sent as soon as it is complete.
        """
        for bucket in self.buckets:
            bucket.missing = set(map(id, bucket.parameters))
        self.running, self.sending = True, last and self.group.size > 1
        try:
            yield
        finally:
            self.running = False
        for bucket in self.buckets:
            if bucket.missing:  # what the loss does not depend on
                bucket.collect()

    def reached(self, number: int, parameter: Tensor) -> None:
        """A gradient of the bucket `number` is complete."""
        if not self.running:
            return
        bucket = self.buckets[number]
        bucket.missing.discard(id(parameter))
        if bucket.missing:
            return
        bucket.collect()
        while self.sending and self.sent < len(self.buckets) and not self.buckets[self.sent].missing:
            self.send(self.buckets[self.sent])

    def send(self, bucket: Bucket) -> None:
        """Begin to add up a bucket's totals. Where this worker had no micro-batch, they are zeros."""
        total = bucket.collect() if bucket.total is None else bucket.total
        bucket.wait = self.group.start_all_reduce(total)
        self.sent += 1

    def finish(self) -> None:
        """Give each parameter the sum over all micro-batches of all workers as its gradient."""
        if self.group.size > 1:
            for bucket in self.buckets[self.sent :]:
                self.send(bucket)
        self.sent = 0
        for bucket in self.buckets:
            if bucket.wait is not None:
                bucket.wait()
            bucket.spread()


def hook_of(reducer: Callable[[], GradientReducer | None], number: int) -> Callable[[Tensor], None]:
    """What autograd calls once a gradient of the bucket `number` is complete."""

    def hook(parameter: Tensor) -> None:
        if (found := reducer()) is not None:
            found.reached(number, parameter)

    return hook


def round_to(values: Tensor, unit: float) -> Tensor:
    """The multiples of `unit`, a power of two, that are nearest to `values`; not finite ones stay."""
    return values.div(unit).round_().mul_(unit)


def gradient_of(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def make_buckets(parameters: list[nn.Parameter], bucket_bytes: int) -> list[Bucket]:
    """The parameters in buckets of at most `bucket_bytes` of float64, or of one parameter; the last first."""
    buckets: list[Bucket] = []
    free = 0
    for parameter in reversed(parameters):
        size = 8 * parameter.numel()
        if not buckets or size > free:
            buckets.append(Bucket([]))
            free = bucket_bytes
        buckets[-1].parameters.append(parameter)
        free -= size
    return buckets
