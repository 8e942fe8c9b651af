"""The weighted mean of several sets of probabilities, and the weights that suit votes best.

Shape suffixes: N rows, S sets of predictions. Weights and temperature are never judged on rows that they were
fitted on. Not covered: files (`ensemble`).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsdm_ray.evaluation.fitting import halves_by_prompt
from wsdm_ray.evaluation.temperature import fit_temperature
from wsdm_ray.statistics import EPSILON, Floats, centered_sigmoid, cross_entropy, log_odds, round_to_grid

__all__ = ["combine_sets", "cross_fit", "fit", "fit_weights"]

GAP = 1e-7
"""The fit stops where no weights have a log loss lower by more than this, in nats."""
MOST_STEPS = 5_000
"""The fit ends after so many steps in any case."""
MOST_POWER = 1_000.0
"""A step is at most this power of the expectation-maximization step."""


def combine_sets(prob_NS: Floats, weights_S: Floats, temperature: float) -> Floats:
    """The weighted mean with its log-odds divided by a temperature, on the grid: float64 (N,).

    With 1 - p for every p it gives exactly the rest to 1.

    Args:
        prob_NS: float64 (N, S) in [0, 1] on the grid of `score`; NaN gives NaN.
        weights_S: float64 (S,), 0 or more, of sum 1.
        temperature: above 0; 1 leaves the mean as it is.
    """
    mean_N = round_to_grid(((prob_NS - 0.5) * weights_S).sum(axis=1))
    if temperature == 1:
        return mean_N
    return round_to_grid(centered_sigmoid(log_odds(mean_N), temperature))


def fit_weights(prob_NS: Floats, label_N: Floats) -> Floats:
    """The weights of the mean with the least log loss, float64 (S,), 0 or more and of sum 1.

    Each step of expectation maximization (Dempster et al., 1977) multiplies a weight by the gain of its set:
    the mean over the votes of the ratio of its probability of the vote to that of the mixture. Such a step
    never raises the log loss. Steps grow while they help and fall back to one where they do not
    (Salakhutdinov and Roweis, 2003). The log loss is convex, so the largest gain bounds what is left to win.
    The fit stops at 1e-7 nats.

    Args:
        prob_NS: float64 (N, S) in [0, 1], N at least 1; none counts as nearer to 0 or 1 than 1e-7.
        label_N: float64 (N,) in [0, 1].
    """
    clipped_NS = np.clip(prob_NS, EPSILON, 1 - EPSILON)

    def loss_and_gain(weights_S: Floats) -> tuple[float, Floats]:
        mean_N = clipped_NS @ weights_S
        for_a_N, for_b_N = label_N / mean_N, (1 - label_N) / (1 - mean_N)
        gain_S = (for_a_N @ clipped_NS + for_b_N @ (1 - clipped_NS)) / len(label_N)
        return float(cross_entropy(mean_N, label_N).mean()), gain_S

    weights_S = np.full(prob_NS.shape[1], 1 / prob_NS.shape[1])
    loss, gain_S = loss_and_gain(weights_S)
    power = 1.0
    for _ in range(MOST_STEPS):
        if gain_S.max() - 1 < GAP:
            break
        logs_S = np.log(np.maximum(weights_S, 1e-300)) + power * np.log(gain_S)
        tried_S = np.exp(logs_S - logs_S.max())
        tried_S /= tried_S.sum()
        tried_loss, tried_gain_S = loss_and_gain(tried_S)
        if tried_loss > loss and power > 1:
            power = 1.0
            continue
        weights_S, loss, gain_S, power = tried_S, tried_loss, tried_gain_S, min(1.5 * power, MOST_POWER)
    return weights_S


def fit(
    prob_NS: Floats, label_N: Floats, weights_S: Floats | None, temperature: float | None
) -> tuple[Floats, float]:
    """Weights and temperature, each fitted where it is None: first the weights, then the temperature."""
    if weights_S is None:
        weights_S = fit_weights(prob_NS, label_N)
    if temperature is None:
        temperature = fit_temperature(combine_sets(prob_NS, weights_S, 1.0), label_N)
    return weights_S, temperature


def cross_fit(
    prob_NS: Floats,
    label_N: Floats,
    groups_N: NDArray[np.uint64],
    weights_S: Floats | None,
    temperature: float | None,
) -> tuple[Floats | None, list[dict[str, Any]]]:
    """Probabilities, each made without the votes on its own prompt, and the fit of each half.

    The rows are split in two by a bit of their prompt's hash; each half gets what is fitted on the other.

    Args:
        prob_NS, label_N: as for `fit_weights`.
        groups_N: uint64 (N,), a hash of each row's prompt.
        weights_S, temperature: None where they are to be fitted.

    Returns:
        Float64 (N,), or None where one half is empty; `weights` and `temperature` of each half.
    """
    half_N = halves_by_prompt(groups_N)
    if half_N is None:
        return None, []
    made_N, used = np.empty(len(label_N)), []
    for mine_N in (half_N, ~half_N):
        fitted_S, own = fit(prob_NS[~mine_N], label_N[~mine_N], weights_S, temperature)
        made_N[mine_N] = combine_sets(prob_NS[mine_N], fitted_S, own)
        used.append({"weights": fitted_S.tolist(), "temperature": own, "rows": int(mine_N.sum())})
    return made_N, used
