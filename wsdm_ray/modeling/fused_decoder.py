"""A frozen backbone as one loop over its layers, for scoring: fused products, no cache, last tokens at the
end.

    T tokens of a pass, D width, H query heads, K key heads, W head width, F inner width, S orderings

Between the attention of one layer and of the next, every layer runs the same function of tensors, so that
compiling it once serves all layers: nothing in it tells one layer from another. The last layer goes on with
the last token of each ordering alone. On a GPU every pass is one row of a fixed number of tokens, whatever
its layout, and the last tokens come so many at a time, so that nothing is compiled again after the first
pass. What sets families apart is in `families`; who sees whom is in `attention`. Not covered: training,
dropout, adapters that are not merged.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from wsdm_ray.modeling.attention import (
    AttentionBackend,
    Heads,
    tiling_of,
)
from wsdm_ray.modeling.families import Family, Shape, shape_of
from wsdm_ray.modeling.quantized_linear import (
    LinearWeight,
    QuantizedTensor,
    add,
    add_norm,
    float8_scale,
    gated_linear,
    linear,
    pack_weight,
    rms_norm,
    take_rows,
)

__all__ = [
    "FUSED_LINEARS",
    "FusedDecoder",
    "FusedLayer",
    "norms_of",
    "qkv_heads",
]

FUSED_LINEARS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""Of a layer, in their order: the linear layers, as transformers names them, of which each is one."""

LAST_ROWS = 256
"""Last tokens that a compiled layer finishes at a time: one shape, and one order of sums, for any number of
orderings, and more than the 16 rows that int8 products on GPUs need."""

COMPILATIONS = 64
"""Of one function in one process: a few for each model and number of tokens. Beyond its own limit of 8,
PyTorch would run FlexAttention uncompiled without a word, which writes out all scores."""


@dataclass
class FusedLayer:
    """One layer's weights; norms are float32 with the family's offset added.

    float8_scale: one for all rows of the attention's output, where `o` multiplies float8 by
        `product_kernel` and attention gives it.
    """

    qkv: LinearWeight
    o: LinearWeight
    gate_up: LinearWeight
    down: LinearWeight
    norms: dict[str, Tensor] = field(default_factory=dict)
    float8_scale: float | None = None


def norms_of(family: Family) -> dict[str, str]:
    """The norms of a layer, and what transformers calls each."""
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


