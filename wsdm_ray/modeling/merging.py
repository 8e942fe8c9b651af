"""The weights of a base with adapters merged in, in float32, one tensor at a time.

    read_base       which tensors a model folder has, how they are stored, and which place each has
    read_adapter    a LoRA adapter, of `train` or of PEFT, as factors of the base's linear layers
    Merged          any weight of the base with the adapters added: W + sum of scale * B @ A

Nothing is held: a weight is read from its file when it is asked for, dequantized where the file holds it in
8 or 4 bit, and forgotten. Names are those of the backbone, without the `model.` of a model with a head. Heads
of the base and of plain PEFT adapters are left out. Not covered: adapters other than LoRA on linear layers.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import nn

from wsdm_ray.errors import ModelError
from wsdm_ray.modeling.attention import training_backend
from wsdm_ray.modeling.checkpoint import (
    IN_ROWS,
    MANIFEST,
    Manifest,
    check_head,
    folder_quantization,
    read_manifest,
    tensor_shapes,
    weight_files,
)
from wsdm_ray.modeling.classifier import make_head, model_config, peft_warnings
from wsdm_ray.modeling.quantized_linear import (
    TYPES,
    QuantizedTensor,
    hadamard,
    hadamard_rotate,
    quantize_weight,
)
from wsdm_ray.storage import reason
from wsdm_ray.text.encoding import read_settings

__all__ = [
    "ADAPTER_WEIGHTS",
    "HEADS",
    "Adapter",
    "Base",
    "Merged",
    "dequantized",
    "meta_model",
    "quantized",
    "read_adapter",
    "read_base",
    "stored_rows",
]

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_PREFIX = "base_model.model."
HEADS = ("score", "classifier", "lm_head")
REMEDY = "merge it with PEFT (merge_and_unload) and give the result as --base"

LAYER_OPTIONS = (
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "r", "lora_alpha",
    "rank_pattern", "alpha_pattern", "use_rslora",
)  # fmt: skip
"""What of adapter_config.json says which layers have which factors, at which scale."""

NEUTRAL_OPTIONS = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "lora_dropout", "megatron_core", "qalora_group_size", "loftq_config", "eva_config",
    "corda_config", "lora_ga_config", "runtime_config",
}  # fmt: skip
"""What says nothing of what the stored factors mean."""

CHECKED_OPTIONS = ("bias", "modules_to_save", "init_lora_weights")
"""What may be merged with some values only; any other option must be off."""

HARMLESS_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""`init_lora_weights` that leave the base as it was; others change it as they begin."""


