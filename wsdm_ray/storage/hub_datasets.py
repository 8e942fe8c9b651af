"""Data sets of the Hugging Face Hub as files: which of a repository's files a configuration and a split are.

    hf://datasets/OWNER/NAME[@REVISION][/CONFIG][:SPLIT]    SPLIT may be several: train+validation
    hf://datasets/OWNER/NAME[@REVISION]/PATH                a file, a folder or a glob of the repository

What belongs to a split is decided by the `datasets` library, from the names of the files and the metadata of
README.md, before any of them is fetched. Not covered: what the files hold, and slices of splits.
"""

import fnmatch
import logging
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from wsdm_ray.errors import StorageError
from wsdm_ray.storage.hub import HUB, Repository, commit_of, fetch, list_repository, parse_repository
from wsdm_ray.storage.names import is_description, is_hidden

__all__ = ["expand_hub", "resolve_dataset"]

METADATA = ("README.md", ".huggingface.yaml", "dataset_infos.json")

SLICE = re.compile(r":[\w.+-]*\[[^\]/]*\]$")

SPLIT = re.compile(r":([^/:@]*)$")

DATA = re.compile(
    r"\.(parquet|pq|arrow|feather|jsonl?|ndjson|csv|tsv)(\.(gz|bz2|xz|zst|zip))?$", re.IGNORECASE
)

NOT_OF_A_FOLDER = (re.compile(r"\.zip$|\.json(\.\w+)?$", re.IGNORECASE), re.compile(r"\.zip$", re.IGNORECASE))
"""What of a folder is left out: archives, and `.json`, which describes data, unless there is nothing else."""


def expand_hub(paths: Sequence[str]) -> list[str]:
    """`paths` with the files of each data set of the Hub in its place; others stay as they are.

    Raises:
        StorageError: as of `resolve_dataset`.
    """
    return [file for path in paths for file in (resolve_dataset(path) if path.startswith(HUB) else [path])]


def resolve_dataset(uri: str) -> list[str]:
    """The files that a data set's URI names, each as hf:// with its commit.

    All are in this machine's cache then; another one that opens such a file fetches it.

    Raises:
        StorageError: there is no such data set, configuration, split or file, or it cannot be had.
    """
    if SLICE.search(uri):
        raise StorageError(f"{uri}: slices of splits are not read; name whole splits")
    match = SPLIT.search(uri)
    split = match[1] if match else None
    given = parse_repository(uri[: match.start()] if match else uri, uri)
    if given.kind != "dataset":
        raise StorageError(f"{uri}: is a model; write hf://datasets/{given.id}")
    if split is not None and not re.fullmatch(r"[\w.-]+(\+[\w.-]+)*", split):
        raise StorageError(f"{uri}: {split or '(empty)'} is no split; write :train or :train+validation")
    if given.is_pinned and split is None and DATA.search(given.path) and not re.search(r"[*?[]", given.path):
        return [given.uri()]  # as it comes from here
    repository = commit_of(given)
    files = files_of(repository, split)
    # A bracket in a name is no pattern.
    fetch(repository, [re.sub(r"([*?[])", r"[\1]", path) for path in files])
    return [repository.uri(path) for path in files]


def files_of(repository: Repository, split: str | None) -> list[str]:
    """Paths of the files of a split, or of a place, of a pinned data set; in order, not fetched."""
    names = [name for name in list_repository(repository) if ".." not in name.split("/")]
    with tempfile.TemporaryDirectory() as work:
        outline = os.path.join(os.path.realpath(work), "data set")
        draw_outline(outline, names, fetch(repository, METADATA))
        configs = config_names(outline)
        place = repository.path.strip("/")
        if place and place not in configs:
            return files_at(repository, place, names, configs, split)
        splits = splits_of(outline, repository, place or None, configs)
    return files_of_splits(repository, splits, split)


def draw_outline(folder: str, names: Sequence[str], metadata: str) -> None:
    """Write the repository's metadata, and an empty file for every other of its files."""
    for name in names:
        target = Path(folder, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        source = Path(metadata, name)
        target.write_bytes(source.read_bytes() if name in METADATA and source.is_file() else b"")


def config_names(outline: str) -> list[str]:
    """Names of the configurations; none where the files show none."""
    import datasets

    # It says of every README.md without metadata that it has none.
    logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)
    try:
        return datasets.get_dataset_config_names(outline)
    except (OSError, ValueError):
        return []


def splits_of(
    outline: str, repository: Repository, config: str | None, configs: Sequence[str]
) -> dict[str, list[str]]:
    """Paths of the files of each split of a configuration."""
    import datasets

    try:
        with tempfile.TemporaryDirectory() as cache:
            builder = datasets.load_dataset_builder(outline, config, cache_dir=cache)
    except (OSError, ValueError) as error:
        if config is None and len(configs) > 1:
            raise StorageError(
                f"{repository.given}: has the configurations {', '.join(configs)}; add one: "
                f"hf://datasets/{repository.id}/{configs[0]}"
            ) from error
        raise StorageError(
            f"{repository.given}: holds no data files that can be read as they are; try its parquet files, "
            f"hf://datasets/{repository.id}@refs/convert/parquet"
        ) from error
    found: Mapping[str, Sequence[str]] = builder.config.data_files or {}  # pyright: ignore[reportAssignmentType]
    return {
        str(split): [os.path.relpath(os.path.realpath(path), outline) for path in paths]
        for split, paths in found.items()
    }


def files_of_splits(
    repository: Repository, splits: Mapping[str, Sequence[str]], asked: str | None
) -> list[str]:
    """Files of the splits that were asked for; of the only one where none was."""
    if asked is None and len(splits) > 1:
        raise StorageError(
            f"{repository.given}: has the splits {', '.join(splits)}; add one, such as "
            f":{next(iter(splits))}, or all, :{'+'.join(splits)}"
        )
    chosen = list(splits) if asked is None else asked.split("+")
    for split in chosen:
        if split not in splits:
            raise StorageError(f"{repository.given}: no split {split}; there are {', '.join(splits)}")
    return list(dict.fromkeys(path for split in chosen for path in splits[split]))


def files_at(
    repository: Repository, place: str, names: Sequence[str], configs: Sequence[str], split: str | None
) -> list[str]:
    """Files that a path names: itself, those of a folder, or matches of a glob."""
    found = [name for name in names if name == place]
    found = found or data_among([name for name in names if name.startswith(place + "/")], place + "/")
    fixed = re.split(r"[*?[]", place)[0].rpartition("/")[0]
    found = found or data_among([name for name in names if fnmatch.fnmatchcase(name, place)], fixed)
    if not found:
        known = f"; its configurations are {', '.join(configs)}" if configs else ""
        raise StorageError(f"{repository.given}: no configuration and no data file {place}{known}")
    if split is not None:
        raise StorageError(
            f"{repository.given}: {place} is a path, which has no splits; leave :{split} out, or name a "
            "configuration"
        )
    return found


def data_among(names: Sequence[str], folder: str) -> list[str]:
    """The data files among names below a folder, by the rules of folders elsewhere (`inputs.files`)."""
    below = {name: name.removeprefix(folder).lstrip("/") for name in names}
    shown = [
        name
        for name, rest in below.items()
        if DATA.search(name) and not is_hidden(rest) and not is_description(name)
    ]
    tiers = ([name for name in shown if not left.search(name)] for left in NOT_OF_A_FOLDER)
    return next(filter(None, tiers), [])
