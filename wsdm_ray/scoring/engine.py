"""Encoded pairs to probabilities: plan, lay out, run, gather. Torch, no Ray and no file.

Both orderings of a pair run in the same pass. Of the two, the one whose ids sort first stands first,
whichever the input calls response_a; so a pair and its swapped twin are computed by the very same operations,
and their probabilities add up to exactly 1.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from wsdm_ray.modeling.classifier import first_wins, ordering_logits
from wsdm_ray.packing.layouts import lay_out
from wsdm_ray.packing.plan import pair_tokens, plan_passes
from wsdm_ray.packing.ragged import Ragged
from wsdm_ray.schema import Ordering
from wsdm_ray.text.encoding import EncodedPairs

__all__ = ["Scores", "combine", "log_odds", "to_probability"]

GRID = 2.0**-24
"""Probabilities are multiples of this: the coarsest step of float32 below 1, so that 1 - p is exact."""


@dataclass(frozen=True)
class Scores:
    """What the engine says of N pairs.

    log_odds_NO: float32 [N, orderings asked for], that the given response_a wins; NaN where the pass failed.
    passed_tokens: tokens that went through the model, padding included.
    """

    log_odds_NO: np.ndarray
    passed_tokens: int


@torch.inference_mode()
def log_odds(
    network: nn.Module,
    pairs: EncodedPairs,
    orderings: tuple[Ordering, ...],
    *,
    layout: str,
    token_budget: int,
) -> Scores:
    """Run every pair in every ordering asked for.

    Raises:
        ValueError: a pair alone is over the token budget.
    """
    sides, mirrored, identical = sort_sides(pairs, orderings)
    tokens_N = pair_tokens(layout, pairs.prefix.lengths, pairs.suffix_ab.lengths, len(sides))
    result_NO = np.full((len(pairs), len(sides)), np.nan, np.float32)
    passed = 0
    for indices in plan_passes(layout, tokens_N, token_budget):
        batch = lay_out(layout, pairs.prefix, sides, indices)
        found = first_wins(ordering_logits(network, batch)).cpu().numpy()
        result_NO[indices] = found.reshape(len(indices), len(sides))
        passed += batch.tokens_BT.size
    result_NO[~np.isfinite(result_NO)] = np.nan
    result_NO[identical, -1] = result_NO[identical, 0]  # one sequence twice: no rounding may prefer a side
    return Scores(of_given_a(result_NO, orderings, mirrored), passed)


def sort_sides(
    pairs: EncodedPairs, orderings: tuple[Ordering, ...]
) -> tuple[list[Ragged], np.ndarray, np.ndarray]:
    """The orderings to run, which pairs run them mirrored, and which have two equal responses (bool [N])."""
    ab, ba = pairs.suffix_ab, pairs.suffix_ba
    neither = np.zeros(len(pairs), bool)
    if len(orderings) == 1:
        return [ab if orderings[0] is Ordering.AB else ba], neither, neither
    mirrored, identical = neither.copy(), neither.copy()
    for i in range(len(pairs)):
        this, other = ab[i].tobytes(), ba[i].tobytes()
        mirrored[i], identical[i] = other < this, other == this
    first = Ragged.from_lists([ba[i] if flip else ab[i] for i, flip in enumerate(mirrored)])
    second = Ragged.from_lists([ab[i] if flip else ba[i] for i, flip in enumerate(mirrored)])
    return [first, second], mirrored, identical


def of_given_a(first_NO: np.ndarray, orderings: tuple[Ordering, ...], mirrored: np.ndarray) -> np.ndarray:
    """From log-odds, as run, that the first response wins to those, as asked for, that response_a wins."""
    if len(orderings) == 1:
        return first_NO if orderings[0] is Ordering.AB else -first_NO
    ab = np.where(mirrored, first_NO[:, 1], first_NO[:, 0])
    ba = np.where(mirrored, first_NO[:, 0], first_NO[:, 1])
    return np.stack([ab, -ba], axis=1)


def to_probability(log_odds: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Sigmoid of log-odds over a temperature: float64, same shape. sigmoid(-x) is 1 - sigmoid(x) exactly."""
    half = 0.5 * np.tanh(0.5 * np.asarray(log_odds, np.float64) / temperature)
    return 0.5 + np.round(half / GRID) * GRID


def combine(probabilities: np.ndarray) -> np.ndarray:
    """The mean over models and orderings: float32 [N], on the grid on which 1 - p is exact.

    Args:
        probabilities: float64 [N, parts], of the given response_a.
    """
    half = (probabilities - 0.5).mean(axis=1)
    return (0.5 + np.round(half / GRID) * GRID).astype(np.float32)
