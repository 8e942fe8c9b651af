"""Whether a step is healthy: its loss is finite and no spike. Pure functions; `loop` asks them.

A spike is a loss per weight that is far above the median of the steps before it.
"""

from collections.abc import Sequence

import numpy as np

from wsdm_ray.errors import WsdmRayError
from wsdm_ray.training.metrics import StepMetrics

__all__ = ["TrainingDivergedError", "evaluation_error", "is_spike", "step_error", "usual_loss", "worst_rows"]

SPIKE_HISTORY_STEPS = 50
"""The median loss of this many steps is the usual loss."""
SPIKE_MIN_HISTORY_STEPS = 10
"""With fewer steps behind it no step is a spike."""
SPIKE_FLOOR_NATS = 3.0
"""A loss per weight up to this is no spike: a model that is nearly always right is sometimes quite wrong."""
SPIKE_MIN_SEQUENCES = 8
"""A step of fewer sequences is no spike: one surprising vote decides its loss."""
WORST_ROWS = 5
"""This many rows of a bad step are named in its error."""


class TrainingDivergedError(WsdmRayError, RuntimeError):
    """A loss, a gradient or a weight is not finite, or a loss is far above those before it."""


def usual_loss(history: Sequence[StepMetrics]) -> float:
    """Median loss per weight of the latest steps, in nats; infinity where there are too few."""
    losses = [step.loss / step.weight for step in history[-SPIKE_HISTORY_STEPS:] if step.weight]
    return float(np.median(losses)) if len(losses) >= SPIKE_MIN_HISTORY_STEPS else float("inf")


def is_spike(loss: float, weight: float, sequences: int, usual: float, factor: float) -> bool:
    """Whether the loss of a step is so far above the usual that the step would spoil the weights.

    Args:
        loss: in nats.
        weight: mean weight of the step's rows: a step of heavy rows has a large loss without being wrong.
        sequences: of the step.
        usual: loss per weight of the steps before, in nats.
        factor: a loss of up to this many times the usual is no spike.
    """
    if not weight or sequences < SPIKE_MIN_SEQUENCES:
        return False
    return loss / weight > max(factor * usual, SPIKE_FLOOR_NATS)


def worst_rows(loss_N: np.ndarray) -> np.ndarray:
    """Places of the largest losses, those that are not finite first: int64 [at most 5]."""
    return np.argsort(-np.nan_to_num(loss_N, nan=np.inf), kind="stable")[:WORST_ROWS]


def step_error(
    step: int, *, loss: float, weight: float, usual: float, grad_norm: float, num_rows: int,
    worst_ids: Sequence[object], checkpoint_steps: int,
) -> TrainingDivergedError:  # fmt: skip
    """The error of a step (from 1) that is not taken: a loss or gradient that is not finite, or a spike."""
    finite = bool(np.isfinite([loss, grad_norm]).all())
    shown = f"is {loss / weight:.3g} where {usual:.3g} is usual" if finite else f"{loss}"
    alternative = ", or go on from there with a larger --loss-spike" if finite else ""
    return TrainingDivergedError(
        f"step {step}: loss {shown}, gradient norm {grad_norm:.3g}; of its {num_rows} rows the worst are "
        f"{list(worst_ids)}; {last_checkpoint(step - 1, checkpoint_steps)}; look at these rows, then lower "
        f"--optimizer.learning-rate and start over with --restart{alternative}"
    )


def evaluation_error(step: int, problem: str, checkpoint_steps: int) -> TrainingDivergedError:
    """The error of weights that are not saved: the model after `step` steps is spoilt."""
    return TrainingDivergedError(
        f"after step {step}: {problem}; {last_checkpoint(step - 1, checkpoint_steps)}; "
        "lower --optimizer.learning-rate and start over with --restart"
    )


def last_checkpoint(step: int, checkpoint_steps: int) -> str:
    """Which checkpoint there is after `step` steps; spoilt weights are never saved."""
    good = step // checkpoint_steps * checkpoint_steps
    return f"the last good checkpoint is that of step {good}" if good else "there is no checkpoint yet"
