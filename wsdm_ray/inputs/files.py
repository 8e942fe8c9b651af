"""Which files an input is: each with its place below what was named, and what its folders say of its rows.

In a folder, and of what a glob matches, these are read: files with an ending of `tables`; where there are
none, `.json`, which elsewhere lies beside data to describe it; where there is neither, names without an
ending, such as Hive and Athena write. What else looks like data is named in a warning, hidden files (`_` or
`.` at the start) too; folders that tools keep for themselves (`_delta_log`, `.git`) hold no rows. A file that
is named itself is read whatever its name.

`KEY=VALUE/` is a partition, as Hive writes it, whatever the key begins with: below what was named, and
directly above it. A folder of `datasets.save_to_disk` is its Arrow files in its own order.
"""

import functools
import logging
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from wsdm_ray import storage
from wsdm_ray.errors import DataError, StorageError
from wsdm_ray.inputs.tables import is_json, is_table

__all__ = ["InputFile", "input_paths", "list_inputs", "listed_versions", "with_partitions"]

logger = logging.getLogger(__name__)

TOOLS_OWN = re.compile(r"(^|/)(_delta_log|_checkpoints|\.hoodie|__MACOSX|\.ipynb_checkpoints|\.git|\.cache)/")
MARKERS = re.compile(
    r"(^|/)(_SUCCESS|_metadata|_common_metadata|(_committed|_started)_[^/]*|\._[^/]*|\.DS_Store|[^/]*\.crc)$"
)

WITHOUT_ENDING = re.compile(r"(^|/)(?!Makefile$|Dockerfile$)[^/.]*[a-z\d][^/.]*$")
"""Unlike LICENSE."""

NULL = "__HIVE_DEFAULT_PARTITION__"

INTEGER = re.compile(r"0|-?[1-9]\d{0,17}")
"""As an integer is spelled: 01 stays text, since nothing else would tell it from 1."""

NAMED = 10
"""Files that a warning names; of others, it says how many there are."""


@dataclass(frozen=True)
class InputFile:
    """One file of an input.

    path: with its scheme. name: its path below the folder that was named, or its file name, without the
    endings that say its kind: ids made of it differ where the files do. partitions: columns that its folders
    name (`year=2024/`), which hold one value for all its rows; None is null. integers: those of them that
    are integers in every file of the input. version: that it had when the input was listed.
    """

    path: str
    name: str
    partitions: tuple[tuple[str, str | None], ...] = ()
    integers: frozenset[str] = frozenset()
    version: storage.FileVersion | None = None


def input_paths(paths: Sequence[str]) -> list[str]:
    """The paths alone of `list_inputs`."""
    return [file.path for file in list_inputs(paths)]


def list_inputs(paths: Sequence[str]) -> list[InputFile]:
    """Files that `paths` (files, folders, globs) name, in the order of `paths`, sorted within each.

    Raises:
        StorageError: a path that does not exist, or names no file.
        DataError: a folder of `datasets` has several splits, or lacks a file that it lists.
    """
    roots, versions = {}, {}
    for path in storage.expand_hub(paths):
        found = storage.find_files(path)
        names = chosen(found)
        if not names and not (MARKERS.search(path) and len(paths) > 1):  # as `DIR/*` of a shell gives them
            raise StorageError(
                f"{path}: holds no file that ends with .parquet, .arrow, .csv or .jsonl, or another ending "
                "that is read; name the files themselves, or convert them"
            )
        for name in names:
            roots.setdefault(found.path_of(name), found.root)
            versions.setdefault(found.path_of(name), found.versions.get(name))
    kept = storage.each_once(roots)
    for path in kept:
        if not is_utf8(path):
            raise DataError(f"{path!a}: the name is not UTF-8, which no record can hold; rename the file")
    partitions = [partitions_of(path, roots[path]) for path in kept]
    integers = integers_in(partitions)
    return [
        InputFile(path, name, tuple(values.items()), integers.intersection(values), versions[path])
        for path, name, values in zip(
            kept, distinct_names(kept, [roots[path] for path in kept]), partitions, strict=True
        )
    ]


def is_utf8(name: str) -> bool:
    """Whether a name can be written; Python has surrogates for what it could not decode."""
    return name.isascii() or name.encode("utf-8", "replace").decode() == name


def listed_versions(files: Sequence[InputFile]) -> dict[str, dict[str, Any]]:
    """Size, version and place of each file by its path, as they were listed: what a fingerprint keeps."""
    return {
        file.path: {"bytes": file.version.size, "version": file.version.stamp, "place": place}
        for place, file in enumerate(files)
        if file.version
    }


def with_partitions(table: pa.Table, file: InputFile) -> pa.Table:
    """The table with the columns that the file's folders name after its own, where it lacks them."""
    for name, value in file.partitions:
        if name not in table.column_names:
            kind = pa.int64() if name in file.integers else pa.string()
            item = pa.scalar(int(value) if value is not None and name in file.integers else value, kind)
            table = table.append_column(name, pa.repeat(item, len(table)))
    return table


def chosen(found: storage.Found) -> list[str]:
    """The names that are read, in their order; a warning names the others that look like data."""
    names = [name for name in found.names if not MARKERS.search(name)]
    if found.is_file:
        return names
    check_delta(found)
    check_splits(found)
    names = [name for name in names if not describes_data(name, found)]
    shown = [name for name in names if found.hidden_too or not storage.is_hidden(name)]
    tiers = (is_table, is_json, lacks_ending)
    read = in_saved_order(found, next((some for tier in tiers if (some := list(filter(tier, shown)))), []))
    left = [name for name in names if storage.looks_like_data(name) or lacks_ending(name)]
    warn_of_left_out(found.root, *sorted(set(left) - set(read)))
    return read


