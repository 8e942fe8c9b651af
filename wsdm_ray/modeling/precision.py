"""What runs: the precision, the types and the layout that follow from the options, the device and the model.

    plan_execution        of scoring a checkpoint, all of it
    choose_precision      of scoring, the precision alone
    training_quantization of training, how the frozen base is held
    activation_dtype      of both, the type of activations

These are pure functions: a GPU is its compute capability, a checkpoint its manifest. `plan_here`,
`resolve_precision` and `device_and_dtype` ask this process's GPU first. Not covered: what `--layout auto` and
`--compile auto` mean for `train`, which is in `training`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from wsdm_ray.errors import ConfigError
from wsdm_ray.modeling.manifest import Manifest, Quantization
from wsdm_ray.modeling.quantized_linear import HOPPER

__all__ = [
    "BNB",
    "BY_CAPABILITY",
    "LEAST_CAPABILITY",
    "W8A8",
    "Capability",
    "ExecutionPlan",
    "activation_dtype",
    "choose_precision",
    "default_device",
    "device_and_dtype",
    "merges_adapter",
    "plan_execution",
    "plan_here",
    "resolve_precision",
    "scoring_layout",
    "supports_capability",
    "training_quantization",
    "uses_fused_decoder",
]

Capability = tuple[int, int]
"""Compute capability of a GPU, (major, minor)."""

BNB = ("bnb-int8", "nf4")
"""Precisions of bitsandbytes: for training and scoring, with adapters beside the base."""
W8A8 = ("w8a8-int8", "w8a8-fp8")
"""8-bit weights and activations with a scale for each row: for the fused decoder in scoring, and for the
training decoder."""
LEAST_CAPABILITY = {"w8a8-fp8": (8, 9), "w8a8-int8": (8, 0), "bf16": (8, 0)}
"""The compute capability from which GPUs have GEMMs in a precision."""
BY_CAPABILITY = ("auto", *W8A8)
"""Precisions of `score` for which the GPU's compute capability is needed: it decides or forbids them."""
FALLBACK = {"w8a8-fp8": "w8a8-int8", "w8a8-int8": "bnb-int8"}
"""The precision to use instead on a GPU that lacks one."""


@dataclass(frozen=True, kw_only=True)
class ExecutionPlan:
    """How a checkpoint is scored on a device."""

    device: str
    """`cuda` or `cpu`."""
    precision: str
    """Resolved: never `auto`."""
    weights: str
    """How the weights of linear layers are quantized in memory; `none`: of the activations' type."""
    activations: torch.dtype
    """Of all that is not an 8-bit GEMM."""
    fused: bool
    """Whether the fused decoder runs it, instead of transformers."""
    merged: bool
    """Whether an adapter is added to the weights, instead of standing beside them."""
    layout: Literal["padded", "shared"]
    """The fastest layout, for `--layout auto`."""


def plan_execution(
    asked: str, device: str, manifest: Manifest, capability: Capability | None
) -> ExecutionPlan:
    """What runs when a checkpoint is scored.

    Args:
        asked: a precision of `score`.
        device: `cuda` or `cpu`.
        capability: of the GPU; None on a CPU.

    Raises:
        ConfigError: the weights are quantized in another way than was asked for, or the GPU lacks it.
    """
    precision = choose_precision(asked, device, manifest, capability)
    fused = uses_fused_decoder(precision, device, manifest)
    dtype = activation_dtype(precision if precision in ("fp32", "bf16") else "auto", device, capability)
    return ExecutionPlan(
        device=device,
        precision=precision,
        weights=precision if precision in (*BNB, *W8A8) else "none",
        activations=dtype,
        fused=fused,
        merged=merges_adapter(precision),
        layout=scoring_layout([fused], device),
    )


def choose_precision(asked: str, device: str, manifest: Manifest, capability: Capability | None) -> str:
    """The precision in which a checkpoint is scored: `auto` resolved, others checked.

    Args:
        capability: of the GPU, which precisions of `BY_CAPABILITY` need; None on a CPU.

    Raises:
        ConfigError: the weights are quantized in another way than was asked for, or the GPU lacks it.
    """
    stored = manifest.quantization
    precision = asked
    if asked == "auto":
        precision = "fp32" if device == "cpu" else fastest_precision(capability or (0, 0), stored)
    if device == "cuda" and precision in W8A8:
        check_capability(precision, manifest, capability or (0, 0))
    if precision in BNB and stored not in ("none", precision):
        also = "" if stored in W8A8 else "it, "
        raise ConfigError(
            f"--precision {precision}: {held_as(manifest)}; use {also}fp32, bf16, w8a8-int8 or w8a8-fp8"
        )
    return precision


def held_as(manifest: Manifest) -> str:
    """How the weights of a checkpoint are quantized, for messages."""
    if manifest.kind == "adapter":
        return f"the adapter was trained on a base in {manifest.quantization}"
    return f"the weights are stored as {manifest.quantization}"


