"""Memory that the weights of safetensors files take in a precision, by their headers alone."""

import math
from collections.abc import Sequence

from safetensors import safe_open

from wsdm_ray.modeling.head import HEADS
from wsdm_ray.modeling.precision import BNB

__all__ = ["streamed_bytes", "weight_bytes"]

STREAMED_BYTES = {"fp32": (4, 4), "bf16": (2, 2), "w8a8-int8": (1, 2), "w8a8-fp8": (1, 2)}
"""Bytes of a number of a linear layer's weight, and of an embedding, in a fused decoder on a GPU."""

LEAST_COLUMNS = 512
"""A weight that is packed does not say how many columns it has; fewer would be those of a toy."""


def weight_bytes(files: Sequence[str], precision: str) -> int:
    """Memory that the weights in safetensors files take while a network of transformers loads them, in bytes.

    Merging an adapter is done in float32, whatever the result. In bitsandbytes' precisions, embeddings and
    norms have 2 bytes.
    """
    total = 0.0
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a dict)
                if name.split(".")[0] in HEADS:
                    continue
                part = file.get_slice(name)
                elements, kind = math.prod(part.get_shape()), part.get_dtype()
                if precision not in BNB:
                    packed = 2 if kind == "U8" else 1  # two weights of 4 bits in a byte
                    total += 4 * packed * elements
                elif kind in ("I8", "U8"):
                    total += elements
                elif len(part.get_shape()) < 2 or "embed" in name:
                    total += 2 * elements
                else:
                    total += elements * (1 if precision == "bnb-int8" else 0.5)
    return int(total)


def streamed_bytes(files: Sequence[str], precision: str) -> int:
    """Memory that the weights in safetensors files take while a fused decoder is made of them, in bytes.

    A linear layer's weight has the bytes of its precision and 4 a row, a norm 4 a number. One weight at a
    time is held in float32 too, three times while it is merged; the embedding, when nothing else is
    there yet. Heads are left out.
    """
    total = largest = embedding = 0
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a dict)
                if name.split(".")[0] in HEADS or ".weight." in name:  # what nf4 keeps of its scales
                    continue
                part = file.get_slice(name)
                shape, kind = part.get_shape(), part.get_dtype()
                packed = kind == "U8"  # two weights of 4 bits in a byte, in one column
                elements = math.prod(shape) * (2 if packed else 1)
                if len(shape) < 2:
                    total += 4 * elements
                elif "embed" in name:
                    total += STREAMED_BYTES[precision][1] * elements
                    embedding = 4 * elements
                else:
                    rows = elements // LEAST_COLUMNS if packed else shape[0]
                    total += STREAMED_BYTES[precision][0] * elements + 4 * rows
                    largest = max(largest, elements)
    return max(total + 3 * 4 * largest, 2 * embedding)
