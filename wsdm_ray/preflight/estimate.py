"""How long a job takes and what it costs, from measured speeds; where nothing was measured, that is said.

Another size of model on a GPU that was measured is estimated by the numbers in linear layers: their product
with tokens/s hardly differs between the models that were timed. Another kind of GPU is not estimated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wsdm_ray.preflight.measured import MEASURED, MODELS, Job, Measured
from wsdm_ray.preflight.model_size import Parameters

__all__ = ["Estimate", "Speed", "estimate", "speed_of"]

FARTHEST = 3.0
"""Models are estimated from others of at most so many times their size, and at least that part of it."""
LIKE = {"w8a8-int8": "w8a8-fp8", "w8a8-fp8": "w8a8-int8"}
"""In scoring, the precision whose speed stands for another's: on an H100 the two are 3 % apart."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Tokens that one GPU does in a second, and how that is known.

    Where it is not known, the first is None and `origin` says why.
    """

    tokens_per_second: float | None
    origin: str


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a job takes. hours: on all GPUs together, at their full speed. None where it is not known."""

    hours: float | None
    gpu_hours: float | None
    cost: float | None
    origin: str

    def figures(self) -> dict[str, Any]:
        """By name, rounded, for those who read them as data."""
        known = {"hours": self.hours, "gpu_hours": self.gpu_hours, "cost": self.cost}
        return {name: round(value, 2) for name, value in known.items() if value is not None} | {
            "estimated_from": self.origin
        }

    def lines(self) -> list[tuple[str, str]]:
        """Names and values, to be shown."""
        if self.hours is None or self.gpu_hours is None:
            return [("hours", f"not known: {self.origin}")]
        lines = [
            ("hours", f"{self.hours:,.2f} without start-up, {self.gpu_hours:,.2f} GPU-hours"),
            ("estimate", self.origin),
        ]
        return [*lines, ("cost", f"{self.cost:,.2f}")] if self.cost is not None else lines


def estimate(work: Sequence[tuple[float, Speed]], processes: int, gpu_hour_price: float | None) -> Estimate:
    """What a job takes.

    Args:
        work: tokens, and the speed at which they are done, of each model.
        processes: GPUs that share the work evenly.
        gpu_hour_price: of one GPU.
    """
    origins = list(dict.fromkeys(speed.origin for _, speed in work))
    unknown = [speed.origin for _, speed in work if speed.tokens_per_second is None]
    if unknown:
        return Estimate(hours=None, gpu_hours=None, cost=None, origin=unknown[0])
    seconds = sum(tokens / speed.tokens_per_second for tokens, speed in work if speed.tokens_per_second)
    gpu_hours = seconds / 3600
    return Estimate(
        hours=gpu_hours / processes,
        gpu_hours=gpu_hours,
        cost=None if gpu_hour_price is None else gpu_hours * gpu_hour_price,
        origin="; ".join(origins),
    )


def speed_of(
    job: Job,
    gpu: str | None,
    precision: str,
    parameters: Parameters,
    measured: Sequence[Measured] = MEASURED,
) -> Speed:
    """The speed of a GPU at a job, as it was measured, or estimated from the nearest model.

    Args:
        gpu: its name; None on a CPU, and where it is not known.
        precision: of the weights of linear layers.
        parameters: of the model.
    """
    if gpu is None:
        return Speed(tokens_per_second=None, origin="only GPUs were timed, and none is known here")
    there = [each for each in measured if each.job == job and each.gpu == gpu]
    if not there:
        known = ", ".join(sorted({each.gpu for each in measured if each.job == job}))
        return Speed(tokens_per_second=None, origin=f"no {job} was timed on {gpu}, but on {known}")
    like = [each for each in there if each.precision == precision]
    if not like and job == "score":
        like = [each for each in there if each.precision == LIKE.get(precision)]
    if not like:
        known = ", ".join(sorted({each.precision for each in there}))
        return Speed(
            tokens_per_second=None, origin=f"no {job} as {precision} was timed on {gpu}, but as {known}"
        )
    nearest = min(like, key=lambda each: (distance(each, parameters), each.memory_gib is not None))
    scale = MODELS[nearest.model].linear / parameters.linear
    if distance(nearest, parameters) > math.log(FARTHEST):
        return Speed(
            tokens_per_second=None,
            origin=f"none of about {billions(parameters)} weights was timed; the nearest is {nearest.model}",
        )
    same = nearest.precision == precision and abs(scale - 1) < 0.01
    return Speed(
        tokens_per_second=nearest.tokens_per_second * scale,
        origin=f"{'measured' if same else 'estimated from'} {shown(nearest)}",
    )


def distance(measured: Measured, parameters: Parameters) -> float:
    """How far a model's size is from one that was timed."""
    return abs(math.log(MODELS[measured.model].linear / parameters.linear))


def billions(parameters: Parameters) -> str:
    return f"{(parameters.linear + parameters.embedding) / 1e9:.1f} billion"


def shown(measured: Measured) -> str:
    """A measurement in words."""
    limit = f" held to {measured.memory_gib:g} GiB" if measured.memory_gib else ""
    return (
        f"{measured.tokens_per_second:,} tokens/s of {measured.model} as {measured.precision} on one "
        f"{measured.gpu}{limit}"
    )
