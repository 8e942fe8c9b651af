"""Layers that workers share: the same bits as whole ones, gathered in one order by all, and dropped."""

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from wsdm_ray.errors import ConfigError
from wsdm_ray.modeling import sharded_weights
from wsdm_ray.modeling.sharded_weights import ShardedLayers, ShardedTensor

SECONDS = 60
"""After which a worker that waits for others in vain fails."""


@dataclass
class Post:
    """What the workers of a group, each a thread, have sent: by number of the message, then by rank."""

    size: int
    parts: dict[int, dict[int, Tensor]] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)


@dataclass
class Worker:
    """A thread that gathers with the others of its post."""

    rank: int
    post: Post
    sent: list[int] = field(default_factory=list)
    """Bytes of each part that was sent."""

    @property
    def size(self) -> int:
        return self.post.size

    def start_all_gather(self, whole: Tensor, part: Tensor) -> Callable[[], object]:
        number, post = len(self.sent), self.post
        self.sent.append(len(part))
        with post.changed:
            post.parts.setdefault(number, {})[self.rank] = part
            post.changed.notify_all()

        def wait() -> None:
            with post.changed:
                there = post.changed.wait_for(lambda: len(post.parts[number]) == post.size, SECONDS)
                assert there, f"worker {self.rank} waits in vain for message {number}"
            parts = post.parts[number]
            assert {len(each) for each in parts.values()} == {len(part)}, "messages of different layers"
            whole.copy_(torch.cat([parts[rank] for rank in range(post.size)]))

        return wait


def together(size: int, run: Callable[[Worker], Any]) -> list[Any]:
    """What each worker of a group returns, by rank."""
    post = Post(size)
    with ThreadPoolExecutor(size) as pool:
        return [*pool.map(run, [Worker(rank, post) for rank in range(size)])]


def weights() -> list[Tensor]:
    """Of three layers, of sizes that no number of workers divides."""
    source = torch.Generator().manual_seed(0)
    return [torch.randn(7, 7, generator=source) for _ in range(3)]


@pytest.fixture(autouse=True)
def small_tensors_are_shared(monkeypatch):
    monkeypatch.setattr(sharded_weights, "LEAST_BYTES", 1)


def run(layers: ShardedLayers, matrices: list[Tensor], x: Tensor) -> Tensor:
    for number, matrix in enumerate(matrices):
        x = layers.enter(number, x)
        x = torch.tanh(x @ matrix)
        x = layers.leave(number, x)
    return x


def held(matrices: list[Tensor]) -> list[bool]:
    return [matrix.untyped_storage().nbytes() > 0 for matrix in matrices]


def plain(x: Tensor) -> tuple[Tensor, Tensor]:
    """The output of whole layers, and the gradient of their input."""
    x = x.clone().requires_grad_()
    out = x
    for matrix in weights():
        out = torch.tanh(out @ matrix)
    out.square().sum().backward()
    assert x.grad is not None
    return out.detach(), x.grad


@pytest.mark.parametrize("size", [1, 2, 3])
def test_forward_and_backward_are_those_of_whole_layers(size):
    def work(worker: Worker) -> None:
        matrices = weights()
        layers = ShardedLayers([[matrix] for matrix in matrices], worker)
        assert not any(held(matrices))
        x = torch.randn(2, 7, generator=torch.Generator().manual_seed(worker.rank)).requires_grad_()
        expected, gradient = plain(x.detach())
        with layers.passes(2, backward=True):
            for _ in range(2):
                x.grad = None
                out = run(layers, matrices, x)
                assert torch.equal(out, expected)
                assert held(matrices) == [False, False, True], "the last one is needed next"
                out.square().sum().backward()
                assert x.grad is not None
                assert torch.equal(x.grad, gradient)
                assert not any(held(matrices))
        with torch.no_grad(), layers.passes(1, backward=False):
            assert torch.equal(run(layers, matrices, x), expected)
            assert not any(held(matrices))
        assert len(worker.sent) == 2 * (3 + 2) + 3, "of a layer forward and backward; of the last one once"

    together(size, work)


def test_one_layer_is_gathered_ahead_and_no_more():
    most: list[int] = []

    def work(worker: Worker) -> None:
        matrices = [matrix for _ in range(3) for matrix in weights()]
        layers = ShardedLayers([[matrix] for matrix in matrices], worker)

        class Watch(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor, number: int) -> Tensor:
                most.append(sum(held(matrices)))
                assert matrices[number].untyped_storage().nbytes()
                ctx.number = number
                return x.clone()

            @staticmethod
            def backward(ctx: Any, *gradients: Tensor) -> Any:
                most.append(sum(held(matrices)))
                assert matrices[ctx.number].untyped_storage().nbytes()
                return gradients[0], None

        x = torch.ones(1, 7, requires_grad=True)
        with layers.passes(1, backward=True):
            for number, matrix in enumerate(matrices):
                x = Watch.apply(layers.enter(number, x), number)
                x = layers.leave(number, x @ matrix)
            x.sum().backward()

    together(2, work)
    assert set(most) == {1, 2}


