"""What a GPU can do, did, and holds: products alone, its timeline, its memory."""

import collections
import statistics
from collections.abc import Callable
from typing import Any

import torch

from wsdm_ray.modeling.quantized_linear import TYPES, QuantizedTensor, linear, pack_weight, quantize_rows

__all__ = ["peak_memory", "product", "timeline_of"]


def product(precision: str, tokens: int, wide: int, out: int, device: str) -> Callable[[], torch.Tensor]:
    """One product of random values, [tokens, wide] with [out, wide]."""
    x, weight = (torch.randn(rows, wide, device=device, dtype=torch.bfloat16) for rows in (tokens, out))
    if precision == "bf16":
        return lambda: torch.matmul(x, weight.t())
    rows = QuantizedTensor(*quantize_rows(x, TYPES[precision]))
    packed = pack_weight([weight], [], precision, device=device, dtype=torch.bfloat16)
    if precision == "w8a8-int8" and not packed.fused:
        return lambda: torch._int_mm(rows.values, packed.values.t())
    return lambda: linear(rows, packed)


def timeline_of(events: list[tuple[str, float, float]]) -> dict[str, Any]:
    """The idle share between the first and the last of events (name, start, end in microseconds)."""
    events = sorted(events, key=lambda event: event[1])
    at, busy, gaps, before = events[0][1], 0.0, [], ""
    for name, start, end in events:
        gaps.append((max(start - at, 0.0), before, short_name(name)))
        busy += max(end - max(start, at), 0.0)
        at, before = max(at, end), short_name(name)
    span = at - events[0][1]
    taken: dict[str, list[float]] = collections.defaultdict(list)
    for name, start, end in events:
        taken[short_name(name)].append(end - start)
    longest = sorted(taken.items(), key=lambda item: -sum(item[1]))[:12]
    return {
        "idle_share": 1 - busy / span,
        "longest_gap_ms": max(gaps)[0] / 1e3,
        "gaps": [
            {"ms": gap / 1e3, "after": after, "before": before}
            for gap, after, before in sorted(gaps, reverse=True)[:12]
        ],
        "idle_ms_in_gaps_under_100_us": sum(gap for gap, *_ in gaps if gap < 100) / 1e3,
        "milliseconds": span / 1e3,
        "kernels": [
            {
                "name": name,
                "share": sum(each) / span,
                "calls": len(each),
                "median_us": statistics.median(each),
            }
            for name, each in longest
        ],
    }


def short_name(kernel: str) -> str:
    """A kernel's name without types and arguments, 60 characters of it."""
    return kernel.removeprefix("void ").split("(")[0].split("<")[0][:60]


def peak_memory() -> dict[str, float]:
    """The most memory so far of PyTorch's tensors, and of all that it reserved; zeros without a GPU."""
    if not torch.cuda.is_available():
        return {"allocated_gib": 0.0, "reserved_gib": 0.0}
    return {
        "allocated_gib": torch.cuda.max_memory_allocated() / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
    }
