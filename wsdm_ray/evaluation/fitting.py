"""Whether there are enough votes to fit a weight, a temperature or a threshold, and the parts to judge it on.

Shape suffix: N rows.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEAST_FIT_GROUPS", "LEAST_FIT_ROWS", "halves_by_prompt", "parts_by_prompt", "shortage"]

LEAST_FIT_ROWS = 200
LEAST_FIT_GROUPS = 100
"""Nothing is fitted, or recommended, on fewer votes or fewer prompts.

A fit is judged on the other half of the prompts. The temperature of a good classifier has a standard error of
about 2 % on 20,000 votes, so of 20 % on 200 and of 30 % on half of them. On fewer, the result is luck.
"""


def shortage(groups_N: NDArray[Any]) -> str | None:
    """Why these votes are too few for a fit, or None where they are enough.

    Args:
        groups_N: (N,), equal where rows share a prompt.
    """
    rows, prompts = len(groups_N), len(np.unique(groups_N))
    if rows >= LEAST_FIT_ROWS and prompts >= LEAST_FIT_GROUPS:
        return None
    return (
        f"{rows:,} votes on {prompts:,} prompts are too few"
        f" (at least {LEAST_FIT_ROWS} votes on {LEAST_FIT_GROUPS} prompts)"
    )


def parts_by_prompt(groups_N: NDArray[np.uint64], parts: int) -> NDArray[np.int64]:
    """The part of each row, 0 to `parts - 1`, int64 (N,): rows of one prompt are in the same part.

    Args:
        groups_N: uint64 (N,), a hash of each row's prompt.
    """
    return (groups_N % np.uint64(parts)).astype(np.int64)


def halves_by_prompt(groups_N: NDArray[np.uint64]) -> NDArray[np.bool_] | None:
    """Whether each row is in the second half, bool (N,); None where one half is empty.

    Args:
        groups_N: as for `parts_by_prompt`.
    """
    half_N = parts_by_prompt(groups_N, 2).astype(bool)
    return None if half_N.all() or not half_N.any() else half_N
