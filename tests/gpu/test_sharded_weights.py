"""Sharded weights and optimizers on GPUs: what NCCL gathers beside the kernels of a step changes nothing.

One process, which is its own group: NCCL copies on a stream of its own, as with others. Where there are two
GPUs, two processes do the same.
"""

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.gpu.models import free_port
from tests.gpu.test_training import adapted, gradients_of, layout_of
from wsdm_ray.config import OptimizerConfig
from wsdm_ray.modeling.training_decoder import TrainingDecoder
from wsdm_ray.training.distributed import WorkerGroup
from wsdm_ray.training.optimizer import make_optimizer
from wsdm_ray.training.optimizer_state import flatten_state
from wsdm_ray.training.sharded_optimizer import ShardedOptimizer


@pytest.fixture(scope="module")
def group() -> Iterator[WorkerGroup]:
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield WorkerGroup()
    dist.destroy_process_group()


@pytest.mark.parametrize("recomputed", [0, 2, 4])
@pytest.mark.parametrize(
    ("family", "rows", "compiled"),
    [("gemma2", "w8a8-int8", True), ("llama", "w8a8-fp8", True), ("gemma2", "", False), ("llama", "", False)],
)
def test_steps_beside_nccl_are_those_of_whole_weights(family, rows, compiled, recomputed, group):
    network = adapted(family, torch.bfloat16, rows)
    decoder = TrainingDecoder(network, torch.bfloat16, compiled=compiled)
    decoder.recomputed = recomputed
    layout = layout_of("shared")
    expected = decoder.logits(layout)
    gradients = gradients_of(network, expected)
    with torch.no_grad():
        unrecorded = decoder.logits(layout)
    held = torch.cuda.memory_allocated() - decoder.embedding.nbytes
    decoder.shard_weights(group)
    weights = [linear.weight.values for layer in decoder.layers for linear in layer[:4]]
    assert decoder.embedding.device.type == "cpu"
    assert torch.cuda.memory_allocated() <= held + decoder.weights.gathered_bytes
    for _ in range(5):
        with decoder.weights.passes(1, backward=True):
            logits = decoder.logits(layout)
            assert torch.equal(logits, expected)
            for name, gradient in gradients_of(network, logits).items():
                assert (gradient - gradients[name]).norm() <= 0.02 * gradients[name].norm(), name
        assert not any(each.untyped_storage().nbytes() for each in weights)
    with torch.no_grad(), decoder.weights.passes(1, backward=False):
        assert torch.equal(decoder.logits(layout), unrecorded)


def on_each_gpu(rank: int, size: int, port: int) -> None:
    """What each of so many processes checks, on a GPU of its own."""
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    group = WorkerGroup(rank, size)
    try:
        same_logits(group)
        for kind in ("adamw", "adamw_8bit"):
            same_updates(OptimizerConfig(kind=kind), group)
    finally:
        dist.destroy_process_group()


def same_logits(group: WorkerGroup) -> None:
    for compiled in (False, True):
        network = adapted("gemma2", torch.bfloat16, "w8a8-int8")
        decoder = TrainingDecoder(network, torch.bfloat16, compiled=compiled)
        layout = layout_of("shared")
        expected = decoder.logits(layout)
        decoder.shard_weights(group)
        assert decoder.embedding.device.type == "cpu"
        for _ in range(5):
            with decoder.weights.passes(1, backward=True):
                logits = decoder.logits(layout)
                logits.sum().backward()
            assert torch.equal(logits, expected)


def same_updates(options: OptimizerConfig, group: WorkerGroup) -> None:
    """Of an optimizer that is sharded, and its state, those of a whole one."""

    def parameters_at(step: int) -> dict[str, torch.nn.Parameter]:
        source = torch.Generator("cuda").manual_seed(step)
        return {
            f"{number}": torch.nn.Parameter(torch.randn(64, 32 * number, device="cuda", generator=source))
            for number in range(1, 8)
        }

    whole, sharded = parameters_at(0), parameters_at(0)
    one = make_optimizer(options, whole)
    parts = ShardedOptimizer(
        functools.partial(make_optimizer_of, options), [{"params": [*sharded.values()]}], group
    )
    for step in range(1, 4):
        gradients = parameters_at(step)
        for parameters, optimizer in ((whole, one), (sharded, parts)):
            for name, parameter in parameters.items():
                parameter.grad = gradients[name].detach()
            optimizer.step()
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)
    expected, found = flatten_state(one.state_dict()), flatten_state(parts.state_dict())
    if group.is_first:
        assert expected[1]["numbers"] == found[1]["numbers"]
        assert expected[0].keys() == found[0].keys()
        assert all(torch.equal(expected[0][path], found[0][path]) for path in expected[0])


def make_optimizer_of(options: OptimizerConfig, param_groups: list[dict[str, Any]]) -> Any:
    [own] = param_groups
    return make_optimizer(options, {f"{place}": each for place, each in enumerate(own["params"])})


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_an_optimizer_that_is_sharded_updates_as_a_whole_one(kind, group):
    same_updates(OptimizerConfig(kind=kind), group)


def test_two_gpus_share_a_base_and_an_optimizer():
    """Or one, which is all that some machines have, shares them with nobody."""
    size = min(torch.cuda.device_count(), 2)
    torch.multiprocessing.spawn(on_each_gpu, (size, free_port()), nprocs=size)
