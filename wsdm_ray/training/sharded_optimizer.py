"""An optimizer whose state is sharded over the workers of a run (ZeRO-1).

Each worker keeps the state of some parameters, updates those, and sends them to the others. An update reads
nothing of other parameters, so results are the same bits as where every worker updates all.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from wsdm_ray.training.batches import assign_batches
from wsdm_ray.training.distributed import WorkerGroup
from wsdm_ray.training.optimizer_state import by_path, from_paths

__all__ = ["ShardedOptimizer"]


class ShardedOptimizer:
    """One worker's part of an optimizer, with what a training run uses of `torch.optim.Optimizer`.

    Args:
        make: an optimizer of parameter groups.
        param_groups: of all parameters, the same on every worker.
        group: the workers.
    """

    def __init__(
        self,
        make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        param_groups: Sequence[dict[str, Any]],
        group: WorkerGroup,
    ):
        self.group = group
        self.parameters: list[nn.Parameter] = [each for part in param_groups for each in part["params"]]
        shares = assign_batches([parameter.numel() for parameter in self.parameters], group.size)
        self.owners = {place: rank for rank, share in enumerate(shares) for place in share}
        self.own = shares[group.rank]
        """Places of the parameters that this worker updates."""
        count = itertools.count()
        self.places = [[next(count) for _ in part["params"]] for part in param_groups]
        """Of the parameters of each group."""
        self.local = make(
            [
                part | {"params": [self.parameters[place] for place in places if place in self.own]}
                for part, places in zip(param_groups, self.places, strict=True)
            ]
        )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.local.param_groups

    def step(self) -> None:
        """Update all parameters. Every worker must call it."""
        self.local.step()
        waits = [
            self.group.start_broadcast(self.parameters[place].detach(), owner)
            for place, owner in sorted(self.owners.items())
        ]
        for wait in waits:
            wait()

    def state_dict(self) -> dict[str, Any]:
        """The state of all parameters on the first worker, as of one optimizer of all, in memory of the CPU;
        on the others of none. Every worker must call it.
        """
        held = self.local.state_dict()
        own = by_path({self.own[index]: values for index, values in held["state"].items()})
        whole = self.gather(own)
        groups = [
            part | {"params": places} for part, places in zip(held["param_groups"], self.places, strict=True)
        ]
        return {"state": dict(sorted(from_paths(whole).items())), "param_groups": groups}

    def gather(self, own: dict[str, Any]) -> dict[str, Any]:
        """The values of all workers on the first one, none on the others; tensors in memory of the CPU."""
        device = self.parameters[0].device
        described = {
            path: value.to("meta") if isinstance(value, torch.Tensor) else value
            for path, value in own.items()
        }
        whole: dict[str, Any] = {}
        for rank, theirs in enumerate(self.group.all_gather(described, in_step=True)):
            mine = own if rank == self.group.rank else {}
            for path, value in theirs.items():
                whole[path] = value
                if isinstance(value, torch.Tensor):  # one at a time, so that the device holds one more
                    there = mine[path].to(device) if mine else torch.empty_like(value, device=device)
                    self.group.start_broadcast(there, rank)()
                    whole[path] = there.to("cpu", copy=True) if self.group.is_first else None
        return whole if self.group.is_first else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the state of all parameters, of `state_dict` or of an optimizer of all."""
        state, groups = state_dict["state"], self.local.state_dict()["param_groups"]
        self.local.load_state_dict(
            {
                "state": {index: state[place] for index, place in enumerate(self.own) if place in state},
                "param_groups": [
                    whole | {"params": mine["params"]}
                    for whole, mine in zip(state_dict["param_groups"], groups, strict=True)
                ],
            }
        )
