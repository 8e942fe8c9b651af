"""What is minimized, and how well it does: small pure functions."""

import numpy as np
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

__all__ = ["learning_rate_factor", "soft_cross_entropy", "targets_of", "valid_metrics"]


def targets_of(prob_a: np.ndarray, sides: tuple[int, ...]) -> np.ndarray:
    """Probability that the response that stands first wins: float32 [P * orderings], pair by pair.

    Args:
        prob_a: float [P], label of each pair.
        sides: the orderings (0 for ab, 1 for ba), as they stand in a pass.
    """
    of_ordering = {0: prob_a, 1: 1 - prob_a}
    return np.stack([of_ordering[side] for side in sides], axis=1).reshape(-1).astype(np.float32)


def soft_cross_entropy(logits_S2: Tensor, target_S: Tensor) -> Tensor:
    """Cross entropy in nats of each ordering with the chance that its first response wins: float32 [S]."""
    log_p = F.log_softmax(logits_S2.float(), dim=-1)
    return -(target_S * log_p[:, 0] + (1 - target_S) * log_p[:, 1])


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
        prob_a_N: float [N], labels; a soft one counts for accuracy by the side it leans to, 0.5 by half.
    """
    p = 0.5 + 0.5 * np.tanh(0.5 * log_odds_NO.astype(np.float64)).mean(axis=1)  # a sigmoid without overflow
    agree = np.where(prob_a_N == 0.5, 0.5, (p >= 0.5) == (prob_a_N > 0.5))
    clipped = np.clip(p, 1e-7, 1 - 1e-7)
    log_loss = -(prob_a_N * np.log(clipped) + (1 - prob_a_N) * np.log1p(-clipped)).mean()
    n, accuracy, z = len(p), float(agree.mean()), 1.959964
    centre, spread = (
        accuracy + z * z / (2 * n),
        z * np.sqrt(accuracy * (1 - accuracy) / n + (z / (2 * n)) ** 2),
    )
    interval = [float((centre - spread) / (1 + z * z / n)), float((centre + spread) / (1 + z * z / n))]
    return {"rows": n, "accuracy": accuracy, "accuracy_ci95": interval, "log_loss": float(log_loss)}
