"""Cut pairs into micro-batches by a token budget.

A plan is a list of int64 arrays of pair indices, one array a micro-batch. Every pair is in exactly one of
them with all its orderings. Plans depend on lengths and options alone, so the same rows always give the
same plan.

What a micro-batch costs, in tokens, padding included:

    padded   orderings x pairs x longest ordering
    packed   sum of all orderings
    shared   sum of prompts (once a pair) and of all orderings' remainders
"""

from bisect import bisect_left, insort

import numpy as np

from wsdm_ray.packing.layouts import round_up

__all__ = ["batch_tokens", "pair_tokens", "plan_batches", "plan_for_workers"]


def pair_tokens(
    layout: str, prefix_N: np.ndarray, suffix_N: np.ndarray, num_orderings: int, alignment: int = 1
) -> np.ndarray:
    """Tokens that each pair takes in `layout`, with the padding that aligns what follows: int64 [N].

    Args:
        prefix_N: int [N], tokens of what both orderings share (the prompt).
        suffix_N: int [N], tokens of the rest of one ordering.
        alignment: as `lay_out` takes it.
    """
    in_group = num_orderings if layout == "shared" else 1
    groups = num_orderings // in_group
    return np.asarray(groups * round_up(prefix_N + in_group * suffix_N, alignment), np.int64)


def batch_tokens(layout: str, tokens: np.ndarray) -> int:
    """What a micro-batch of pairs with these `pair_tokens` costs in `layout`."""
    if not len(tokens):
        return 0
    return int(len(tokens) * tokens.max() if layout == "padded" else tokens.sum())


def plan_batches(layout: str, tokens_N: np.ndarray, token_budget: int) -> list[np.ndarray]:
    """A plan whose micro-batches each cost at most `token_budget`.

    Args:
        tokens_N: `pair_tokens` of each pair, int [N].

    Raises:
        ValueError: a pair alone is over the budget.
    """
    over = np.flatnonzero(tokens_N > token_budget)
    if len(over):
        raise ValueError(
            f"pair {over[0]} takes {tokens_N[over[0]]} tokens, over the budget of {token_budget}"
        )
    return (
        plan_sorted(tokens_N, token_budget) if layout == "padded" else plan_best_fit(tokens_N, token_budget)
    )


def plan_sorted(tokens_N: np.ndarray, token_budget: int) -> list[np.ndarray]:
    """Longest first, cut where the next pair, padded to the longest, would go over the budget."""
    order = np.argsort(-tokens_N, kind="stable")
    batches, start = [], 0
    while start < len(order):
        count = max(int(token_budget // max(int(tokens_N[order[start]]), 1)), 1)
        batches.append(order[start : start + count])
        start += count
    return batches


def plan_best_fit(tokens_N: np.ndarray, token_budget: int) -> list[np.ndarray]:
    """Best-fit decreasing bin packing: each pair, longest first, goes where the fewest tokens are left."""
    batches: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (tokens free, batch), sorted
    for pair in np.argsort(-tokens_N, kind="stable").tolist():
        need = int(tokens_N[pair])
        index = bisect_left(free, (need, -1))
        if index == len(free):
            batches.append([pair])
            insort(free, (token_budget - need, len(batches) - 1))
        else:
            tokens_free, number = free.pop(index)
            batches[number].append(pair)
            insort(free, (tokens_free - need, number))
    return [np.asarray(pairs, np.int64) for pairs in batches]


def plan_for_workers(layout: str, tokens_N: np.ndarray, token_budget: int, workers: int) -> list[np.ndarray]:
    """A plan within `token_budget` that so many workers can share evenly.

    Each gets as many of the first micro-batches as the others. The last ones, which are less full, are cut
    again: one for each worker. There is one for each at least, if there are so many pairs.
    """
    plan = plan_batches(layout, tokens_N, token_budget)
    if workers > 1 and plan:
        left = len(plan) % workers or workers
        rest = np.concatenate(plan[-left:])
        plan[-left:] = [rest[pairs] for pairs in plan_evenly(layout, tokens_N[rest], token_budget, workers)]
    while len(plan) < min(workers, len(tokens_N)):  # pairs of one length
        largest = max(range(len(plan)), key=lambda index: len(plan[index]))
        half = len(plan[largest]) // 2
        plan[largest : largest + 1] = [plan[largest][:half], plan[largest][half:]]
    return plan


def plan_evenly(layout: str, tokens_N: np.ndarray, token_budget: int, most: int) -> list[np.ndarray]:
    """A plan by the lowest budget that needs `most` micro-batches at most (MULTIFIT: Coffman, Garey and
    Johnson, 1978); by `token_budget` where that needs more.
    """
    low, high = int(tokens_N.max(initial=1)), token_budget
    while low < high:
        middle = (low + high) // 2
        if len(plan_batches(layout, tokens_N, middle)) <= most:
            high = middle
        else:
            low = middle + 1
    return plan_batches(layout, tokens_N, high)
