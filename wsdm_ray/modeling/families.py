"""The model families, and all in which they differ. A line in `FAMILIES` adds one, a field what it needs.

A family is a decoder of RMS norms, rotary positions, grouped-query attention and a gated MLP. What
config.json says of a model (sizes, windows, rotary base) is read from there; here stands what only the
family's code says.
"""

from dataclasses import dataclass
from typing import Any

from wsdm_ray.errors import ModelError

__all__ = ["FAMILIES", "Family", "Shape", "head_width", "shape_of"]


@dataclass(frozen=True)
class Family:
    """What the code of a family does that its config.json does not say."""

    norm_offset: float = 0.0
    """Added to the stored weights of every RMS norm."""
    post_norms: bool = False
    """The outputs of attention and MLP are normed too, before they are added to the residual."""
    qkv_bias: bool = False
    """The products that make queries, keys and values have biases."""
    qk_norm: bool = False
    """Queries and keys are normed, a head at a time."""
    gelu: bool = False
    """The MLP's gate is GELU (tanh approximation) instead of SiLU."""
    scaled_embedding: bool = False
    """Embeddings are multiplied by the square root of the width."""


FAMILIES: dict[str, Family] = {
    "gemma2": Family(norm_offset=1.0, post_norms=True, gelu=True, scaled_embedding=True),
    "gemma3_text": Family(norm_offset=1.0, post_norms=True, gelu=True, scaled_embedding=True, qk_norm=True),
    "llama": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm=True),
}
"""By `model_type` of config.json."""


@dataclass(frozen=True)
class Shape:
    """The sizes of one model, as its config.json has them."""

    family: Family
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    query_scale: float
    softcap: float | None
    norm_epsilon: float
    layer_types: tuple[str, ...]
    """A layer's attention: `full_attention` or `sliding_attention`."""
    window: int | None
    """Keys that a query of a sliding layer sees, itself included."""


def head_width(config: Any) -> int:
    """Columns of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def shape_of(config: Any) -> Shape:
    """The shape that a transformers config describes.

    Raises:
        ModelError: the family is not supported, or the model uses what its family has no support for here.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ModelError(f"model type {config.model_type} is not one of {', '.join(FAMILIES)}")
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        raise ModelError(f"model type {config.model_type} with biases in attention or MLP is not supported")
    layer_types, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    if window and not layer_types and getattr(config, "use_sliding_window", True):
        raise ModelError(
            f"model type {config.model_type} has a window, but no layer_types to say in which layers"
        )
    layer_types = layer_types or ["full_attention"] * config.num_hidden_layers
    if unknown := set(layer_types) - {"full_attention", "sliding_attention"}:
        raise ModelError(f"layers of kind {', '.join(sorted(unknown))} are not supported")
    return Shape(
        family=family,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_width(config),
        query_scale=(getattr(config, "query_pre_attn_scalar", None) or head_width(config)) ** -0.5,
        softcap=getattr(config, "attn_logit_softcapping", None),
        norm_epsilon=config.rms_norm_eps,
        layer_types=tuple(layer_types),
        window=window if "sliding_attention" in layer_types else None,
    )
