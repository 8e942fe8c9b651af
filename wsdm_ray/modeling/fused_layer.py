"""A layer of the fused decoder: its weights, and what runs between two layers' attention.

    T tokens of a batch, D hidden size, H query heads, K key-value heads, W head dimension

The functions take tensors alone, and nothing in them depends on the layer's number, so one compilation serves
all layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from wsdm_ray.modeling.families import Family, Shape
from wsdm_ray.modeling.quantized_linear import (
    LinearWeight,
    QuantizedTensor,
    add_residual,
    add_rms_norm,
    fit_to_device,
    float8_scale,
    gated_linear,
    linear,
    rms_norm,
)

__all__ = [
    "FUSED_LINEARS",
    "FusedLayer",
    "LayerBuffers",
    "mlp_and_next_qkv",
    "mlp_block",
    "norms_of",
    "qkv_heads",
    "qkv_projection",
    "rotate",
    "rotation_of",
    "scaled_embedding",
    "split_heads",
]

FUSED_LINEARS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""The fused linear layers of a layer, and the linear layers of transformers that each concatenates."""


@dataclass
class FusedLayer:
    """The weights of one layer, as compiled functions take them.

    norms: float32 weights with the family's offset added. float8_scale: the scale of the attention's output,
        one for all rows, where attention returns float8 for the kernel of `o`.
    """

    qkv: LinearWeight
    o: LinearWeight
    gate_up: LinearWeight
    down: LinearWeight
    norms: dict[str, Tensor] = field(default_factory=dict)
    float8_scale: float | None = None


class LinearBuffers(nn.Module):
    """A `LinearWeight` as registered buffers."""

    values: Tensor
    scale: Tensor | None
    bias: Tensor | None
    hadamard: Tensor | None

    def __init__(self, weight: LinearWeight):
        super().__init__()
        for name in ("values", "scale", "bias", "hadamard"):
            self.register_buffer(name, getattr(weight, name))
        self.fused = weight.fused

    def weight(self) -> LinearWeight:
        return LinearWeight(self.values, self.scale, self.bias, self.hadamard, self.fused)

    def fit_to_device(self, dtype: torch.dtype, *, gated: bool) -> None:
        weight = fit_to_device(self.weight(), dtype, gated=gated)
        self.values, self.scale, self.fused = weight.values, weight.scale, weight.fused


class LayerBuffers(nn.Module):
    """A `FusedLayer` as registered buffers, which `.to()`, `.buffers()` and memory figures see."""

    def __init__(self, layer: FusedLayer):
        super().__init__()
        self.qkv, self.o = LinearBuffers(layer.qkv), LinearBuffers(layer.o)
        self.gate_up, self.down = LinearBuffers(layer.gate_up), LinearBuffers(layer.down)
        self.norms = nn.Module()
        for name, weight_D in layer.norms.items():
            self.norms.register_buffer(name, weight_D)
        self.float8_scale: float | None = None

    def layer(self) -> FusedLayer:
        return FusedLayer(
            qkv=self.qkv.weight(),
            o=self.o.weight(),
            gate_up=self.gate_up.weight(),
            down=self.down.weight(),
            norms=dict(self.norms.named_buffers()),
            float8_scale=self.float8_scale,
        )

    def fit_to_device(self, dtype: torch.dtype, float8_values: int | None) -> None:
        """Choose kernels by the device that the weights are on now.

        Args:
            float8_values: rows of `qkv` that make the values, if attention can return float8.
        """
        for linear_buffers in (self.qkv, self.o, self.gate_up, self.down):
            linear_buffers.fit_to_device(dtype, gated=linear_buffers is self.gate_up)
        self.float8_scale = None
        if float8_values is not None and self.o.fused and self.o.hadamard is None:
            norm_D = self.norms.get_buffer("attention_in")
            self.float8_scale = float8_scale(self.qkv.weight(), norm_D, float8_values)


def norms_of(family: Family) -> dict[str, str]:
    """The norms of a layer, and their names in transformers."""
    norms = {"attention_in": "input_layernorm"}
    if family.post_norms:
        norms |= {
            "attention_out": "post_attention_layernorm",
            "mlp_in": "pre_feedforward_layernorm",
            "mlp_out": "post_feedforward_layernorm",
        }
    else:
        norms |= {"mlp_in": "post_attention_layernorm"}
    if family.qk_norm:
        norms |= {"query": "self_attn.q_norm", "key": "self_attn.k_norm"}
    return norms


