"""Lists of token ids of different lengths, as one array of values and one of offsets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

__all__ = ["Ragged"]


@dataclass(frozen=True)
class Ragged:
    """N lists of token ids.

    values: int32 [total]; offsets: int64 [N + 1]; list i is `values[offsets[i]:offsets[i + 1]]`.
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_lists(cls, lists: Sequence[np.ndarray]) -> "Ragged":
        offsets = np.zeros(len(lists) + 1, np.int64)
        np.cumsum([len(ids) for ids in lists], out=offsets[1:])
        values = np.concatenate(lists).astype(np.int32, copy=False) if lists else np.empty(0, np.int32)
        return cls(values, offsets)

    @classmethod
    def from_arrow(cls, array: pa.Array | pa.ChunkedArray) -> "Ragged":
        """From an Arrow `large_list<int32>` without nulls; copies no values."""
        whole = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
        if isinstance(whole, pa.ChunkedArray):  # combine_chunks of no chunks
            whole = pa.concat_arrays(whole.chunks or [pa.array([], pa.large_list(pa.int32()))])
        offsets = whole.offsets.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
        return cls(whole.values.to_numpy(zero_copy_only=False), offsets)

    def to_arrow(self) -> pa.Array:
        """As an Arrow `large_list<int32>`."""
        return pa.LargeListArray.from_arrays(
            pa.array(self.offsets, pa.int64()), pa.array(self.values, pa.int32())
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        """List `index`: int32 [length], a view."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N]."""
        return np.diff(self.offsets)
