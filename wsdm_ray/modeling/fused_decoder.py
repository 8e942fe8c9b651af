"""A frozen backbone for scoring, as one loop over its layers: fused GEMMs, no KV cache.

    T tokens of a batch, D hidden size, V vocabulary, W head dimension, S orderings

All layers run the functions of `fused_layer`, which are compiled once for each number of tokens of a batch.
After its attention, the last layer continues with the last token of each ordering alone. On a GPU a batch is
one row in any layout, padded to one of a few numbers of tokens; last tokens are processed a fixed number at a
time. So nothing is compiled again for a number of tokens that has run. What sets families apart is in
`families`; the attention masks are in `attention`. Not covered: training, dropout, unmerged adapters.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from wsdm_ray.modeling.attention import AttentionBackend, Heads, tiling_of
from wsdm_ray.modeling.compilation import compile_deterministic
from wsdm_ray.modeling.families import Shape, shape_of
from wsdm_ray.modeling.fused_layer import (
    FUSED_LINEARS,
    FusedLayer,
    LayerBuffers,
    mlp_and_next_qkv,
    mlp_block,
    norms_of,
    qkv_projection,
    rotation_of,
    scaled_embedding,
)
from wsdm_ray.modeling.quantized_linear import (
    LinearWeight,
    QuantizedTensor,
    pack_weight,
    rms_norm,
    take_rows,
)

__all__ = ["FusedDecoder"]

LAST_ROWS = 256
"""Last tokens that a compiled layer processes at a time.

It gives one shape and one order of summation for any number of orderings. An int8 GEMM on GPUs needs more
than 16 rows."""

COMPILATIONS = 64
"""Compilations of one function in one process: a few for each model and number of tokens.

