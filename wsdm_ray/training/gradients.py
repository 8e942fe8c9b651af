"""Gradients summed over the workers of a run while the backward pass still runs.

Parameters are in buckets, the last ones first, as the backward pass reaches them. A bucket is sent when all
of its gradients are there and all buckets before it were sent, so every worker sends them in the same order.
The sum of a gradient does not depend on its bucket: two workers get the bits that one message would give.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

from wsdm_ray.training.distributed import WorkerGroup

__all__ = ["GradientReducer"]

BUCKET_BYTES = 32 * 2**20
"""Small messages are slow, and a single one would wait for the end of the backward pass."""


@dataclass
class Bucket:
    """Parameters whose gradients travel in one message."""

    parameters: list[nn.Parameter]
    missing: set[int] = field(default_factory=set)
    """Of the parameters that the backward pass has not reached yet: their `id`."""
    total: torch.Tensor | None = None
    """The message, once it is sent: float32 [gradients of the bucket]."""
    wait: Callable[[], object] | None = None


class GradientReducer:
    """Sums the gradient of each parameter over all workers.

    A step calls `overlap` before the last backward pass of this worker, if it has one, and `finish` after it.
    """

    def __init__(
        self, group: WorkerGroup, parameters: Iterable[nn.Parameter], bucket_bytes: int = BUCKET_BYTES
    ):
        self.group = group
        self.buckets = make_buckets(list(parameters), bucket_bytes)
        self.overlapping = False
        self.sent = 0
        """Buckets of this step that were sent."""
        if group.size > 1:
            for bucket in self.buckets:
                for parameter in bucket.parameters:
                    parameter.register_post_accumulate_grad_hook(self.reached(bucket))

    def overlap(self) -> None:
        """Send each bucket as soon as the backward pass that comes now has all of its gradients."""
        self.overlapping = self.group.size > 1
        for bucket in self.buckets:
            bucket.missing = set(map(id, bucket.parameters))

    def reached(self, bucket: Bucket) -> Callable[[torch.Tensor], None]:
        """What autograd calls once a gradient of `bucket` is complete."""

        def hook(parameter: torch.Tensor) -> None:
            if not self.overlapping:
                return
            bucket.missing.discard(id(parameter))
            while self.sent < len(self.buckets) and not self.buckets[self.sent].missing:
                self.send(self.buckets[self.sent])

        return hook

    def send(self, bucket: Bucket) -> None:
        """Begin to add up a bucket's gradients. Where this worker had no micro-batch, they are zeros."""
        gradients = [gradient_of(parameter).flatten() for parameter in bucket.parameters]
        bucket.total = torch.cat(gradients).float()  # a bfloat16 head beside float32 adapters
        bucket.wait = self.group.start_all_reduce(bucket.total)
        self.sent += 1

    def finish(self) -> None:
        """Put the sum over all workers in the place of each gradient."""
        self.overlapping = False
        if self.group.size > 1:
            for bucket in self.buckets[self.sent :]:
                self.send(bucket)
        self.sent = 0
        for bucket in self.buckets:
            if bucket.total is None or bucket.wait is None:  # one worker alone
                for parameter in bucket.parameters:
                    parameter.grad = gradient_of(parameter)
                continue
            bucket.wait()
            parts = bucket.total.split([parameter.numel() for parameter in bucket.parameters])
            for parameter, part in zip(bucket.parameters, parts, strict=True):
                parameter.grad = part.view_as(parameter).to(parameter.dtype)
            bucket.total = bucket.wait = None


def gradient_of(parameter: nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def make_buckets(parameters: list[nn.Parameter], bucket_bytes: int) -> list[Bucket]:
    """The parameters in buckets of at most `bucket_bytes` of float32, or of one parameter; the last first."""
    buckets: list[Bucket] = []
    free = 0
    for parameter in reversed(parameters):
        size = 4 * parameter.numel()
        if not buckets or size > free:
            buckets.append(Bucket([]))
            free = bucket_bytes
        buckets[-1].parameters.append(parameter)
        free -= size
    return buckets
