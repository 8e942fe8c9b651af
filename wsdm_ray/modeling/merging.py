"""The weights of a base with adapters merged in, in float32, one tensor at a time.

    read_base   which tensors a model folder has, how they are stored, and which place each has
    Merged      any weight of the base with the adapters added: W + sum of scale * B @ A, or with their mean

Nothing is held: a weight is read from its file when it is asked for, dequantized where the file holds it in
8 or 4 bit, and forgotten. Names are those of the backbone, without the `model.` of a model with a head. Heads
of the base are left out. Adapters are read by `lora`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wsdm_ray.errors import ModelError
from wsdm_ray.modeling.classifier import meta_model, model_config
from wsdm_ray.modeling.head import HEADS
from wsdm_ray.modeling.lora import Adapter
from wsdm_ray.modeling.precision import W8A8
from wsdm_ray.modeling.quantization_config import folder_quantization
from wsdm_ray.modeling.quantized_linear import QuantizedTensor
from wsdm_ray.modeling.stored_weights import dequantized, quantized
from wsdm_ray.modeling.weight_files import read_tensor, tensor_shapes, weight_files

__all__ = ["Base", "Merged", "read_base"]


@dataclass(frozen=True, kw_only=True)
class Base:
    """A model folder and where the tensors of its backbone are.

    shapes: of every parameter. linears: names of the linear layers, without `.weight`.
    places: of every parameter, the tensors that hold it, as (file, name in it): `weight`, and beside it what
    `quantized` names. dtype: of what is not quantized. quantization: as a manifest has it.
    heads: names of the tensors that are not the backbone's.
    """

    folder: str
    config: Any
    shapes: Mapping[str, tuple[int, ...]]
    linears: frozenset[str]
    places: Mapping[str, Mapping[str, tuple[Path, str]]]
    dtype: torch.dtype
    quantization: str
    heads: tuple[str, ...]

    def stored(self, name: str, device: str = "cpu") -> dict[str, torch.Tensor]:
        """The tensors that hold a parameter. On a CPU they lie in the pages of their file until let go."""
        return {part: read_tensor(*place).to(device) for part, place in self.places[name].items()}

    def layer_of(self, name: str) -> str | None:
        """The linear layer whose weight a parameter is, if it is one."""
        layer = name.removesuffix(".weight")
        return layer if layer != name and layer in self.linears else None

    def parameter(self, name: str, device: str = "cpu") -> torch.Tensor:
        """A parameter in float32. Raises `ModelError` where it has another shape than the config says."""
        value = dequantized(self.stored(name, device))
        check_shape(self.folder, name, value.shape, self.shapes[name])
        return value


def check_shape(folder: str, name: str, found: Sequence[int], expected: Sequence[int]) -> None:
    if tuple(found) != tuple(expected):
        raise ModelError(
            f"{folder}: {name} has the shape {list(found)}, but its config needs {list(expected)}; "
            "fetch or save the model anew"
        )


def read_base(folder: str) -> Base:
    """The tensors of a model folder: a causal language model, a classifier with any head, or a backbone.

    Raises:
        ModelError: it is of no supported family; a tensor is missing, has another shape, or has no place.
    """
    config = model_config(folder)
    quantization = folder_quantization(folder)
    backbone = meta_model(config).get_submodule("model")
    shapes = {name: tuple(parameter.shape) for name, parameter in backbone.named_parameters()}
    linears = frozenset(name for name, module in backbone.named_modules() if type(module) is nn.Linear)

    quantized_layers = linears if quantization != "none" else frozenset()
    found = {
        name: (path, shape)
        for path in weight_files(folder)
        for name, shape in tensor_shapes(path, "").items()
    }
    prefix = "model." if any(name.startswith("model.") for name in found) else ""
    places: dict[str, dict[str, tuple[Path, str]]] = {}
    heads = []
    for inside, (path, _) in found.items():
        if not inside.startswith(prefix) or inside.split(".")[0] in HEADS:
            heads.append(inside)
            continue
        name, part = split_name(inside.removeprefix(prefix), quantized_layers)
        if name in shapes:
            places.setdefault(name, {})[part] = (path, inside)
        elif not name.endswith("rotary_emb.inv_freq"):  # in older files; it follows from the config
            raise ModelError(f"{folder}: has {inside}, for which its config has no place; check config.json")
    lacking = [name for name in shapes if "weight" not in places.get(name, {})]
    if lacking:
        raise ModelError(
            f"{folder}: its weights lack {lacking[0]} and {len(lacking) - 1} other tensors; "
            "fetch or save the model anew"
        )
    for name, parts in places.items():
        if not any(part.startswith("weight.") for part in parts):  # 4-bit weights lie in a row
            inside = parts["weight"][1]
            rows, *columns = found[inside][1]
            shape = (rows, math.prod(columns)) if "weight_scale" in parts else (rows, *columns)
            check_shape(folder, inside, shape, shapes[name])
    dtype = read_tensor(*places["embed_tokens.weight"]["weight"]).dtype
    return Base(
        folder=folder, config=config, shapes=shapes, linears=linears, places=places, dtype=dtype,
        quantization=quantization, heads=tuple(heads),
    )  # fmt: skip


def split_name(name: str, quantized_layers: frozenset[str]) -> tuple[str, str]:
    """The parameter that a stored tensor belongs to, and which part of it: (`x.weight`, `weight.absmax`)."""
    layer, _, rest = name.partition(".weight.")
    if rest and layer in quantized_layers:
        return f"{layer}.weight", f"weight.{rest}"
    layer, _, part = name.rpartition(".")
    if part in ("SCB", "weight_format", "weight_scale") and layer in quantized_layers:
        return f"{layer}.weight", part
    return name, "weight"


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A base with adapters added to it, in order.

    average: the mean of their updates is added, not their sum. That is the mean of the models they make; the
    mean of their factors would be another model.
    """

    base: Base
    adapters: tuple[Adapter, ...] = ()
    average: bool = False

    def rows(self, name: str, precision: str, device: str = "cpu") -> QuantizedTensor | None:
        """A weight as it is stored in `precision`, of `W8A8`; None if it is stored in another one, or if an
        adapter changes it."""
        layer = self.base.layer_of(name)
        if layer is None or precision not in W8A8 or precision != self.base.quantization:
            return None
        if any(layer in adapter.scales for adapter in self.adapters):
            return None
        stored = self.base.stored(name, device)
        if "weight_scale" not in stored:  # a layer that was left out when the base was quantized
            return None
        return QuantizedTensor(stored["weight"].flatten(1), stored["weight_scale"].float().flatten())

    def parameter(self, name: str, device: str = "cpu") -> torch.Tensor:
        """A parameter with all adapters, in float32.

        An adapter that was trained beside a quantized base is added to the dequantized weights of that base:
        a weight that was not quantized so yet is quantized and dequantized first.
        """
        value = self.base.parameter(name, device)
        layer = self.base.layer_of(name)
        if layer is None:
            return value
        share = 1 / len(self.adapters) if self.average else 1.0
        for number, adapter in enumerate(self.adapters):
            rounded = self.average if number else self.base.quantization != "none"
            if adapter.quantization != "none" and not rounded:
                value = dequantized(quantized(value.cpu(), adapter.quantization, torch.float32)).to(device)
            if layer in adapter.scales:
                value = value + share * adapter.update(layer, device)
        return value
