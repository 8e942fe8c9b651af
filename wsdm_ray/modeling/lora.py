"""LoRA adapters, of `train` or of plain PEFT, as factors of the base's linear layers.

Names are those of the backbone, without the `model.` of a model with a head. Heads of plain PEFT adapters are
left out. Not covered: adapters other than LoRA on linear layers.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wsdm_ray.errors import ModelError
from wsdm_ray.modeling.adapter_io import ADAPTER_WEIGHTS
from wsdm_ray.modeling.classifier import meta_model, peft_warnings
from wsdm_ray.modeling.head import HEADS, check_head, make_head
from wsdm_ray.modeling.manifest import MANIFEST, Manifest, read_manifest
from wsdm_ray.modeling.weight_files import read_tensor, tensor_shapes
from wsdm_ray.storage import reason
from wsdm_ray.text.encoding import read_settings

__all__ = ["Adapter", "read_adapter"]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_PREFIX = "base_model.model."
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
        network: of `meta_model`, which is changed.
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
