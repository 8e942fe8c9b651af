"""The model families, and all in which they differ. A line in `FAMILIES` adds one, a field what it needs.

A family is a decoder of RMS norms, rotary positions, grouped-query attention and a gated MLP. The sizes of a
model are in its config.json. `FAMILIES` has what only the code of a family says, and which optional fields of
config.json that code reads. `shape_of` obeys each field as transformers does, or refuses the model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from wsdm_ray.errors import ModelError

__all__ = [
    "FAMILIES",
    "Family",
    "Shape",
    "drops_attention",
    "head_dim_of",
    "layer_types_of",
    "shape_of",
    "softcap_of",
]


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the code of a family does that its config.json does not say."""

    reads: frozenset[str] = frozenset()
    """Optional fields of config.json that the code reads; those of other families are ignored."""
    norm_offset: float = 0.0
    """Added to the stored weights of every RMS norm."""
    post_norms: bool = False
    """The outputs of attention and MLP are normed too, before they are added to the residual."""
    qkv_bias: bool = False
    """The layers that make queries, keys and values have biases, whatever `attention_bias` says."""
    qk_norm: bool = False
    """Queries and keys are normed, a head at a time."""
    scaled_embedding: bool = False
    """Embeddings are multiplied by the square root of the hidden size."""
    activation_field: str = "hidden_act"
    """The field of config.json that names the MLP's activation."""
    rope_by_layer_type: bool = False
    """`rope_parameters` holds one set for each layer type."""


GEMMA_READS = frozenset(
    {"attention_bias", "layer_types", "query_pre_attn_scalar", "use_bidirectional_attention"}
)

FAMILIES: dict[str, Family] = {
    "gemma2": Family(
        reads=GEMMA_READS | {"attn_logit_softcapping"},
        norm_offset=1.0,
        post_norms=True,
        scaled_embedding=True,
        activation_field="hidden_activation",
    ),
    "gemma3_text": Family(
        reads=GEMMA_READS,
        norm_offset=1.0,
        post_norms=True,
        scaled_embedding=True,
        qk_norm=True,
        activation_field="hidden_activation",
        rope_by_layer_type=True,
    ),
    "llama": Family(reads=frozenset({"attention_bias", "mlp_bias"})),
    "qwen2": Family(reads=frozenset({"layer_types"}), qkv_bias=True),
    "qwen3": Family(reads=frozenset({"attention_bias", "layer_types"}), qk_norm=True),
}
"""By `model_type` of config.json."""

ACTIVATIONS = {
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "silu": "silu",
    "swish": "silu",
}
"""Activations that `config.json` may name, and the name of each in `Shape.activation`."""

ROPE_TYPES = ("default", "linear", "llama3", "proportional", "yarn")
"""Rotary embeddings that depend on the position alone."""

BATCH_ROPE_TYPES = ("dynamic", "longrope")
"""Rotary embeddings that also depend on the longest sequence of the batch, or of the batches before."""

WHOLE_HEAD_ROPE_TYPES = ("default", "proportional")
"""Rotary embeddings as wide as the head, whatever `partial_rotary_factor` is."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of one model, as its config.json has them."""

    family: Family
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    query_scale: float
    softcap: float | None
    """The soft cap of attention scores."""
    norm_epsilon: float
    layer_types: tuple[str, ...]
    """A layer's attention: `full_attention` or `sliding_attention`."""
    sliding_window: int | None
    """Keys that a query of a sliding layer attends to, itself included; None without sliding layers."""
    activation: str
    """The MLP's activation: `silu` or `gelu_pytorch_tanh`."""


def head_dim_of(config: Any) -> int:
    """Columns of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def layer_types_of(config: Any) -> list[str] | None:
    """The layer types of a config, None for a family whose layers all attend alike."""
    return config.layer_types if "layer_types" in FAMILIES[config.model_type].reads else None


def drops_attention(config: Any) -> bool:
    """Whether a model drops attention weights in training."""
    return bool(getattr(config, "attention_dropout", 0.0))


def softcap_of(config: Any) -> float | None:
    """The soft cap of attention scores, None for a family or a config without one."""
    reads = FAMILIES[config.model_type].reads
    return config.attn_logit_softcapping if "attn_logit_softcapping" in reads else None


def shape_of(config: Any) -> Shape:
    """The shape that a transformers config describes.

    Raises:
        ModelError: the family is not supported, or the config asks for what has no support here; the message
            names the field, its value and a remedy.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ModelError(f"model type {config.model_type} is not one of {', '.join(FAMILIES)}")
    for field, value, reason in refusals(config, family):
        raise ModelError(f"{config.model_type} with {field} = {value!r} in its config.json: {reason}")
    layer_types = layer_types_of(config) or ["full_attention"] * config.num_hidden_layers
    scalar = config.query_pre_attn_scalar if "query_pre_attn_scalar" in family.reads else head_dim_of(config)
    return Shape(
        family=family,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_dim_of(config),
        query_scale=scalar**-0.5,
        softcap=softcap_of(config),
        norm_epsilon=config.rms_norm_eps,
        layer_types=tuple(layer_types),
        sliding_window=config.sliding_window if "sliding_attention" in layer_types else None,
        activation=ACTIVATIONS[getattr(config, family.activation_field)],
    )


