"""An output folder belongs to one run: the same run finds its work again, another one is refused.

    open_run    at the start: is the folder empty, this run's own (finished or not), or somebody else's?
    finish_run  at the end: write run.json, whose presence says that the run is finished

During a run its folder holds `_run.json` (the job and its fingerprint): all other files there are known to be
its own. A fingerprint is a dict of everything that decides the output: options, inputs, models. Runs of
earlier versions are read under present names (`legacy`). Not covered: what a job does with an unfinished run
of its own (resume it, or write it anew), and two processes that run the same command at the same time.
"""

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from wsdm_ray import storage
from wsdm_ray.config import to_dict
from wsdm_ray.errors import ConfigError, RunMismatchError, StorageError
from wsdm_ray.legacy import modernize_run

__all__ = [
    "RUN_FILE",
    "STARTED_FILE",
    "changes",
    "check_no_overlap",
    "check_no_overwrite",
    "file_versions",
    "finish_run",
    "names_in",
    "open_run",
    "options",
    "versions",
]

RUN_FILE = "run.json"
STARTED_FILE = "_run.json"

SHOWN_CHANGES = 5


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
    names = names_in(output)
    finished = RUN_FILE in names
    marker = RUN_FILE if finished else STARTED_FILE
    earlier = storage.read_json(storage.join(output, marker)) if marker in names else None
    if isinstance(earlier, dict) and {"job", "fingerprint"} <= earlier.keys():
        earlier = modernize_run(earlier)
    else:
        earlier = None
    if names and earlier is None:
        raise RunMismatchError(
            f"{output}: holds {names[0]}, which no run of {job} left there; choose another --output, "
            "or empty the folder"
        )
    if earlier is not None:
        changed = changes({key: earlier[key] for key in ("job", "fingerprint")}, mine)
        own = earlier["job"] == job
        if restart and not own:
            raise RunMismatchError(
                f"{output}: holds a run of {earlier['job']}, which --restart of {job} does not delete; "
                "choose another --output, or delete the folder yourself"
            )
        leftovers = own and not finished and not resumes
        if restart or leftovers:
            storage.delete_folder(output)
        elif changed:
            remedy = "add --restart to delete it and start over" if own else "delete the folder yourself"
            raise RunMismatchError(
                f"{output}: belongs to another run of {earlier['job']}; changed: {'; '.join(changed)}. "
                f"Give the same options again, choose another --output, or {remedy}"
            )
        else:
            return earlier if finished else None
    storage.write_json(storage.join(output, STARTED_FILE), mine)
    return None


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
    storage.write_json(storage.join(output, RUN_FILE), run)
    storage.delete_file(storage.join(output, STARTED_FILE))
    return run


def options(config: Any, *, leave_out: Sequence[str] = ("output", "restart")) -> dict[str, Any]:
    """The options of a config that decide what comes out, as plain values."""
    return {name: value for name, value in plain(to_dict(config)).items() if name not in leave_out}


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
    if place == folder or (of_a_run and place.startswith(folder)):
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
    fs, inner = storage.filesystem(folder)
    inner = inner.rstrip("/")
    with storage.errors_for(folder):
        try:
            if fs.isfile(inner):
                raise StorageError(f"{folder}: is a file; give a folder")
            found = [str(name).rstrip("/") for name in fs.ls(inner, detail=False)]
        except FileNotFoundError:
            return []
    names = [os.path.basename(name) for name in found if name != inner]
    return sorted(name for name in names if not storage.is_leftover(name))


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
