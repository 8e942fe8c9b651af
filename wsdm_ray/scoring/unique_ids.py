# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import)
"""Ids that are there twice, found in memory that does not grow with the rows.

Of each id only a hash of eight bytes is kept: in memory while they are few, else in files by their first
bits, of which one at a time is sorted. Two ids may have one hash, so whoever reads the ids again has the last
word (`first_twice`).
"""

import contextlib
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from wsdm_ray.storage import errors_for

__all__ = ["IdHashes", "first_twice", "hash_ids"]

IN_MEMORY = 4_000_000
"""Hashes that are kept before they go to files: 32 MB."""

PARTITION_BITS = 8

REPEATED = 1_000_000
"""The most hashes that are there twice and are looked for again."""

BLOCK_BYTES = 1 << 14
"""Bytes of ids that are hashed at a time. What is computed of them is 24 times as large, and each thread that
hashes keeps as much."""

WEIGHTS = np.random.default_rng(0).integers(1, 1 << 63, 4_096, np.uint64) | np.uint64(1)


def hash_ids(ids: pa.ChunkedArray) -> np.ndarray:
    """Hashes of ids, uint64 [N]; 7 and the text `7` have one.

    Args:
        ids: int64 or string, without nulls.
    """
    found = [hash_texts(chunk.cast(pa.large_string())) for chunk in ids.chunks]
    return np.concatenate([np.empty(0, np.uint64), *found])


def hash_texts(texts: pa.LargeStringArray) -> np.ndarray:
    """The sum of a text's bytes, each times the weight of its place, and of its length: uint64 [N]."""
    _, offsets, data = texts.buffers()
    if not len(texts):
        return np.empty(0, np.uint64)
    starts = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    content = np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)
    hashes = np.empty(len(texts), np.uint64)
    first = 0
    while first < len(texts):
        last = max(int(np.searchsorted(starts, starts[first] + BLOCK_BYTES, side="right")) - 1, first + 1)
        here = starts[first : last + 1]
        lengths = np.diff(here)
        places = np.arange(here[-1] - here[0]) - np.repeat(here[:-1] - here[0], lengths)
        products = content[here[0] : here[-1]] * WEIGHTS[places % len(WEIGHTS)]
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(products)])
        ends = here - here[0]
        hashes[first:last] = sums[ends[1:]] - sums[ends[:-1]] + lengths.astype(np.uint64)
        first = last
    return mix(hashes)


def mix(hashes: np.ndarray) -> np.ndarray:
    """The hashes with all bits mixed (splitmix64), so that the first bits are as good as any."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


class IdHashes:
    """Hashes of all ids of a run. A context: its files are deleted at the end. Threads may share it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.waiting: list[np.ndarray] = []
        self.number = 0
        self.folder: Path | None = None
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> "IdHashes":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stack.close()

    def add(self, hashes: np.ndarray) -> None:
        """Take hashes, uint64 [N]."""
        with self.lock:
            self.waiting.append(hashes)
            self.number += len(hashes)
            if self.number >= IN_MEMORY:
                self.write()

    def write(self) -> None:
        """Append what waits to the files of its partitions."""
        if self.folder is None:
            self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="wsdm_ray_ids_")))
        hashes = np.concatenate([np.empty(0, np.uint64), *self.waiting])
        self.waiting, self.number = [], 0
        hashes.sort()
        bounds = np.arange(1, 1 << PARTITION_BITS, dtype=np.uint64) << np.uint64(64 - PARTITION_BITS)
        with errors_for(str(self.folder)):
            for name, part in enumerate(np.split(hashes, np.searchsorted(hashes, bounds))):
                with (self.folder / str(name)).open("ab") as file:
                    file.write(part.data)

    def partitions(self) -> Iterator[np.ndarray]:
        """All hashes, those that are equal in the same array."""
        if self.folder is None:
            yield np.concatenate([np.empty(0, np.uint64), *self.waiting])
            return
        self.write()
        for path in sorted(self.folder.iterdir()):
            yield np.fromfile(path, np.uint64)

    def duplicates(self) -> tuple[int, np.ndarray]:
        """How many hashes an earlier one is equal to, and those that are there more than once, sorted."""
        count, repeated, number = 0, [np.empty(0, np.uint64)], 0
        for hashes in self.partitions():
            hashes.sort()
            again = hashes[1:][hashes[1:] == hashes[:-1]]
            count += len(again)
            if number < REPEATED:
                repeated.append(np.unique(again)[: REPEATED - number])
                number += len(repeated[-1])
        return count, np.sort(np.concatenate(repeated))


def first_twice(places: Iterable[tuple[int | str, str]]) -> tuple[int | str, list[str]] | None:
    """Of ids in order, each with its place, the first that comes again, and its first two places."""
    seen: dict[str, tuple[int | str, list[str]]] = {}
    for value, place in places:
        found = seen.setdefault(str(value), (value, []))[1]
        if len(found) < 2:
            found.append(place)
        earliest = next(iter(seen.values()))
        if len(earliest[1]) == 2:
            return earliest
    return next((found for found in seen.values() if len(found[1]) == 2), None)
