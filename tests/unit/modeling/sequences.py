"""Random token sequences for tests."""

import numpy as np

from wsdm_ray.packing.ragged import Ragged


def random_pairs(sizes: list[tuple[int, int]], seed: int) -> tuple[Ragged, list[Ragged]]:
    """Prefixes and both orderings' suffixes of these lengths, of ids that are not special."""
    random = np.random.default_rng(seed)
    prefix, ab, ba = (
        Ragged.from_lists([random.integers(4, 400, size[column], np.int32) for size in sizes])
        for column in (0, 1, 1)
    )
    return prefix, [ab, ba]
