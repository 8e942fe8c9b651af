"""An output folder belongs to one run, and one driver at a time works on it.

    hold_run          during a run: the folder is this run's, and this process's
    HeldRun.finish    at the end: write run.json, whose presence says that the run is finished

During a run there is `_run.json` where run.json will be: all other files of the output are known to be its
own. Both are in the output folder, but for a job whose output folder is a table (`TABLE_JOBS`): polars and
DuckDB read whatever such a folder holds, so both are in the folder `OUTPUT.run` beside it. There earlier
versions had them in the folder itself; the same run moves them.

    state       what is there                       what a driver of the same command does
    empty       nothing                             takes the lease and claims: creates _run.json, only where
                                                    there is none
    left        _run.json, no lease in force        takes the lease, goes on with what was committed
    at work     a lease                             ends: another process is at work
    finished    run.json                            ends: it is complete

On a disk without hard links, a driver that is killed while it creates a record leaves an empty one. An empty
run.json beside `_run.json` is overwritten. An empty `_run.json` is deleted by `--restart`, and else refused,
by the holder of the lease: for others, its writer may be at it.

Of several drivers that begin at the same instant one gets the lease; the others see by its record whether it
is at their command. Only the holder of the lease deletes: with `--restart`, leftovers of jobs that do not
resume, parts that are not the run's. It looks at the state again first, as it may have changed while it
waited.

A lease can be lost without notice (`lease`). Two drivers may then be at work, and the output is right
whatever each does next. Parts are created only where there is none, with the digest of the fingerprint;
run.json is created only where there is none, and who finds its own there takes what the other wrote. Each
record has the number of the lease under which the folder was given to its run. That number only grows, and
the record with the higher one is in force: what a driver writes that lost its lease counts for nothing, and
it finds out before it says that it is done.

Not covered: a driver that is stopped within one request that deletes, and goes on when another one has had
the folder since; a store that cannot create conditionally (`storage.write_atomic`); and what a job does with
an unfinished run of its own (resume it, or write it anew).
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from wsdm_ray import storage
from wsdm_ray.errors import RunBusyError, RunMismatchError
from wsdm_ray.runs.claims import Wanted, check_empty, settle
from wsdm_ray.runs.fingerprint import digest_of, plain
from wsdm_ray.runs.lease import Lease, Watch, beating, newest_lease, shown, take_lease
from wsdm_ray.runs.names import RUN_FILE, STARTED_FILE, is_lease, listed, place_of
from wsdm_ray.runs.process import ThisProcess
from wsdm_ray.runs.records import EarlierRun, claim_of, find_run, number_of, read_record
from wsdm_ray.runs.versions import version_changes, versions
from wsdm_ray.telemetry import logger

__all__ = ["Driver", "HeldRun", "hold_run"]

KEPT = ("claim", "computed_with", "version_changes")
"""What run.json takes over from `_run.json`."""


@dataclass(frozen=True, kw_only=True)
class Driver:
    """The process that runs a job, and how it sees others. beats: whether a thread renews its lease."""

    process: ThisProcess = field(default_factory=ThisProcess)
    watch: Watch = field(default_factory=Watch)
    beats: bool = True


@dataclass(frozen=True, kw_only=True)
class HeldRun:
    """A run that this process may work on.

    finished: what run.json holds, where there is nothing to do.
    record: as the run began.
    """

    output: str
    job: str
    fingerprint: Mapping[str, Any]
    record: Mapping[str, Any]
    finished: dict[str, Any] | None = None
    lease: Lease | None = None

    @property
    def digest(self) -> str:
        """Of the fingerprint; each part carries it."""
        return digest_of(self.fingerprint)

    @property
    def numbers(self) -> dict[str, str]:
        """Versions of what changes its numbers, where the job keeps them."""
        return self.record.get("computed_with", {})

    def check(self, *, reread: bool = True) -> None:
        """Raise `RunBusyError` where another process took the run over.

        Args:
            reread: as of `Lease.check`.
        """
        if self.lease:
            self.lease.check(reread=reread)

    def finish(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Write run.json, after everything else is in its place, and return what it holds.

        Where another process finished the run meanwhile, what that one wrote is returned.

        Args:
            content: the results of the run; they go beside `job`, `finished` (in UTC), `versions`,
                `fingerprint` and `KEPT`.

        Raises:
            RunBusyError: another process took it over, and is at work.
            RunMismatchError: the folder was given to another run meanwhile.
        """
        other = find_run(self.output)
        if other and other.finished and claim_of(other.record) == claim_of(self.record):
            logger.info("%s: is complete; another process finished it meanwhile", self.output)
            return other.record
        self.check()
        kept = {name: self.record[name] for name in KEPT if name in self.record}
        run = {
            "job": self.job, **content,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions(),
            "fingerprint": self.fingerprint, **kept,
        }  # fmt: skip
        return finish_run(self.output, plain(run))


