"""Whose an output folder is: claimed where it is empty, kept where it is the run's own, else refused."""

from dataclasses import dataclass
from typing import Any

from wsdm_ray import storage
from wsdm_ray.errors import RunMismatchError
from wsdm_ray.runs.fingerprint import changes
from wsdm_ray.runs.lease import Lease
from wsdm_ray.runs.names import (
    RUN_FILE,
    STARTED_FILE,
    TABLE_JOBS,
    is_bare,
    is_lease,
    listed,
    names_in,
    place_of,
    places_of,
)
from wsdm_ray.runs.records import EarlierRun, find_in, find_run, is_cut
from wsdm_ray.telemetry import logger

__all__ = ["Wanted", "check_empty", "settle"]


@dataclass(frozen=True)
class Wanted:
    """A run that a driver wants to work on, with the record that it would begin with."""

    output: str
    record: dict[str, Any]
    restart: bool
    resumes: bool

    @property
    def job(self) -> str:
        return self.record["job"]

    @property
    def place(self) -> str:
        """The folder of its record."""
        return place_of(self.output, self.job)

    def keeps(self, earlier: EarlierRun) -> bool:
        """Whether what an earlier run left is this run's to use; else it is this run's to delete.

        Raises:
            RunMismatchError: it is neither.
        """
        record, job, output = earlier.record, self.job, self.output
        own = record["job"] == job
        if is_gone(earlier, output, job):
            return False
        if self.restart and not own:
            raise RunMismatchError(
                f"{output}: holds a run of {record['job']}, which --restart of {job} does not delete; "
                "choose another --output, or delete the folder yourself"
            )
        if self.restart or (own and not earlier.finished and not self.resumes):
            return False
        theirs, ours = ({key: each[key] for key in ("job", "fingerprint")} for each in (record, self.record))
        changed = changes(theirs, ours)
        if changed:
            remedy = "add --restart to delete it and start over" if own else "delete the folder yourself"
            raise RunMismatchError(
                f"{output}: belongs to another run of {record['job']}; changed: {'; '.join(changed)}. "
                f"Give the same options again, choose another --output, or {remedy}"
            )
        return True


def is_gone(earlier: EarlierRun, output: str, job: str) -> bool:
    """Whether somebody deleted the table of a run, and left what lies beside it; an own unfinished run has
    perhaps no part yet."""
    may_be_empty = not earlier.finished and earlier.record["job"] == job
    return earlier.place != output and not may_be_empty and not names_in(output)


def settle(wanted: Wanted, lease: Lease) -> EarlierRun:
    """The run's own record, once all that is not its to use is deleted, which only the lease's holder may."""
    while True:
        earlier = find_run(wanted.output)
        if earlier is None:
            if mine := claim(wanted, lease):
                return mine
        elif wanted.keeps(earlier):
            move_records(wanted.output, wanted.place)
            return earlier._replace(place=wanted.place)
        else:
            lease.check()
            if is_gone(earlier, wanted.output, wanted.job):
                logger.info(
                    "%s: has been deleted since a run of %s; %s begins it anew",
                    wanted.output, earlier.record["job"], wanted.job,
                )  # fmt: skip
            else:
                empty_folder(wanted.output)
            empty_folder(earlier.place)


def claim(wanted: Wanted, lease: Lease) -> EarlierRun | None:
    """The run, to which an empty folder belongs from now on; None where another one was faster.

    Raises:
        RunMismatchError: the folder is not empty, or holds a record that is cut off, and this is no restart;
            or a run of another kind claims it at the same instant.
    """
    check_empty(wanted.output, wanted.place, wanted.job)
    delete_cut(wanted)
    path = storage.join(wanted.place, STARTED_FILE)
    record = {**wanted.record, "claim": lease.claim}
    if not storage.write_json(path, record, only_new=True):
        return None
    for place in places_of(wanted.output):  # of a job whose record has another place
        other = find_in(place) if place != wanted.place else None
        if other and (place == wanted.output or other.record["job"] in TABLE_JOBS):
            storage.delete_file(path)
            raise RunMismatchError(
                f"{wanted.output}: a run of {other.record['job']} begins there, too; choose another --output"
            )
    return EarlierRun(wanted.place, False, record)


def check_empty(output: str, place: str, job: str) -> None:
    """Raise `RunMismatchError` where a folder of no run holds a file, but for a record that is cut off: the
    holder of a lease may be about to write it."""
    for folder in dict.fromkeys((output, place)):
        for name in names_in(folder):
            if is_bare(folder, name) or is_cut(folder, name):
                continue
            if find_run(output):
                return  # it is of a run since a moment ago
            cut = "".join(f", and {path} is empty or cut off" for path in cut_records(output, place))
            raise RunMismatchError(
                f"{folder}: holds {name}, which no run of {job} left there{cut}; choose another --output, "
                "or empty the folder"
            )


def delete_cut(wanted: Wanted) -> None:
    """Delete records that are cut off, which only the lease's holder may.

    Raises:
        RunMismatchError: there is one, and this is no restart.
    """
    for path in cut_records(wanted.output, wanted.place):
        if not wanted.restart:
            raise RunMismatchError(
                f"{path}: is empty or cut off, as of a process that was killed while it wrote it; delete it, "
                "or add --restart"
            )
        storage.delete_file(path)


def cut_records(output: str, place: str) -> list[str]:
    """The records that are cut off, in the output folder and in that of the record."""
    return [
        storage.join(folder, name)
        for folder in dict.fromkeys((output, place))
        for name in names_in(folder)
        if is_cut(folder, name)
    ]


def empty_folder(folder: str) -> None:
    """Delete all that is in a folder but leases; records go last, so that what is left has an owner."""
    names = [name for name in listed(folder) if not is_lease(name)]
    for name in sorted(names, key=lambda name: name in (RUN_FILE, STARTED_FILE)):
        storage.delete_folder(storage.join(folder, name))


def move_records(output: str, place: str) -> None:
    """Move what an earlier version wrote into a table's folder to the folder beside it."""
    records = [name for name in names_in(output) if name.endswith(".json")] if place != output else []
    for name in records:
        storage.write_json(storage.join(place, name), storage.read_json(storage.join(output, name)))
        storage.delete_file(storage.join(output, name))
    if records:
        logger.info("%s: moved %s to %s, so that the folder reads as one table", output, records[-1], place)
