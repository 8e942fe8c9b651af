"""What the scoring engine runs: one protocol, and its two implementations.

FusedClassifier       merged weights on the fused decoder; on a GPU all micro-batches have one static shape
TransformersScorer    a network of transformers; the adapter may stay beside its base
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from wsdm_ray.modeling.attention import (
    BLOCK,
    AttentionBackend,
    scoring_backend,
    to_device,
    training_backend,
)
from wsdm_ray.modeling.classifier import ordering_logits, unwrap_peft
from wsdm_ray.modeling.families import head_dim_of
from wsdm_ray.modeling.fused_decoder import FusedDecoder
from wsdm_ray.modeling.quantized_linear import LinearWeight
from wsdm_ray.packing.layouts import Layout, round_up

__all__ = [
    "BatchMemory",
    "FusedClassifier",
    "Scorer",
    "TransformersScorer",
    "in_one_row",
    "round_up_to_block",
    "token_bytes",
]

MAX_IN_FLIGHT_GPU = 2
"""A GPU is given this many micro-batches at a time: it runs one while the host lays out the next."""


@dataclass(frozen=True)
class BatchMemory:
    """Bytes that a micro-batch takes at its peak. One layer at a time is alive: no gradients are kept.

    token: bytes of a token.
    key: bytes of a token for each token of its row, of masks and attention scores.
    """

    token: int
    key: int


class Scorer(Protocol):
    """A classifier that is ready to score micro-batches."""

    @property
    def static_shapes(self) -> bool:
        """Whether each number of tokens is compiled for itself, so that there should be few."""
        ...

    @property
    def alignment(self) -> int:
        """In tokens: groups that begin at multiples of it do not change each other's bits (`lay_out`)."""
        ...

    @property
    def max_in_flight(self) -> int:
        """Micro-batches that may be started before the result of the first is read."""
        ...

    def __call__(self, layout: Layout) -> Tensor:
        """Logits of each ordering of a micro-batch: float32 [S, 2], (first response wins, second wins)."""
        ...

    def memory(self, layout: str) -> BatchMemory:
        """What a micro-batch in `padded`, `packed` or `shared` takes of the device's memory."""
        ...

    def warm_up(self, token_budget: int) -> None:
        """Compile what a micro-batch of `token_budget` tokens needs, if anything is compiled."""
        ...


class TransformersScorer:
    """A network of transformers as a `Scorer`.

    Args:
        network: as `load_network` makes it, with or without PEFT's wrapper.
        adapter: which of the wrapper's adapters is used, by default the active one. Several scorers may share
            one network.
    """

    static_shapes = False
    alignment = 1

    def __init__(self, network: Any, adapter: str | None = None):
        self.network = network
        wrapped = hasattr(network, "get_base_model")
        self.adapter: str | None = adapter or (network.active_adapter if wrapped else None)

    @property
    def max_in_flight(self) -> int:
        on_gpu = any(parameter.is_cuda for parameter in self.network.parameters())
        return MAX_IN_FLIGHT_GPU if on_gpu else 1

    def __call__(self, layout: Layout) -> Tensor:
        if self.adapter is not None and self.network.active_adapter != self.adapter:
            self.network.set_adapter(self.adapter, inference_mode=True)
        return ordering_logits(self.network, layout)

    def memory(self, layout: str) -> BatchMemory:
        """Masks are made except for packed rows of a family whose attention takes `cu_seqlens`."""
        model = unwrap_peft(self.network)
        config = model.config.get_text_config()
        itemsize = model.get_input_embeddings().weight.element_size()
        num_heads = config.num_attention_heads
        masks = len(set(getattr(config, "layer_types", None) or ["full_attention"]))
        key = masks * itemsize + 6  # distances of positions, and booleans, while a mask is made
        if model.config._attn_implementation == "eager":
            key += num_heads * (2 * itemsize + 4)  # scores, their softmax in float32, and that in their type
        maskless = layout == "packed" and training_backend(model.config).supports_varlen
        return BatchMemory(token_bytes(config, itemsize), 0 if maskless else key)

    def warm_up(self, token_budget: int) -> None:
        """Nothing: a network of transformers is not compiled."""


def token_bytes(config: Any, itemsize: int) -> int:
    """Bytes of a micro-batch's token in a network of transformers; a fused decoder takes fewer.

    Four copies of each width (of the model, all heads, within the MLP), and two in float32.

    Args:
        config: of transformers, of the text model. itemsize: bytes of an activation.
    """
    heads = config.num_attention_heads * head_dim_of(config)
    return 4 * itemsize * (config.hidden_size + heads + config.intermediate_size) + 8 * config.hidden_size