def fastest_precision(capability: Capability, stored: str) -> str:
    """The fastest precision of a GPU, for weights that are stored in a precision or (`none`) unquantized.

    On Hopper GPUs the int8 GEMM of `gemm_kernel` is faster than that of float8, and more exact. It takes
    inner widths that are multiples of 128, which those of all known models are.
    """
    if stored == "w8a8-int8" or (capability == HOPPER and stored != "w8a8-fp8"):
        return "w8a8-int8"
    if supports_capability("w8a8-fp8", capability):
        return "w8a8-fp8"
    if supports_capability("w8a8-int8", capability) or stored == "w8a8-fp8":  # which bitsandbytes cannot read
        return "w8a8-int8"
    return "bnb-int8" if stored == "none" else stored


def supports_capability(precision: str, capability: Capability) -> bool:
    """Whether a GPU has GEMMs in a precision."""
    return capability >= LEAST_CAPABILITY.get(precision, (0, 0))


def check_capability(precision: str, manifest: Manifest, capability: Capability) -> None:
    """Raise `ConfigError` where a GPU has no GEMMs in a precision."""
    if supports_capability(precision, capability):
        return
    least, other, stored = LEAST_CAPABILITY[precision], FALLBACK[precision], manifest.quantization
    remedy = f"use --precision {other}"
    if stored in W8A8 and other in BNB:
        remedy += f", with the model before it was made {stored}"
        if manifest.kind == "adapter":
            remedy = f"score what `quantize --adapter` makes of it with --precision {other}"
    raise ConfigError(
        f"--precision {precision}: takes a GPU of compute capability {least[0]}.{least[1]} or later, and "
        f"there is one of {capability[0]}.{capability[1]}; {remedy}"
    )


def uses_fused_decoder(precision: str, device: str, manifest: Manifest) -> bool:
    """Whether the fused decoder scores a checkpoint in a precision (not `auto`).

    Only it has GEMMs of 8-bit rows, and transformers cannot read weights that are stored so. Merged weights
    run faster on it wherever there is a GPU for FlexAttention. bitsandbytes' precisions keep the adapter
    beside the base, which takes transformers.
    """
    return precision in W8A8 or manifest.quantization in W8A8 or (device == "cuda" and precision == "bf16")


def merges_adapter(precision: str) -> bool:
    """Whether an adapter is merged into dequantized weights, instead of standing beside quantized ones."""
    return precision not in BNB


def scoring_layout(fused: Iterable[bool], device: str) -> Literal["padded", "shared"]:
    """The fastest layout for models that share micro-batches: `shared` where the fused decoder runs all.

    Elsewhere the dense masks of long rows cost more than the padding of short ones.

    Args:
        fused: of each model, whether the fused decoder runs it.
    """
    return "shared" if device == "cuda" and all(fused) else "padded"


def training_quantization(folder: str, stored: Quantization, asked: str) -> Quantization:
    """How a base is held in training: as its folder stores it, else as asked for.

    `auto` is bnb-int8, in the place of which training may choose a faster one for its GPUs.

    Args:
        folder: whose base it is, for messages.
        stored: the precision of its weights.
        asked: `--quantization`.

    Raises:
        ConfigError: the folder is quantized in another way than was asked for.
    """
    if stored == "none":
        return "bnb-int8" if asked == "auto" else asked  # pyright: ignore[reportReturnType]
    if asked not in ("auto", stored):
        raise ConfigError(
            f"--quantization {asked}: {folder} is stored as {stored}; use auto, or an unquantized base"
        )
    return stored


def activation_dtype(
    precision: str, device: str, capability: Capability | None, name: str = "this GPU"
) -> torch.dtype:
    """The type of activations that `auto`, `fp32` or `bf16` means on a device.

    Args:
        capability: of the GPU; None on a CPU.
        name: of the GPU, for messages.

    Raises:
        ConfigError: the GPU has no bfloat16.
    """
    if precision == "fp32" or (precision == "auto" and device == "cpu"):
        return torch.float32
    if device == "cuda" and not supports_capability("bf16", capability or (0, 0)):
        if precision == "auto":
            return torch.float32
        raise ConfigError(f"--precision {precision}: {name} has no bfloat16; use --precision fp32")
    return torch.bfloat16


# With the GPU of this process


def plan_here(asked: str, device: str | None, manifest: Manifest) -> ExecutionPlan:
    """`plan_execution` on a device of this process, by default the GPU if there is one."""
    device = device or default_device()
    capability = torch.cuda.get_device_capability() if device == "cuda" else None
    return plan_execution(asked, device, manifest, capability)


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_precision(
    precision: str, device: str, manifest: Manifest, capability: Capability | None = None
) -> str:
    """`choose_precision`, with the compute capability of this process's GPU where none is given."""
    if device == "cuda" and precision in BY_CAPABILITY:
        capability = capability or torch.cuda.get_device_capability()
    return choose_precision(precision, device, manifest, capability)


def device_and_dtype(precision: str, device: str | None = None) -> tuple[str, torch.dtype]:
    """The device of this process, and the type of activations that `precision` (auto, fp32, bf16) means.

    Raises:
        ConfigError: the GPU has no bfloat16.
    """
    device = device or default_device()
    if device == "cpu":
        return device, activation_dtype(precision, device, None)
    capability, name = torch.cuda.get_device_capability(), torch.cuda.get_device_name()
    return device, activation_dtype(precision, device, capability, name)
