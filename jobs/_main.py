"""What every job shares: parse the options, run, say on one line what went wrong, leave with a status."""

import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeVar

from jobs._registry import JOBS, SCRIPT, command, job_of
from wsdm_ray.errors import WsdmRayError
from wsdm_ray.failures import WorkerDefectError
from wsdm_ray.plain_text import redact

__all__ = ["main", "run_job"]

Config = TypeVar("Config")

INTERRUPTED = 130  # as a shell reports a process that Ctrl-C ended
TERMINATED = 143  # or that SIGTERM ended, which is how `ray job stop` begins

MODULES = "python -m jobs."
"""How the package's errors name a job; a user of the console script reads that instead."""

NARROWEST, WIDEST = 60, 110
"""Characters of a line of the help."""


def run_job(name: str, argv: Sequence[str] | None = None) -> int:
    """The exit status of a job by its name. Help and wrong arguments import neither ray nor torch."""
    job = JOBS[name]
    return main(job.run, job.config_type(), argv)


def main(
    run: Callable[[Config], object], config_type: type[Config], argv: Sequence[str] | None = None
) -> int:
    """The exit status of `run(config)`, with the config read from the command line.

    0: done. 1: failed, with one line on standard error for what a user can correct and a traceback for a
    defect. 2: wrong arguments, with one line. 130: interrupted. 143: terminated, temporary files removed.

    Args:
        config_type: a frozen dataclass of `wsdm_ray.config`; each field is an option (`--valid-fraction`).
        argv: the arguments; by default those of the process.
    """
    terminated = threading.Event()

    def terminate(*_: object) -> None:
        terminated.set()
        sys.exit(TERMINATED)

    if threading.current_thread() is threading.main_thread():  # the only one that may
        signal.signal(signal.SIGTERM, terminate)
    sys.excepthook = print_defect
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if {"-h", "--help"} & set(words):
            print(help_of(config_type, words), end="")
            return 0
        from jobs._parse import parse

        config = parse(config_type, words)
        from wsdm_ray.telemetry import set_up_logging

        set_up_logging()
        run(config)
    except KeyboardInterrupt:
        print("interrupted; the same command again finishes the work", file=sys.stderr)
        return INTERRUPTED
    except SystemExit:
        if terminated.is_set():
            print("terminated; the same command again finishes the work", file=sys.stderr)
            return TERMINATED  # where Ray waits it leaves with a status of its own
        raise
    except WorkerDefectError as error:
        print(error, file=sys.stderr)  # the traceback of the process where it came up says it all
        return 1
    except Exception as error:
        known = user_error(error)
        if known is None:
            raise  # a defect: Python prints the traceback and leaves with 1
        print(f"error: {as_typed(str(known))}", file=sys.stderr)
        return known.exit_status
    return 0


def print_defect(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """In place of Python's own: the traceback of a defect, without the secrets that it may hold."""
    print(redact("".join(traceback.format_exception(kind, error, where))), end="", file=sys.stderr)


def help_of(config_type: type[object], argv: list[str]) -> str:
    """The help of a job, with the defaults of the preset that the arguments name."""
    from jobs._help import render_help
    from jobs._options import options_of
    from jobs._parse import preset_of

    default, _ = preset_of(config_type, argv)
    width = min(max(shutil.get_terminal_size().columns, NARROWEST), WIDEST)
    return render_help(job_of(config_type), options_of(config_type, default), width)


def as_typed(message: str) -> str:
    """The message with jobs named as this process's user starts them."""
    return message.replace(MODULES, command("")) if command("").startswith(SCRIPT) else message


def user_error(error: BaseException) -> WsdmRayError | None:
    """The `WsdmRayError` that `error` is or was raised from, as when Ray brings it back from a worker."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        if isinstance(found, WsdmRayError):
            # Ray's copy is of a class made on the spot whose text is the worker's traceback.
            cause = getattr(found, "cause", None)
            return cause if isinstance(cause, WsdmRayError) else found
        seen.add(id(found))
        cause = getattr(found, "cause", None)
        found = cause if isinstance(cause, BaseException) else found.__cause__
    return None