def scaled_embedding(tokens_T: Tensor, embedding_VD: Tensor, shape: Shape) -> Tensor:
    """The input of the first layer, [T, D]."""
    x_TD = F.embedding(tokens_T, embedding_VD)
    if shape.family.scaled_embedding:
        x_TD = x_TD * torch.tensor(shape.hidden_size**0.5, dtype=x_TD.dtype)
    return x_TD


def rotation_of(
    rotary: nn.Module, x_TD: Tensor, positions_T: Tensor, layer_type: str
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of each position for layers of a type, in the type of `x_TD`: [T, W] each."""
    by_type = hasattr(rotary, f"{layer_type}_inv_freq")  # a family with one base for each type
    cos, sin = rotary(x_TD[None], positions_T[None], *([layer_type] if by_type else []))
    return cos[0], sin[0]


def qkv_projection(
    x_TD: Tensor,
    layer: FusedLayer,
    rotation: tuple[Tensor, Tensor],
    shape: Shape,
    rotate_in_attention: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [H, T, W], keys and values [K, T, W] of a layer.

    Args:
        rotate_in_attention: attention rotates the queries by their positions; here only keys are rotated.
    """
    normed_TD = rms_norm(x_TD, layer.norms["attention_in"], shape.norm_epsilon)
    return qkv_heads(normed_TD, layer, rotation, shape, rotate_in_attention)


def qkv_heads(
    normed_TD: Tensor | QuantizedTensor,
    layer: FusedLayer,
    rotation: tuple[Tensor, Tensor],
    shape: Shape,
    rotate_in_attention: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`qkv_projection` after the layer's first norm, [T, D]."""
    return split_heads(linear(normed_TD, layer.qkv), layer.norms, rotation, shape, rotate_in_attention)


def split_heads(
    qkv_T: Tensor,
    norms: Mapping[str, Tensor],
    rotation: tuple[Tensor, Tensor],
    shape: Shape,
    rotate_in_attention: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [H, T, W], keys and values [K, T, W], of the output of their linear layers, side by side.

    Args:
        norms: of `norms_of`.
        rotate_in_attention: as of `qkv_projection`.
    """
    heads = qkv_T.unflatten(1, (-1, shape.head_dim)).transpose(0, 1)
    q, k, v = heads.split([shape.num_heads, shape.num_kv_heads, shape.num_kv_heads])
    if shape.family.qk_norm:
        q = rms_norm(q, norms["query"], shape.norm_epsilon)
        k = rms_norm(k, norms["key"], shape.norm_epsilon)
    return q if rotate_in_attention else rotate(q, *rotation), rotate(k, *rotation), v


def rotate(x: Tensor, cos_TW: Tensor, sin_TW: Tensor) -> Tensor:
    """Heads [..., T, W] with rotary position embeddings applied."""
    low, high = x.chunk(2, -1)
    return x * cos_TW + torch.cat((-high, low), -1) * sin_TW


def attention_out_and_mlp(
    x_TD: Tensor, a_TD: Tensor | QuantizedTensor, layer: FusedLayer, shape: Shape
) -> tuple[Tensor, Tensor]:
    """The residual with the attention's output projection added, and the output of the MLP for it."""
    norms, weight = layer.norms, layer.gate_up
    x_TD, normed_TD = add_rms_norm(
        x_TD, linear(a_TD, layer.o), norms.get("attention_out"), norms["mlp_in"], shape.norm_epsilon, weight
    )
    return x_TD, linear(gated_linear(normed_TD, weight, activation=shape.activation), layer.down)


def mlp_block(x_TD: Tensor, a_TD: Tensor | QuantizedTensor, layer: FusedLayer, shape: Shape) -> Tensor:
    """A layer from its attention's output on: its output."""
    x_TD, y_TD = attention_out_and_mlp(x_TD, a_TD, layer, shape)
    return add_residual(x_TD, y_TD, layer.norms.get("mlp_out"), shape.norm_epsilon)


def mlp_and_next_qkv(
    x_TD: Tensor,
    a_TD: Tensor | QuantizedTensor,
    layer: FusedLayer,
    next_layer: FusedLayer,
    rotation: tuple[Tensor, Tensor],
    shape: Shape,
    rotate_in_attention: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From the attention of a layer to that of the next: the layer's output, and the next layer's heads.

    It is one function so that the residual sum, the next norm and its quantization read memory once.
    """
    x_TD, y_TD = attention_out_and_mlp(x_TD, a_TD, layer, shape)
    x_TD, normed_TD = add_rms_norm(
        x_TD, y_TD, layer.norms.get("mlp_out"), next_layer.norms["attention_in"], shape.norm_epsilon,
        next_layer.qkv,
    )  # fmt: skip
    return x_TD, *qkv_heads(normed_TD, next_layer, rotation, shape, rotate_in_attention)
