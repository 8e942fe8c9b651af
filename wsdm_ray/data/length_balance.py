# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import)
"""Weights that leave the lengths of the two responses nothing to say of the winner.

Votes are put into bins by how many times longer the longer response is. With u the share of a vote for its
longer response (1, 0, or a soft label between), the votes of a bin pull

    L = sum over u > 1/2 of w (u - 1/2)    towards the longer response, and
    S = sum over u < 1/2 of w (1/2 - u)    towards the shorter one.

The balanced weight of the first is w (L + S) / 2L and of the second w (L + S) / 2S. Then both pull alike, as
hard as before together: within every bin, half of the weighted votes are for the longer response. A vote of
equal lengths, or of u = 1/2, and a bin whose votes all pull one way, keep their weights. No weight grows more
than `MOST`-fold. In between, a strength s takes (1 - s) w and s times the balanced weight.
"""

import numpy as np
import pyarrow.compute as pc

from wsdm_ray.data.votes import Votes

__all__ = ["LENGTH_RATIOS", "balance_lengths", "balanced_weights"]

LENGTH_RATIOS = (1.1, 1.25, 1.5, 2.0, 3.0)
"""Edges of the bins by how many times longer the longer response is."""

MOST = 10.0
"""A few votes for the shorter response among many must not decide the run."""


def balance_lengths(votes: Votes, weights_N: np.ndarray, strength: float) -> np.ndarray:
    """Weight of each vote with a mean of 1, float64 [N], its length balanced with a strength in 0..1.

    Args:
        weights_N: what they weigh without, float64 [N].
    """
    if not strength:
        return weights_N
    characters_a_N, characters_b_N = (
        pc.utf8_length(votes.table[name]).to_numpy().astype(np.int64) for name in ("response_a", "response_b")
    )
    balanced_N = balanced_weights(characters_a_N, characters_b_N, votes.prob_a_N, weights_N)
    mixed_N = (1 - strength) * weights_N + strength * balanced_N
    return mixed_N / mixed_N.mean()


def balanced_weights(
    characters_a_N: np.ndarray, characters_b_N: np.ndarray, prob_a_N: np.ndarray, weights_N: np.ndarray
) -> np.ndarray:
    """The balanced weight of each vote: float64 [N].

    Args:
        characters_a_N, characters_b_N: lengths of the responses, int64 [N].
        prob_a_N: labels, float64 [N].
        weights_N: what the votes weigh before, float64 [N].
    """
    shorter_N = np.minimum(characters_a_N, characters_b_N)
    longer_N = np.maximum(characters_a_N, characters_b_N)
    bin_N = np.searchsorted(LENGTH_RATIOS, longer_N / np.maximum(shorter_N, 1), side="right")
    towards_longer_N = np.sign(characters_a_N - characters_b_N) * (prob_a_N - 0.5)
    balanced_N = np.array(weights_N, np.float64)
    for number in range(len(LENGTH_RATIOS) + 1):
        sides = [(bin_N == number) & (sign * towards_longer_N > 0) for sign in (1, -1)]
        pulls = [float((weights_N * np.abs(towards_longer_N))[side_N].sum()) for side_N in sides]
        if all(pulls):
            for side_N, pull in zip(sides, pulls, strict=True):
                balanced_N[side_N] *= min(sum(pulls) / (2 * pull), MOST)
    return balanced_N
