"""Paths that must not lie within each other: inputs, the output, and files that are written besides it."""

import os
from collections.abc import Sequence

from wsdm_ray import storage
from wsdm_ray.errors import ConfigError
from wsdm_ray.runs.names import RUN_FILE, STARTED_FILE, run_folder

__all__ = ["check_no_overlap", "check_no_overwrite", "comparable"]


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
