"""The optimizer of a run, and its learning rates."""

import functools
from typing import Any

import torch
from torch import nn

from wsdm_ray.config import OptimizerConfig
from wsdm_ray.training.distributed import WorkerGroup
from wsdm_ray.training.sharded_optimizer import ShardedOptimizer

__all__ = ["RunOptimizer", "make_optimizer", "set_learning_rates"]

RunOptimizer = torch.optim.Optimizer | ShardedOptimizer


def make_optimizer(
    options: OptimizerConfig, parameters: dict[str, nn.Parameter], shared_by: WorkerGroup | None = None
) -> RunOptimizer:
    """AdamW over `parameters`, with the head in a second group if it has a learning rate of its own.

    Args:
        shared_by: workers of which each keeps a part of the state; None: each keeps all of it.
    """
    groups = [list(parameters.values())]
    if options.head_learning_rate is not None:
        head = [parameter for name, parameter in parameters.items() if ".score." in name]
        groups = [[parameter for name, parameter in parameters.items() if ".score." not in name], head]
    param_groups: list[dict[str, Any]] = [{"params": group} for group in groups]
    arguments: dict[str, Any] = {
        "lr": options.learning_rate, "betas": options.betas, "weight_decay": options.weight_decay,
    }  # fmt: skip
    make: Any = torch.optim.AdamW
    if options.kind == "adamw_8bit":
        import bitsandbytes.optim

        make = bitsandbytes.optim.AdamW8bit  # pyright: ignore[reportPrivateImportUsage]
    elif all(parameter.is_cuda for parameter in parameters.values()):
        arguments["fused"] = True
    if shared_by is None or shared_by.size == 1:
        return make(param_groups, **arguments)
    return ShardedOptimizer(functools.partial(make, **arguments), param_groups, shared_by)


def set_learning_rates(optimizer: RunOptimizer, options: OptimizerConfig, factor: float) -> None:
    """Set the learning rate of each parameter group to `factor` times its maximum."""
    rates = (options.learning_rate, options.head_learning_rate or options.learning_rate)
    for group, rate in zip(optimizer.param_groups, rates, strict=False):
        group["lr"] = rate * factor
