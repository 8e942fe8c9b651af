"""FlexAttention of training: the blocks that it computes by fit into a GPU."""

from typing import Any

import pytest
import torch

from wsdm_ray.modeling.attention import BLOCK, flex
from wsdm_ray.modeling.attention.flex import kernel_options

LEAST_SHARED_BYTES = 99 * 1024
"""Shared memory of a program on GPUs of compute capability 8.6, 8.9 and 12.0, which have the least."""

HOPPER_256 = {
    "fwd_BLOCK_M": 128, "fwd_BLOCK_N": 64, "fwd_num_warps": 8, "fwd_num_stages": 2,
    "bwd_BLOCK_M1": 32, "bwd_BLOCK_N1": 64, "bwd_BLOCK_M2": 64, "bwd_BLOCK_N2": 32,
    "bwd_num_warps": 8, "bwd_num_stages": 3,
}  # fmt: skip
PYTORCH_256 = {
    "fwd_BLOCK_M": 32, "fwd_BLOCK_N": 64, "fwd_num_stages": 3,
    "bwd_BLOCK_M1": 64, "bwd_BLOCK_N1": 64, "bwd_BLOCK_M2": 64, "bwd_BLOCK_N2": 64, "bwd_num_stages": 2,
}  # fmt: skip


def shared_bytes(head_dim: int, options: dict[str, int]) -> tuple[int, int]:
    """An upper estimate of what a program takes, forward and backward, in bfloat16.

    It holds queries forward, and keys and values or queries and gradients backward. Two tensors more pass by,
    in as many blocks as there are stages but one. Products are kept beside them, one forward, two backward.
    """

    def program(held: int, passing: int, stages: int, products: int) -> int:
        return 2 * head_dim * (held + 2 * max(1, stages - 1) * passing) + products + 1024

    m, n, stages = (options[f"fwd_{name}"] for name in ("BLOCK_M", "BLOCK_N", "num_stages"))
    forward = program(m, n, stages, 2 * m * n)
    backward = 0
    for held, passing in (("N1", "M1"), ("M2", "N2")):
        held, passing = (options[f"bwd_BLOCK_{name}"] for name in (held, passing))
        products = 2 * 2 * held * passing
        backward = max(backward, program(2 * held, passing, options["bwd_num_stages"], products))
    return forward, backward


@pytest.mark.parametrize(
    ("options", "forward", "backward"),
    [
        (HOPPER_256, 147_968, 119_808),
        (PYTORCH_256, 152_576, 136_192),
        (kernel_options(256, hopper=False), 69_888, 70_144),
    ],
)
def test_the_estimate_is_no_less_than_what_is_compiled(options, forward, backward):
    """Bytes of PyTorch's kernels with soft-capped scores and windows, compiled for compute capability 8.6."""
    estimate = shared_bytes(256, options)
    assert forward <= estimate[0] < 1.1 * forward
    assert backward <= estimate[1] < 1.3 * backward


def test_on_hopper_blocks_are_those_that_were_measured():
    assert kernel_options(256, hopper=True) == HOPPER_256
    assert kernel_options(128, hopper=True) == {
        "fwd_BLOCK_M": 128, "fwd_BLOCK_N": 64, "fwd_num_warps": 8, "fwd_num_stages": 3,
    }  # fmt: skip
    assert kernel_options(64, hopper=True) == {}


@pytest.mark.parametrize("head_dim", [160, 192, 256])
def test_elsewhere_blocks_fit_into_the_smallest_gpus(head_dim):
    options = kernel_options(head_dim, hopper=False)
    rounded = 256  # FlexAttention takes powers of 2
    assert max(shared_bytes(rounded, options)) < LEAST_SHARED_BYTES
    blocks = {name[4:]: size for name, size in options.items() if "BLOCK" in name}
    assert all(BLOCK % size == 0 for size in blocks.values())
    # FlexAttention's own conditions.
    assert blocks["BLOCK_N1"] % blocks["BLOCK_M1"] == blocks["BLOCK_M2"] % blocks["BLOCK_N2"] == 0


@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_elsewhere_narrow_heads_are_left_to_pytorch(head_dim):
    assert kernel_options(head_dim, hopper=False) == {}


@pytest.mark.parametrize("hopper", [True, False])
def test_attention_takes_the_blocks_of_its_gpu(monkeypatch, hopper):
    given: list[Any] = []

    def attention(q: torch.Tensor, *_: Any, **options: Any) -> torch.Tensor:
        given.append(options["kernel_options"])
        return q

    monkeypatch.setattr(flex, "on_hopper", lambda device: hopper)
    monkeypatch.setattr(flex, "flex_of_usual_rows", lambda: attention)
    q, mask = torch.zeros(1, 2, BLOCK, 256), Any
    flex.flex_training_attention(q, q, q, mask, 1.0, None, usual=True)  # pyright: ignore[reportArgumentType]
    assert given == [kernel_options(256, hopper)]
