"""What the tests of attention share: layouts of pairs, and as much of a config as masks need."""

import numpy as np

from wsdm_ray.packing.layouts import Layout, lay_out
from wsdm_ray.packing.ragged import Ragged

__all__ = ["Config", "layout_of"]


class Config:
    """As much of a model's config as masks need; of a family without layer types unless it is said."""

    def __init__(self, **values):
        vars(self).update({"model_type": "llama"} | values)


def layout_of(
    kind: str, prefixes: list[int], suffixes: list[int], row_tokens: int = 0, alignment: int = 1
) -> Layout:
    """A layout of both orderings of pairs with prefixes and suffixes of these lengths."""
    prefix, suffix = (
        Ragged.from_lists([np.ones(size, np.int32) for size in sizes]) for sizes in (prefixes, suffixes)
    )
    pairs = np.arange(len(prefixes))
    return lay_out(kind, prefix, [suffix, suffix], pairs, row_tokens=row_tokens, alignment=alignment)
