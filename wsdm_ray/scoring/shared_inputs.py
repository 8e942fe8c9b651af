"""Converted inputs where every process of a run can read them: in the run's private folder."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

from wsdm_ray.runs import PRIVATE_FOLDER, run_folder
from wsdm_ray.scoring.plan import WorkUnit, sources_of
from wsdm_ray.storage import exists, join, upload_file

__all__ = ["shared_units"]


def shared_units(units: Sequence[WorkUnit], output: str) -> list[WorkUnit]:
    """The units, with the converted files that they are of in the run's private folder.

    A file that is there is not copied again: the same input is converted to the same bytes.

    Raises:
        StorageError: the folder cannot be written.
    """
    folder = join(run_folder(output), PRIVATE_FOLDER, "inputs")
    shared: dict[str, str] = {}
    for source in sources_of(units):
        if source.converted:
            path = source.file.path
            shared[path] = target = join(folder, os.path.basename(path))
            if not exists(target):
                upload_file(path, target)
    return [moved(unit, shared) for unit in units] if shared else list(units)


def moved(unit: WorkUnit, shared: Mapping[str, str]) -> WorkUnit:
    """The unit with the files that are keys of `shared` at the paths that are its values."""
    slices = []
    for part in unit.slices:
        file = part.source.file
        file = dataclasses.replace(file, path=shared.get(file.path, file.path))
        slices.append(dataclasses.replace(part, source=dataclasses.replace(part.source, file=file)))
    return dataclasses.replace(unit, slices=tuple(slices))
