"""An output folder belongs to one run: the same run finds its work again, another one is refused.

    open_run    at the start: is the folder empty, this run's own (finished or not), or somebody else's?
    finish_run  at the end: write run.json, whose presence says that the run is finished
    read_run    afterwards, by other jobs: what run.json holds

During a run there is `_run.json` (the job and its fingerprint) where run.json will be: all other files of the
output are known to be its own. Both are in the output folder, but for a job whose output folder is a table
(`TABLE_JOBS`): polars and DuckDB read whatever such a folder holds, so both are in the folder `OUTPUT.run`
beside it. There earlier versions had them in the folder itself; the same run moves them.

A fingerprint is a dict of everything that decides the output: options, inputs, models. Runs of earlier
versions are read under present names (`legacy`). Not covered: what a job does with an unfinished run of its
own (resume it, or write it anew), and two processes that run the same command at the same time.
"""

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from wsdm_ray import storage
from wsdm_ray.config import to_dict
from wsdm_ray.errors import ConfigError, RunMismatchError, StorageError
from wsdm_ray.legacy import modernize_run
from wsdm_ray.telemetry import logger

__all__ = [
    "PRIVATE_FOLDER",
    "RUN_FILE",
    "STARTED_FILE",
    "amend_run",
    "changes",
    "check_no_overlap",
    "check_no_overwrite",
    "comparable",
    "file_versions",
    "finish_run",
    "names_in",
    "open_run",
    "options",
    "read_run",
    "run_folder",
    "versions",
]

RUN_FILE = "run.json"
STARTED_FILE = "_run.json"

TABLE_JOBS = ("ensemble", "score")
"""Jobs whose output folder is one table: it holds parquet files of one schema, and nothing else."""

PRIVATE_FOLDER = "_private"
"""Folder in `run_folder` for what a run needs only until it is finished; `finish_run` deletes it."""

SHOWN_CHANGES = 5


class EarlierRun(NamedTuple):
    """The run that a folder belongs to. place: the folder of its record, which is run.json if it finished."""

    place: str
    finished: bool
    record: dict[str, Any]


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


def read_run(output: str) -> dict[str, Any]:
    """What run.json of an output folder holds; empty where there is none."""
    earlier = find_run(output)
    if earlier:
        return earlier.record if earlier.finished else {}
    path = storage.join(output, RUN_FILE)
    return storage.read_json(path) if storage.exists(path) else {}


def open_run(
    output: str, job: str, fingerprint: Mapping[str, Any], restart: bool, *, resumes: bool = True
) -> dict[str, Any] | None:
    """run.json of this very run where it is finished already; else None, and the folder is this run's.

    Args:
        output: the folder, which need not exist.
        job: name of the job, such as `prepare`.
        fingerprint: JSON-like values of everything that decides the output.
        restart: delete what an earlier run of the same job left in the folder first.
        resumes: whether the job continues an unfinished run of its own. Where it does not, the leftovers of
            an unfinished run of the same job are deleted, whatever its options were.

    Raises:
        RunMismatchError: the folder belongs to another run (the changes are named), or holds files of no run.
        StorageError: the folder is a file, or cannot be read or written.
    """
    mine = plain({"job": job, "fingerprint": fingerprint})
    place = place_of(output, job)
    earlier = find_run(output)
    if earlier is None:
        check_empty(output, place, job)
    elif is_gone(earlier, output, job):
        logger.info(
            "%s: has been deleted since a run of %s; %s begins it anew", output, earlier.record["job"], job
        )
        storage.delete_folder(earlier.place)
    elif keeps(earlier, mine, output, restart, resumes):
        move_records(output, place)
        return earlier.record if earlier.finished else begin(place, mine)
    else:
        storage.delete_folder(output)
        storage.delete_folder(earlier.place)
    return begin(place, mine)


def begin(place: str, mine: dict[str, Any]) -> None:
    """Write the record of a run that is not finished."""
    storage.write_json(storage.join(place, STARTED_FILE), mine)


def place_of(output: str, job: str) -> str:
    """The folder of a job's record."""
    return run_folder(output) if job in TABLE_JOBS else output


