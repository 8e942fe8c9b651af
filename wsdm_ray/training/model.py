"""The network of a training run: a frozen base with an adapter and a head that train, and what runs it.

DecoderModel       the training decoder: one row without padding, on GPUs and for 8-bit GEMMs
TransformersModel  the network's own forward pass
"""

import contextlib
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn

from wsdm_ray.config import TrainConfig
from wsdm_ray.errors import ConfigError
from wsdm_ray.modeling.adapter_io import load_adapter_weights
from wsdm_ray.modeling.classifier import (
    add_lora,
    compile_layers,
    load_network,
    ordering_logits,
    peft_warnings,
    trainable_parameters,
    unwrap_peft,
)
from wsdm_ray.modeling.families import shape_of
from wsdm_ray.modeling.frozen_weights import load_rows_network
from wsdm_ray.modeling.gpu_memory import forget_peak_memory, free_gpu_bytes
from wsdm_ray.modeling.precision import LEAST_CAPABILITY, W8A8, Capability, supports_capability
from wsdm_ray.modeling.training_decoder import TrainingDecoder, padded_tokens
from wsdm_ray.packing.layouts import Layout
from wsdm_ray.storage import local_copy
from wsdm_ray.telemetry import logger
from wsdm_ray.training.distributed import WorkerGroup
from wsdm_ray.training.policy import (
    ResolvedOptions,
    budget_that_fits,
    layers_to_recompute,
    least_activation_bytes,
    least_token_budget,
    num_shards,
    optimizer_bytes,
)

__all__ = ["DecoderModel", "TrainingModel", "TransformersModel", "prepare_model"]


class TrainingModel(Protocol):
    """What a training run does with its network."""

    network: nn.Module
    token_budget: int
    """Of a micro-batch: as the options have it, or less where memory does not allow that."""

    def set_token_budget(self, tokens: int) -> None:
        """Lay out what follows in rows for micro-batches of so many tokens at most."""
        ...

    def logits(self, layout: Layout) -> torch.Tensor:
        """Logits of each ordering of a micro-batch: float32 [S, 2]."""
        ...

    def row_tokens(self, tokens: int) -> int:
        """Tokens that a micro-batch of so many is laid out in, padding of the layout included."""
        ...

    def compiled_rows(self) -> tuple[int, ...]:
        """Tokens of a row of each kind that is compiled apart; none where that takes no time."""
        ...

    def passes(self, most: int, *, backward: bool) -> AbstractContextManager[None]:
        """What all calls of `logits` lie in; the arguments are of `LayerWeights.passes`."""
        ...

    def save_memory(self) -> bool:
        """Take less memory from now on, at the cost of time and of nothing else; False where that is done."""
        ...


class TransformersModel:
    """The network's own forward pass. Args: as of `prepare_model`."""

    def __init__(self, network: nn.Module, config: TrainConfig, compiled: bool, group: WorkerGroup):
        self.network, self.config = network, config
        self.recomputes = False
        self.memory = ActivationMemory(network, config, compiled=compiled)
        self.set_token_budget(self.memory.token_budget(group))

    def set_token_budget(self, tokens: int) -> None:
        self.token_budget = tokens
        if self.memory.recomputed_layers(tokens) and self.save_memory():
            logger.info("train: all layers recompute their activations")

    def logits(self, layout: Layout) -> torch.Tensor:
        return ordering_logits(self.network, layout)

    def row_tokens(self, tokens: int) -> int:
        return tokens

    def compiled_rows(self) -> tuple[int, ...]:
        return ()

    def passes(self, most: int, *, backward: bool) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def save_memory(self) -> bool:
        if self.recomputes:
            return False
        self.recomputes = True
        enable_gradient_checkpointing(self.network, reentrant=self.config.int8_activations)
        return True


