"""A run opened, and finished, in one step each: as by a process that ended in between."""

from collections.abc import Mapping
from typing import Any

from wsdm_ray.runs import hold_run

__all__ = ["finish_run", "open_run"]


def open_run(
    output: str, job: str, fingerprint: Mapping[str, Any], restart: bool, *, resumes: bool = True
) -> dict[str, Any] | None:
    """run.json of this very run where it is finished already; else None, and the folder is this run's."""
    with hold_run(output, job, fingerprint, restart, resumes=resumes) as run:
        return run.finished


def finish_run(
    output: str, job: str, fingerprint: Mapping[str, Any], content: Mapping[str, Any]
) -> dict[str, Any]:
    """What run.json holds, which was written."""
    with hold_run(output, job, fingerprint, restart=False) as run:
        return run.finish(content)
