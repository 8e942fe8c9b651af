"""A layer of the training decoder: what runs before its attention, and what runs after it.

    T tokens of a batch, D hidden size, H query heads, K key-value heads, W head dimension

The functions take tensors alone, and nothing in them depends on the layer's number, so one compilation serves
all layers. What sets families apart is in `families`.
"""

from typing import NamedTuple

from torch import Tensor

from wsdm_ray.modeling.families import Shape
from wsdm_ray.modeling.fused_layer import split_heads
from wsdm_ray.modeling.quantized_linear import ACTIVATIONS, add_residual, rms_norm
from wsdm_ray.modeling.training_linear import AdaptedLinear, adapted_linear

__all__ = ["TrainingLayer", "after_attention", "before_attention"]


class TrainingLayer(NamedTuple):
    """The weights of a layer; norms: float32 weights [D] or [W] by the names of `norms_of`."""

    qkv: AdaptedLinear
    o: AdaptedLinear
    gate_up: AdaptedLinear
    down: AdaptedLinear
    norms: dict[str, Tensor]


def before_attention(
    x_TD: Tensor,
    layer: TrainingLayer,
    cos_TW: Tensor,
    sin_TW: Tensor,
    shape: Shape,
    seeds: Tensor | None,
    heads_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [1, H, T, W], keys and values [1, K, T, W], rotated by position.

    Args:
        seeds: of the layer's four linear layers in order, int32 [4], for dropout; None drops nothing.
        heads_first: in memory, too; else the heads of a token are side by side.
    """
    qkv_seed = None if seeds is None else seeds[0]
    normed_TD = rms_norm(x_TD, layer.norms["attention_in"], shape.norm_epsilon)
    qkv_T = adapted_linear(normed_TD, layer.qkv, qkv_seed)
    q, k, v = (each[None] for each in split_heads(qkv_T, layer.norms, (cos_TW, sin_TW), shape))
    return (q.contiguous(), k.contiguous(), v.contiguous()) if heads_first else (q, k, v)


def after_attention(
    x_TD: Tensor, a: Tensor, layer: TrainingLayer, shape: Shape, seeds: Tensor | None
) -> Tensor:
    """The layer's output from its input and the output of its attention: [T, D].

    Args:
        a: [T, H * W] or [1, H, T, W].
        seeds: as of `before_attention`.
    """
    norms, epsilon = layer.norms, shape.norm_epsilon
    o_seed, gate_up_seed, down_seed = (None, None, None) if seeds is None else seeds[1:].unbind()
    a_TD = a if a.dim() == 2 else a[0].transpose(0, 1).flatten(1)
    x_TD = add_residual(x_TD, adapted_linear(a_TD, layer.o, o_seed), norms.get("attention_out"), epsilon)
    normed_TD = rms_norm(x_TD, norms["mlp_in"], epsilon)
    gate, up = adapted_linear(normed_TD, layer.gate_up, gate_up_seed).chunk(2, 1)
    y_TD = adapted_linear(ACTIVATIONS[shape.activation](gate) * up, layer.down, down_seed)
    return add_residual(x_TD, y_TD, norms.get("mlp_out"), epsilon)
