"""What the options of `train` mean whose value is `auto`: pure functions of the options, device and model."""

from dataclasses import dataclass

from wsdm_ray.config import TrainConfig

__all__ = ["ResolvedOptions", "compile_pays_off", "fastest_layout", "resolve_options"]

COMPILE_MIN_STEPS = 100
"""A run of fewer steps is not compiled by `auto`: compiling takes a minute or more."""


@dataclass(frozen=True, kw_only=True)
class ResolvedOptions:
    """What runs, where an option may say `auto`."""

    layout: str
    precision: str
    """Of activations: fp32 or bf16."""
    quantization: str
    compile: str
    """yes or no."""


def resolve_options(
    config: TrainConfig, *, quantization: str, device: str, precision: str, has_varlen: bool, total_steps: int
) -> ResolvedOptions:
    """What the options mean on this machine.

    Args:
        quantization: how the base is held.
        precision: of activations, fp32 or bf16.
        has_varlen: whether the model's attention has kernels that take packed sequences by `cu_seqlens`.
    """
    fastest = fastest_layout(device, precision, has_varlen)
    layout = fastest if config.layout == "auto" else config.layout
    compile_layers = config.compile
    if compile_layers == "auto":
        compile_layers = "yes" if compile_pays_off(layout, fastest, total_steps) else "no"
    return ResolvedOptions(
        layout=layout, precision=precision, quantization=quantization, compile=compile_layers
    )


def fastest_layout(device: str, precision: str, has_varlen: bool) -> str:
    """`packed` where attention by `cu_seqlens` is fast, else `padded`.

    A dense mask of a packed row costs the square of its length. GPUs have attention by `cu_seqlens` in 16
    bits only. CPUs are fastest on short micro-batches.
    """
    return "packed" if device == "cuda" and precision == "bf16" and has_varlen else "padded"


def compile_pays_off(layout: str, fastest: str, total_steps: int) -> bool:
    """Whether compiled layers save more time than compiling takes."""
    return layout == fastest == "packed" and total_steps >= COMPILE_MIN_STEPS