Beyond its own limit of 8, PyTorch would silently run FlexAttention uncompiled, which writes out all
scores."""


class FusedDecoder(nn.Module):
    """The decoder layers of a backbone of any supported family.

    Its weights are buffers: `.to(device)` moves them and chooses the kernels of the new device. Its types are
    fixed when it is made.

    Args:
        parameter: a weight of the backbone by its name in transformers, unquantized, adapters merged; each is
            requested once and may be freed then.
        rotary: the backbone's module that turns positions into cosines and sines.
        quantized_weight: a linear layer's weight by its name if it is stored in `precision`, else None;
            called before `parameter`.
        precision: of the linear layers: `none` keeps `dtype`, else `w8a8-int8` or `w8a8-fp8`.
        dtype: of activations, and of unquantized weights.
        num_layers: number of layers to hold, all by default.
    """

    embedding_VD: Tensor
    norm_D: Tensor

    def __init__(
        self,
        parameter: Callable[[str], Tensor],
        config: Any,
        rotary: nn.Module,
        *,
        quantized_weight: Callable[[str], QuantizedTensor | None] = lambda name: None,
        precision: str = "none",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        num_layers: int | None = None,
    ):
        super().__init__()
        self.shape: Shape = shape_of(config)
        self.rotary = rotary.to(device)
        self.register_buffer("embedding_VD", parameter("embed_tokens.weight").detach().to(device, dtype))
        self.register_buffer("norm_D", self.norm(parameter("norm.weight")))
        count = len(self.shape.layer_types) if num_layers is None else num_layers
        self.layers = nn.ModuleList(
            LayerBuffers(self.make_layer(parameter, quantized_weight, number, precision))
            for number in range(count)
        )
        self.fit_to_device()

    def fused_layers(self) -> list[FusedLayer]:
        """The weights of each layer, as compiled functions take them."""
        return [cast("LayerBuffers", buffers).layer() for buffers in self.layers]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FusedDecoder":
        """What `.to()` calls with a function of each tensor."""

        def moved(tensor: Tensor) -> Tensor:
            out = fn(tensor)
            if out.dtype != tensor.dtype:
                raise TypeError(
                    f"a fused decoder's types are fixed: {tensor.dtype} cannot become {out.dtype}"
                )
            return out

        super()._apply(moved, recurse)
        self.fit_to_device()
        return self

    def fit_to_device(self) -> None:
        """Choose attention tiling, kernels and compilation by the device that the weights are on now."""
        shape, device, dtype = self.shape, self.embedding_VD.device, self.embedding_VD.dtype
        group = shape.num_heads // shape.num_kv_heads
        self.tiling = tiling_of(shape.head_dim, group, shape.softcap, dtype, device)
        float8_values = shape.num_kv_heads * shape.head_dim if self.tiling.softcapped else None
        for buffers in self.layers:
            cast("LayerBuffers", buffers).fit_to_device(dtype, float8_values)
        self.qkv_projection, self.mlp_and_next_qkv, self.mlp_block = (
            qkv_projection, mlp_and_next_qkv, mlp_block,
        )  # fmt: skip
        if device.type == "cuda":
            self.compile_layers()

    def compile_layers(self, backend: Any = "inductor") -> None:
        """Compile what every layer runs, once for all layers, at its first call."""
        self.qkv_projection, self.mlp_and_next_qkv, self.mlp_block = (
            compiled(function, backend) for function in (qkv_projection, mlp_and_next_qkv, mlp_block)
        )

    def make_layer(
        self,
        parameter: Callable[[str], Tensor],
        quantized_weight: Callable[[str], QuantizedTensor | None],
        number: int,
        precision: str,
    ) -> FusedLayer:
        """A layer's weights, linear layers with the same input fused."""
        device, dtype = self.embedding_VD.device, self.embedding_VD.dtype

        def fused(linear_name: str) -> LinearWeight:
            paths = [f"layers.{number}.{name}" for name in FUSED_LINEARS[linear_name]]
            has_bias = linear_name == "qkv" and self.shape.family.qkv_bias
            biases = [parameter(f"{path}.bias").detach() for path in paths if has_bias]
            weights = (
                quantized_weight(f"{path}.weight") or parameter(f"{path}.weight").detach() for path in paths
            )
            return pack_weight(
                weights, biases, precision, gated=linear_name == "gate_up", device=device, dtype=dtype
            )

        norms = {
            norm: self.norm(parameter(f"layers.{number}.{name}.weight"))
            for norm, name in norms_of(self.shape.family).items()
        }
        return FusedLayer(
            qkv=fused("qkv"), o=fused("o"), gate_up=fused("gate_up"), down=fused("down"), norms=norms
        )

    def embed(self, tokens_T: Tensor) -> Tensor:
        """The input of the first layer, [T, D]."""
        return scaled_embedding(tokens_T, self.embedding_VD, self.shape)

    def rotation(self, x_TD: Tensor, positions_T: Tensor, layer_type: str) -> tuple[Tensor, Tensor]:
        """Cosines and sines of each position for layers of a type: [T, W] each."""
        return rotation_of(self.rotary, x_TD, positions_T, layer_type)

    def norm(self, weight_D: Tensor) -> Tensor:
        """A norm's factor: its weight in float32, with the family's offset."""
        return weight_D.detach().to(self.embedding_VD.device, torch.float32) + self.shape.family.norm_offset

    def forward(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        attention: AttentionBackend,
        last_S: Tensor,
        head: Callable[[Tensor], Tensor] = lambda x_SD: x_SD,
    ) -> Tensor:
        """The output of `head` for the tokens at `last_S`: [S, ...].

        Args:
            tokens_T, positions_T: int64.
            attention: of this batch.
            last_S: int64, indices in 0..T.
            head: of normed hidden states [S, D], in the type of the embedding; the identity by default.
        """
        shape, layers = self.shape, self.fused_layers()
        x_TD = self.embed(tokens_T)
        rotations = {name: self.rotation(x_TD, positions_T, name) for name in set(shape.layer_types)}
        rotate_in_attention = attention.rotates_queries

        def attend(
            q: Tensor, k: Tensor, v: Tensor, layer: FusedLayer, layer_type: str
        ) -> Tensor | QuantizedTensor:
            rotation = rotations[layer_type] if rotate_in_attention else None
            heads = Heads(q, k, v, shape.query_scale, shape.softcap, rotation, layer.float8_scale)
            return attention.attend(heads, layer_type)

        q, k, v = self.qkv_projection(
            x_TD, layers[0], rotations[shape.layer_types[0]], shape, rotate_in_attention
        )
        for layer, next_layer, layer_type, next_type in zip(
            layers, layers[1:], shape.layer_types, shape.layer_types[1:], strict=False
        ):
            a_TD = attend(q, k, v, layer, layer_type)
            x_TD, q, k, v = self.mlp_and_next_qkv(
                x_TD, a_TD, layer, next_layer, rotations[next_type], shape, rotate_in_attention
            )
        a_TD = attend(q, k, v, layers[-1], shape.layer_types[-1])

        def finish(rows: Tensor) -> Tensor:
            x_SD = self.mlp_block(x_TD[rows], take_rows(a_TD, rows), layers[-1], shape)
            return head(rms_norm(x_SD, self.norm_D, shape.norm_epsilon))

        if self.mlp_block is mlp_block:
            return finish(last_S)
        padded = F.pad(last_S, (0, -len(last_S) % LAST_ROWS))
        return torch.cat([finish(rows) for rows in padded.split(LAST_ROWS)])[: len(last_S)]


@functools.cache
def compiled(function: Callable[..., Any], backend: Any) -> Callable[..., Any]:
    """`function`, compiled for each set of shapes; one for all decoders of a process."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILATIONS)
    return compile_deterministic(function, backend=backend, dynamic=False, fullgraph=True)
