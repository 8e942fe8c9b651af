"""Digests of texts: 16 bytes of BLAKE2b each; many of them are a numpy array of dtype S16."""

import hashlib
from collections.abc import Iterable

import numpy as np

__all__ = ["DIGEST", "digest", "digests"]

DIGEST = np.dtype("S16")


def digests(values: Iterable[str | int]) -> np.ndarray:
    """Digests of strings or integers (N,)."""
    return np.array([digest(str(value)) for value in values], DIGEST)


def digest(*texts: str) -> bytes:
    """The digest of one or more texts, 16 bytes; where one ends matters."""
    total = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = text.encode()
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.digest()
