"""Which rows a process ran when it lost its GPU or died: files beside the output, while the run lasts.

_lost-K.json         the process that scored unit K lost its GPU, and wrote this itself. The next process runs
                     those rows one by one, and leaves out a row that alone loses the GPU again
_died-STAGE-K.json   a process that read or scored rows of unit K died; its parent wrote this (`isolation`)
"""

import dataclasses
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wsdm_ray.errors import ClusterError
from wsdm_ray.runs import names_in, run_folder
from wsdm_ray.scoring.isolation import PartDeath
from wsdm_ray.storage import exists, join, read_json, write_json

if TYPE_CHECKING:
    from wsdm_ray.scoring.recovery import DeviceLostError

__all__ = [
    "DEVICE_LOST_STATUS",
    "UnitStage",
    "crash_record_path",
    "list_crash_records",
    "list_death_records",
    "read_deaths",
    "record_crash_and_exit",
    "suspect_rows",
    "write_deaths",
]

UnitStage = tuple[str, int]
"""`read` or `score`, and the number of a unit."""

CRASH_RECORD_NAME = re.compile(r"_lost-\d{6}\.json")
DEATH_RECORD_NAME = re.compile(r"_died-(read|score)-(\d{6})\.json")

DEVICE_LOST_STATUS = 75
"""Exit status of a process that lost its GPU and wrote a crash record: a temporary failure (sysexits.h)."""

MAX_CRASHES = 8
"""The run fails when one unit has cost this many processes."""


def crash_record_path(output: str, number: int) -> str:
    """The crash record of unit `number`."""
    return join(run_folder(output), f"_lost-{number:06d}.json")


def list_crash_records(output: str) -> list[str]:
    """Paths of the crash records of a run."""
    return list(records(output, CRASH_RECORD_NAME))


def list_death_records(output: str) -> list[str]:
    """Paths of the records of deaths of a run."""
    return list(records(output, DEATH_RECORD_NAME))


def records(output: str, pattern: re.Pattern[str]) -> dict[str, re.Match[str]]:
    folder = run_folder(output)
    found = {join(folder, name): pattern.fullmatch(name) for name in names_in(folder)}
    return {path: match for path, match in found.items() if match}


def read_deaths(output: str) -> dict[UnitStage, list[PartDeath]]:
    """The deaths that a run has on record."""
    return {
        (match[1], int(match[2])): [PartDeath(**death) for death in read_json(path)]
        for path, match in records(output, DEATH_RECORD_NAME).items()
    }


def write_deaths(output: str, stage: UnitStage, deaths: Sequence[PartDeath]) -> None:
    """Put all deaths over a unit on record."""
    path = join(run_folder(output), f"_died-{stage[0]}-{stage[1]:06d}.json")
    write_json(path, [dataclasses.asdict(death) for death in deaths])


def suspect_rows(path: str) -> tuple[set[int], dict[int, str]]:
    """Of a unit's crash record, if there is one: the rows to run alone, and the rows not to run, with errors.

    Raises:
        ClusterError: the unit cost too many processes.
    """
    crashes = read_json(path) if exists(path) else []
    if len(crashes) >= MAX_CRASHES:
        raise ClusterError(
            f"{path}: {len(crashes)} processes lost their GPU over this unit, the last by "
            f"{crashes[-1]['reason']!r}; check the GPU and the model, then delete this file"
        )
    times = Counter(row for crash in crashes for row in crash["rows"])
    left_out = {
        crash["rows"][0]: f"the GPU is lost on this row ({crash['reason']})"
        for crash in crashes
        if len(crash["rows"]) == 1 and times[crash["rows"][0]] > 1
    }
    return set(times) - set(left_out), left_out


def record_crash_and_exit(path: str, error: "DeviceLostError") -> None:
    """Add to the crash record of a unit and end this process."""
    crashes = read_json(path) if exists(path) else []
    write_json(path, [*crashes, {"rows": error.pairs, "reason": error.reason}])
    print(f"process {os.getpid()} lost its GPU ({error.reason}); another is started", file=sys.stderr)
    sys.stderr.flush()
    os._exit(DEVICE_LOST_STATUS)
