"""How many numbers a model has, by the sizes in its config.json; no weights are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["LayerSizes", "Parameters", "parameters_of", "trained_parameters"]


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Numbers of a model's weights; norms, biases and heads are left out, which are few."""

    linear: int
    """Of the linear layers, which is where the time goes."""
    embedding: int


@dataclass(frozen=True, kw_only=True)
class LayerSizes:
    """Widths of the inputs and outputs of a layer's linear layers, by name, and how many layers there are."""

    widths: Mapping[str, tuple[int, int]]
    layers: int


def layer_sizes(settings: Mapping[str, Any]) -> LayerSizes:
    """The linear layers of a model. Args: settings: of config.json."""
    settings = settings.get("text_config") or settings
    hidden, heads = settings["hidden_size"], settings["num_attention_heads"]
    head = settings.get("head_dim") or hidden // heads
    keys = (settings.get("num_key_value_heads") or heads) * head
    inner = settings["intermediate_size"]
    widths = {
        "q_proj": (hidden, heads * head),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (heads * head, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }
    return LayerSizes(widths=widths, layers=settings["num_hidden_layers"])


def parameters_of(settings: Mapping[str, Any]) -> Parameters:
    """The numbers of a model. Args: settings: of config.json."""
    sizes = layer_sizes(settings)
    text = settings.get("text_config") or settings
    return Parameters(
        linear=sizes.layers * sum(rows * columns for rows, columns in sizes.widths.values()),
        embedding=text["vocab_size"] * text["hidden_size"],
    )


def trained_parameters(settings: Mapping[str, Any], rank: int, targets: tuple[str, ...]) -> int:
    """Numbers of an adapter of so much rank on the layers of these names."""
    sizes = layer_sizes(settings)
    return sizes.layers * rank * sum(sum(sizes.widths[name]) for name in targets if name in sizes.widths)
