"""Which backend of attention the fused decoder scores with."""

import torch

from wsdm_ray.modeling.attention.block_sparse import BlockSparseAttention, SoftcappedAttention
from wsdm_ray.modeling.attention.dense import DenseAttention
from wsdm_ray.modeling.attention.protocol import AttentionBackend
from wsdm_ray.modeling.attention.tiling import Tiling
from wsdm_ray.modeling.families import Shape

__all__ = ["scoring_backend"]


def scoring_backend(
    shape: Shape, device: torch.device | str, tiling: Tiling, row_tokens: int | None = None
) -> AttentionBackend:
    """The backend for a model; it is to be updated with each batch.

    Args:
        tiling: of `tiling_of`, for the model on this device.
        row_tokens: tokens of every batch, a multiple of `BLOCK`, for block-sparse masks; None for dense ones.
    """
    layer_types, window = set(shape.layer_types), shape.sliding_window
    if row_tokens is None:
        return DenseAttention(layer_types, window, device)
    backend = SoftcappedAttention if tiling.softcapped else BlockSparseAttention
    return backend(row_tokens, layer_types, window, device, tiling)
