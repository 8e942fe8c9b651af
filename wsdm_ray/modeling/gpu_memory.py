"""How much memory this process takes, and may still take on its GPU."""

import math
import resource

import torch

__all__ = ["forget_peak_memory", "free_gpu_bytes", "peak_memory_bytes"]


def free_gpu_bytes() -> float:
    """Free memory of this process's GPU, with what PyTorch keeps for later; infinite without one.

    A share that the process was given (`torch.cuda.set_per_process_memory_fraction`) is kept to.
    """
    if not torch.cuda.is_available():
        return math.inf
    free, whole = torch.cuda.mem_get_info()
    reserved = torch.cuda.memory_reserved()
    own = torch.cuda.get_per_process_memory_fraction() * whole - reserved
    return min(free, own) + reserved - torch.cuda.memory_allocated()


def forget_peak_memory() -> None:
    """Give the GPU back what PyTorch keeps for later, and count the peak from now on."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes(device: str) -> int:
    """The most memory that this process took so far: of its GPU on `cuda`, else of the machine."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
