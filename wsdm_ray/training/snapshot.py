"""What a checkpoint holds, copied out of the way of the steps that follow, and written when there is time."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from wsdm_ray.modeling.checkpoint import save_classifier
from wsdm_ray.modeling.manifest import Manifest
from wsdm_ray.training.metrics import METRICS_FILE, StepMetrics
from wsdm_ray.training.optimizer_state import FlatState, write_state

__all__ = ["Snapshot", "take_snapshot"]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A checkpoint in the memory of the machine; nothing in it changes."""

    network: nn.Module
    """Says how the weights are saved; its own are not read."""
    weights: dict[str, torch.Tensor]
    """What trains, by its name in the network."""
    optimizer: FlatState
    step: int
    token_budget: int
    """Of the next step; less than was asked for where memory ran out."""
    metrics: tuple[StepMetrics, ...]
    manifest: Manifest
    tokenizer_folder: str

    def write(self, folder: str) -> None:
        """Write a checkpoint that `score` can load, its manifest after all that the classifier needs."""
        summary = self.metrics[-1].summary() if self.metrics else {"step": self.step}
        manifest = dataclasses.replace(self.manifest, metrics=summary)
        save_classifier(self.network, self.tokenizer_folder, folder, manifest, self.weights)
        write_state(self.optimizer, self.step, self.token_budget, folder)
        rows = "".join(json.dumps(metrics.to_row()) + "\n" for metrics in self.metrics)
        (Path(folder) / METRICS_FILE).write_text(rows)


def take_snapshot(
    network: nn.Module, parameters: Mapping[str, nn.Parameter], optimizer: FlatState, step: int,
    token_budget: int, metrics: Sequence[StepMetrics], manifest: Manifest, tokenizer_folder: str,
) -> Snapshot:  # fmt: skip
    """A copy of what trains, of where the run is and of the metrics so far.

    Args:
        optimizer: a copy of its state.
    """
    return Snapshot(
        network=network,
        weights={name: value.detach().to("cpu", copy=True) for name, value in parameters.items()},
        optimizer=optimizer,
        step=step,
        token_budget=token_budget,
        metrics=tuple(metrics),
        manifest=manifest,
        tokenizer_folder=tokenizer_folder,
    )
