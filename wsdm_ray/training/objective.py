"""The loss and its schedule: small pure functions.

Of a step's P pairs, each in one or two orderings, S sequences in all: with the weight w of each row (mean 1
over the train set), its label t, the teachers' probability q where they have one and their share a,

    loss = sum over S of w [(1 - a) cross_entropy(z, smoothed(t)) + a distillation(z, q)] / S
           + swap_consistency_weight * sum over P of w disagreement(z_ab, z_ba) / P
"""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from wsdm_ray import statistics
from wsdm_ray.config import ObjectiveConfig

__all__ = [
    "agreement",
    "cross_entropy",
    "disagreement",
    "distillation",
    "learning_rate_factor",
    "row_loss",
    "smoothed",
    "targets_of",
    "valid_metrics",
]


def row_loss(
    log_odds_S: Tensor, target_S: Tensor, teacher_S: Tensor | None, weight_S: Tensor, options: ObjectiveConfig
) -> Tensor:
    """The loss of each sequence, float32 [S], whose sum is that of the formula above, times S.

    Args:
        log_odds_S: that the first response wins, pair by pair.
        target_S: the labels. teacher_S: the teachers' probabilities, NaN where they have none. Both float32.
    """
    loss_S = cross_entropy(log_odds_S, smoothed(target_S, options.label_smoothing))
    if teacher_S is not None:
        known_S = ~teacher_S.isnan()
        taught_S = distillation(log_odds_S, teacher_S.nan_to_num(0.5), options.teacher_temperature)
        share_S = options.teacher_weight * known_S
        loss_S = (1 - share_S) * loss_S + share_S * taught_S
    if options.swap_consistency_weight:
        apart_P = disagreement(log_odds_S.view(-1, 2))
        loss_S = loss_S + options.swap_consistency_weight * apart_P.repeat_interleave(2)
    return weight_S * loss_S


def targets_of(prob_a: np.ndarray, orderings: tuple[int, ...]) -> np.ndarray:
    """Probability that the first response wins: float32 [P * orderings], pair by pair.

    Args:
        prob_a: float [P], of each pair's given response_a; NaN stays NaN.
        orderings: 0 for ab, 1 for ba, in the order of the layout.
    """
    of_ordering = {0: prob_a, 1: 1 - prob_a}
    return np.stack([of_ordering[ordering] for ordering in orderings], axis=1).reshape(-1).astype(np.float32)


def smoothed(target_S: Tensor, smoothing: float) -> Tensor:
    """Labels of which the share `smoothing` is given to both responses alike (Szegedy et al., 2016)."""
    return target_S * (1 - smoothing) + 0.5 * smoothing


def cross_entropy(log_odds_S: Tensor, target_S: Tensor) -> Tensor:
    """Cross entropy in nats of each sequence with the chance that its first response wins: float32 [S].

    Args:
        log_odds_S: that the first response wins.
    """
    return F.binary_cross_entropy_with_logits(log_odds_S.float(), target_S, reduction="none")


def agreement(log_odds_S: Tensor, target_S: Tensor) -> Tensor:
    """How far each label agrees with the response that the model has win, as in `evaluate`: float32 [S].

    The label's share of that response; a half where the model has neither win.
    """
    half = torch.full_like(target_S, 0.5)
    return torch.where(log_odds_S > 0, target_S, torch.where(log_odds_S < 0, 1 - target_S, half))


def distillation(log_odds_S: Tensor, teacher_S: Tensor, temperature: float) -> Tensor:
    """Squared temperature times the divergence of the student from the teachers (Hinton et al., 2015).

    Both have their log-odds divided by `temperature` first. Float32 [S], 0 where they agree.

    Args:
        log_odds_S: the student's, that the first response wins.
        teacher_S: the teachers' probability of the same.
    """
    softened = torch.sigmoid(torch.logit(teacher_S.float(), eps=1e-6) / temperature)
    student = log_odds_S.float() / temperature
    entropy = F.binary_cross_entropy(softened, softened, reduction="none")
    divergence = F.binary_cross_entropy_with_logits(student, softened, reduction="none") - entropy
    return temperature**2 * divergence


def disagreement(log_odds_P2: Tensor) -> Tensor:
    """Divergence, both ways, of what the two orderings of a pair say of response_a: float32 [P].

    Args:
        log_odds_P2: that the first response wins, of ab and of ba.
    """
    ab, ba = log_odds_P2[:, 0].float(), -log_odds_P2[:, 1].float()
    return (torch.sigmoid(ab) - torch.sigmoid(ba)) * (ab - ba)


def learning_rate_factor(step: int, total: int, warmup_fraction: float, schedule: str) -> float:
    """Learning rate of step `step` (from 0) as a share of its maximum."""
    warmup = int(np.ceil(warmup_fraction * total))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(total - warmup, 1)
    return {"linear": 1 - done, "cosine": 0.5 * (1 + float(np.cos(np.pi * done))), "constant": 1.0}[schedule]


def valid_metrics(log_odds_NO: np.ndarray, prob_a_N: np.ndarray) -> dict[str, float | int | list[float]]:
    """Accuracy with its 95 % Wilson interval, and log loss in nats, of the mean probability over orderings.

    Args:
        log_odds_NO: float [N, orderings], that the given response_a wins.
        prob_a_N: float [N], labels; a soft one agrees with each side by its share, as in `evaluate`.
    """
    prob_N = 0.5 + statistics.centered_sigmoid(log_odds_NO).mean(axis=1)
    accuracy = float(statistics.agreement(prob_N, prob_a_N).mean())
    low, high = statistics.wilson_interval(accuracy, len(prob_N))
    return {
        "rows": len(prob_N),
        "accuracy": accuracy,
        "accuracy_ci95": [float(low), float(high)],
        "log_loss": float(statistics.cross_entropy(prob_N, prob_a_N).mean()),
    }
