"""What every job shares: parse the options, run, say on one line what went wrong, leave with a status."""

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import tyro

from wsdm_ray.errors import ConfigError, WsdmRayError
from wsdm_ray.telemetry import set_up_logging

__all__ = ["main"]

Config = TypeVar("Config")

WITH_SECRET = re.compile(r"\w+://[^\s/@]*:[^\s@]*@")
INTERRUPTED = 130  # as a shell reports a process that Ctrl-C ended
TERMINATED = 143  # or that SIGTERM ended, which is how `ray job stop` begins


def main(
    run: Callable[[Config], object],
    config_type: type[Config],
    argv: Sequence[str] | None = None,
    *,
    default: Config | None = None,
) -> int:
    """The exit status of `run(config)`, with the config read from the command line.

    0: done. 1: failed, with one line on standard error for what a user can mend and a traceback for a defect.
    2: wrong arguments. 130: interrupted. 143: terminated, temporary files removed.

    Args:
        config_type: a frozen dataclass of `wsdm_ray.config`; each field is an option (`--valid-fraction`).
        argv: the arguments; by default those of the process.
        default: a config whose values the command line may leave as they are.
    """
    set_up_logging()
    terminated = threading.Event()

    def terminate(*_: object) -> None:
        terminated.set()
        sys.exit(TERMINATED)

    if threading.current_thread() is threading.main_thread():  # the only one that may
        signal.signal(signal.SIGTERM, terminate)
    try:
        words = sys.argv[1:] if argv is None else argv
        check_no_secret(words)
        check_repeated(words)
        try:
            config = tyro.cli(
                config_type,
                prog=program_name(),
                args=argv,
                description=config_type.__doc__,
                default=cast(Config, default),
            )
        except SystemExit as leaving:  # --help, or arguments that tyro has explained already
            return leaving.code if isinstance(leaving.code, int) else 2
        run(config)
    except KeyboardInterrupt:
        print("interrupted; the same command again finishes the work", file=sys.stderr)
        return INTERRUPTED
    except SystemExit:
        if terminated.is_set():
            return TERMINATED  # where Ray waits it leaves with a status of its own
        raise
    except Exception as error:
        known = user_error(error)
        if known is None:
            raise  # a defect: Python prints the traceback and leaves with 1
        print(f"error: {known}", file=sys.stderr)
        return known.exit_status
    return 0


def check_repeated(argv: Sequence[str]) -> None:
    """Raise `ConfigError` for an option that stands twice: the parser would take the last one in silence."""
    seen: set[str] = set()
    for word in argv:
        if not word.startswith("--"):
            continue
        name = word.partition("=")[0].replace("_", "-")
        if name in seen:
            raise ConfigError(f"{name} stands twice; give all its values at once: {name} A B")
        seen.add(name)


def check_no_secret(argv: Sequence[str]) -> None:
    """Raise `ConfigError` for a path with credentials in it: logs, errors and run.json name paths."""
    option = ""
    for word in argv:
        option = word.partition("=")[0] if word.startswith("--") else option
        if WITH_SECRET.search(word):
            raise ConfigError(
                f"{option}: has a path with credentials in it; leave them to the environment, or to the "
                "store's own files"
            )


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


def program_name() -> str:
    name = os.path.splitext(os.path.basename(sys.argv[0]))[0]
    return f"python -m jobs.{name}"
