"""Sharded weights on a GPU: gathered by NCCL beside the kernels of a step, they change nothing in it.

One process, which is its own group: NCCL copies on a stream of its own, as with others.
"""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from tests.gpu.test_training import adapted, gradients_of, layout_of
from wsdm_ray.modeling.training_decoder import TrainingDecoder
from wsdm_ray.training.distributed import WorkerGroup


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
    held = torch.cuda.memory_allocated()
    decoder.shard_weights(group)
    weights = [linear.weight.values for layer in decoder.layers for linear in layer[:4]]
    assert torch.cuda.memory_allocated() <= held + decoder.weights.gathered_bytes
    for _ in range(5):
        with decoder.weights.passes(1, backward=True):
            logits = decoder.logits(layout)
            assert torch.equal(logits, expected)
            for name, gradient in gradients_of(network, logits).items():
                # Atomic sums of attention's backward come in any order.
                assert (gradient - gradients[name]).norm() <= 0.02 * gradients[name].norm(), name
        assert not any(each.untyped_storage().nbytes() for each in weights)
    with torch.no_grad(), decoder.weights.passes(1, backward=False):
        assert torch.equal(decoder.logits(layout), unrecorded)
