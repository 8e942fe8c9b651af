"""What the options of `train` mean whose value is `auto`: pure functions of the options, device and model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wsdm_ray.config import TrainConfig
from wsdm_ray.errors import ConfigError
from wsdm_ray.modeling.families import Shape, drops_attention, shape_of
from wsdm_ray.modeling.manifest import Quantization
from wsdm_ray.modeling.precision import W8A8

__all__ = [
    "ResolvedOptions",
    "budget_that_fits",
    "check_shard_base",
    "compile_pays_off",
    "fastest_layout",
    "fastest_quantization",
    "layers_to_recompute",
    "least_activation_bytes",
    "least_token_budget",
    "num_shards",
    "optimizer_bytes",
    "resolve_options",
    "runs_decoder",
    "runs_decoder_on_gpu",
]

FASTER_IN_W8A8_INT8 = frozenset({"H100", "H200"})
"""GPUs, as Ray names them, for which the kernels of w8a8-int8 are written and on which they were timed."""
FASTER_FROM_HIDDEN_SIZE = 3_584
"""Of the smallest base that was faster in w8a8-int8, Gemma-2-9B. Those of 1,536 and less are bound by the
launches of kernels, of which w8a8-int8 has more; none between was timed."""

COMPILE_MIN_STEPS = 100
"""A run of fewer steps is not compiled by `auto`: compiling takes from 20 s to over a minute."""

BACKWARD_LAYERS = 3
"""The backward pass needs about so many times what a layer keeps, beside what all layers keep."""

UNCOMPILED = 3
"""About how many times as much a layer keeps for the backward pass where it is not compiled."""


@dataclass(frozen=True, kw_only=True)
class ResolvedOptions:
    """What runs, where an option may say `auto`."""

    layout: str
    precision: str
    """Of activations: fp32 or bf16."""
    quantization: str
    compile: str
    """yes or no."""
    decoder: bool = False
    """Whether the training decoder runs the network, instead of transformers."""


def resolve_options(
    config: TrainConfig,
    *,
    quantization: str,
    device: str,
    precision: str,
    softcapped: bool,
    attention_dropout: bool,
    total_steps: int,
) -> ResolvedOptions:
    """What the options mean on this machine.

    Args:
        quantization: how the base is held.
        precision: of activations, fp32 or bf16.
        softcapped: whether the model soft-caps its attention scores.
        attention_dropout: whether the model drops attention weights in training.

    Raises:
        ConfigError: options that do not go together.
    """
    if quantization in W8A8:
        check_rows(config, quantization, device, precision, attention_dropout)
    decoder = runs_decoder(config, quantization, device, precision, attention_dropout)
    check_shard_base(config, decoder)
    layout = fastest_layout(decoder, softcapped) if config.layout == "auto" else config.layout
    compile_layers = config.compile
    if compile_layers == "auto":
        compile_layers = "yes" if compile_pays_off(decoder, device, total_steps) else "no"
    return ResolvedOptions(
        layout=layout, precision=precision, quantization=quantization, compile=compile_layers, decoder=decoder
    )


def fastest_quantization(config: TrainConfig, network: Any, gpu_types: frozenset[str]) -> Quantization:
    """How a base that is not quantized is held in training, where the options leave it open.

    Args:
        network: config of the base, of transformers.
        gpu_types: Ray's names of all GPUs; none on CPUs.
    """
    measured = bool(gpu_types) and gpu_types <= FASTER_IN_W8A8_INT8
    faster = measured and shape_of(network).hidden_size >= FASTER_FROM_HIDDEN_SIZE
    return "w8a8-int8" if faster and runs_decoder_on_gpu(config, "none", network) else "bnb-int8"


def check_rows(
    config: TrainConfig, quantization: str, device: str, precision: str, attention_dropout: bool
) -> None:
    """Raise `ConfigError` where the training decoder, which alone has 8-bit GEMMs, cannot run."""
    held = f"the base is held as {quantization}"
    if config.layout == "padded":
        raise ConfigError(f"--layout padded: {held}, which takes one row; use packed, shared or auto")
    if device == "cuda" and precision != "bf16":
        remedy = "use auto"
        if config.precision == "auto":
            remedy = "use one of compute capability 8.0 or later, or --quantization bnb-int8"
        raise ConfigError(f"--precision {config.precision}: {held}, which takes bf16 on a GPU; {remedy}")
    if attention_dropout:
        raise ConfigError(
            f"--base {config.base}: its config.json has attention_dropout, which cannot be had where {held}; "
            "set it to 0 there, or use --quantization bnb-int8"
        )


def check_shard_base(config: TrainConfig, decoder: bool) -> None:
    """Raise `ConfigError` where the training decoder, which alone gathers layers, does not run."""
    if config.shard_base and not decoder:
        raise ConfigError(
            "--shard-base: takes GPUs in bf16 without --layout padded, --int8-activations and attention "
            "dropout, or --quantization w8a8-int8 or w8a8-fp8; leave it out"
        )


def runs_decoder(
    config: TrainConfig, quantization: str, device: str, precision: str, attention_dropout: bool
) -> bool:
    """Whether the training decoder runs the network: on GPUs it is faster, and alone has 8-bit GEMMs.

    CPUs are fastest on short padded micro-batches, which transformers runs.
    """
    on_gpu = device == "cuda" and precision == "bf16"
    plain = not config.int8_activations and not attention_dropout and config.layout != "padded"
    return quantization in W8A8 or (on_gpu and plain)


def runs_decoder_on_gpu(config: TrainConfig, quantization: str, network: Any) -> bool:
    """`runs_decoder` on a GPU with bfloat16, for who has none at hand. network: config of the base."""
    precision = "fp32" if config.precision == "fp32" else "bf16"
    return runs_decoder(config, quantization, "cuda", precision, drops_attention(network))


def fastest_layout(decoder: bool, softcapped: bool) -> str:
    """`shared` or `packed` for the training decoder, `padded` for transformers.

    Unless scores are soft-capped, attention of whole sequences has faster kernels than that of orderings that
    share a prompt, by more than prompts cost, which are short.
    """
    if not decoder:
        return "padded"
    return "shared" if softcapped else "packed"


def compile_pays_off(decoder: bool, device: str, total_steps: int) -> bool:
    """Whether compiled layers save more time than compiling takes."""
    return decoder and device == "cuda" and total_steps >= COMPILE_MIN_STEPS


def layers_to_recompute(
    free_bytes: float, tokens: int, shape: Shape, intermediate_size: int, lora_rank: int, *, compiled: bool
) -> int:
    """Of a model's layers, how many must compute their activations again for a micro-batch to fit.

    A compiled layer keeps the outputs of its GEMMs and of its attention, and the sums of its residual, in 16
    bits; one that is not keeps what lies between those, too. One that recomputes keeps its input. The
    backward pass needs about three times a layer's beside them.

    Args:
        free_bytes: of the GPU, beside weights, gradients and the optimizer's state.
        tokens: of the largest micro-batch.
    """
    kept, inputs = layer_bytes(tokens, shape, intermediate_size, lora_rank, compiled=compiled)
    layers = len(shape.layer_types)
    over = (layers + BACKWARD_LAYERS) * kept - free_bytes
    return min(max(-int(-over // (kept - inputs)), 0), layers)


def least_activation_bytes(
    tokens: int, shape: Shape, intermediate_size: int, lora_rank: int, *, compiled: bool
) -> int:
    """Bytes of a micro-batch where all layers compute again; the arguments are of `layers_to_recompute`."""
    kept, inputs = layer_bytes(tokens, shape, intermediate_size, lora_rank, compiled=compiled)
    return len(shape.layer_types) * inputs + BACKWARD_LAYERS * kept


def least_token_budget(config: TrainConfig) -> int:
    """Tokens that a micro-batch must be able to hold: those of the longest pair in both orders."""
    return 2 * config.text.max_tokens


def budget_that_fits(
    token_budget: int, least: int, free_bytes: float, bytes_of: Callable[[int], float]
) -> int:
    """The largest of `token_budget`, its half, the half of that and so on whose micro-batch fits into memory.

    Args:
        least: tokens that a micro-batch must be able to hold, which are the answer where none fits.
        bytes_of: what a micro-batch of so many tokens takes.
    """
    while token_budget > least and bytes_of(token_budget) > free_bytes:
        token_budget = max(token_budget // 2, least)
    return token_budget


def num_shards(config: TrainConfig, workers: int) -> int:
    """Over how many workers the base and the optimizer's state are sharded, of so many."""
    return workers if config.shard_base else 1


def optimizer_bytes(kind: str, shards: int) -> float:
    """Bytes of the gradient's sum and, of AdamW's state, of this worker's part, of one trained number.

    Args:
        kind: of `OptimizerConfig`.
    """
    return 8 + (2 if kind == "adamw_8bit" else 8) / shards


def layer_bytes(
    tokens: int, shape: Shape, intermediate_size: int, lora_rank: int, *, compiled: bool
) -> tuple[int, int]:
    """Bytes that a layer keeps of a micro-batch for the backward pass, and that one keeps that recomputes."""
    heads, key_heads = shape.num_heads * shape.head_dim, 2 * shape.num_kv_heads * shape.head_dim
    kept = (
        2 * tokens * (4 * shape.hidden_size + 3 * heads + key_heads + 2 * intermediate_size + 7 * lora_rank)
    ) * (1 if compiled else UNCOMPILED)
    return kept, 2 * tokens * shape.hidden_size
