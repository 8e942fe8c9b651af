"""A checkpoint as a stack with 8-bit products, one layer at a time.

The adapter is merged into the dequantized base in float32, and the sum is quantized by rows: what is held
at any time is the result and one weight. Not covered: precisions that transformers runs
(`checkpoint.load_classifier`).
"""

import torch

from wsdm_ray.modeling.checkpoint import Manifest, load_head, local_base, read_manifest
from wsdm_ray.modeling.classifier import device_and_dtype, make_head
from wsdm_ray.modeling.merging import Merged, read_adapter, read_base, skeleton
from wsdm_ray.modeling.stack import Stack, StackClassifier
from wsdm_ray.storage import local_copy

__all__ = ["load_stack"]


@torch.no_grad()
def load_stack(
    folder: str,
    *,
    precision: str,
    device: str | None = None,
    base: str | None = None,
    verify: bool = True,
) -> tuple[StackClassifier, Manifest]:
    """A classifier ready to score, from a checkpoint folder (local or remote).

    Args:
        precision: of the products: `int8`, `fp8`, or `none` for the device's own type.
        base: where the base is, if not where the manifest says.
        verify: compare the base's digest with the manifest's (reads all of its weights).

    Raises:
        ModelError: a part is missing or does not fit.
    """
    folder = local_copy(folder)
    manifest = read_manifest(folder)
    assert manifest.head is not None
    device, dtype = device_and_dtype("auto", device)
    if manifest.kind == "adapter":
        found = read_base(local_base(folder, manifest, base, verify))
        merged = Merged(base=found, adapters=(read_adapter(folder, found.config),))
    else:
        merged = Merged(base=read_base(folder), adapters=())
    network = skeleton(merged.base.config)
    stack = Stack(
        merged.parameter,
        merged.base.config,
        network.get_submodule("model.rotary_emb"),
        precision=precision,
        device=device,
        dtype=dtype,
    )
    network.score = make_head(manifest.head, stack.shape.width, seed=0)
    if manifest.kind == "adapter":
        network.score.load_state_dict(merged.adapters[0].head())
    else:
        load_head(network, folder)
    return StackClassifier(stack, network.score.eval().requires_grad_(False)), manifest
