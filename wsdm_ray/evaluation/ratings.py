"""How strong each answering model is: Bradley-Terry ratings from votes, and from predictions beside them.

The probability that one model beats another is the sigmoid of the difference of their strengths (Bradley and
Terry, 1952). Shape suffixes: N comparisons, M models, P pairs of models, B resamples. A soft label, or a
predicted probability, counts as that share of a win; so a tie is half a win for each.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsdm_ray.evaluation.metrics import percentiles, resampled_counts
from wsdm_ray.statistics import Floats, sigmoid

__all__ = ["fit_strengths", "model_ratings", "rated_together"]

MEAN_RATING = 1000.0
SCALE = 400 / np.log(10)
"""Ratings are on the Elo scale: 400 points are odds of 10 to 1. The mean of the rated models is 1000."""

WEAK_PRIOR = 1e-3
"""Penalty on squared strengths in a resample, in which a model may have won all, or not be there at all.

It is 0.4 % of what one comparison of equals knows, so it moves no strength that the comparisons determine.
"""

MOST_MODELS = 100
"""Only the comparisons of this many models, those with the most rows, are used: a fit costs their cube."""

UNRATED = {"rating": None, "rating_ci95": None}

STEPS = 100
LONGEST_STEP = 2.0
CONVERGED = 1e-9
BLOCK_ELEMENTS = 1 << 21
"""Numbers of the Hessians that are solved at a time."""


class Games(NamedTuple):
    """Comparisons by pair of models: numbers of the first and second model of each pair, int64 (P,)."""

    first_P: NDArray[np.int64]
    second_P: NDArray[np.int64]
    num_models: int


def fit_strengths(games: Games, played_BP: Floats, won_BP: Floats, prior: float = 1e-10) -> Floats:
    """Strengths of the greatest likelihood in log-odds, of mean 0 over the models: float64 (B, M).

    Newton's method with bounded steps; the likelihood is concave.

    Args:
        games: the pairs.
        played_BP: comparisons of each pair, one line a problem.
        won_BP: the share of them that the first model of the pair won.
        prior: half of it times the squared strengths is added to the negative log-likelihood. It only makes
            the mean definite where the likelihood has a maximum.
    """
    first_P, second_P, num_models = games
    num, models = len(played_BP), np.arange(num_models)
    side_PM = np.zeros((len(first_P), num_models))
    side_PM[np.arange(len(first_P)), first_P] = 1.0
    side_PM[np.arange(len(first_P)), second_P] = -1.0
    strength_BM = np.zeros((num, num_models))
    for _ in range(STEPS):
        win_BP = sigmoid(strength_BM[:, first_P] - strength_BM[:, second_P])
        slope_BM = (won_BP - played_BP * win_BP) @ side_PM - prior * strength_BM
        weight_BP = played_BP * win_BP * (1 - win_BP)
        hessian_BMM = np.zeros((num, num_models, num_models))
        hessian_BMM[:, first_P, second_P] = -weight_BP
        hessian_BMM[:, second_P, first_P] = -weight_BP
        hessian_BMM[:, models, models] = weight_BP @ np.abs(side_PM) + prior
        # The mean has no likelihood of its own: a term for it makes the matrix one that can be solved.
        step_BM = np.linalg.solve(hessian_BMM + 1.0 / num_models, slope_BM[:, :, None])[:, :, 0]
        longest_B = np.abs(step_BM).max(axis=1, keepdims=True)
        strength_BM += step_BM * np.minimum(1, LONGEST_STEP / np.maximum(longest_B, 1e-300))
        if longest_B.max() < CONVERGED:
            break
    return strength_BM - strength_BM.mean(axis=1, keepdims=True)


def rated_together(games: Games, played_P: Floats, won_P: Floats) -> NDArray[np.bool_]:
    """The largest set of models whose strengths have a finite maximum of the likelihood: bool (M,).

    Among them each has beaten each other, directly or over others (Ford, 1957). A model that won or lost all
    of its comparisons, and one that no chain of comparisons connects, is in another set.
    """
    reach_MM = np.eye(games.num_models, dtype=np.float32)
    reach_MM[games.first_P[won_P > 0], games.second_P[won_P > 0]] = 1
    lost_P = played_P - won_P > 1e-9
    reach_MM[games.second_P[lost_P], games.first_P[lost_P]] = 1
    for _ in range(max(1, int(np.ceil(np.log2(games.num_models))))):
        reach_MM = np.minimum(reach_MM @ reach_MM, 1)
    both_MM = (reach_MM > 0) & (reach_MM.T > 0)
    return both_MM[both_MM.sum(axis=1).argmax()]


def pairs_of(first_N: NDArray[np.int64], second_N: NDArray[np.int64], num_models: int) -> Any:
    """The pairs that were compared, the pair of each comparison (N,), and whether it is turned (N,)."""
    low_N, high_N = np.minimum(first_N, second_N), np.maximum(first_N, second_N)
    codes_P, pair_N = np.unique(low_N * num_models + high_N, return_inverse=True)
    return Games(codes_P // num_models, codes_P % num_models, num_models), pair_N, first_N > second_N


def model_ratings(
    model_a_N: NDArray[np.object_],
    model_b_N: NDArray[np.object_],
    label_N: Floats,
    prob_N: Floats,
    groups_N: NDArray[Any],
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any] | None:
    """Comparisons, win rates and ratings of each model by votes and by predictions; None without names.

    Rows that lack a name, compare a model with itself, or have a model beyond the 100 most frequent, are
    counted and left out.

    Args:
        model_a_N, model_b_N: names, or None, (N,).
        label_N, prob_N, groups_N, resamples, seed: as for `measure`.

    Returns:
        `models`, the strongest by votes first: `name`, `rows`, `rated`, `votes` and `predictions`, each of
        `win_rate`, `rating` and `rating_ci95` (None for a model that is not rated); `left_out` (rows);
        `unrated` (names); `rank_correlation` (Spearman's, of the ratings by votes and by predictions).
    """
    names_NK = np.stack([model_a_N, model_b_N], axis=1)
    usable_N = usable_rows(names_NK)
    if not usable_N.any():
        return None
    names = sorted(set(names_NK[usable_N].ravel().tolist()))
    number = {name: place for place, name in enumerate(names)}
    first_N, second_N = (np.array([number[name] for name in side]) for side in names_NK[usable_N].T)
    games, pair_N, turned_N = pairs_of(first_N, second_N, len(names))
    shares = {"votes": label_N[usable_N], "predictions": prob_N[usable_N]}
    played_P = tally(pair_N, np.ones(len(pair_N)))
    won_P = tally(pair_N, np.where(turned_N, 1 - shares["votes"], shares["votes"]))
    rated_M = rated_together(games, played_P, won_P)
    ratings: dict[str, dict[int, dict[str, Any]]] = {kind: {} for kind in shares}
    if rated_M.sum() > 1:
        ratings = fit_ratings(
            rated_M, first_N, second_N, shares, groups_N[usable_N], resamples=resamples, seed=seed
        )
    rates = {kind: win_rates(first_N, second_N, share_N, len(names)) for kind, share_N in shares.items()}
    rows_M = np.bincount(np.concatenate([first_N, second_N]))
    models = [
        {"name": name, "rows": int(rows_M[place]), "rated": place in ratings["votes"]}
        | {
            kind: {"win_rate": float(rates[kind][place])} | ratings[kind].get(place, UNRATED)
            for kind in shares
        }
        for place, name in enumerate(names)
    ]
    models.sort(key=lambda one: (not one["rated"], -(one["votes"]["rating"] or one["votes"]["win_rate"])))
    return {
        "models": models,
        "left_out": int(len(label_N) - usable_N.sum()),
        "unrated": [one["name"] for one in models if not one["rated"]],
        "rank_correlation": rank_correlation(
            [[one[kind]["rating"] for one in models if one["rated"]] for kind in shares]
        ),
    }


def tally(place_N: NDArray[np.int64], weight_N: Floats, least: int = 0) -> Floats:
    """The sum of the weights by place, float64."""
    return np.bincount(place_N, weight_N, least).astype(np.float64)


def usable_rows(names_NK: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Where two different models of the `MOST_MODELS` most frequent are compared: bool (N,)."""
    named_N = np.array([bool(a) and bool(b) and a != b for a, b in names_NK.tolist()], bool)
    counts = Counter(names_NK[named_N].ravel().tolist()).most_common(MOST_MODELS)
    frequent = {name for name, _ in counts}
    return named_N & np.array([a in frequent and b in frequent for a, b in names_NK.tolist()], bool)


def win_rates(
    first_N: NDArray[np.int64], second_N: NDArray[np.int64], share_N: Floats, num_models: int
) -> Floats:
    """The share of its comparisons that each model won, float64 (M,)."""
    won_M = tally(first_N, share_N, num_models) + tally(second_N, 1 - share_N, num_models)
    return won_M / (np.bincount(first_N, minlength=num_models) + np.bincount(second_N, minlength=num_models))


def fit_ratings(
    rated_M: NDArray[np.bool_],
    first_N: NDArray[np.int64],
    second_N: NDArray[np.int64],
    shares: dict[str, Floats],
    groups_N: NDArray[Any],
    *,
    resamples: int,
    seed: int,
) -> dict[str, dict[int, dict[str, Any]]]:
    """`rating` and `rating_ci95` by the number of each rated model, by votes and by predictions.

    Both are of the comparisons among the rated models, in the same resamples of whole prompt groups.
    """
    kept_N = rated_M[first_N] & rated_M[second_N]
    own_M = np.cumsum(rated_M) - 1
    games, pair_N, turned_N = pairs_of(own_M[first_N[kept_N]], own_M[second_N[kept_N]], int(rated_M.sum()))
    unique, group_N = np.unique(groups_N[kept_N], return_inverse=True)
    result: dict[str, dict[int, dict[str, Any]]] = {}
    for kind, all_N in shares.items():
        share_N = np.where(turned_N, 1 - all_N[kept_N], all_N[kept_N])
        played_P, won_P = tally(pair_N, np.ones(len(pair_N))), tally(pair_N, share_N)
        rating_M = MEAN_RATING + SCALE * fit_strengths(games, played_P[None], won_P[None])[0]
        drawn_BM = resampled_strengths(games, pair_N, share_N, group_N, len(unique), resamples, seed)
        result[kind] = {
            int(model): {
                "rating": float(rating_M[place]),
                "rating_ci95": percentiles(MEAN_RATING + SCALE * drawn_BM[:, place])
                if len(unique) > 1
                else None,
            }
            for place, model in enumerate(np.flatnonzero(rated_M))
        }
    return result


def resampled_strengths(
    games: Games,
    pair_N: NDArray[np.int64],
    share_N: Floats,
    group_N: NDArray[np.int64],
    num_groups: int,
    resamples: int,
    seed: int,
) -> Floats:
    """Strengths in each resample of whole groups: float64 (B, M)."""
    num_pairs = len(games.first_P)
    tallies: list[Sequence[Floats]] = []
    for counts_BG in resampled_counts(num_groups, resamples, seed):
        for counts_G in counts_BG:
            weight_N = counts_G[group_N]
            tallies.append([tally(pair_N, each, num_pairs) for each in (weight_N, weight_N * share_N)])
    played_BP, won_BP = (np.stack(each) for each in zip(*tallies, strict=True))
    block = max(1, BLOCK_ELEMENTS // games.num_models**2)
    return np.concatenate(
        [
            fit_strengths(games, played_BP[at : at + block], won_BP[at : at + block], WEAK_PRIOR)
            for at in range(0, resamples, block)
        ]
    )


def rank_correlation(ratings: list[list[float]]) -> float | None:
    """Spearman's, of two lists of different values; None of fewer than three."""
    if len(ratings[0]) < 3:
        return None
    ranks = [np.argsort(np.argsort(one)) for one in ratings]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