class FusedDecoder(nn.Module):
    """The layers of a backbone of any supported family.

    Args:
        parameter: a weight of the backbone by its name in transformers, unquantized, adapters merged; each is
            asked for once and may be forgotten then.
        rotary: the backbone's module that turns positions into cosines and sines.
        rows: a linear layer's weight by its name, where it is stored in the rows of `precision`; asked for
            before `parameter` is.
        precision: of the products: `none` keeps `dtype`, else `int8` or `fp8` (rows).
        dtype: of activations, and of weights that are not quantized.
        num_layers: how many of the layers to hold, where not all of them.
    """

    def __init__(
        self,
        parameter: Callable[[str], Tensor],
        config: Any,
        rotary: nn.Module,
        *,
        rows: Callable[[str], QuantizedTensor | None] = lambda name: None,
        precision: str = "none",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        num_layers: int | None = None,
    ):
        super().__init__()
        self.shape: Shape = shape_of(config)
        self.rotary = rotary.to(device)
        self.to_device: Any = {"device": device, "dtype": dtype}
        group = self.shape.num_heads // self.shape.num_kv_heads
        self.tiling = tiling_of(self.shape.head_dim, group, self.shape.softcap, dtype, torch.device(device))
        self.embedding_VD = parameter("embed_tokens.weight").detach().to(device, dtype)
        self.norm_D = self.norm(parameter("norm.weight"))
        held = len(self.shape.layer_types) if num_layers is None else num_layers
        self.layers = [self.layer(parameter, rows, number, precision) for number in range(held)]
        self.qkv_projection, self.mlp_and_next_qkv, self.mlp_block = (
            qkv_projection,
            mlp_and_next_qkv,
            mlp_block,
        )
        if torch.device(device).type == "cuda":
            self.compile_layers()

    def compile_layers(self, backend: Any = "inductor") -> None:
        """Compile what every layer runs, once for all of them, when it first runs."""
        self.qkv_projection, self.mlp_and_next_qkv, self.mlp_block = (
            compiled(each, backend) for each in (qkv_projection, mlp_and_next_qkv, mlp_block)
        )

    def layer(
        self,
        parameter: Callable[[str], Tensor],
        rows: Callable[[str], QuantizedTensor | None],
        number: int,
        precision: str,
    ) -> FusedLayer:
        """A layer's weights, those that multiply the same input fused."""

        def fused(product: str) -> LinearWeight:
            paths = [f"layers.{number}.{name}" for name in FUSED_LINEARS[product]]
            biased = product == "qkv" and self.shape.family.qkv_bias
            biases = [parameter(f"{path}.bias").detach() for path in paths if biased]
            weights = (rows(f"{path}.weight") or parameter(f"{path}.weight").detach() for path in paths)
            return pack_weight(weights, biases, precision, gated=product == "gate_up", **self.to_device)

        norms = {
            norm: self.norm(parameter(f"layers.{number}.{name}.weight"))
            for norm, name in norms_of(self.shape.family).items()
        }
        layer = FusedLayer(
            qkv=fused("qkv"), o=fused("o"), gate_up=fused("gate_up"), down=fused("down"), norms=norms
        )
        if self.tiling.softcapped and layer.o.fused and layer.o.spread is None:
            values = self.shape.num_kv_heads * self.shape.head_dim
            layer.float8_scale = float8_scale(layer.qkv, norms["attention_in"], values)
        return layer

    def embed(self, tokens_T: Tensor) -> Tensor:
        """What the first layer takes, [T, D]."""
        x_TD = F.embedding(tokens_T, self.embedding_VD)
        if self.shape.family.scaled_embedding:
            x_TD = x_TD * torch.tensor(self.shape.hidden_size**0.5, dtype=x_TD.dtype)
        return x_TD

    def norm(self, weight_D: Tensor) -> Tensor:
        """A norm's weight as it multiplies: float32, with the family's offset."""
        return weight_D.detach().to(self.to_device["device"], torch.float32) + self.shape.family.norm_offset

    def forward(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        attention: AttentionBackend,
        last_S: Tensor,
        head: Callable[[Tensor], Tensor] = lambda x_SD: x_SD,
    ) -> Tensor:
        """What `head` gives of the tokens at `last_S`: [S, ...].

        Args:
            tokens_T, positions_T: int64.
            attention: who sees whom.
            last_S: int64, places in 0..T.
            head: of normed hidden states [S, D], in the type of the embedding; by default themselves.
        """
        shape = self.shape
        x_TD = self.embed(tokens_T)
        rotations = {kind: self.rotation(x_TD, positions_T, kind) for kind in set(shape.layer_types)}
        late = attention.rotates_queries

        def attend(q: Tensor, k: Tensor, v: Tensor, layer: FusedLayer, kind: str) -> Tensor | QuantizedTensor:
            rotation = rotations[kind] if late else None
            heads = Heads(q, k, v, shape.query_scale, shape.softcap, rotation, layer.float8_scale)
            return attention.attend(heads, kind)

        q, k, v = self.qkv_projection(x_TD, self.layers[0], rotations[shape.layer_types[0]], shape, late)
        for layer, following, kind, next_kind in zip(
            self.layers, self.layers[1:], shape.layer_types, shape.layer_types[1:], strict=False
        ):
            a_TD = attend(q, k, v, layer, kind)
            x_TD, q, k, v = self.mlp_and_next_qkv(
                x_TD, a_TD, layer, following, rotations[next_kind], shape, late
            )
        a_TD = attend(q, k, v, self.layers[-1], shape.layer_types[-1])

        def end(rows: Tensor) -> Tensor:
            x_SD = self.mlp_block(x_TD[rows], take_rows(a_TD, rows), self.layers[-1], shape)
            return head(rms_norm(x_SD, self.norm_D, shape.norm_epsilon))

        if self.mlp_block is mlp_block:
            return end(last_S)
        padded = F.pad(last_S, (0, -len(last_S) % LAST_ROWS))
        return torch.cat([end(rows) for rows in padded.split(LAST_ROWS)])[: len(last_S)]

    def rotation(self, x_TD: Tensor, positions_T: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        """Cosines and sines of each position for layers of `kind`: [T, W] each."""
        named = hasattr(self.rotary, f"{kind}_inv_freq")  # a family with another base in each kind of layer
        cos, sin = self.rotary(x_TD[None], positions_T[None], *([kind] if named else []))
        return cos[0], sin[0]


@functools.cache
def compiled(function: Callable[..., Any], backend: Any) -> Callable[..., Any]:
    """`function`, compiled for each set of shapes; one for all stacks of a process."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILATIONS)
    return torch.compile(function, backend=backend, dynamic=False, fullgraph=True)


def qkv_projection(
    x_TD: Tensor, layer: FusedLayer, rotation: tuple[Tensor, Tensor], shape: Shape, late: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [H, T, W], keys and values [K, T, W] of a layer, rotated by position; late: queries are not."""
    normed_TD = rms_norm(x_TD, layer.norms["attention_in"], shape.norm_epsilon)
    return qkv_heads(normed_TD, layer, rotation, shape, late)


def qkv_heads(
    normed_TD: Tensor | QuantizedTensor,
    layer: FusedLayer,
    rotation: tuple[Tensor, Tensor],
    shape: Shape,
    late: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`qkv_projection`, of what the layer's first norm gave, [T, D]."""
    every = linear(normed_TD, layer.qkv).unflatten(1, (-1, shape.head_dim)).transpose(0, 1)
    q, k, v = every.split([shape.num_heads, shape.num_kv_heads, shape.num_kv_heads])
    if shape.family.qk_norm:
        q = rms_norm(q, layer.norms["query"], shape.norm_epsilon)
        k = rms_norm(k, layer.norms["key"], shape.norm_epsilon)
    return q if late else rotate(q, *rotation), rotate(k, *rotation), v


def rotate(x: Tensor, cos_TW: Tensor, sin_TW: Tensor) -> Tensor:
    low, high = x.chunk(2, -1)
    return x * cos_TW + torch.cat((-high, low), -1) * sin_TW


def attention_out_and_mlp(
    x_TD: Tensor, a_TD: Tensor | QuantizedTensor, layer: FusedLayer, shape: Shape
) -> tuple[Tensor, Tensor]:
    """From the attention of a layer on: the residual with its output, and what the MLP makes of that."""
    norms, weight = layer.norms, layer.gate_up
    x_TD, normed_TD = add_norm(
        x_TD, linear(a_TD, layer.o), norms.get("attention_out"), norms["mlp_in"], shape.norm_epsilon, weight
    )
    with_gelu = shape.activation == "gelu_pytorch_tanh"
    return x_TD, linear(gated_linear(normed_TD, weight, with_gelu=with_gelu), layer.down)


def mlp_block(x_TD: Tensor, a_TD: Tensor | QuantizedTensor, layer: FusedLayer, shape: Shape) -> Tensor:
    """What a layer gives, from its attention on."""
    x_TD, y_TD = attention_out_and_mlp(x_TD, a_TD, layer, shape)
    return add(x_TD, y_TD, layer.norms.get("mlp_out"), shape.norm_epsilon)


def mlp_and_next_qkv(
    x_TD: Tensor,
    a_TD: Tensor | QuantizedTensor,
    layer: FusedLayer,
    following: FusedLayer,
    rotation: tuple[Tensor, Tensor],
    shape: Shape,
    late: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From the attention of a layer to that of the next: what a layer gives, and the next one's heads.

    In one, so that the sum, the next norm and its quantization are one reading.
    """
    x_TD, y_TD = attention_out_and_mlp(x_TD, a_TD, layer, shape)
    x_TD, normed_TD = add_norm(
        x_TD, y_TD, layer.norms.get("mlp_out"), following.norms["attention_in"], shape.norm_epsilon,
        following.qkv,
    )  # fmt: skip
    return x_TD, *qkv_heads(normed_TD, following, rotation, shape, late)
