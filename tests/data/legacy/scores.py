"""The log-odds of a checkpoint on fixed token ids, by names that version 0.1.0 has as well."""

from pathlib import Path

import numpy as np
import torch

from wsdm_ray.modeling.loading import load_scorer
from wsdm_ray.packing.layouts import lay_out
from wsdm_ray.packing.ragged import Ragged

BASE = "base-int8"
SCORED = (
    ("adapter", "fp32"),
    ("adapter", "bnb-int8"),
    ("adapter", "w8a8-int8"),
    ("adapter", "w8a8-fp8"),
    ("full-fp8", "fp32"),
    ("full-fp8", "w8a8-fp8"),
    ("full-fp8", "w8a8-int8"),
    ("full-int8-rows", "fp32"),
    ("full-int8-rows", "w8a8-int8"),
)
"""Folders, and the present names of precisions in which each is scored."""


@torch.no_grad()
def log_odds(folder: Path, name: str, precision: str) -> list[float]:
    """Log-odds of both orderings of three pairs, in the order of the layout.

    Args:
        folder: that holds the checkpoints. precision: as the code at hand calls it.
    """
    torch.set_num_threads(1)  # more would take sums in another order
    base = str(folder / BASE) if name == "adapter" else None
    scorer, _ = load_scorer(str(folder / name), precision=precision, device="cpu", base=base)
    random = np.random.default_rng(0)
    prefix, ab, ba = (
        Ragged.from_lists([random.integers(4, 260, length, np.int32) for length in lengths])
        for lengths in ((5, 1, 20), (9, 3, 11), (9, 3, 11))
    )
    layout = lay_out("shared", prefix, [ab, ba], np.arange(3))
    if isinstance(scorer, torch.nn.Module) and not hasattr(scorer, "memory"):  # a network, in version 0.1.0
        from wsdm_ray.modeling.classifier import ordering_logits

        logits = ordering_logits(scorer, layout)
    else:
        logits = scorer(layout)
    return (logits[:, 0] - logits[:, 1]).tolist()


def machine() -> str:
    """What decides the order of float32 sums: the processor's name and PyTorch's version."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{name}, torch {torch.__version__}"