def meta_model(config: Any) -> nn.Module:
    """The classifier of a config without its weights: parameters on the device `meta`, buffers real."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        network = transformers.AutoModelForSequenceClassification.from_config(
            config, dtype=torch.float32, attn_implementation=training_backend(config).implementation
        )
    return network.requires_grad_(False).eval()


# Quantized weights


def quantized(weight: torch.Tensor, precision: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What a quantized layer stores of its weight, by the name after the layer's.

    Args:
        weight: floating [out, in], on the CPU, where the same weight gives the same bytes on any machine.
        precision: bitsandbytes' `int8` (of the weight in float16) or `nf4` (of the weight in `dtype`, double
            quantization), compressed-tensors' `fp8` or our `int8-rows` (a scale a row).
    """
    from bitsandbytes import functional

    if precision in IN_ROWS:
        return stored_rows(
            quantize_weight(weight, TYPES[IN_ROWS[precision]], spread=precision == "int8-rows")
        )
    if precision == "int8":
        values, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
        return {"weight": values, "SCB": scales, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    values, state = functional.quantize_4bit(weight.to(dtype), quant_type="nf4", compress_statistics=True)
    return {"weight": values} | {
        f"weight.{name}": value for name, value in state.as_dict(packed=True).items()
    }


def stored_rows(rows: QuantizedTensor) -> dict[str, torch.Tensor]:
    """What a layer stores of a weight in rows, by the name after the layer's."""
    values = rows.values
    if values.dtype == torch.int8:  # in blocks, a shape that no other reader takes for the weight's own
        values = values.unflatten(1, (-1, len(hadamard(values))))
    return {"weight": values, "weight_scale": rows.scale[:, None]}


def dequantized(stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The float32 weight [out, in] that the tensors of `quantized` stand for; an unquantized one as it is."""
    from bitsandbytes import functional

    weight = stored["weight"]
    if "SCB" in stored:
        return functional.int8_vectorwise_dequant(weight, stored["SCB"])
    if "weight_scale" in stored:
        rows = weight.flatten(1).float() * stored["weight_scale"]
        # What spread them, spread again, is the identity times its size, which the scale was divided by.
        return hadamard_rotate(rows, hadamard(rows)) if weight.dtype == torch.int8 else rows
    statistics = {name.removeprefix("weight."): value for name, value in stored.items() if name != "weight"}
    if not statistics:
        return weight.float()
    state = functional.QuantState.from_dict(statistics, device=weight.device)
    return functional.dequantize_4bit(weight, state).float()


# The base


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


def read_tensor(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)


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


# Adapters


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA adapter.

    scales: of every linear layer of the backbone that it changes, what B @ A is multiplied by.
    prefix: of the names in its file, before a layer's. quantization: of the base that it was trained beside,
    as far as is known. manifest: of an adapter of `train`. heads: names in its file of the tensors of a head.
    """

    folder: str
    scales: Mapping[str, float]
    prefix: str
    quantization: str = "none"
    manifest: Manifest | None = None
    heads: tuple[str, ...] = ()

    def update(self, layer: str, device: str = "cpu") -> torch.Tensor:
        """What it adds to the weight of a layer: float32 [out, in]."""
        path = Path(self.folder) / ADAPTER_WEIGHTS
        A, B = (
            read_tensor(path, f"{self.prefix}{layer}.lora_{side}.weight").to(device, torch.float32)
            for side in "AB"
        )
        return (B @ A) * self.scales[layer]

    def head(self) -> dict[str, torch.Tensor]:
        """The tensors of its head, without `score.`."""
        path = Path(self.folder) / ADAPTER_WEIGHTS
        start = f"{ADAPTER_PREFIX}score."
        return {name.removeprefix(start): read_tensor(path, name) for name in self.heads}


def read_adapter(folder: str, config: Any) -> Adapter:
    """The adapter of a folder of `train`, or of a plain PEFT folder, for a base of this config.

    Raises:
        ModelError: it is no LoRA adapter, is of a kind that cannot be merged so, or does not fit the base.
    """
    path = Path(folder) / ADAPTER_WEIGHTS
    manifest = read_manifest(folder, need_head=False) if (Path(folder) / MANIFEST).is_file() else None
    if manifest is not None and manifest.kind != "adapter":
        raise ModelError(f"{folder}: is a model ({manifest.kind}), not an adapter; give it as --base")
    options = adapter_options(folder)
    if not path.is_file():
        raise ModelError(f"{folder}: no {ADAPTER_WEIGHTS}; save the adapter as safetensors")
    found = tensor_shapes(path, "")
    heads = [name for name in found if name.removeprefix(ADAPTER_PREFIX).split(".")[0] in HEADS]
    # An adapter of a backbone alone, without a head, names its layers without `model.`.
    bare = not any(name.startswith(f"{ADAPTER_PREFIX}model.") for name in found)
    prefix = ADAPTER_PREFIX if bare else f"{ADAPTER_PREFIX}model."

    network = meta_model(config)
    if manifest is not None:
        if manifest.head is None:
            raise ModelError(f"{folder}: {MANIFEST} names no head; restore the original file")
        head = make_head(manifest.head, config.hidden_size, 0)
        start = f"{ADAPTER_PREFIX}score."
        check_head(folder, head, {name.removeprefix(start): found[name] for name in heads})
    scales, shapes = lora_layers(folder, network, options, bare)
    expected = {f"{prefix}{name}": shape for name, shape in shapes.items()}
    lacking = [name for name in expected if name not in found]
    if lacking:
        raise ModelError(f"{path}: lacks {lacking[0]} and {len(lacking) - 1} other tensors; copy it anew")
    for name, shape in found.items():
        if name in heads:
            continue
        if name not in expected:
            raise ModelError(f"{path}: has {name}, for which the base has no place; check {ADAPTER_CONFIG}")
        if shape != expected[name]:
            raise ModelError(
                f"{path}: {name} has the shape {list(shape)}, but the base and {ADAPTER_CONFIG} need "
                f"{list(expected[name])}; give the base that it was trained on"
            )
    return Adapter(
        folder=folder, scales=scales, prefix=prefix, heads=tuple(heads), manifest=manifest,
        quantization=manifest.quantization if manifest else "none",
    )  # fmt: skip


def adapter_options(folder: str) -> dict[str, Any]:
    """What adapter_config.json says of the layers. Raises `ModelError` where more than these decide."""
    path = Path(folder) / ADAPTER_CONFIG
    if not path.is_file():
        raise ModelError(f"{folder}: no {ADAPTER_CONFIG}; this is no adapter of `train` or PEFT")
    values = read_settings(path)
    if values.get("peft_type") != "LORA":
        raise ModelError(f"{folder}: peft_type {values.get('peft_type')} cannot be merged here; {REMEDY}")
    saved = values.get("modules_to_save") or []
    for name, value, fits in (
        ("bias", values.get("bias", "none"), values.get("bias", "none") == "none"),
        ("modules_to_save", saved, set(saved) <= set(HEADS)),
        (
            "init_lora_weights",
            values.get("init_lora_weights", True),
            values.get("init_lora_weights", True) in HARMLESS_STARTS,
        ),
        *(
            (name, value, not value)
            for name, value in values.items()
            if name not in NEUTRAL_OPTIONS and name not in (*LAYER_OPTIONS, *CHECKED_OPTIONS)
        ),
    ):
        if not fits:
            raise ModelError(f"{folder}: {name} {json.dumps(value)} cannot be merged here; {REMEDY}")
    return {name: values[name] for name in LAYER_OPTIONS if values.get(name) is not None}


def lora_layers(
    folder: str, network: nn.Module, options: Mapping[str, Any], bare: bool
) -> tuple[dict[str, float], dict[str, tuple[int, ...]]]:
    """The scale of each layer that PEFT gives factors under these options, and the factors' shapes by name.

    Args:
        network: a skeleton, which is changed.
        bare: whether PEFT saw the backbone alone.
    """
    import peft
    from peft.tuners.lora import LoraLayer

    seen = network.get_submodule("model") if bare else network
    try:
        with peft_warnings():
            peft.inject_adapter_in_model(peft.LoraConfig(**options), seen, low_cpu_mem_usage=True)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{folder}: its adapter does not fit the base ({reason(error)})") from error
    scales, shapes = {}, {}
    for name, module in network.get_submodule("model").named_modules():
        if isinstance(module, LoraLayer):
            if not isinstance(module.get_base_layer(), nn.Linear):
                raise ModelError(f"{folder}: changes {name}, which is no linear layer; {REMEDY}")
            rank, width, height = module.r["default"], module.in_features, module.out_features
            scales[name] = float(module.scaling["default"])
            shapes[f"{name}.lora_A.weight"], shapes[f"{name}.lora_B.weight"] = (rank, width), (height, rank)
    return scales, shapes


# The sum


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A base with adapters added to it, in order."""

    base: Base
    adapters: tuple[Adapter, ...] = ()

    def rows(self, name: str, precision: str, device: str = "cpu") -> QuantizedTensor | None:
        """A weight in the rows that it is stored in; None where that is not so, where another precision is
        asked for, or where an adapter changes it."""
        layer = self.base.layer_of(name)
        if layer is None or IN_ROWS.get(self.base.quantization) != precision:
            return None
        if any(layer in adapter.scales for adapter in self.adapters):
            return None
        stored = self.base.stored(name, device)
        if "weight_scale" not in stored:  # a layer that was left out when the base was quantized
            return None
        return QuantizedTensor(stored["weight"].flatten(1), stored["weight_scale"].float().flatten())

    def parameter(self, name: str, device: str = "cpu") -> torch.Tensor:
        """A parameter with all adapters, in float32.

        An adapter that was trained beside a quantized base is added to what that base stands for: where the
        weight is not so already, it is quantized and dequantized first.
        """
        value = self.base.parameter(name, device)
        layer = self.base.layer_of(name)
        if layer is None:
            return value
        for number, adapter in enumerate(self.adapters):
            rounded = number == 0 and self.base.quantization != "none"
            if adapter.quantization != "none" and not rounded:
                value = dequantized(quantized(value.cpu(), adapter.quantization, torch.float32)).to(device)
            if layer in adapter.scales:
                value = value + adapter.update(layer, device)
        return value
