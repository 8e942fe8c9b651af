"""Which files an input is: each with its place below what was named, and what its folders say of its rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from wsdm_ray import storage

__all__ = ["InputFile", "list_inputs", "with_partitions"]

FOLDER_SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".csv")
"""What a folder is searched for. Not .json: folders of runs hold run.json."""


@dataclass(frozen=True)
class InputFile:
    """One file of an input.

    path: with its scheme. name: its path below the folder that was named, or its file name, without the
    endings that say its kind: ids made of it differ where the files do. partitions: columns that its folders
    name (`year=2024/`), which hold one value for all its rows; None is null.
    """

    path: str
    name: str
    partitions: tuple[tuple[str, str | None], ...] = ()


def list_inputs(paths: Sequence[str]) -> list[InputFile]:
    """Files that `paths` (files, folders, globs) name, in the order of `paths`, sorted within each.

    Raises:
        StorageError: a path that does not exist, or names no file.
    """
    return [
        InputFile(path, path.rsplit("/", 1)[-1].rsplit(".", 1)[0])
        for path in storage.list_files(paths, FOLDER_SUFFIXES)
    ]


def with_partitions(table: pa.Table, file: InputFile) -> pa.Table:
    """The table with the columns that the file's folders name after its own, where it lacks them."""
    for name, value in file.partitions:
        if name not in table.column_names:
            table = table.append_column(name, pa.array([value] * len(table), pa.string()))
    return table
