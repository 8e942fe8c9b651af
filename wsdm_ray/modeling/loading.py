"""A checkpoint as what scores it: the fused decoder, or a network of transformers.

The fused decoder is loaded one weight at a time: dequantized, the adapter merged in float32, and the sum
quantized by rows, on the device itself. What is held at any time is the result and one weight. Weights that
are stored in the precision that is asked for are not quantized again.
"""

import functools
from typing import Any

import torch
from torch import nn

from wsdm_ray.errors import ModelError
from wsdm_ray.modeling.adapter_io import load_adapter
from wsdm_ray.modeling.classifier import load_network, meta_model
from wsdm_ray.modeling.fused_decoder import FusedDecoder
from wsdm_ray.modeling.head import load_head, make_head, stored_head
from wsdm_ray.modeling.lora import read_adapter
from wsdm_ray.modeling.manifest import Manifest, folder_digest, read_manifest
from wsdm_ray.modeling.merging import Merged, read_base
from wsdm_ray.modeling.precision import W8A8, plan_here
from wsdm_ray.modeling.scorers import FusedClassifier, Scorer, TransformersScorer
from wsdm_ray.storage import local_copy

__all__ = [
    "load_classifier",
    "load_fused_classifier",
    "load_scorer",
    "local_base",
    "make_fused_decoder",
]


def load_scorer(
    folder: str,
    *,
    precision: str = "auto",
    device: str | None = None,
    base: str | None = None,
    verify: bool = True,
) -> tuple[Scorer, Manifest]:
    """A classifier ready to score, from a checkpoint folder (local or remote).

    Args:
        base: where the base is, if not where the manifest says.
        verify: compare the base's digest with the manifest's (reads all of its weights).

    Raises:
        ModelError: a part is missing or does not fit.
        ConfigError: the precision is not to be had.
    """
    plan = plan_here(precision, device, read_manifest(local_copy(folder)))
    if plan.fused:
        return load_fused_classifier(
            folder, precision=plan.precision, device=plan.device, base=base, verify=verify
        )
    network, manifest = load_classifier(
        folder, precision=plan.precision, device=plan.device, base=base, verify=verify
    )
    return TransformersScorer(network), manifest


@torch.no_grad()
def load_fused_classifier(
    folder: str,
    *,
    precision: str,
    device: str | None = None,
    base: str | None = None,
    verify: bool = True,
) -> tuple[FusedClassifier, Manifest]:
    """A fused decoder ready to score, from a checkpoint folder; the options are those of `load_scorer`.

    Args:
        precision: `fp32` or `bf16` (of everything), or `w8a8-int8` or `w8a8-fp8` (of GEMMs; all else is then
            of the device's own type).
    """
    folder = local_copy(folder)
    manifest = read_manifest(folder)
    assert manifest.head is not None
    plan = plan_here(precision, device, manifest)
    if manifest.kind == "adapter":
        weights = read_base(local_base(folder, manifest, base, verify))
        merged = Merged(base=weights, adapters=(read_adapter(folder, weights.config),))
        head = make_head(manifest.head, weights.config.hidden_size, seed=0)
        head.load_state_dict(merged.adapters[0].head())
    else:
        merged = Merged(base=read_base(folder), adapters=())
        head = stored_head(folder, manifest.head, merged.base.config.hidden_size)
    decoder = make_fused_decoder(merged, plan.weights, plan.device, plan.activations)
    return FusedClassifier(decoder, head.eval().requires_grad_(False)), manifest


def make_fused_decoder(
    merged: Merged, precision: str, device: str, dtype: torch.dtype, num_layers: int | None = None
) -> FusedDecoder:
    """The fused decoder of a base with adapters; the other arguments are those of `FusedDecoder`."""
    return FusedDecoder(
        functools.partial(merged.parameter, device=device),
        merged.base.config,
        meta_model(merged.base.config).get_submodule("model.rotary_emb"),
        quantized_weight=functools.partial(merged.rows, precision=precision, device=device),
        precision=precision,
        device=device,
        dtype=dtype,
        num_layers=num_layers,
    )


def load_classifier(
    folder: str,
    *,
    precision: str = "fp32",
    device: str | None = None,
    base: str | None = None,
    verify: bool = True,
) -> tuple[nn.Module, Manifest]:
    """A network of transformers ready to score, from a checkpoint folder (local or remote).

    With `fp32` or `bf16` the weights are dequantized and the adapter is merged, in float32; otherwise the
    base stays quantized as it was trained and the adapter is beside it.

    Args:
        precision: `fp32`, `bf16`, `bnb-int8` or `nf4`; for others, and for checkpoints stored in them, there
            is `load_scorer`.
        base: where the base is, if not where the manifest says.
        verify: compare the base's digest with the manifest's (reads all of its weights).

    Raises:
        ModelError: a part is missing or does not fit.
        ConfigError: the precision is not to be had.
    """
    folder = local_copy(folder)
    manifest = read_manifest(folder)
    assert manifest.head is not None
    plan = plan_here(precision, device, manifest)
    if manifest.quantization in W8A8 or plan.precision in W8A8:
        raise ModelError(
            f"{folder}: a network of transformers cannot run {plan.precision} of it; use load_scorer"
        )
    weights = local_base(folder, manifest, base, verify) if manifest.kind == "adapter" else folder
    network: Any = load_network(
        weights,
        manifest.head,
        seed=0,
        device=plan.device,
        dtype=torch.float32 if plan.merged else plan.activations,
        # An adapter was trained beside quantized weights: it is merged into these, dequantized.
        quantization=manifest.quantization if plan.merged else plan.weights,
    )
    if plan.merged and manifest.quantization != "none":
        network = network.dequantize(dtype=torch.float32)
    if manifest.kind == "adapter":
        network = load_adapter(network, folder)
        if plan.merged:
            network = network.merge_and_unload()
    else:
        load_head(network, folder)
    if plan.merged and plan.activations != torch.float32:
        head, network.score = network.score, nn.Identity()  # the head stays float32
        for parameter in network.parameters():  # and so do buffers, such as the frequencies of positions
            parameter.data = parameter.data.to(plan.activations)
        network.score = head
    return network.requires_grad_(False).eval(), manifest


def local_base(folder: str, manifest: Manifest, base: str | None, verify: bool) -> str:
    """The local folder of an adapter's base, whose digest fits."""
    assert manifest.base is not None
    where = base or manifest.base
    try:
        local = local_copy(where, only_cached=base is None)
    except OSError as error:
        raise ModelError(f"{folder}: its base {where} cannot be had ({error}); use --base FOLDER") from error
    if verify and (found := folder_digest(local)) != manifest.base_digest:
        raise ModelError(
            f"{folder}: was trained on a base with digest {str(manifest.base_digest)[:12]}, but {where} has "
            f"{found[:12]}; use --base with the base it was trained on"
        )
    return local