def find_run(output: str) -> EarlierRun | None:
    """The run that a folder belongs to: its record lies beside the folder or within it."""
    try:
        places = (run_folder(output), output)
    except ConfigError:
        places = (output,)
    for place in places:
        names = names_in(place)
        finished = RUN_FILE in names
        marker = RUN_FILE if finished else STARTED_FILE
        record = storage.read_json(storage.join(place, marker)) if marker in names else None
        if not isinstance(record, dict) or not {"job", "fingerprint"} <= record.keys():
            continue
        if place == output or record["job"] in TABLE_JOBS:
            return EarlierRun(place, finished, modernize_run(record))
    return None


def check_empty(output: str, place: str, job: str) -> None:
    """Raise `RunMismatchError` where a folder of no run holds a file."""
    for folder in dict.fromkeys((output, place)):
        for name in names_in(folder)[:1]:
            raise RunMismatchError(
                f"{folder}: holds {name}, which no run of {job} left there; choose another --output, "
                "or empty the folder"
            )


def is_gone(earlier: EarlierRun, output: str, job: str) -> bool:
    """Whether somebody deleted the table of a run, and left what lies beside it; an own unfinished run has
    perhaps no part yet."""
    may_be_empty = not earlier.finished and earlier.record["job"] == job
    return earlier.place != output and not may_be_empty and not names_in(output)


def keeps(earlier: EarlierRun, mine: Mapping[str, Any], output: str, restart: bool, resumes: bool) -> bool:
    """Whether what an earlier run left is this run's to use; else it is this run's to delete.

    Raises:
        RunMismatchError: it is neither.
    """
    record, job = earlier.record, mine["job"]
    changed = changes({key: record[key] for key in ("job", "fingerprint")}, dict(mine))
    own = record["job"] == job
    if restart and not own:
        raise RunMismatchError(
            f"{output}: holds a run of {record['job']}, which --restart of {job} does not delete; "
            "choose another --output, or delete the folder yourself"
        )
    if restart or (own and not earlier.finished and not resumes):
        return False
    if changed:
        remedy = "add --restart to delete it and start over" if own else "delete the folder yourself"
        raise RunMismatchError(
            f"{output}: belongs to another run of {record['job']}; changed: {'; '.join(changed)}. "
            f"Give the same options again, choose another --output, or {remedy}"
        )
    return True


def move_records(output: str, place: str) -> None:
    """Move what an earlier version wrote into a table's folder to the folder beside it."""
    records = [name for name in names_in(output) if name.endswith(".json")] if place != output else []
    for name in records:
        storage.write_json(storage.join(place, name), storage.read_json(storage.join(output, name)))
        storage.delete_file(storage.join(output, name))
    if records:
        logger.info("%s: moved %s to %s, so that the folder reads as one table", output, records[-1], place)


def finish_run(
    output: str, job: str, fingerprint: Mapping[str, Any], content: Mapping[str, Any]
) -> dict[str, Any]:
    """Write run.json, after everything else is in its place, and return what it holds.

    Args:
        content: the results of the run; they go beside `job`, `finished` (in UTC), `versions` and
            `fingerprint`.
    """
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    run = plain(
        {"job": job, **content, "finished": finished, "versions": versions(), "fingerprint": fingerprint}
    )
    place = place_of(output, job)
    storage.write_json(storage.join(place, RUN_FILE), run)
    storage.delete_file(storage.join(place, STARTED_FILE))
    if place != output:
        storage.delete_folder(storage.join(place, PRIVATE_FOLDER))
        delete_leftovers(output)
    return run


def amend_run(output: str, content: Mapping[str, Any]) -> None:
    """Add to run.json of a finished run, in place of what it has under the same names."""
    earlier = find_run(output)
    assert earlier is not None
    assert earlier.finished
    run = {**earlier.record, **plain(content)}
    if run != earlier.record:
        storage.write_json(storage.join(earlier.place, RUN_FILE), run)


def delete_leftovers(folder: str) -> None:
    """Delete what a killed writer left, which readers of a table would stumble over."""
    for name in listed(folder):
        if storage.is_leftover(name):
            storage.delete_file(storage.join(folder, name))


NEVER_OF_THE_OUTPUT = ("store_timeout_seconds",)
"""Options that decide nothing of what comes out, of any job."""


