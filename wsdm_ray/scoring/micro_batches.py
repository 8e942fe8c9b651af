"""Which pairs share a micro-batch, and how many tokens it is filled up to: pure functions, no model."""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from wsdm_ray.modeling.attention import BLOCK
from wsdm_ray.modeling.scorers import round_up_to_block
from wsdm_ray.packing.layouts import round_up
from wsdm_ray.packing.plan import plan_batches

__all__ = ["BatchShapes", "plan_micro_batches"]


@dataclass(frozen=True, kw_only=True)
class BatchShapes:
    """How many tokens, padding included, a micro-batch has.

    static: each number of tokens is compiled for itself, so that there are few.
    initial_budget: the token budget before memory lowered it.
    """

    static: bool
    initial_budget: int

    def least_size(self, num_tokens: int) -> int:
        """The fewest tokens that a micro-batch with `num_tokens` can have.

        There are four static shapes between powers of two, and that of the initial budget.
        """
        if not self.static:
            return num_tokens
        size = round_up(num_tokens, max(BLOCK, (1 << num_tokens.bit_length()) // 8))
        largest = round_up_to_block(self.initial_budget)
        return largest if num_tokens <= largest < size else size

    def size(self, num_tokens: int, token_budget: int) -> int:
        """The tokens of a micro-batch with `num_tokens`: a static shape is filled up to the budget."""
        if self.static and num_tokens <= token_budget:
            return round_up_to_block(token_budget)
        return self.least_size(num_tokens)

    @property
    def budget_step(self) -> int:
        """Budgets are multiples of it: the rest of a static shape's last block would always be padding."""
        return BLOCK if self.static else 1


def plan_micro_batches(
    layout: str, tokens_N: np.ndarray, rows: np.ndarray, token_budget: int, suspects: Collection[int]
) -> deque[np.ndarray]:
    """The micro-batches of `rows` (int [R]): an int array of rows each.

    A row over the budget is alone. So is each of the `suspects`; they come last, so that a device that one of
    them breaks has done the others.
    """
    is_suspect = np.isin(rows, list(suspects))
    over_budget = ~is_suspect & (tokens_N[rows] > token_budget)
    single, last, rest = rows[over_budget], rows[is_suspect], rows[~over_budget & ~is_suspect]
    batches = [rest[indices] for indices in plan_batches(layout, tokens_N[rest], token_budget)]
    return deque([*single[:, None], *batches, *last[:, None]])
