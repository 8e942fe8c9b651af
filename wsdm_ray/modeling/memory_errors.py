"""Which errors say that no memory is left: CUDA, cuBLAS, Triton and PyTorch each have their own words."""

import torch

__all__ = ["OUT_OF_MEMORY", "is_oom"]

OUT_OF_MEMORY = "out of memory"

OOM_MESSAGES = (OUT_OF_MEMORY, "can't allocate memory", "not enough memory", "alloc_failed")
"""Parts of their messages, in lower case."""


def is_oom(error: BaseException) -> bool:
    """Whether an error says that no memory is left."""
    said = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        part in said for part in OOM_MESSAGES
    )