def test_a_worker_with_fewer_passes_gathers_what_the_others_do():
    def work(worker: Worker) -> list[int]:
        matrices = weights()
        layers = ShardedLayers([[matrix] for matrix in matrices], worker)
        for backward in (True, False):
            with layers.passes(2, backward=backward), torch.set_grad_enabled(backward):
                for _ in range(worker.rank):  # 0, 1, 2
                    out = run(layers, matrices, torch.ones(1, 7, requires_grad=True))
                    if backward:
                        out.sum().backward()
            assert not any(held(matrices))
        return worker.sent

    sent = together(3, work)
    assert len(sent[0]) == 2 * 5 + 2 * 3
    assert sent[0] == sent[1] == sent[2]


def out_of_memory(*_: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory")


class FailsForward(torch.autograd.Function):
    forward = staticmethod(out_of_memory)


class FailsBackward(torch.autograd.Function):
    backward = staticmethod(out_of_memory)

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()


def fail(tensor: ShardedTensor, times: int) -> None:
    """Have memory run out so many times when the tensor is to be whole."""
    allocate, left = tensor.allocate, [times]

    def fails() -> None:
        left[0] -= 1
        allocate() if left[0] < 0 else out_of_memory()

    tensor.allocate = fails


@pytest.mark.parametrize("where", ["forward", "backward", "prefetch", "unshard"])
def test_a_worker_whose_memory_runs_out_gathers_what_the_others_do(where):
    def work(worker: Worker) -> int:
        matrices = weights()
        layers = ShardedLayers([[matrix, matrix.clone()] for matrix in matrices], worker)
        strikes = worker.rank == 1
        if strikes and where in ("prefetch", "unshard"):  # half of a layer is allocated by then
            fail(layers.layers[2][1], times={"prefetch": 1, "unshard": 2}[where])
        try:
            with layers.passes(2, backward=True):
                for _ in range(2):
                    x = torch.ones(1, 7, requires_grad=True)
                    for number, matrix in enumerate(matrices):
                        x = layers.enter(number, x)
                        if strikes and number == 1:
                            failing = {"forward": FailsForward, "backward": FailsBackward}.get(where)
                            x = failing.apply(x) if failing else x
                        x = layers.leave(number, torch.tanh(x @ matrix))
                    x.sum().backward()
            assert not strikes or where == "prefetch", "one layer later there is memory"
        except torch.OutOfMemoryError:
            assert strikes
            assert where != "prefetch"
        assert not any(held(matrices))
        return len(worker.sent)

    assert together(2, work) == [2 * 2 * 5] * 2


def test_a_worker_without_memory_for_a_layer_ends_the_run():
    """The others wait for it until Ray Train ends them."""
    layers = ShardedLayers([[matrix] for matrix in weights()], Worker(0, Post(1)))
    fail(layers.layers[1][0], times=100)
    with pytest.raises(ConfigError, match="beside one layer of the base"), layers.passes(1, backward=True):
        run(layers, weights(), torch.ones(1, 7, requires_grad=True))
    with pytest.raises(torch.OutOfMemoryError), layers.passes(1, backward=False), torch.no_grad():
        run(layers, weights(), torch.ones(1, 7))


def test_what_a_pass_kept_is_gone_before_others_are_joined():
    kept: list[weakref.ref[Tensor]] = []

    def one_pass() -> None:
        x = torch.ones(1, 7, requires_grad=True)
        kept.append(weakref.ref(x))
        out_of_memory()

    layers = ShardedLayers([[matrix] for matrix in weights()], Worker(0, Post(1)))
    start = layers.start
    layers.start = lambda layer: start(layer) if kept[0]() is None else pytest.fail("it is alive")
    with pytest.raises(torch.OutOfMemoryError), layers.passes(1, backward=True):
        one_pass()


def test_another_error_leaves_at_once():
    """The run ends with it; to wait for others would hide it."""
    worker = Worker(0, Post(2))
    layers = ShardedLayers([[matrix] for matrix in weights()], worker)
    with pytest.raises(ZeroDivisionError), layers.passes(2, backward=True):
        raise ZeroDivisionError
    assert not worker.sent


def test_small_tensors_stay_whole(monkeypatch):
    monkeypatch.setattr(sharded_weights, "LEAST_BYTES", 100)
    large, small = torch.ones(5, 5), torch.ones(5)
    ShardedLayers([[large, small]], Worker(0, Post(2)))
    assert held([large, small]) == [False, True]


def test_views_are_filled_with_their_tensor():
    """As modules keep them of weights side by side."""

    def work(worker: Worker) -> None:
        joined = torch.arange(12, dtype=torch.int8).view(4, 3)
        parts = joined.split([1, 3])
        layers = ShardedLayers([[joined]], worker)
        layers.unshard(0)
        assert torch.equal(parts[1], torch.arange(3, 12, dtype=torch.int8).view(3, 3))
        layers.reshard(0)

    together(2, work)