@contextlib.contextmanager
def hold_run(
    output: str,
    job: str,
    fingerprint: Mapping[str, Any],
    restart: bool,
    *,
    resumes: bool = True,
    is_whole: Callable[[dict[str, Any]], bool] = lambda record: True,
    numbers: Mapping[str, str] | None = None,
    allow_version_change: bool = False,
    driver: Driver | None = None,
) -> Iterator[HeldRun]:
    """The run, which this process alone works on until the end of the context, if there is work to do.

    Args:
        output: the folder, which need not exist.
        job: name of the job, such as `prepare`.
        fingerprint: JSON-like values of everything that decides the output.
        restart: delete what an earlier run of the same job left in the folder first.
        resumes: whether the job continues an unfinished run of its own. Where it does not, the leftovers of
            an unfinished run of the same job are deleted, whatever its options were.
        is_whole: whether what a finished run wrote, by its run.json, is there still.
        numbers: versions of what changes numbers (`numeric_versions`), of which all of the output must come;
            None: it may come of any.
        allow_version_change: let them change; run.json records it.
        driver: by default this process.

    Raises:
        RunBusyError: another process is at work on it.
        RunMismatchError: the folder belongs to another run (the changes are named), or holds files of no run;
            or this run was begun with other versions.
        StorageError: the folder is a file, or cannot be read or written.
    """
    driver = driver or Driver()
    mine = plain({"job": job, "fingerprint": fingerprint})
    if numbers is not None:
        mine["computed_with"] = dict(numbers)
    wanted = Wanted(output, mine, restart, resumes)

    def held(record: dict[str, Any], lease: Lease | None) -> HeldRun:
        return HeldRun(
            output=output, job=job, fingerprint=mine["fingerprint"], record=record,
            finished=None if lease else record, lease=lease,
        )  # fmt: skip

    earlier = find_run(output)
    if earlier is None:
        check_empty(output, wanted.place, job)
    elif wanted.keeps(earlier) and is_complete(earlier, wanted, is_whole):
        tidy_up(wanted, driver)
        yield held(earlier.record, None)
        return
    with beating(lease_for(wanted, driver), renewed=driver.beats) as lease:
        earlier = settle(wanted, lease)
        if is_complete(earlier, wanted, is_whole):
            yield held(earlier.record, None)
        else:
            earlier = with_numbers(earlier, wanted, allow_version_change)
            yield held(unfinished(earlier, lease).record, lease)


def is_complete(earlier: EarlierRun, wanted: Wanted, is_whole: Callable[[dict[str, Any]], bool]) -> bool:
    """Whether nothing is left to do of a run that is the wanted one."""
    return earlier.finished and earlier.place == wanted.place and is_whole(earlier.record)


def lease_for(wanted: Wanted, driver: Driver) -> Lease:
    """The lease for a run, with a higher number than the record that is there.

    Raises:
        RunBusyError: another process is at work on the same command.
        RunMismatchError: it is at work on another one.
    """
    output, command = wanted.output, f"{wanted.job} {digest_of(wanted.record['fingerprint'])}"
    while True:
        try:
            above = number_in(output)
            lease = take_lease(wanted.place, output, driver.process, driver.watch, above, command)
        except RunBusyError:
            if earlier := find_run(output):
                wanted.keeps(earlier)  # names what changed
            holder = newest_lease(wanted.place)
            if holder and holder.get("command") != command and not wanted.restart:
                raise RunMismatchError(
                    f"{output}: {shown(holder)} is at work there on another command; choose another --output"
                ) from None
            raise
        if number_in(output) < lease.number:
            return lease
        lease.release()