class FusedClassifier(nn.Module):
    """The fused decoder with a classifier's head, as a `Scorer`.

    sparse: whether attention is block-sparse, where the number of tokens is a multiple of `BLOCK`.

    Args:
        head: of `make_head`, on any device.
    """

    def __init__(self, stack: FusedDecoder, head: nn.Module):
        super().__init__()
        self.stack = stack
        self.score = head.to(stack.embedding_VD.device)
        self.static_shapes = self.sparse = stack.embedding_VD.is_cuda
        self.attention_backends: dict[int, AttentionBackend] = {}
        """By the tokens of a micro-batch: one compilation each."""

    def forward(self, layout: Layout) -> Tensor:
        """Logits of each ordering of a micro-batch: float32 [S, 2], (first response wins, second wins)."""
        device = self.stack.embedding_VD.device
        tokens_T, positions_T, last_S = (
            to_device(values.reshape(-1), device)
            for values in (layout.tokens_BT, layout.positions_BT, layout.last_S)
        )
        dtype = next(self.score.parameters()).dtype
        return self.stack(
            tokens_T,
            positions_T,
            self.attention_backend(layout),
            last_S,
            lambda x_SD: self.score(x_SD.to(dtype)),
        ).float()

    @property
    def alignment(self) -> int:
        return self.stack.tiling.alignment if self.sparse else 1

    @property
    def max_in_flight(self) -> int:
        return MAX_IN_FLIGHT_GPU if self.stack.embedding_VD.is_cuda else 1

    def memory(self, layout: str) -> BatchMemory:
        """The same for every layout: attention on a GPU writes out neither masks nor scores.

        At its widest a layer holds its input and its residual sum beside either what attention works on or
        what the MLP does. An 8-bit GEMM holds a copy of its input in 8 bits, one in int8 its sums in int32.
        Fused kernels keep the sums in registers, and do not write out gate and up.
        """
        shape, layer = self.stack.shape, self.stack.fused_layers()[0]
        itemsize = self.stack.embedding_VD.element_size()
        in_8_bit = layer.qkv.scale is not None
        qkv, heads = len(layer.qkv.values), shape.num_heads * shape.head_dim
        gate_up = 0 if layer.gate_up.fused else len(layer.gate_up.values)
        intermediate = layer.down.values.shape[1]
        attention = itemsize * (shape.hidden_size + 2 * qkv + heads) + int32_sums(layer.qkv)
        attention += in_8_bit * max(shape.hidden_size, heads)
        mlp = itemsize * (shape.hidden_size + gate_up + intermediate) + int32_sums(layer.gate_up)
        mlp += in_8_bit * intermediate
        return BatchMemory(token=(2 * itemsize + 4) * shape.hidden_size + max(attention, mlp), key=0)

    def attention_backend(self, layout: Layout) -> AttentionBackend:
        shape, device, tiling = self.stack.shape, self.stack.embedding_VD.device, self.stack.tiling
        tokens = layout.tokens_BT.size
        if not self.sparse or tokens % BLOCK:
            return scoring_backend(shape, device, tiling).update(layout)
        if tokens not in self.attention_backends:
            with torch.inference_mode(False):  # tensors made in inference can be overwritten there alone
                self.attention_backends[tokens] = scoring_backend(shape, device, tiling, tokens)
        return self.attention_backends[tokens].update(in_one_row(layout))

    def warm_up(self, token_budget: int) -> None:
        """Run one micro-batch of `token_budget` padding tokens, in whole blocks, so that all is compiled.

        The masks are compiled both for a window that hides nothing and for one that hides something.
        """
        row_tokens = round_up_to_block(token_budget)
        one = np.zeros((1, 1), np.int64)
        near, far = (
            in_one_row(Layout(one, one + at, one.astype(np.int32), one.astype(np.int32), one[0]), row_tokens)
            for at in (0, min(row_tokens - 1, self.stack.shape.sliding_window or 0))
        )
        with torch.inference_mode():
            self.attention_backend(far)
            self(near).cpu()


def int32_sums(weight: LinearWeight) -> int:
    """Bytes a token of the int32 sums that a GEMM with this weight writes out."""
    written = weight.values.dtype == torch.int8 and not weight.fused
    return 4 * len(weight.values) if written else 0


def round_up_to_block(tokens: int) -> int:
    """`tokens`, rounded up to a multiple of `BLOCK`."""
    return round_up(tokens, BLOCK)


def in_one_row(layout: Layout, row_tokens: int = 0) -> Layout:
    """A micro-batch as one row, its rows end to end, with padding up to `row_tokens`.

    No group may be in two rows.
    """
    flat = {
        name: getattr(layout, name).reshape(-1)
        for name in ("tokens_BT", "positions_BT", "groups_BT", "branches_BT")
    }
    more = max(row_tokens - layout.tokens_BT.size, 0)
    filled = {
        name: np.pad(values, (0, more), constant_values=-1 if name == "groups_BT" else 0)[None]
        for name, values in flat.items()
    }
    return Layout(last_S=layout.last_S, **filled)