OTHER_MODEL = "use another model"


def refusals(config: Any, family: Family) -> Iterator[tuple[str, Any, str]]:
    """What of a config has no support here: the field, its value, and why with a remedy."""
    if getattr(config, "is_heterogeneous", False):
        # First, as the fields that differ between layers cannot be read.
        fields = sorted(config.per_layer_attributes)
        yield "per_layer_config", fields, f"layers that differ are not supported; {OTHER_MODEL}"
        return
    activation = getattr(config, family.activation_field)
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        yield family.activation_field, activation, f"the activations are {known}; {OTHER_MODEL}"
    for field in ("attention_bias", "mlp_bias"):
        if field in family.reads and getattr(config, field):
            yield field, True, f"linear layers with biases are not supported; {OTHER_MODEL}"
    yield from head_refusals(config, family)
    yield from layer_refusals(config, family)
    yield from rope_refusals(config, family)


def head_refusals(config: Any, family: Family) -> Iterator[tuple[str, Any, str]]:
    """What of a config's heads, and of the scale of their scores, has no support here."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if not kv_heads or heads % kv_heads:
        yield (
            "num_key_value_heads", kv_heads,
            f"it does not divide the {heads} of num_attention_heads; correct config.json",
        )  # fmt: skip
    head_dim = getattr(config, "head_dim", config.hidden_size // heads)
    if not head_dim or head_dim % 2:
        yield "head_dim", head_dim, "heads must have an even number of columns; correct config.json"
    if "query_pre_attn_scalar" in family.reads and config.query_pre_attn_scalar <= 0:
        yield "query_pre_attn_scalar", config.query_pre_attn_scalar, "it must be above 0; correct config.json"
    softcap = getattr(config, "attn_logit_softcapping", None)
    if "attn_logit_softcapping" in family.reads and softcap is not None and softcap <= 0:
        yield "attn_logit_softcapping", softcap, "it must be above 0; set it to null for scores without a cap"


def layer_refusals(config: Any, family: Family) -> Iterator[tuple[str, Any, str]]:
    """What of a config's masks has no support here."""
    causal = f"only causal attention is supported; {OTHER_MODEL}"
    if "use_bidirectional_attention" in family.reads and config.use_bidirectional_attention:
        yield "use_bidirectional_attention", config.use_bidirectional_attention, causal
    if not getattr(config, "is_causal", True):
        yield "is_causal", config.is_causal, causal
    if "layer_types" not in family.reads:
        return
    layer_types, window = config.layer_types, getattr(config, "sliding_window", None)
    if not layer_types:
        yield "layer_types", layer_types, "there must be a type for each layer; correct config.json"
        return
    if unknown := sorted(set(layer_types) - {"full_attention", "sliding_attention"}):
        yield "layer_types", unknown, f"only full and sliding attention are supported; {OTHER_MODEL}"
    if "sliding_attention" in layer_types and (window is None or window < 1):
        yield "sliding_window", window, "layers of sliding_attention need a window; correct config.json"


def rope_refusals(config: Any, family: Family) -> Iterator[tuple[str, Any, str]]:
    """What of a config's rotary embeddings has no support here."""
    parameters = config.rope_parameters
    if not family.rope_by_layer_type:
        parameters = {"": parameters}
    used = set(config.layer_types) if family.rope_by_layer_type and config.layer_types else {""}
    for layer_type in sorted(used & set(parameters)):
        field = f"rope_parameters.{layer_type}".strip(".")
        values = parameters[layer_type] or {}
        rope_type, factor = values.get("rope_type"), values.get("partial_rotary_factor", 1.0)
        if rope_type in BATCH_ROPE_TYPES:
            reason = "a row's probability would depend on the longest row of its batch"
            yield f"{field}.rope_type", rope_type, f"{reason}; {OTHER_MODEL}"
        elif rope_type not in ROPE_TYPES:
            yield f"{field}.rope_type", rope_type, f"the types are {', '.join(ROPE_TYPES)}; {OTHER_MODEL}"
        elif factor != 1.0 and rope_type not in WHOLE_HEAD_ROPE_TYPES:
            yield (
                f"{field}.partial_rotary_factor", factor,
                f"heads that are rotated in part are not supported; {OTHER_MODEL}",
            )  # fmt: skip
