"""`train` with its curves drawn, also where it fails."""

from typing import Any

from wsdm_ray.config import TrainConfig
from wsdm_ray.evaluation.curves import write_curves
from wsdm_ray.telemetry import logger
from wsdm_ray.training.runner import train

__all__ = ["train_and_draw"]


def train_and_draw(config: TrainConfig) -> dict[str, Any]:
    """Train a classifier and write training.html beside it; returns what `train` does."""
    run = train(config, on_failure=draw)  # a run that failed is looked at first of all
    if not config.dry_run:
        draw(config.output)
    return run


def draw(output: str) -> None:
    """Write the curves; what goes wrong there is no reason to call a run failed."""
    try:
        write_curves(output)
    except Exception as error:
        logger.warning("train: no training.html: %s", error)
