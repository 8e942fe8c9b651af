"""Converted inputs where every process of a run can read them: in the run's private folder."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from wsdm_ray.runs import PRIVATE_FOLDER, run_folder
from wsdm_ray.scoring.plan import WorkUnit
from wsdm_ray.storage import exists, join, write_atomic

__all__ = ["shared_units"]


def shared_units(units: Sequence[WorkUnit], output: str) -> list[WorkUnit]:
    """The units, with the converted files that they are of in the run's private folder.

    A file that is there is not copied again: the same input is converted to the same bytes.

    Raises:
        StorageError: the folder cannot be written.
    """
    folder = join(run_folder(output), PRIVATE_FOLDER, "inputs")
    shared: dict[str, str] = {}
    for unit in units:
        if unit.source.converted and unit.path not in shared:
            shared[unit.path] = target = join(folder, os.path.basename(unit.path))
            if not exists(target):
                data = Path(unit.path).read_bytes()
                write_atomic(target, lambda file, data=data: file.write(data))
    return [moved(unit, shared[unit.path]) if unit.path in shared else unit for unit in units]


def moved(unit: WorkUnit, path: str) -> WorkUnit:
    """The unit with its file at another path."""
    file = dataclasses.replace(unit.source.file, path=path)
    return dataclasses.replace(unit, source=dataclasses.replace(unit.source, file=file))
