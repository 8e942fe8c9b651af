"""A checkpoint as what scores it: a stack, or a network of transformers.

A stack is loaded one weight at a time: dequantized, the adapter merged in float32, and the sum quantized by
rows, on the device itself. What is held at any time is the result and one weight; weights that are stored in
the rows that are asked for are taken as they are.
"""

import functools

import torch

from wsdm_ray.modeling.checkpoint import (
    IN_ROWS,
    Manifest,
    load_classifier,
    local_base,
    read_manifest,
    resolve_precision,
    stored_head,
)
from wsdm_ray.modeling.classifier import device_and_dtype, make_head
from wsdm_ray.modeling.fused_decoder import FusedDecoder
from wsdm_ray.modeling.merging import Merged, meta_model, read_adapter, read_base
from wsdm_ray.modeling.scorers import FusedClassifier, Scorer, TransformersScorer
from wsdm_ray.storage import local_copy

__all__ = ["load_fused_classifier", "load_scorer", "make_fused_decoder", "uses_fused_decoder"]


def uses_fused_decoder(precision: str, device: str, manifest: Manifest) -> bool:
    """Whether a checkpoint in a precision (not `auto`) is scored by a stack.

    The products in 8-bit rows are the stack's own, transformers has no reader for what is stored so, and
    merged weights run faster on it wherever there is a GPU for FlexAttention. bitsandbytes' precisions keep
    the adapter beside the base, which is for networks of transformers.
    """
    return (
        precision in ("int8", "fp8")
        or manifest.quantization in IN_ROWS
        or (device == "cuda" and precision == "bf16")
    )


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
    manifest = read_manifest(local_copy(folder))
    device = device_and_dtype("auto", device)[0]
    precision = resolve_precision(precision, device, manifest)
    if uses_fused_decoder(precision, device, manifest):
        return load_fused_classifier(folder, precision=precision, device=device, base=base, verify=verify)
    network, _ = load_classifier(folder, precision=precision, device=device, base=base, verify=verify)
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
    """A stack ready to score, from a checkpoint folder; the options are those of `load_scorer`.

    Args:
        precision: `fp32` or `bf16` (of everything), or `int8` or `fp8`, of the products; activations are
            then of the device's own type.
    """
    folder = local_copy(folder)
    manifest = read_manifest(folder)
    assert manifest.head is not None
    products = precision if precision in ("int8", "fp8") else "none"
    device, dtype = device_and_dtype("auto" if products != "none" else precision, device)
    if manifest.kind == "adapter":
        found = read_base(local_base(folder, manifest, base, verify))
        merged = Merged(base=found, adapters=(read_adapter(folder, found.config),))
    else:
        merged = Merged(base=read_base(folder), adapters=())
    stack = make_fused_decoder(merged, products, device, dtype)
    if manifest.kind == "adapter":
        head = make_head(manifest.head, stack.shape.hidden_size, seed=0)
        head.load_state_dict(merged.adapters[0].head())
    else:
        head = stored_head(folder, manifest.head, stack.shape.hidden_size)
    return FusedClassifier(stack, head.eval().requires_grad_(False)), manifest


def make_fused_decoder(
    merged: Merged, precision: str, device: str, dtype: torch.dtype, num_layers: int | None = None
) -> FusedDecoder:
    """The stack of a base with adapters; the other arguments are those of `FusedDecoder`."""
    return FusedDecoder(
        functools.partial(merged.parameter, device=device),
        merged.base.config,
        meta_model(merged.base.config).get_submodule("model.rotary_emb"),
        rows=functools.partial(merged.rows, precision=precision, device=device),
        precision=precision,
        device=device,
        dtype=dtype,
        num_layers=num_layers,
    )
