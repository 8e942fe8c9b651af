"""Scorers without a network, or with one that is made to fail; plans; and pairs whose tokens are known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from wsdm_ray.config import Columns
from wsdm_ray.inputs.conversion import parquet_inputs
from wsdm_ray.inputs.files import list_inputs
from wsdm_ray.inputs.rows import Reading
from wsdm_ray.modeling.scorers import BatchMemory, Scorer
from wsdm_ray.packing.layouts import Layout
from wsdm_ray.packing.ragged import Ragged
from wsdm_ray.scoring.plan import ScorePlan, make_plan
from wsdm_ray.text.encoding import EncodedPairs

Logits = Callable[[Layout], torch.Tensor]


def plan_of(
    files: Sequence[str], unit_rows: int, columns: Columns | None = None, **options: Any
) -> ScorePlan:
    """The plan of files, as `score` makes it."""
    reading = Reading(columns=columns or Columns(), labels=False, **options)
    return make_plan(parquet_inputs(list_inputs(files), reading), unit_rows)


def token_logits(layout: Layout) -> torch.Tensor:
    """Logits of a padded micro-batch: from the sum of the tokens, each times its position."""
    value = (layout.tokens_BT * (layout.groups_BT >= 0) * (layout.positions_BT + 1)).sum(axis=1)
    return torch.from_numpy(np.stack([np.sin(value), np.cos(value)], axis=1)).float()


@dataclass
class FakeScorer:
    """A `Scorer` whose logits are a function of the layout alone."""

    logits: Logits = token_logits
    static_shapes: bool = False
    alignment: int = 1
    max_in_flight: int = 1

    def __call__(self, layout: Layout) -> torch.Tensor:
        return self.logits(layout)

    def memory(self, layout: str) -> BatchMemory:
        return BatchMemory(token=1, key=0)

    def warm_up(self, token_budget: int) -> None:
        pass


def wrapped(scorer: Scorer, logits: Logits | None = None, **changes: Any) -> FakeScorer:
    """`scorer` with other logits or another alignment."""
    same = {name: getattr(scorer, name) for name in ("static_shapes", "alignment", "max_in_flight")}
    return FakeScorer(logits=logits or scorer, **(same | changes))


def breaking(real: Logits, marked: int, failure: Exception | torch.Tensor) -> Logits:
    """`real`, but rows with the token `marked` raise, or have `failure` as their logits."""

    def logits(layout: Layout) -> torch.Tensor:
        hit = (layout.tokens_BT == marked).any(axis=1)
        if isinstance(failure, Exception) and hit.any():
            raise failure
        found = real(layout)
        if isinstance(failure, torch.Tensor):
            found[torch.from_numpy(hit)] = failure
        return found

    return logits


def with_memory_for(
    tokens: int, sizes: list[int], error: Exception | None = None, real: Logits = token_logits
) -> Logits:
    """`real` on a device where larger micro-batches run out of memory; notes the size of each it is given."""

    def logits(layout: Layout) -> torch.Tensor:
        sizes.append(layout.tokens_BT.size)
        if layout.tokens_BT.size > tokens:
            raise error or torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(layout)

    return logits


def noting(batches: list[list[int]], real: Logits = token_logits) -> Logits:
    """`real`; notes which pairs of `pairs_of` each micro-batch holds."""

    def logits(layout: Layout) -> torch.Tensor:
        batches.append(sorted({int(token) - FIRST_PAIR for token in layout.tokens_BT[:, 0]}))
        return real(layout)

    return logits


def spoiling_first(scorer: Scorer) -> FakeScorer:
    """`scorer`, but the first ordering of each micro-batch has logits that are not finite."""

    def logits(layout: Layout) -> torch.Tensor:
        found = scorer(layout)
        found[0] = float("nan")
        return found

    return wrapped(scorer, logits)


def failing_late(logits: torch.Tensor, error: Exception) -> torch.Tensor:
    """Logits that cannot be read, as those of a GPU kernel that failed after it was started."""

    def fail(self: torch.Tensor) -> np.ndarray:
        raise error

    return logits.as_subclass(type("FailingLate", (torch.Tensor,), {"numpy": fail}))


OOM_ERRORS = (
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
)

FIRST_PAIR = 100


def pairs_of(lengths: list[int]) -> EncodedPairs:
    """Pairs whose orderings have so many tokens, at least 3. The first is the pair's own: 100, 101, ..."""
    number = len(lengths)
    return EncodedPairs(
        Ragged.from_lists([np.array([FIRST_PAIR + i]) for i in range(number)]),
        Ragged.from_lists([np.arange(length - 1) for length in lengths]),
        Ragged.from_lists([np.arange(length - 1)[::-1] for length in lengths]),
        np.zeros(number, np.int32),
        np.arange(number) % 2 == 1,
    )