class DecoderModel:
    """The training decoder. Args: as of `prepare_model`."""

    def __init__(
        self,
        network: nn.Module,
        config: TrainConfig,
        compiled: bool,
        dtype: torch.dtype,
        group: WorkerGroup,
    ):
        self.network, self.config = network, config
        self.on_gpu = next(network.parameters()).device.type == "cuda"
        self.decoder = TrainingDecoder(network, dtype, compiled=compiled)
        parts = num_shards(config, group.size)
        if parts > 1:
            self.decoder.shard_weights(group)
            if self.on_gpu:
                forget_peak_memory()
        reserved = self.decoder.weights.gathered_bytes
        self.memory = ActivationMemory(
            network, config, compiled=compiled, reserved_bytes=reserved, shards=parts
        )
        self.set_token_budget(self.memory.token_budget(group))

    def set_token_budget(self, tokens: int) -> None:
        self.token_budget = tokens
        self.full_row = self.row_tokens(tokens)
        self.decoder.usual_tokens = self.full_row
        needed, layers = self.memory.recomputed_layers(self.full_row), len(self.decoder.layers)
        if needed > self.decoder.recomputed:
            self.decoder.recomputed = needed
            logger.info("train: %d of %d layers recompute their activations", needed, layers)

    def logits(self, layout: Layout) -> torch.Tensor:
        return self.decoder.logits(layout)

    def row_tokens(self, tokens: int) -> int:
        return padded_tokens(tokens, self.token_budget) if self.on_gpu else tokens

    def compiled_rows(self) -> tuple[int, ...]:
        return (self.full_row, self.row_tokens(self.token_budget // 2)) if self.on_gpu else ()

    def passes(self, most: int, *, backward: bool) -> AbstractContextManager[None]:
        return self.decoder.weights.passes(most, backward=backward)

    def save_memory(self) -> bool:
        layers = len(self.decoder.layers)
        if self.decoder.recomputed == layers:
            return False
        self.decoder.recomputed = layers
        return True


def prepare_model(
    config: TrainConfig,
    base: str,
    resolved: ResolvedOptions,
    device: str,
    dtype: torch.dtype,
    group: WorkerGroup,
) -> TrainingModel:
    """The model that `config` describes, its adapter and head new or those of an earlier run.

    Args:
        base: local folder of the base model.
        dtype: of everything that is neither quantized nor trained.
        group: the workers that may share the base.

    Raises:
        ConfigError: the GPU lacks what the options ask for, or other workers make other things of them.
        ModelError: the base cannot be used.
    """
    if device == "cuda":
        check_gpu(resolved.quantization, torch.cuda.get_device_capability())
    check_alike(resolved, group)
    load: Any = load_rows_network if resolved.quantization in W8A8 else load_network
    network = load(
        base, config.head, seed=config.seed, device=device, dtype=dtype, quantization=resolved.quantization
    )
    if resolved.quantization == "bnb-int8" and not config.int8_activations:
        from wsdm_ray.modeling.weight_only_int8 import use_weight_only_int8

        network = use_weight_only_int8(network)
    network = add_lora(network, config.lora, config.seed)
    if config.start_from:
        load_adapter_weights(network, local_copy(config.start_from))
    compiled = resolved.compile == "yes"
    if resolved.decoder:
        return DecoderModel(network, config, compiled, dtype, group)
    if compiled:
        compile_layers(network)
    return TransformersModel(network, config, compiled, group)


def check_gpu(quantization: str, capability: Capability) -> None:
    """Raise `ConfigError` where a GPU has no GEMMs in the precision of a base."""
    if not supports_capability(quantization, capability):
        least = LEAST_CAPABILITY[quantization]
        raise ConfigError(
            f"the base is held as {quantization}, for GPUs of compute capability {least[0]}.{least[1]} "
            f"or later, and there is one of {capability[0]}.{capability[1]}; give another --quantization or "
            "base"
        )


def check_alike(resolved: ResolvedOptions, group: WorkerGroup) -> None:
    """Raise `ConfigError` where workers, on GPUs of several kinds, would cut their steps differently."""
    found = dict.fromkeys(group.all_gather(resolved)) if group.can_exchange else {resolved: None}
    if len(found) > 1:
        shown = " and ".join(
            ", ".join(f"{name} {value}" for name, value in vars(each).items()) for each in found
        )
        raise ConfigError(
            f"the workers' GPUs are of several kinds, on which options mean different things ({shown}); give "
            "GPUs of one kind, or these options"
        )


class ActivationMemory:
    """What is free of a GPU for micro-batches, beside weights, gradients and the optimizer's state.

    Args:
        network: of `add_lora`.
        reserved_bytes: of free memory, for others.
        shards: of the optimizer's state.
    """

    def __init__(
        self,
        network: nn.Module,
        config: TrainConfig,
        *,
        compiled: bool,
        reserved_bytes: int = 0,
        shards: int = 1,
    ):
        model: Any = unwrap_peft(network)
        self.config, self.shape = config, shape_of(model.config)
        self.sizes = self.shape, model.config.intermediate_size, config.lora.r
        self.compiled = compiled
        self.device = next(iter(trainable_parameters(network).values())).device.type
        if self.device != "cpu":
            trained = sum(parameter.numel() for parameter in trainable_parameters(network).values())
            taken = optimizer_bytes(config.optimizer.kind, shards) * trained + reserved_bytes
            self.free_bytes = 0.95 * free_gpu_bytes() - taken

    def token_budget(self, group: WorkerGroup) -> int:
        """The token budget that fits on the GPU of every worker, at most that of the options."""
        if self.device == "cpu":
            return self.config.token_budget
        asked, least = self.config.token_budget, least_token_budget(self.config)
        fits = budget_that_fits(
            asked,
            least,
            self.free_bytes,
            lambda tokens: least_activation_bytes(tokens, *self.sizes, compiled=self.compiled),
        )
        fits = asked - group.largest(asked - fits, self.device)  # the smallest of all workers
        if fits < asked:
            logger.warning("train: --token-budget is %d, which is what memory has room for", fits)
        return fits

    def recomputed_layers(self, tokens: int) -> int:
        """Layers that compute their activations again in the backward pass.

        Args:
            tokens: of the largest micro-batch.
        """
        option, layers = self.config.gradient_checkpointing, len(self.shape.layer_types)
        if option != "auto" or self.device == "cpu":
            return layers if option == "yes" else 0
        return layers_to_recompute(self.free_bytes, tokens, *self.sizes, compiled=self.compiled)


def enable_gradient_checkpointing(network: nn.Module, *, reentrant: bool) -> None:
    """Have each layer of a network of `add_lora` run again in the backward pass, whose input alone it keeps.

    Every transformers 5 has this name; later ones warn that another is preferred.

    Args:
        reentrant: without autograd in the forward pass. LLM.int8() keeps its inputs by other ways than
            autograd's, which are not seen otherwise.
    """
    model: Any = unwrap_peft(network)
    with peft_warnings():
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:  # which runs backward only where an input has a gradient
        model.enable_input_require_grads()