def tidy_up(wanted: Wanted, driver: Driver) -> None:
    """Delete what a process left that died after it had finished the run, unless it may be at it still."""
    holder = newest_lease(wanted.place)
    if holder is None and not needless_in(wanted.output, wanted.job):
        return
    if holder is None or driver.watch.is_running(holder) is False:
        with beating(lease_for(wanted, driver), renewed=driver.beats) as lease:
            earlier = find_run(wanted.output)
            if earlier and earlier.finished and number_of(earlier.record) < lease.number:
                delete_needless(wanted.output, wanted.job)


def number_in(output: str) -> int:
    """The number of the record in a folder; 0 where there is none."""
    earlier = find_run(output)
    return number_of(earlier.record) if earlier else 0


def with_numbers(earlier: EarlierRun, wanted: Wanted, allow_change: bool) -> EarlierRun:
    """A run that is resumed, with the versions that change its numbers as they are now.

    Raises:
        RunMismatchError: they changed, and that is not allowed.
    """
    record, now = earlier.record, wanted.record.get("computed_with")
    if now is None or record.get("computed_with") == now:
        return earlier
    changed = version_changes(record.get("computed_with", {}), now)
    if changed and not allow_change:
        shown = "; ".join(f"{name}: {old} -> {new}" for name, (old, new) in changed.items())
        raise RunMismatchError(
            f"{wanted.output}: was begun with other versions, which give other numbers: {shown}. Install "
            "those again, add --allow-version-change to go on with these (run.json records it), or --restart"
        )
    record = {**record, "computed_with": now}
    if changed:
        record["version_changes"] = [*record.get("version_changes", []), changed]
        logger.warning("%s: goes on with other versions than it was begun with", wanted.output)
    storage.write_json(earlier.path, record)
    return earlier._replace(record=record)


def unfinished(earlier: EarlierRun, lease: Lease) -> EarlierRun:
    """The run, begun again where a part of it is gone since it was finished."""
    if not earlier.finished:
        return earlier
    again = earlier._replace(finished=False)
    kept = {name: earlier.record[name] for name in ("job", "fingerprint", *KEPT) if name in earlier.record}
    storage.write_json(again.path, kept | {"claim": lease.claim})
    return again._replace(record=kept | {"claim": lease.claim})


def finish_run(output: str, run: dict[str, Any]) -> dict[str, Any]:
    """Write run.json and delete what a run needs no longer; returns what run.json holds.

    Raises:
        RunMismatchError: the folder was given to another run meanwhile.
    """
    place, mine = place_of(output, run["job"]), claim_of(run)
    path, started_path = storage.join(place, RUN_FILE), storage.join(place, STARTED_FILE)
    check_mine(output, run, read_record(started_path))
    if not storage.write_json(path, run, only_new=True):
        other = read_record(path)
        if other and claim_of(other) == mine:
            return other
        check_mine(output, run, other)
        storage.write_json(path, run)
    check_mine(output, run, read_record(started_path))
    check_mine(output, run, read_record(path))
    delete_needless(output, run["job"])
    return run


def needless_in(output: str, job: str) -> list[str]:
    """What a finished run needs no longer: its first record, all private names beside a table, and what
    killed writers left, over which readers of a table would stumble."""
    place, found = place_of(output, job), []
    for folder in dict.fromkeys((output, place)):
        for name in listed(folder):
            private = name.startswith("_") and not is_lease(name) and folder != output
            if name == STARTED_FILE or private or storage.is_leftover(name):
                found.append(storage.join(folder, name))
    return found


def delete_needless(output: str, job: str) -> None:
    """Delete what a finished run needs no longer; its first record at once, as it was just looked at."""
    storage.delete_file(storage.join(place_of(output, job), STARTED_FILE))
    for path in needless_in(output, job):
        storage.delete_folder(path)


def check_mine(output: str, run: Mapping[str, Any], record: Mapping[str, Any] | None) -> None:
    """Raise `RunMismatchError` where a record that is in the run's place is of a later run."""
    if record and number_of(record) > number_of(run):
        raise RunMismatchError(
            f"{output}: was given to another run while this one was stopped or cut off; choose another "
            "--output"
        )
