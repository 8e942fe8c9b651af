"""Adapters beside the base, as PEFT's wrapper holds them: loaded with their heads, and checked."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from wsdm_ray.errors import ModelError
from wsdm_ray.modeling.classifier import peft_warnings, quiet
from wsdm_ray.modeling.head import check_head
from wsdm_ray.modeling.weight_files import tensor_shapes
from wsdm_ray.storage import local_copy, reason

__all__ = ["ADAPTER_WEIGHTS", "add_adapter", "load_adapter", "load_adapter_weights"]

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def load_adapter(network: nn.Module, folder: str) -> nn.Module:
    """`network` with the adapter and the head of a checkpoint folder."""
    import peft

    quiet()
    path = Path(folder) / ADAPTER_WEIGHTS
    if not path.is_file():
        raise ModelError(f"{folder}: no {ADAPTER_WEIGHTS}; the checkpoint is not complete")
    check_head(folder, network.get_submodule("score"), tensor_shapes(path, "base_model.model.score."))
    try:
        with peft_warnings():
            wrapped = peft.PeftModel.from_pretrained(network, folder)  # pyright: ignore[reportArgumentType]
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{folder}: its adapter does not fit the base ({reason(error)})") from error
    check_adapter(wrapped, path)
    return wrapped


def add_adapter(network: Any, folder: str, name: str) -> None:
    """Put the adapter and the head of another folder beside those that `network` has already.

    `network.set_adapter` switches both. The heads must be of one shape and type.
    """
    folder = local_copy(folder)
    path = Path(folder) / ADAPTER_WEIGHTS
    head = network.get_base_model().score.original_module
    check_head(folder, head, tensor_shapes(path, "base_model.model.score."))
    try:
        with peft_warnings():
            network.load_adapter(folder, name, torch_device=str(next(head.parameters()).device))
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{folder}: its adapter does not fit the base ({reason(error)})") from error
    check_adapter(network, path, name)
    network.requires_grad_(False).eval()


def check_adapter(network: nn.Module, path: Path, name: str = "default") -> None:
    """Raise `ModelError` unless the file holds the very tensors that train in `network`; PEFT would not."""
    import peft

    expected = set(peft.get_peft_model_state_dict(network, adapter_name=name, save_embedding_layers=False))
    found = set(tensor_shapes(path, ""))
    if lacking := sorted(expected - found):
        raise ModelError(f"{path}: lacks {lacking[0]} and {len(lacking) - 1} other tensors; copy it anew")
    if extra := sorted(found - expected):
        raise ModelError(f"{path}: has {extra[0]}, for which the network has no place; check --lora.targets")


def load_adapter_weights(network: nn.Module, folder: str) -> None:
    """Overwrite the adapter and the head of a network that has them by those of a folder, exactly."""
    import peft

    path = Path(folder) / ADAPTER_WEIGHTS
    check_adapter(network, path)
    peft.set_peft_model_state_dict(network, load_file(path))
