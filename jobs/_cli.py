"""The console script `wsdm-ray`: the list of jobs, versions, completion, the cache, and every job."""

import importlib.metadata
import sys
from collections.abc import Sequence

import wsdm_ray
from jobs._registry import JOBS, SCRIPT

__all__ = ["main"]

LIBRARIES = ("ray", "torch", "transformers")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status of `wsdm-ray NAME ...`: that of the job, or 2 where there is no such job.

    Args:
        argv: the arguments; by default those of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        from jobs._help import list_jobs

        print(list_jobs(), end="")
        return 0
    name, *rest = words
    if name == "--version":
        print(versions())
        return 0
    if name == "cache":
        from jobs._cache import cache

        return cache(rest)
    if name == "completion":
        from jobs._completion import SHELLS

        if rest and rest[0] in SHELLS:
            print(SHELLS[rest[0]](), end="")
            return 0
        return refuse(f"{SCRIPT} completion: name a shell: {', '.join(SHELLS)}")
    if name in JOBS:
        from jobs._main import run_job

        return run_job(name, rest)
    from jobs._options import nearest

    return refuse(f"{name}: no such job; {nearest(name, JOBS)}there are {', '.join(JOBS)}")


def refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def versions() -> str:
    """This package's version and, without importing them, those of the libraries that decide the numbers."""
    found = (f"{library} {version_of(library)}" for library in LIBRARIES)
    return f"{SCRIPT} {wsdm_ray.__version__} ({', '.join(found)})"


def version_of(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
