"""The network of a training run: a frozen base with an adapter and a head that train."""

import torch
from torch import nn

from wsdm_ray.config import TrainConfig
from wsdm_ray.modeling.adapter_io import load_adapter_weights
from wsdm_ray.modeling.classifier import add_lora, compile_layers, load_network, peft_warnings
from wsdm_ray.storage import local_copy
from wsdm_ray.training.policy import ResolvedOptions

__all__ = ["prepare_model"]


def prepare_model(
    config: TrainConfig, base: str, resolved: ResolvedOptions, device: str, dtype: torch.dtype
) -> nn.Module:
    """The model that `config` describes, its adapter and head new or those of an earlier run.

    Args:
        base: local folder of the base model.
        dtype: of everything that is neither quantized nor trained.
    """
    network = load_network(
        base, config.head, seed=config.seed, device=device, dtype=dtype, quantization=resolved.quantization
    )
    if resolved.quantization == "bnb-int8" and not config.int8_activations:
        from wsdm_ray.modeling.weight_only_int8 import use_weight_only_int8

        network = use_weight_only_int8(network)
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(network)
    network = add_lora(network, config.lora, config.seed)
    if config.start_from:
        load_adapter_weights(network, local_copy(config.start_from))
    if resolved.compile == "yes":
        compile_layers(network)
    return network


def enable_gradient_checkpointing(network: nn.Module) -> None:
    """Have each layer run again in the backward pass instead of keeping its activations.

    Every transformers 5 has this name; later ones warn that another is preferred.
    """
    with peft_warnings():
        network.gradient_checkpointing_enable({"use_reentrant": False})  # pyright: ignore[reportCallIssue]
