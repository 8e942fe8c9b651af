"""A frozen backbone with adapters for training, as one loop over its layers.

    T tokens of a micro-batch, D hidden size, W head dimension, S orderings

It runs the weights of a network of transformers that PEFT has wrapped, which saves and loads them: layers
with the same input are one GEMM, a micro-batch is one row without padding between its sequences, and only the
last token of each ordering goes through the end of the last layer. Some layers, or all, compute their
activations again in the backward pass. Not covered: layouts of several rows, dropout of attention weights.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch.utils.checkpoint import checkpoint

from wsdm_ray.modeling.attention.decoder_training import Attend, training_attention
from wsdm_ray.modeling.attention.mask_rule import to_device
from wsdm_ray.modeling.attention.tiling import BLOCK
from wsdm_ray.modeling.classifier import unwrap_peft
from wsdm_ray.modeling.compilation import compile_deterministic
from wsdm_ray.modeling.families import shape_of
from wsdm_ray.modeling.frozen_weights import adapted_linear_of
from wsdm_ray.modeling.fused_layer import FUSED_LINEARS, norms_of, rotation_of, scaled_embedding
from wsdm_ray.modeling.quantized_linear import rms_norm
from wsdm_ray.modeling.sharded_weights import Gatherer, LayerWeights, ShardedLayers, WholeLayers
from wsdm_ray.modeling.training_layer import TrainingLayer, after_attention, before_attention
from wsdm_ray.packing.layouts import Layout, round_up

__all__ = ["TrainingDecoder", "padded_tokens"]

COMPILATIONS = 64
"""Of one function: attention is compiled for each mask of a layer type, with gradients and without."""

ROW_LENGTHS = 8
"""Numbers of tokens up to the token budget that rows are padded to, so that most have the budget's."""


LEAST_INT8_ROWS = 32
"""PyTorch's int8 GEMM on GPUs takes more than 16 rows."""


