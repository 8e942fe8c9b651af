"""What the names of files and folders say: what is hidden, a partition, or data."""

import re

__all__ = ["is_description", "is_hidden", "is_partition", "looks_like_data"]

LIKE_DATA = re.compile(
    r"\.(parquet|pq|arrow|feather|ipc|jsonl?|ndjson|csv|tsv|xlsx?|orc|avro|pkl|pickle)"
    r"(\.(gz|bz2|xz|zst|lz4|snappy|zip))?$|\.(zip|tar|tgz|tar\.\w+|7z|rar)$",
    re.IGNORECASE,
)
"""Names that a user would want to be read."""

OURS = re.compile(r"(^|/)(_?run|wsdm_ray)\.json$")


def is_hidden(name: str) -> bool:
    """Whether a name below a folder, or a folder in it, begins with `_` or `.`; `_key=value/` does not."""
    *folders, last = name.split("/")
    return last.startswith(("_", ".")) or any(
        folder.startswith(("_", ".")) and not is_partition(folder) for folder in folders
    )


def is_partition(folder: str) -> bool:
    """Whether a folder holds the rows with one value of a column, as Hive names it: `key=value`."""
    return folder.find("=") > 0


def looks_like_data(name: str) -> bool:
    """Whether a file of this name may hold rows of a user; `run.json` and its like are ours."""
    return LIKE_DATA.search(name) is not None and not OURS.search(name)


DESCRIPTIONS = re.compile(r"(^|/)(_?run|wsdm_ray|dataset_infos?|dataset_dict|dataset-metadata)\.json$")
"""What jobs, `datasets` and Kaggle write of their data."""


def is_description(name: str) -> bool:
    """Whether a file of this name describes data, and holds none."""
    return DESCRIPTIONS.search(name) is not None