def options(config: Any, *, leave_out: Sequence[str] = ("output", "restart")) -> dict[str, Any]:
    """The options of a config that decide what comes out, as plain values."""
    unused = {*leave_out, *NEVER_OF_THE_OUTPUT}
    return {name: value for name, value in plain(to_dict(config)).items() if name not in unused}


def file_versions(files: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Size, version and place of each file by its path: what a fingerprint keeps of its inputs."""
    found = (storage.file_identity(path) for path in files)
    return {identity.pop("path"): identity | {"place": place} for place, identity in enumerate(found)}


def check_no_overlap(output: str, inputs: Sequence[str]) -> None:
    """Raise `ConfigError` where an input lies within the output folder, or the output within an input folder.

    `--restart` would delete the one; a second run would take the other's files for its input.

    Args:
        inputs: files, folders and globs.
    """
    folder = comparable(output)
    for path in inputs:
        if comparable(path).startswith(folder):
            raise ConfigError(f"--output {output}: holds the input {path}; choose another folder")
        if folder.startswith(comparable(path)):
            raise ConfigError(f"--output {output}: lies within the input {path}; choose another folder")


def check_no_overwrite(option: str, path: str, output: str, inputs: Sequence[str]) -> None:
    """Raise `ConfigError` where a file to be written would overwrite an input, be taken for one by the next
    run, or be of the output itself.

    Args:
        option: that named it.
        output: of a job of `TABLE_JOBS`.
        inputs: files and folders.
    """
    place, folder = comparable(path), comparable(output)
    if place in map(comparable, inputs):
        raise ConfigError(f"{option} {path}: would overwrite an input; choose another file")
    is_parquet = path.lower().endswith(".parquet")
    for other in inputs:
        if is_parquet and place.startswith(comparable(other)):
            raise ConfigError(f"{option} {path}: lies within the input {other}; choose another file")
    of_a_run = is_parquet or os.path.basename(path) in (RUN_FILE, STARTED_FILE)
    beside = comparable(run_folder(output))
    if place == folder or place.startswith(beside) or (of_a_run and place.startswith(folder)):
        raise ConfigError(f"{option} {path}: is of the output itself; choose another file")


def comparable(path: str) -> str:
    """The path with links resolved and a slash at its end, so that one within another begins with it."""
    whole = path if storage.is_remote(path) else os.path.realpath(path.removeprefix("file://"))
    return whole.rstrip("/") + "/"


def changes(earlier: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two JSON-like values, as `name: old -> new`; after five, only how many more."""
    found = list(differences(earlier, now, name))
    more = len(found) - SHOWN_CHANGES
    return found[:SHOWN_CHANGES] + ([f"and {more} more"] if more > 0 else [])


def differences(earlier: Any, now: Any, name: str) -> Iterator[str]:
    if isinstance(earlier, dict) and isinstance(now, dict):
        for key in {**earlier, **now}:
            inner = key if name in ("", "fingerprint") else f"{name}.{key}"
            if key not in now:
                yield f"{inner}: gone"
            elif key not in earlier:
                yield f"{inner}: new"
            else:
                yield from differences(earlier[key], now[key], inner)
    elif isinstance(earlier, list) and isinstance(now, list) and len(earlier) == len(now):
        for index, (old, new) in enumerate(zip(earlier, now, strict=True)):
            yield from differences(old, new, f"{name}[{index}]")
    elif earlier != now:
        yield f"{name}: {shown(earlier)} -> {shown(now)}"


def shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def plain(value: Any) -> Any:
    """The value as it comes back from JSON: tuples are lists, keys are strings."""
    return json.loads(json.dumps(value, default=str))


def names_in(folder: str) -> list[str]:
    """Sorted names of what is in a folder, if there is one, without what a killed writer left."""
    return sorted(name for name in listed(folder) if not storage.is_leftover(name))


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


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that shape an output, those that are installed."""
    found = {"python": platform.python_version()}
    for name in (
        "wsdm_ray",
        "numpy",
        "pyarrow",
        "ftfy",
        "ray",
        "torch",
        "transformers",
        "peft",
        "bitsandbytes",
    ):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
