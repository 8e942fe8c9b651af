"""Which errors say that no memory is left: CUDA, cuBLAS, Triton and PyTorch each have their own words."""

from typing import Any

import torch

__all__ = ["OUT_OF_MEMORY", "is_oom"]

OUT_OF_MEMORY = "out of memory"

OOM_MESSAGES = (OUT_OF_MEMORY, "can't allocate memory", "not enough memory", "alloc_failed")
"""Parts of their messages, in lower case."""


def is_oom(error: BaseException) -> bool:
    """Whether an error says that no memory is left, and nothing else is lost by it."""
    distributed: Any = torch.distributed
    if distributed.is_available() and isinstance(error, distributed.DistError):
        return False  # of messages between GPUs, whose other ends wait
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(part in str(error).lower() for part in OOM_MESSAGES)
