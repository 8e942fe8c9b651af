"""The network of a training run: a frozen base with an adapter and a head that train, and what runs it.

DecoderModel       the training decoder: one row without padding, on GPUs and for 8-bit GEMMs
TransformersModel  the network's own forward pass
"""

from typing import Any, Protocol

import torch
from torch import nn

from wsdm_ray.config import TrainConfig
from wsdm_ray.modeling.adapter_io import load_adapter_weights
from wsdm_ray.modeling.classifier import (
    add_lora,
    compile_layers,
    load_network,
    ordering_logits,
    peft_warnings,
    trainable_parameters,
)
from wsdm_ray.modeling.frozen_weights import load_rows_network
from wsdm_ray.modeling.precision import W8A8
from wsdm_ray.modeling.training_decoder import TrainingDecoder, padded_tokens
from wsdm_ray.packing.layouts import Layout
from wsdm_ray.storage import local_copy
from wsdm_ray.telemetry import logger
from wsdm_ray.training.policy import ResolvedOptions, layers_to_recompute

__all__ = ["DecoderModel", "TrainingModel", "TransformersModel", "prepare_model"]


class TrainingModel(Protocol):
    """What a training run does with its network."""

    network: nn.Module

    def logits(self, layout: Layout) -> torch.Tensor:
        """Logits of each ordering of a micro-batch: float32 [S, 2]."""
        ...

    def row_tokens(self, tokens: int) -> int:
        """Tokens that a micro-batch of so many is laid out in, padding of the layout included."""
        ...

    def save_memory(self) -> bool:
        """Take less memory from now on, at the cost of time and of nothing else; False where that is done."""
        ...


class TransformersModel:
    """The network's own forward pass."""

    def __init__(self, network: nn.Module):
        self.network = network

    def logits(self, layout: Layout) -> torch.Tensor:
        return ordering_logits(self.network, layout)

    def row_tokens(self, tokens: int) -> int:
        return tokens

    def save_memory(self) -> bool:
        return False


class DecoderModel:
    """The training decoder. Args: as of `prepare_model`."""

    def __init__(self, network: nn.Module, config: TrainConfig, compiled: bool, dtype: torch.dtype):
        self.network, self.config = network, config
        self.decoder = TrainingDecoder(network, dtype, compiled=compiled)
        self.on_gpu = self.decoder.device.type == "cuda"
        self.decoder.recomputed = self.recomputed_layers()

    def recomputed_layers(self) -> int:
        """Layers whose activations are computed again in the backward pass."""
        layers, option = len(self.decoder.layers), self.config.gradient_checkpointing
        if option != "auto" or not self.on_gpu:
            return layers if option == "yes" else 0
        trained = sum(parameter.numel() for parameter in trainable_parameters(self.network).values())
        bytes_each = 4 + (2 if self.config.optimizer.kind == "adamw_8bit" else 8)  # gradient, AdamW's state
        torch.cuda.empty_cache()
        needed = layers_to_recompute(
            0.95 * torch.cuda.mem_get_info()[0] - bytes_each * trained,
            self.row_tokens(self.config.token_budget),
            self.decoder.shape,
            self.decoder.model.config.intermediate_size,
            self.config.lora.r,
        )
        if needed:
            logger.info("train: %d of %d layers recompute their activations, for memory", needed, layers)
        return needed

    def logits(self, layout: Layout) -> torch.Tensor:
        return self.decoder.logits(layout)

    def row_tokens(self, tokens: int) -> int:
        return padded_tokens(tokens, self.config.token_budget) if self.on_gpu else tokens

    def save_memory(self) -> bool:
        layers = len(self.decoder.layers)
        if self.decoder.recomputed == layers:
            return False
        self.decoder.recomputed = layers
        return True


def prepare_model(
    config: TrainConfig, base: str, resolved: ResolvedOptions, device: str, dtype: torch.dtype
) -> TrainingModel:
    """The model that `config` describes, its adapter and head new or those of an earlier run.

    Args:
        base: local folder of the base model.
        dtype: of everything that is neither quantized nor trained.
    """
    load: Any = load_rows_network if resolved.quantization in W8A8 else load_network
    network = load(
        base, config.head, seed=config.seed, device=device, dtype=dtype, quantization=resolved.quantization
    )
    if resolved.quantization == "bnb-int8" and not config.int8_activations:
        from wsdm_ray.modeling.weight_only_int8 import use_weight_only_int8

        network = use_weight_only_int8(network)
    if config.gradient_checkpointing == "yes" and not resolved.decoder:
        enable_gradient_checkpointing(network)
    network = add_lora(network, config.lora, config.seed)
    if config.start_from:
        load_adapter_weights(network, local_copy(config.start_from))
    compiled = resolved.compile == "yes"
    if resolved.decoder:
        return DecoderModel(network, config, compiled, dtype)
    if compiled:
        compile_layers(network)
    return TransformersModel(network)


def enable_gradient_checkpointing(network: nn.Module) -> None:
    """Have each layer run again in the backward pass instead of keeping its activations.

    Every transformers 5 has this name; later ones warn that another is preferred.
    """
    with peft_warnings():
        network.gradient_checkpointing_enable({"use_reentrant": False})  # pyright: ignore[reportCallIssue]
