"""How many tokens of each segment are kept, and which.

Everything here treats the two answers alike: swapping them swaps the result.
"""

import numpy as np

__all__ = ["balanced_budgets", "truncate_middle"]


def balanced_budgets(
    prompt_N: np.ndarray, a_N: np.ndarray, b_N: np.ndarray, text_budget: int, prompt_share: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens to keep of each segment, so that the three of a pair take at most `text_budget` together.

    The prompt gets at least `prompt_share` of the budget where it needs so much, and all that the answers
    leave free. The answers share the rest evenly; what one does not need goes to the other.

    Args:
        prompt_N, a_N, b_N: int [N], tokens of each segment.
        text_budget: tokens for the three texts.

    Returns:
        Three int64 [N], none above its segment's length; equal to the lengths where a pair fits.
    """
    prompt_N, a_N, b_N = (np.asarray(lengths, np.int64) for lengths in (prompt_N, a_N, b_N))
    for_prompt = np.minimum(prompt_N, np.maximum(int(text_budget * prompt_share), text_budget - a_N - b_N))
    rest = text_budget - for_prompt
    half = rest // 2
    for_a = np.minimum(a_N, np.maximum(half, rest - b_N))
    for_b = np.minimum(b_N, np.maximum(half, rest - a_N))
    return for_prompt, for_a, for_b


def truncate_middle(ids: np.ndarray, keep: int) -> np.ndarray:
    """The first and the last ids, `keep` in all; of an odd number the head has one more."""
    if keep >= len(ids):
        return ids
    tail = keep // 2
    return np.concatenate([ids[: keep - tail], ids[len(ids) - tail :]])
