"""Which rows a process ran when it lost its GPU: a file beside the output, one a unit, while the run lasts.

The next process runs those rows one by one, and leaves out a row that alone loses the GPU again.
"""

import os
import re
import sys
from collections import Counter
from typing import TYPE_CHECKING

from wsdm_ray.errors import ClusterError
from wsdm_ray.runs import names_in, run_folder
from wsdm_ray.storage import exists, join, read_json, write_json

if TYPE_CHECKING:
    from wsdm_ray.scoring.recovery import DeviceLostError

__all__ = ["crash_record_path", "list_crash_records", "record_crash_and_exit", "suspect_rows"]

CRASH_RECORD_NAME = re.compile(r"_lost-\d{6}\.json")

MAX_CRASHES = 8
"""The run fails when one unit has cost this many processes."""


def crash_record_path(output: str, number: int) -> str:
    """The crash record of unit `number`."""
    return join(run_folder(output), f"_lost-{number:06d}.json")


def list_crash_records(output: str) -> list[str]:
    """Paths of the crash records of a run."""
    folder = run_folder(output)
    return [join(folder, name) for name in names_in(folder) if CRASH_RECORD_NAME.fullmatch(name)]


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
    print(f"process {os.getpid()} lost its GPU ({error.reason}); Ray starts another", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)
