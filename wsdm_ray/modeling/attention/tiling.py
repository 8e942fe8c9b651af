"""The blocks that block-sparse masks are made of, and which are best for a model on a GPU."""

from typing import Any, NamedTuple

import torch

from wsdm_ray.modeling.quantized_linear import on_hopper

__all__ = [
    "BLOCK",
    "MAX_KERNEL_SOFTCAP",
    "NARROW",
    "SMALL",
    "SOFTCAPPED",
    "TILINGS",
    "WIDE",
    "Tiling",
    "tiling_of",
]

BLOCK = 128
"""The number of tokens of a batch with block-sparse masks is a multiple of `BLOCK`."""


class Tiling(NamedTuple):
    """Queries and keys of a block, in tokens, and what computes attention by them.

    The smaller the blocks, the less is computed that the mask then hides.

    flex_options: FlexAttention's `kernel_options`; None is its own choice. softcapped: our kernel for
        soft-capped scores computes it instead of FlexAttention.
    """

    queries: int = BLOCK
    keys: int = BLOCK
    flex_options: Any = None
    softcapped: bool = False

    @property
    def alignment(self) -> int:
        """Groups that begin at multiples of so many tokens have their keys cut into the same blocks wherever
        they are in a batch: attention then adds up the same numbers in the same order.
        """
        return self.keys


WIDE = Tiling(128, 64, {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 2, "USE_TMA": True})
NARROW = Tiling(64, 64, {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 3})
SOFTCAPPED = Tiling(32, 32, softcapped=True)
TILINGS = {(256, True): SOFTCAPPED, (256, False): WIDE, (128, False): NARROW, (64, False): NARROW}
"""The measured tilings, by head dimension and whether scores are soft-capped, for bfloat16. They take 50 to
80 % of the time of FlexAttention's own choice on an H100 or H200. `SOFTCAPPED` takes 75 % of the time of
`WIDE` on an H100, within whole batches 67 %, and rotates the queries besides."""

SMALL = Tiling(flex_options={"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8, "num_stages": 2})
"""For wide heads on other GPUs: 69 KiB of shared memory. FlexAttention's own choice takes 149 KiB, and a
program has 99 on GPUs of compute capability 8.6, 8.9 and 12.0. Compiled for them, and not run."""

MAX_KERNEL_SOFTCAP = 64.0
"""The largest soft cap that `SOFTCAPPED` is for. Up to it 2 ** 31 exponentials add up in float32, bfloat16
holds each of them, and none is so small that it counts as 0."""


def tiling_of(
    head_dim: int, group_size: int, softcap: float | None, dtype: torch.dtype, device: torch.device
) -> Tiling:
    """The best tiling that was measured; on GPUs that were not, one that fits, or FlexAttention's own choice.

    Args:
        group_size: query heads of one key head.
    """
    if not on_hopper(device) or dtype != torch.bfloat16:
        return SMALL if device.type == "cuda" and head_dim > 128 and dtype.itemsize == 2 else Tiling()
    tiling = TILINGS.get((head_dim, softcap is not None), Tiling())
    if not tiling.softcapped:
        return tiling
    # Our kernel takes heads two by two.
    fits = softcap is not None and softcap <= MAX_KERNEL_SOFTCAP and group_size % 2 == 0
    return tiling if fits else WIDE
