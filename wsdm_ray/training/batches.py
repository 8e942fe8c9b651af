"""Which rows make which optimizer step, and which worker runs which micro-batch.

The rows are a function of seed and step alone. A run that is resumed at step k sees the rows that it would
have seen, on any number of workers.
"""

import math
from dataclasses import dataclass

import numpy as np

from wsdm_ray.text.encoding import EncodedPairs

__all__ = [
    "Batches",
    "assign_batches",
    "dropout_seed",
    "num_steps",
    "pairs_in_steps",
    "step_rows",
    "steps_per_epoch",
]


@dataclass(frozen=True)
class Batches:
    """Encoded pairs cut into micro-batches."""

    pairs: EncodedPairs
    micro_batches: list[np.ndarray]
    """Places in `pairs`, int64 each."""
    costs: list[int]
    """Tokens of each micro-batch, padding included."""
    token_budget: int
    """The budget that they were cut by."""


def steps_per_epoch(rows: int, pairs_per_step: int) -> int:
    """Optimizer steps that see each of `rows` once; the last may be smaller."""
    return math.ceil(rows / pairs_per_step)


def num_steps(rows: int, pairs_per_step: int, epochs: float, max_steps: int | None) -> int:
    """Optimizer steps of a whole run."""
    steps = max(math.ceil(epochs * steps_per_epoch(rows, pairs_per_step) - 1e-9), 1)
    return min(steps, max_steps or steps)


def pairs_in_steps(steps: int, rows: int, pairs_per_step: int) -> int:
    """Pairs that the first `steps` steps see."""
    epochs, rest = divmod(steps, steps_per_epoch(rows, pairs_per_step))
    return epochs * rows + min(rest * pairs_per_step, rows)


def step_rows(seed: int, step: int, rows: int, pairs_per_step: int) -> np.ndarray:
    """Row numbers of optimizer step `step` (from 0): int64 [at most pairs_per_step].

    Each epoch is a permutation of its own, so that no row is seen twice in one, and none is missed.
    """
    epoch, index = divmod(step, steps_per_epoch(rows, pairs_per_step))
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    return order[index * pairs_per_step : (index + 1) * pairs_per_step]


def assign_batches(costs: list[int], num_workers: int) -> list[list[int]]:
    """The micro-batches of each worker, by number: the costliest first, each to the least loaded worker."""
    shares: list[list[int]] = [[] for _ in range(num_workers)]
    loads = [0] * num_workers
    for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
        worker = loads.index(min(loads))
        shares[worker].append(number)
        loads[worker] += costs[number]
    return [sorted(share) for share in shares]


def dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """A seed for the dropout of one micro-batch."""
    sequence = np.random.SeedSequence([seed, step, micro_batch])
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)