class TrainingDecoder:
    """Runs the backbone and the head of a network that PEFT has wrapped.

    Args:
        network: of `add_lora`; its frozen weights are laid side by side, in place.
        dtype: of activations.
        compiled: compile what every layer runs, at its first call.
        usual_tokens: of most rows, for which attention is compiled alone; None: no number is more usual.
    """

    def __init__(
        self, network: nn.Module, dtype: torch.dtype, *, compiled: bool, usual_tokens: int | None = None
    ):
        self.network, self.dtype, self.usual_tokens = network, dtype, usual_tokens
        self.model: Any = unwrap_peft(network)
        backbone = self.model.model
        self.shape = shape_of(self.model.config)
        self.embedding: Tensor = backbone.get_input_embeddings().weight
        self.embedding_apart = False
        """Whether it is in memory of the CPU, from which each micro-batch gets the rows of its tokens."""
        self.device: torch.device = self.embedding.device
        self.rotary = backbone.rotary_emb
        self.norm_D = self.norm(backbone.norm)
        self.layers = [self.layer_of(layer) for layer in backbone.layers]
        self.weights: LayerWeights = WholeLayers()
        weights = [linear.weight for linear in self.layers[-1][:4]]
        by_torch = any(one.rows and not one.fused and one.values.dtype == torch.int8 for one in weights)
        self.least_rows = LEAST_INT8_ROWS if by_torch and self.device.type == "cuda" else 1
        """The end of the last layer is run for so many tokens: those at `last_S`, then the first of them."""
        self.recomputed = 0
        """Layers, the first ones, that keep their input alone for the backward pass."""
        self.before, self.after = (
            (compiled_part(before_attention), compiled_part(after_attention))
            if compiled
            else (before_attention, after_attention)
        )

    def norm(self, module: nn.Module) -> Tensor:
        """A norm's factor: its weight in float32, with the family's offset."""
        weight: Any = module.weight
        return weight.detach().float() + self.shape.family.norm_offset

    def layer_of(self, layer: nn.Module) -> TrainingLayer:
        """The weights of one layer."""
        linears = {
            name: adapted_linear_of(
                [layer.get_submodule(path) for path in paths], self.dtype, ", ".join(paths)
            )
            for name, paths in FUSED_LINEARS.items()
        }
        norms = norms_of(self.shape.family)
        norms = {name: self.norm(layer.get_submodule(path)) for name, path in norms.items()}
        for linear in linears.values():
            # It is there anyway, so the backward pass keeps it, and not its transposed copy.
            torch._dynamo.mark_static_address(linear.weight.values, guard=False)
        return TrainingLayer(**linears, norms=norms)

    def shard_weights(self, workers: Gatherer) -> None:
        """Shard the layers' frozen weights over workers, which all run the same network, and leave embeddings
        in memory of the CPU.
        """
        layers = [
            [tensor for linear in layer[:4] for tensor in linear.weight[:2] if tensor is not None]
            for layer in self.layers
        ]
        self.weights = ShardedLayers(layers, workers)
        module = self.model.model.get_input_embeddings()
        module.weight = nn.Parameter(module.weight.detach().cpu(), requires_grad=False)
        self.embedding, self.embedding_apart = module.weight, True

    def logits(self, layout: Layout) -> Tensor:
        """Logits of each ordering of a micro-batch of one row: float32 [S, 2]."""
        last_S = to_device(layout.last_S, self.device)
        with compiling():
            hidden_SD = self.hidden(layout, last_S)
        head = self.model.score
        return head(hidden_SD.to(next(head.parameters()).dtype)).float()

    def hidden(self, layout: Layout, last_S: Tensor) -> Tensor:
        """Normed hidden states of the tokens at `last_S`: [S, D]."""
        positions_T = to_device(layout.positions_BT[0], self.device)
        attend = training_attention(layout, self.shape, self.device, self.usual_tokens)
        x_TD = self.embed(layout.tokens_BT[0])
        rotations = {
            name: rotation_of(self.rotary, x_TD.detach(), positions_T, name)
            for name in set(self.shape.layer_types)
        }
        seeds = self.dropout_seeds()
        *runs, last = (
            functools.partial(self.attention, layer, seed, rotations[layer_type], attend, layer_type)
            for layer, seed, layer_type in zip(self.layers, seeds, self.shape.layer_types, strict=True)
        )
        for number, (layer, seed, attention) in enumerate(zip(self.layers, seeds, runs, strict=False)):
            x_TD = self.weights.enter(number, x_TD)
            if number < self.recomputed and torch.is_grad_enabled():
                run = functools.partial(self.run_again, layer, seed, attention)
                x_TD = checkpoint(run, x_TD, use_reentrant=False, preserve_rng_state=False)
            else:
                x_TD = self.run_layer(layer, seed, attention, x_TD)
            x_TD = self.weights.leave(number, x_TD)
        x_TD = self.weights.enter(len(runs), x_TD)
        a = last(x_TD)
        rows_S = at_least(last_S, self.least_rows)
        a_S = a[:, :, rows_S] if attend.heads_first else a[rows_S]
        x_SD = self.after(dynamic(x_TD[rows_S]), dynamic_tokens(a_S), self.layers[-1], self.shape, seeds[-1])
        x_SD = self.weights.leave(len(runs), x_SD)
        return rms_norm(x_SD[: len(last_S)], self.norm_D, self.shape.norm_epsilon)

    def dropout_seeds(self) -> Sequence[Tensor | None]:
        """For each layer the seeds of its linear layers, int32 [4], from the generator of the CPU; None where
        nothing is dropped."""
        linears = [each for layer in self.layers for each in layer[:4]]
        if not self.network.training or not any(linear.dropout for linear in linears):
            return [None] * len(self.layers)
        seeds = torch.randint(2**31, (len(self.layers), 4), dtype=torch.int32)
        return to_device(seeds.numpy(), self.device).unbind()

    def embed(self, tokens_T: np.ndarray) -> Tensor:
        """The input of the first layer, [T, D]; with a gradient, so that all layers are compiled alike."""
        embedding_VD = self.embedding
        if self.embedding_apart:
            tokens_V, places_T = np.unique(tokens_T, return_inverse=True)
            embedding_VD = rows_on(self.device, self.embedding, torch.from_numpy(tokens_V))
            tokens_T = places_T.astype(tokens_T.dtype)
        x_TD = scaled_embedding(to_device(tokens_T, self.device), embedding_VD, self.shape)
        return x_TD.requires_grad_(torch.is_grad_enabled())

    def attention(
        self,
        layer: TrainingLayer,
        seeds: Tensor | None,
        rotation: tuple[Tensor, Tensor],
        attend: Attend,
        layer_type: str,
        x_TD: Tensor,
    ) -> Tensor:
        """The output of a layer's attention, as `Attend` has it."""
        cos_TW, sin_TW = map(dynamic, rotation)
        q, k, v = self.before(dynamic(x_TD), layer, cos_TW, sin_TW, self.shape, seeds, attend.heads_first)
        return attend.run(q, k, v, layer_type)

    def run_layer(
        self, layer: TrainingLayer, seeds: Tensor | None, attention: Callable[[Tensor], Tensor], x_TD: Tensor
    ) -> Tensor:
        """One layer: [T, D]."""
        return self.after(dynamic(x_TD), dynamic_tokens(attention(x_TD)), layer, self.shape, seeds)

    def run_again(self, *given: Any) -> Tensor:
        """`run_layer`, which the backward pass calls again in a thread of its own."""
        with compiling():
            return self.run_layer(*given)


