"""How many tokens of each segment are kept, and which.

Everything here treats the two answers alike: swapping them swaps the result.
"""

import numpy as np

__all__ = ["balanced_budgets", "truncate_middle"]


def balanced_budgets(
    prompt_N: np.ndarray, a_N: np.ndarray, b_N: np.ndarray, room: int, prompt_share: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens to keep of each segment, so that a pair's three together take at most `room`.

    The prompt is sure of `prompt_share` of the room and gets what the answers leave free besides; the answers
    share the rest evenly, and what one does not need goes to the other.

    Args:
        prompt_N, a_N, b_N: int [N], tokens of each segment.
        room: tokens for the three texts.

    Returns:
        Three int64 [N], none above its segment's length; equal to the lengths where a pair fits.
    """
    prompt_N, a_N, b_N = (np.asarray(lengths, np.int64) for lengths in (prompt_N, a_N, b_N))
    for_prompt = np.minimum(prompt_N, np.maximum(int(room * prompt_share), room - a_N - b_N))
    rest = room - for_prompt
    half = rest // 2
    for_a = np.minimum(a_N, np.maximum(half, rest - b_N))
    for_b = np.minimum(b_N, np.maximum(half, rest - a_N))
    return for_prompt, for_a, for_b


def truncate_middle(ids: np.ndarray, keep: int) -> np.ndarray:
    """The first and the last of `ids`, `keep` in all; the head has the odd one."""
    if keep >= len(ids):
        return ids
    tail = keep // 2
    return np.concatenate([ids[: keep - tail], ids[len(ids) - tail :]])
