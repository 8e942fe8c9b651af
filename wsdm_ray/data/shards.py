"""A stream of tables to a folder of canonical shards, in memory that grows with neither rows nor shards."""

from collections.abc import Callable, Iterable, Iterator
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from wsdm_ray import storage

__all__ = ["ROW_GROUP_ROWS", "write_shards"]

ROW_GROUP_ROWS = 2_000
ROW_GROUP_BYTES = 64 << 20
"""A row group is closed after the table that brings it to this size, however few its rows."""


def write_shards(
    folder: str,
    schema: pa.Schema,
    tables: Iterable[pa.Table],
    shard_rows: int,
    check: Callable[[], None] = lambda: None,
) -> list[int]:
    """Write `tables` as part-NNNNNN.parquet of `shard_rows` rows, each atomically; returns the rows of each.

    Row groups hold at most 2,000 rows. At least one file is written: an empty stream leaves its schema.

    Args:
        check: called before each shard gets its place; raises where the folder is another process's by now.
    """
    groups = row_groups(tables, shard_rows)
    counts: list[int] = []
    group = next(groups, schema.empty_table())
    while group is not None:
        counts.append(0)

        def write(file: IO[bytes]) -> None:
            nonlocal group
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                while group is not None and counts[-1] < shard_rows:
                    writer.write_table(group, row_group_size=max(1, len(group)))
                    counts[-1] += len(group)
                    group = next(groups, None)
            check()

        storage.write_atomic(storage.join(folder, f"part-{len(counts) - 1:06d}.parquet"), write)
    return counts


def row_groups(tables: Iterable[pa.Table], shard_rows: int) -> Iterator[pa.Table]:
    """The same rows cut into tables that are one row group each; no row group crosses the end of a shard."""
    waiting: list[pa.Table] = []
    rows = size = done = 0
    for table in tables:
        start = 0
        while start < len(table):
            most = min(ROW_GROUP_ROWS, shard_rows - done % shard_rows)
            piece = table.slice(start, most - rows)
            waiting.append(piece)
            start, rows, size = start + len(piece), rows + len(piece), size + piece.nbytes
            if rows == most or size >= ROW_GROUP_BYTES:
                yield pa.concat_tables(waiting)
                done += rows
                waiting, rows, size = [], 0, 0
    if waiting:
        yield pa.concat_tables(waiting)