def rows_on(device: torch.device, table: Tensor, rows_N: Tensor) -> Tensor:
    """Rows of a table in memory of the CPU: [N, D]. The host does not wait until a GPU has them."""
    found_ND = table.new_empty(len(rows_N), table.shape[1], pin_memory=device.type == "cuda")
    torch.index_select(table, 0, rows_N, out=found_ND)
    return found_ND.to(device, non_blocking=True)


def at_least(rows_S: Tensor, least: int) -> Tensor:
    """Indices [S], with the first one again and again where they are fewer than `least`."""
    more = least - len(rows_S)
    return rows_S if more <= 0 else torch.cat([rows_S, rows_S[:1].expand(more)])


def padded_tokens(tokens: int, token_budget: int) -> int:
    """Tokens of the row that holds so many, padding included: one of `ROW_LENGTHS` numbers."""
    step = max(token_budget // ROW_LENGTHS // BLOCK, 1) * BLOCK
    return round_up(tokens, step)


def dynamic(x: Tensor, axis: int = 0) -> Tensor:
    """`x`, whose size on an axis is left open where it is compiled."""
    torch._dynamo.maybe_mark_dynamic(x, axis)
    return x


def dynamic_tokens(a: Tensor) -> Tensor:
    """`dynamic` of the output of attention."""
    return dynamic(a, 0 if a.dim() == 2 else 2)


RECOMPUTE_POINTWISE = {
    "ban_recompute_materialized_backward": False,
    "ban_recompute_used_far_apart": False,
    "ban_recompute_long_fusible_chains": False,
}
"""What PyTorch keeps for the backward pass of a compiled function: the outputs of GEMMs, and no norm, mask of
dropout or activation that follows from them. Its own choice takes half as much memory again."""


@contextmanager
def compiling() -> Iterator[None]:
    """A context for what may compile: PyTorch keeps these settings for each thread.

    FlexAttention takes no soft cap that is left open, as numbers are where sizes are.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILATIONS)
    with functorch_config.patch(RECOMPUTE_POINTWISE), torch._dynamo.config.patch(specialize_float=True):
        yield


@functools.cache
def compiled_part(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, compiled once for all layers and all numbers of tokens."""
    return compile_deterministic(function, fullgraph=True)