def lacks_ending(name: str) -> bool:
    return WITHOUT_ENDING.search(name) is not None


def describes_data(name: str, found: storage.Found) -> bool:
    """Whether a file of a folder holds no rows: what tools keep for themselves, or write of their data.

    `datasets` saves a set with a state.json, beside which `map` and `filter` leave the files of their cache.
    """
    folder, file = posixpath.split(name)
    if TOOLS_OWN.search(name) or storage.is_description(name):
        return True
    of_saved = file == "state.json" or file.startswith("cache-")
    return of_saved and posixpath.join(folder, "dataset_info.json") in found.names


@functools.cache
def warn_of_left_out(root: str, *names: str) -> None:
    """Once for a folder, however often it is listed."""
    if names:
        more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
        logger.warning(
            "%s: left out, though it looks like data: %s%s; to read it, name the file itself, or convert it",
            root, ", ".join(names[:NAMED]), more,
        )  # fmt: skip


def check_delta(found: storage.Found) -> None:
    """Warn of a Delta table that was changed: its folder also holds the files of its older versions."""
    if sum(re.search(r"(^|/)_delta_log/\d+\.json$", name) is not None for name in found.names) > 1:
        warn_of_delta(found.root)


@functools.cache
def warn_of_delta(root: str) -> None:
    logger.warning(
        "%s: a Delta table of several versions, whose older files are read too; export the present one, or "
        "VACUUM it, if rows were changed or deleted", root,
    )  # fmt: skip


def in_saved_order(found: storage.Found, names: list[str]) -> list[str]:
    """`names` with the Arrow files of each folder of `datasets.save_to_disk` as its state.json lists them."""
    order: dict[str, str] = {}
    for folder in folders_with("state.json", found):
        for place, file in enumerate(saved_files(found.root, folder)):
            name = posixpath.join(folder, file)
            if name not in found.names:
                where = storage.join(found.root, folder)
                raise DataError(f"{where}: state.json lists {file}, which is not there; copy it back")
            order[name] = posixpath.join(folder, f"{place:09d}")
    saved = {posixpath.dirname(name) for name in order}
    kept = [name for name in names if name in order or posixpath.dirname(name) not in saved]
    return sorted(kept, key=lambda name: order.get(name, name))


def folders_with(file: str, found: storage.Found) -> list[str]:
    return [posixpath.dirname(name) for name in found.names if posixpath.basename(name) == file]


def saved_files(root: str, folder: str) -> tuple[str, ...]:
    """The files that a folder's state.json lists; none where it is not of `datasets`."""
    state = storage.read_json(storage.join(root, folder, "state.json"))
    files = state.get("_data_files") if isinstance(state, dict) else None
    return tuple(str(file.get("filename")) for file in files or () if isinstance(file, dict))


def check_splits(found: storage.Found) -> None:
    """Raise `DataError` where a DatasetDict has several splits: test rows are no training rows."""
    for folder in folders_with("dataset_dict.json", found):
        path = storage.join(found.root, folder) if folder else found.root
        content = storage.read_json(storage.join(path, "dataset_dict.json"))
        splits = content.get("splits") if isinstance(content, dict) else None
        if isinstance(splits, list) and len(splits) > 1:
            names = ", ".join(map(str, splits))
            raise DataError(f"{path}: has the splits {names}; name one, such as {path}/{splits[0]}")


def partitions_of(path: str, root: str) -> dict[str, str | None]:
    """The columns that the folders of a file name: those below `root`, and the last ones of `root`."""
    above, below = root.split("/"), path.removeprefix(root).strip("/").split("/")[:-1]
    first = len(above)
    while first and storage.is_partition(above[first - 1]):
        first -= 1
    pairs = [folder.split("=", 1) for folder in (*above[first:], *below) if storage.is_partition(folder)]
    return {unquote(key): None if value == NULL else unquote(value) for key, value in pairs}


def integers_in(partitions: list[dict[str, str | None]]) -> frozenset[str]:
    """The columns of which every value is an integer in 64 bits, or null, and not all are null."""
    values = defaultdict(set)
    for columns in partitions:
        for name, value in columns.items():
            values[name].add(value)
    return frozenset(
        name
        for name, some in values.items()
        if some != {None} and all(value is None or INTEGER.fullmatch(value) for value in some)
    )


def distinct_names(paths: list[str], roots: list[str]) -> list[str]:
    """The name of each file below its root, without endings; with them, or with folders above it, where two
    files would have the same."""
    stems = [without_endings(path) for path in paths]
    while len(set(stems)) < len(stems):
        seen = Counter(stems)
        stems = [path if seen[stem] > 1 else stem for path, stem in zip(paths, stems, strict=True)]
    names = [stem.removeprefix(root).removeprefix("/") for stem, root in zip(stems, roots, strict=True)]
    while len(set(names)) < len(names):
        seen = Counter(names)
        names = [
            one_folder_more(name, stem) if seen[name] > 1 else name
            for name, stem in zip(names, stems, strict=True)
        ]
    return names


def one_folder_more(name: str, stem: str) -> str:
    above = stem.removesuffix(name).rstrip("/").rpartition("/")[2]
    return f"{above}/{name}" if above else name


def without_endings(path: str) -> str:
    """The path without the ending that says its kind, and without that of its compression."""
    return posixpath.splitext(re.sub(r"\.(gz|bz2|xz|zst)$", "", path, flags=re.IGNORECASE))[0]
