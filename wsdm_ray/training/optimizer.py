"""The optimizer of a run: making it, its learning rates, and its state as tensors and JSON."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from wsdm_ray.config import OptimizerConfig

__all__ = [
    "STATE_FILE",
    "STATE_TENSORS_FILE",
    "flatten_state",
    "load_state",
    "make_optimizer",
    "set_learning_rates",
    "unflatten_state",
    "write_state",
]

STATE_FILE = "trainer_state.json"
STATE_TENSORS_FILE = "optimizer.safetensors"


def make_optimizer(options: OptimizerConfig, parameters: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW over `parameters`, with the head in a second group if it has a learning rate of its own."""
    groups = [list(parameters.values())]
    if options.head_learning_rate is not None:
        head = [parameter for name, parameter in parameters.items() if ".score." in name]
        groups = [[parameter for name, parameter in parameters.items() if ".score." not in name], head]
    param_groups: list[dict[str, Any]] = [{"params": group} for group in groups]
    arguments: dict[str, Any] = {
        "lr": options.learning_rate, "betas": options.betas, "weight_decay": options.weight_decay,
    }  # fmt: skip
    if options.kind == "adamw_8bit":
        import bitsandbytes.optim

        return bitsandbytes.optim.AdamW8bit(param_groups, **arguments)  # pyright: ignore[reportPrivateImportUsage]
    on_gpu = all(parameter.is_cuda for parameter in parameters.values())
    return torch.optim.AdamW(param_groups, **arguments, fused=True if on_gpu else None)


def set_learning_rates(optimizer: torch.optim.Optimizer, options: OptimizerConfig, factor: float) -> None:
    """Set the learning rate of each parameter group to `factor` times its maximum."""
    rates = (options.learning_rate, options.head_learning_rate or options.learning_rate)
    for group, rate in zip(optimizer.param_groups, rates, strict=False):
        group["lr"] = rate * factor


def write_state(
    state: tuple[dict[str, torch.Tensor], dict[str, Any]], step: int, token_budget: int, folder: str
) -> None:
    """Write the state of an optimizer, of `flatten_state`, and where the run is into `folder`.

    Args:
        step: steps taken.
        token_budget: of the micro-batches of the next step.
    """
    tensors, numbers = state
    save_file(tensors, Path(folder) / STATE_TENSORS_FILE)
    held = {"step": step, "token_budget": token_budget, "optimizer": numbers}
    (Path(folder) / STATE_FILE).write_text(json.dumps(held))


def load_state(optimizer: torch.optim.Optimizer, folder: str) -> tuple[int, int | None]:
    """Load what `write_state` wrote.

    Returns:
        The steps taken, and the token budget: None of a checkpoint from before it was kept.
    """
    state = json.loads((Path(folder) / STATE_FILE).read_text())
    tensors = load_file(Path(folder) / STATE_TENSORS_FILE)
    loaded = unflatten_state(tensors, state["optimizer"])
    for group, now in zip(loaded["param_groups"], optimizer.param_groups, strict=True):
        if "fused" in now:  # by the device, not by that of the earlier process
            group["fused"] = now["fused"]
    optimizer.load_state_dict(loaded)
    return state["step"], state.get("token_budget")


def flatten_state(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state as tensors by path, and the rest as JSON values: safetensors holds no others."""
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {}

    def walk(path: str, values: dict[Any, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, dict):  # bitsandbytes keeps its 8-bit tensors a level deeper
                walk(f"{path}{name}/", value)
            elif isinstance(value, torch.Tensor):
                tensors[f"{path}{name}"] = value.detach().to("cpu", copy=True).contiguous()
            else:
                numbers[f"{path}{name}"] = value

    walk("", state["state"])
    return tensors, {"numbers": numbers, "param_groups": state["param_groups"]}


def unflatten_state(tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten_state`."""
    state: dict[int, dict[str, Any]] = {}
    for path, value in {**tensors, **rest["numbers"]}.items():
        index, *parents, name = path.split("/")
        place = state.setdefault(int(index), {})
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return {"state": state, "param_groups": rest["param_groups"]}
