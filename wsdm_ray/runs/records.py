"""The record of a run: run.json once it is finished, and `_run.json` until then.

Each names the job, the fingerprint, and the claim: the number of the lease under which the folder was given
to this run, and a token. Of the two, the record with the higher number is in force: the other one was there
before, or comes from a process that was stopped, and wrote it after it had lost its lease.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from wsdm_ray import storage
from wsdm_ray.errors import DataError, StorageError
from wsdm_ray.legacy import modernize_run
from wsdm_ray.runs.fingerprint import plain
from wsdm_ray.runs.names import RUN_FILE, STARTED_FILE, TABLE_JOBS, names_in, places_of

__all__ = [
    "EarlierRun",
    "amend_run",
    "claim_of",
    "find_in",
    "find_run",
    "is_cut",
    "number_of",
    "read_record",
    "read_run",
]


class EarlierRun(NamedTuple):
    """The run that a folder belongs to. place: the folder of its record, which is run.json if it finished."""

    place: str
    finished: bool
    record: dict[str, Any]

    @property
    def path(self) -> str:
        """The file of its record."""
        return storage.join(self.place, RUN_FILE if self.finished else STARTED_FILE)


def claim_of(record: Mapping[str, Any]) -> str:
    """The claim of a record; runs of earlier versions have none."""
    return str(record.get("claim", ""))


def number_of(record: Mapping[str, Any]) -> int:
    """The number of the lease under which a record was claimed; 0 of earlier versions."""
    return int(claim_of(record).partition(" ")[0] or 0)


def find_run(output: str) -> EarlierRun | None:
    """The run that a folder belongs to: its record lies beside the folder or within it."""
    for place in places_of(output):
        earlier = find_in(place)
        if earlier and (place == output or earlier.record["job"] in TABLE_JOBS):
            return earlier
    return None


def find_in(place: str) -> EarlierRun | None:
    """The run whose record lies in a folder."""
    while True:
        names = names_in(place)
        there = [name for name in (STARTED_FILE, RUN_FILE) if name in names]
        records = {name: read_record(storage.join(place, name)) for name in there}
        if None not in records.values():  # a run that finished meanwhile has another file now
            break
    started, finished = records.get(STARTED_FILE), records.get(RUN_FILE)
    if finished and not (started and number_of(started) > number_of(finished)):
        return EarlierRun(place, True, modernize_run(finished))
    return EarlierRun(place, False, modernize_run(started)) if started else None


def read_record(path: str) -> dict[str, Any] | None:
    """A record; None where there is no such file, empty where it is another program's, or cut off."""
    try:
        record = storage.read_json(path)
    except DataError:
        return {}
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    return record if isinstance(record, dict) and {"job", "fingerprint"} <= record.keys() else {}


def is_cut(folder: str, name: str) -> bool:
    """Whether a file is a record that is empty or cut off, and says nothing of its run.

    A process leaves an empty one that is killed while it creates it on a disk without hard links.
    """
    path = storage.join(folder, name)
    if name not in (RUN_FILE, STARTED_FILE) or read_record(path) != {}:
        return False
    try:
        storage.read_json(path)
    except DataError:
        with storage.open_read(path) as file:
            return file.read(1) in (b"", b"{")  # else it is another program's
    return False


def read_run(output: str) -> dict[str, Any]:
    """What run.json of an output folder holds; empty where there is none."""
    earlier = find_run(output)
    if earlier:
        return earlier.record if earlier.finished else {}
    path = storage.join(output, RUN_FILE)
    return storage.read_json(path) if storage.exists(path) else {}


def amend_run(output: str, content: Mapping[str, Any]) -> None:
    """Add to run.json of a finished run, in place of what it has under the same names."""
    earlier = find_run(output)
    assert earlier is not None
    assert earlier.finished
    run = {**earlier.record, **plain(content)}
    if run != earlier.record:
        storage.write_json(earlier.path, run)
