"""The state of an optimizer as tensors and JSON, and back."""

import json
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file

__all__ = [
    "STATE_FILE",
    "STATE_TENSORS_FILE",
    "FlatState",
    "by_path",
    "flatten_state",
    "from_paths",
    "load_state",
    "unflatten_state",
    "write_state",
]

STATE_FILE = "trainer_state.json"
STATE_TENSORS_FILE = "optimizer.safetensors"

FlatState = tuple[dict[str, torch.Tensor], dict[str, Any]]
"""Of `flatten_state`."""


class HasState(Protocol):
    """What of an optimizer is loaded."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


def write_state(state: FlatState, step: int, token_budget: int, folder: str) -> None:
    """Write the state of an optimizer, of `flatten_state`, and where the run is into `folder`.

    Args:
        step: steps taken.
        token_budget: of the micro-batches of the next step.
    """
    tensors, numbers = state
    save_file(tensors, Path(folder) / STATE_TENSORS_FILE)
    held = {"step": step, "token_budget": token_budget, "optimizer": numbers}
    (Path(folder) / STATE_FILE).write_text(json.dumps(held))


def load_state(optimizer: HasState, folder: str) -> tuple[int, int | None]:
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


def flatten_state(state: dict[str, Any], *, copy: bool = True) -> FlatState:
    """An optimizer's state as tensors by path, and the rest as JSON values: safetensors holds no others.

    Args:
        copy: the state is still in use; else its tensors are nobody else's, in memory of the CPU.
    """
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {}
    for path, value in by_path(state["state"]).items():
        if isinstance(value, torch.Tensor):
            tensors[path] = value.detach().to("cpu", copy=copy).contiguous()
        else:
            numbers[path] = value
    return tensors, {"numbers": numbers, "param_groups": state["param_groups"]}


def unflatten_state(tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten_state`."""
    return {"state": from_paths({**tensors, **rest["numbers"]}), "param_groups": rest["param_groups"]}


def by_path(state: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The values of each parameter's state by PARAMETER/NAME, or PARAMETER/NAME/NAME of a level deeper."""
    values: dict[str, Any] = {}

    def walk(path: str, level: dict[Any, Any]) -> None:
        for name, value in level.items():
            if isinstance(value, dict):  # bitsandbytes keeps its 8-bit tensors a level deeper
                walk(f"{path}{name}/", value)
            else:
                values[f"{path}{name}"] = value

    walk("", state)
    return values


def from_paths(values: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The inverse of `by_path`."""
    state: dict[int, dict[str, Any]] = {}
    for path, value in values.items():
        index, *parents, name = path.split("/")
        place = state.setdefault(int(index), {})
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return state
