"""Where the files of a run are: the folder of its record, and what is in a folder."""

import os
import re
from typing import Any

from wsdm_ray import storage
from wsdm_ray.errors import ConfigError, StorageError

__all__ = [
    "PRIVATE_FOLDER",
    "RUN_FILE",
    "STARTED_FILE",
    "TABLE_JOBS",
    "is_bare",
    "is_lease",
    "lease_name",
    "lease_number",
    "listed",
    "names_in",
    "place_of",
    "places_of",
    "run_folder",
]

RUN_FILE = "run.json"
STARTED_FILE = "_run.json"

TABLE_JOBS = ("ensemble", "score")
"""Jobs whose output folder is one table: it holds parquet files of one schema, and nothing else."""

PRIVATE_FOLDER = "_private"
"""Folder in `run_folder` for what a run needs only until it is finished. `HeldRun.finish` deletes all there
whose name begins with `_`."""

LEASE_NAME = re.compile(r"_lease-(\d{6,})\.json")


def run_folder(output: str) -> str:
    """The folder beside `output` for what a run of `TABLE_JOBS` writes besides its table.

    Raises:
        ConfigError: nothing can be beside `output`, a whole bucket.
    """
    whole = output if storage.is_remote(output) else storage.absolute(output)
    scheme, _, inner = whole.rpartition("://")
    if (scheme and "/" not in inner.rstrip("/")) or not inner.rstrip("/"):
        raise ConfigError(
            f"--output {output}: has no place for a folder beside it; choose a folder within it"
        )
    return whole.rstrip("/") + ".run"


def place_of(output: str, job: str) -> str:
    """The folder of a job's record."""
    return run_folder(output) if job in TABLE_JOBS else output


def places_of(output: str) -> tuple[str, ...]:
    """The folders where the record of an output may be."""
    try:
        return (run_folder(output), output)
    except ConfigError:
        return (output,)


def lease_name(number: int) -> str:
    """The file name of lease `number`."""
    return f"_lease-{number:06d}.json"


def lease_number(name: str) -> int | None:
    """The number of a lease by its file name; None where it is no lease's."""
    found = LEASE_NAME.fullmatch(name)
    return int(found[1]) if found else None


def is_lease(name: str) -> bool:
    """Whether a file of this name is a lease."""
    return lease_number(name) is not None


def names_in(folder: str) -> list[str]:
    """Sorted names of what is in a folder, if there is one, without leases and what a killed writer left."""
    return sorted(name for name in listed(folder) if not storage.is_leftover(name) and not is_lease(name))


def is_bare(folder: str, name: str) -> bool:
    """Whether `name` in a folder of a store has no objects: some stores show it when its last one is gone."""
    if not storage.is_remote(folder):
        return False
    fs, inner = storage.filesystem(storage.join(folder, name))
    with storage.errors_for(folder):
        below: Any = fs.find(inner, detail=True)
    return all(entry["type"] == "directory" for entry in below.values())  # s3fs lists the folder itself


def listed(folder: str) -> list[str]:
    """Names of all that is in a folder, if there is one."""
    fs, inner = storage.filesystem(folder)
    inner = inner.rstrip("/")
    with storage.errors_for(folder):
        try:
            if fs.isfile(inner):
                raise StorageError(f"{folder}: is a file; give a folder")
            found = [str(name).rstrip("/") for name in fs.ls(inner, detail=False)]
        except FileNotFoundError:
            return []
    return [os.path.basename(name) for name in found if name != inner]
