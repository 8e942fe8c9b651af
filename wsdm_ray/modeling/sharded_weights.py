"""Frozen weights that are sharded over the workers of a run: each keeps a part of every layer (FSDP, ZeRO-3).

A layer is gathered from all workers before it runs, forward or backward, while the one before it runs, and
goes after it. Its weights are the same bytes as whole ones, so results are the same bits. Only the storage
of a tensor is emptied and filled: modules and autograd may keep the tensor.

Workers gather the same layers in the same order. One that has no micro-batch left while others have, or
whose memory ran out within one, shadows what the others gather (`ShardedLayers.passes`).
"""

import contextlib
import functools
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from wsdm_ray.errors import ConfigError
from wsdm_ray.modeling.memory_errors import is_oom

__all__ = ["Gatherer", "LayerWeights", "ShardedLayers", "WholeLayers"]

LEAST_BYTES = 1 << 17
"""Smaller tensors stay whole: each is a message of its own."""

ALIGNMENT = 128
"""Parts begin at multiples of so many bytes, which messages are fastest from."""


class Gatherer(Protocol):
    """Workers that hold weights together."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def start_all_gather(self, whole: Tensor, part: Tensor) -> Callable[[], object]:
        """Begin to fill `whole` with the parts of all workers, by rank; what is returned waits for it."""
        ...


class LayerWeights(Protocol):
    """Whether the weights of a layer are there when it runs."""

    gathered_bytes: int
    """Of the layers that are whole at a time, beside what each worker keeps."""

    def enter(self, layer: int, x: Tensor) -> Tensor:
        """`x`, the input of a layer, whose weights are there from now on."""
        ...

    def leave(self, layer: int, x: Tensor) -> Tensor:
        """`x`, the output of a layer, whose weights may go until its backward pass."""
        ...

    def passes(self, most: int, *, backward: bool) -> AbstractContextManager[None]:
        """What all passes of a worker over the layers lie in, where none has more than `most` of them.

        Args:
            backward: each is followed by its backward pass.
        """
        ...


class WholeLayers:
    """`LayerWeights` that are always there."""

    gathered_bytes = 0

    def enter(self, layer: int, x: Tensor) -> Tensor:
        return x

    def leave(self, layer: int, x: Tensor) -> Tensor:
        return x

    def passes(self, most: int, *, backward: bool) -> AbstractContextManager[None]:
        return contextlib.nullcontext()


class ShardedTensor:
    """A tensor of which this worker keeps a part of the bytes; its storage is empty until it is gathered.

    Args:
        tensor: has a storage of its own, but for views of it.
        rank, size: of the worker, and how many there are.
    """

    def __init__(self, tensor: Tensor, rank: int, size: int):
        self.storage = tensor.untyped_storage()
        bytes_each = -(-self.storage.nbytes() // size // ALIGNMENT) * ALIGNMENT
        self.bytes = bytes_each * size
        self.storage.resize_(self.bytes)
        # Beside `tensor`, not a view of it: autograd does not count what is written to it as a change.
        self.whole = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        self.whole.set_(self.storage, 0, (self.bytes,), (1,))  # pyright: ignore[reportArgumentType]
        self.part = self.whole[rank * bytes_each : (rank + 1) * bytes_each].clone()
        self.reshard()

    def allocate(self) -> None:
        self.storage.resize_(self.bytes)

    def reshard(self) -> None:
        self.storage.resize_(0)


class ShardedLayers:
    """`LayerWeights` of which each worker keeps a part, and gathers one layer ahead.

    Args:
        layers: the tensors of each layer, in order; those of `LEAST_BYTES` or more are sharded.
    """

    def __init__(self, layers: Sequence[Iterable[Tensor]], workers: Gatherer):
        self.workers = workers
        self.layers = [
            [
                ShardedTensor(tensor, workers.rank, workers.size)
                for tensor in layer
                if tensor.nbytes >= LEAST_BYTES
            ]
            for layer in layers
        ]
        self.gathered_bytes = 2 * max(sum(tensor.bytes for tensor in layer) for layer in self.layers)
        self.waits: dict[int, list[Callable[[], object]]] = {}
        """Of the layers that are whole, or on their way."""
        self.gathered = 0
        """Layers that were gathered since `passes` began."""

    def enter(self, layer: int, x: Tensor) -> Tensor:
        self.unshard(layer)
        self.prefetch(layer + 1)
        return on_gradient(x, functools.partial(self.reshard, layer))

    def leave(self, layer: int, x: Tensor) -> Tensor:
        if layer + 1 < len(self.layers) or not torch.is_grad_enabled():
            self.reshard(layer)  # the backward pass begins with the last one
        return on_gradient(x, functools.partial(self.enter_backward, layer))

    def enter_backward(self, layer: int) -> None:
        self.unshard(layer)
        self.prefetch(layer - 1)

    def prefetch(self, layer: int) -> None:
        """Begin to gather a layer, if there is one of that number, and memory."""
        if 0 <= layer < len(self.layers):
            with contextlib.suppress(torch.OutOfMemoryError):  # `unshard` tries again
                self.start(layer)

    def start(self, layer: int) -> None:
        """Begin to gather a layer that is neither whole nor on its way."""
        if layer in self.waits:
            return
        tensors = self.layers[layer]
        try:  # all or none, so that a worker whose memory runs out knows what it has sent
            for tensor in tensors:
                tensor.allocate()
        except torch.OutOfMemoryError:
            for tensor in tensors:
                tensor.reshard()
            raise
        self.waits[layer] = [self.workers.start_all_gather(tensor.whole, tensor.part) for tensor in tensors]
        self.gathered += 1

    def unshard(self, layer: int) -> None:
        """Have a layer whole for what runs from now on."""
        self.start(layer)
        for wait in self.waits[layer]:
            wait()
        self.waits[layer] = []

    def reshard(self, layer: int) -> None:
        """Keep this worker's part of a layer alone."""
        for wait in self.waits.pop(layer, []):
            wait()
        for tensor in self.layers[layer]:
            tensor.reshard()

    @contextlib.contextmanager
    def passes(self, most: int, *, backward: bool) -> Iterator[None]:
        self.gathered = 0
        forward = range(len(self.layers))
        order = [*forward, *forward[-2::-1]] if backward else [*forward]
        try:
            yield
        except RuntimeError as error:
            # The step is taken again in less memory; without a step, the run ends.
            if backward and is_oom(error):
                traceback.clear_frames(error.__traceback__)  # which hold what the pass kept
                self.shadow(order * most)
            raise
        self.shadow(order * most)

    def shadow(self, order: Sequence[int]) -> None:
        """Take part in what other workers still gather.

        Args:
            order: of all layers that any worker gathers.

        Raises:
            ConfigError: there is no memory for a layer, and the others would wait for ever.
        """
        for layer in [*self.waits]:
            self.reshard(layer)
        try:
            for layer in order[self.gathered :]:
                self.unshard(layer)
                self.reshard(layer)
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                "train: memory ran out beside one layer of the base; lower --token-budget, or leave out "
                "--shard-base"
            ) from error


def on_gradient(x: Tensor, call: Callable[[], None]) -> Tensor:
    """`x`; where gradients are recorded, `call` is called when that of `x` is there."""
    return OnGradient.apply(x, call) if torch.is_grad_enabled() else x  # pyright: ignore[reportReturnType]


class OnGradient(torch.autograd.Function):
    """Of `on_gradient`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Callable[[], None]) -> Tensor:
        ctx.call = call
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ctx.call()
        return gradients[0], None
