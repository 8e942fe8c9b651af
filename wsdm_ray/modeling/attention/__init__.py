"""Attention for any layout.

mask_rule    which token may attend to which
protocol     what a backend answers and does
training     networks of transformers, with gradients: by `cu_seqlens`, or by dense masks
scoring      the fused decoder: by dense masks on CPUs, by block-sparse masks on GPUs
"""

from wsdm_ray.modeling.attention.block_sparse import BlockSparseAttention, SoftcappedAttention
from wsdm_ray.modeling.attention.dense import DenseAttention
from wsdm_ray.modeling.attention.mask_rule import attention_mask, dense_masks, to_device
from wsdm_ray.modeling.attention.protocol import AttentionBackend, Heads, TrainingBackend
from wsdm_ray.modeling.attention.scoring import scoring_backend
from wsdm_ray.modeling.attention.tiling import BLOCK, Tiling, tiling_of
from wsdm_ray.modeling.attention.training import (
    training_backend,
)

__all__ = [
    "BLOCK",
    "AttentionBackend",
    "BlockSparseAttention",
    "DenseAttention",
    "Heads",
    "SoftcappedAttention",
    "Tiling",
    "TrainingBackend",
    "attention_mask",
    "dense_masks",
    "scoring_backend",
    "tiling_of",
    "to_device",
    "training_backend",
]
