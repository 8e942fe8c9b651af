"""What libraries print that says nothing to who runs a job: each by a line of its own, with the reason.

Only what is named here is silenced, by its text or its logger: whatever else a library warns of is shown.
No library is imported for it.
"""

import contextlib
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["filter_native_lines", "quiet_environment", "quiet_forwarded", "quiet_libraries", "without_noise"]

ENVIRONMENT = {
    # Equal lines of two workers are two facts.
    "RAY_DEDUP_LOGS": "0",
    # A warning about a future default of it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Variables of Ray's that are set before it starts, where the user did not set them."""

MESSAGES = {
    # That a Ray of our own asks for a token is how it should be. That one does not ask is still said.
    "ray._private.authentication.authentication_token_setup": r"Token authentication is enabled",
    # int8 takes activations in float16: it says so at the first layer of every process.
    "bitsandbytes.autograd._functions": r"MatMul8bitLt: inputs will be cast",
    # What ends a run at once is shown once, at the end, not where it came up as well.
    "ray.train.v2._internal.util": r"Error in training function:\n(?s:.*)wsdm_ray\.failures\.FinalError",
}  # fmt: skip
"""By logger, what its messages begin with that are dropped, in whatever process they come."""

SCALING = "ray.train.v2._internal.execution.scaling_policy"
TRACEBACKS = {
    # Safe to ignore on a busy machine, as they say: what was asked is asked again, or expires.
    f"{SCALING}.autoscaling_coordinator_client": r"Failed to (send|cancel) resource request",
    f"{SCALING}.elastic": r"Failed to get reserved resources",
}
"""By logger, what its messages begin with that are shown without the traceback that comes with them."""

FUTURE_WARNINGS = ("accelerate", "bitsandbytes", "huggingface_hub", "peft", "ray", "torch", "transformers")
"""Packages whose FutureWarnings are about their own use of each other: their versions are pinned here."""

RESTART_WARNING = (
    r"core_worker\.cc:\d+: Actor with class name: .* has constructor arguments in the object store"
)
"""Of Ray's own actors: replicas of Ray Data, whose arguments its driver keeps, and Ray Train's watcher."""

FORWARDED = (
    ("TrainController", re.compile(RESTART_WARNING)),
    # Ray Train asks the state API without an address, which fails beside a second Ray on the machine. All
    # that is lost is its cleaning up after a controller that was killed.
    ("PlacementGroupCleaner", re.compile(r"^(?!.*(Detected that|Failed to clean up))")),
)  # fmt: skip
"""Lines that Ray brings from other processes: the actor's class, and what a line has that is dropped."""


class Drop(logging.Filter):
    """Drops the messages of a logger and of those below it that begin with a pattern."""

    def __init__(self, pattern: str):
        super().__init__()
        self.pattern = re.compile(pattern)

    def filter(self, record: logging.LogRecord) -> bool:
        return not self.pattern.match(record.getMessage())


class WithoutTraceback(Drop):
    """Takes the traceback from the messages of a logger that begin with a pattern."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not super().filter(record):
            record.exc_info = record.exc_text = None
        return True


def quiet_environment() -> None:
    """Set the variables that Ray and its processes read when they start; the user's own stay."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def quiet_libraries() -> None:
    """Silence in this process what its libraries log and warn of; calling it again changes nothing."""
    for kind, patterns in ((Drop, MESSAGES), (WithoutTraceback, TRACEBACKS)):
        for name, pattern in patterns.items():
            logger = logging.getLogger(name)
            if not any(isinstance(each, kind) for each in logger.filters):
                logger.addFilter(kind(pattern))
    for package in FUTURE_WARNINGS:
        warnings.filterwarnings("ignore", category=FutureWarning, module=rf"{package}(\.|$)")


def quiet_forwarded(handlers: list[tuple[str, Callable[[dict[str, Any]], None]]]) -> None:
    """Have the handlers of the lines that Ray brings from other processes see them without noise.

    Args:
        handlers: name and function of each, as Ray keeps them; changed in place.
    """

    def filtered(show: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
        return lambda batch: show(without_noise(batch))

    handlers[:] = [(name, filtered(show)) for name, show in handlers]


def without_noise(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Lines that Ray brings from a process, without those of `FORWARDED`.

    Args:
        batch: `lines` and, for those of an actor, `actor_name`, the name of its class.
    """
    patterns = [pattern for actor, pattern in FORWARDED if actor == batch.get("actor_name")]
    lines = [line for line in batch["lines"] if not any(pattern.search(line) for pattern in patterns)]
    return {**batch, "lines": lines}


FILTER = """
import re, signal, sys
for each in (signal.SIGINT, signal.SIGTERM):  # `ray job stop` sends it to each child; this one stays
    signal.signal(each, signal.SIG_IGN)
noise = re.compile(sys.argv[1].encode())
for line in sys.stdin.buffer:
    if not noise.search(line):
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
"""


def filter_native_lines() -> None:
    """Have what C++ writes to this process's standard error pass without `RESTART_WARNING`.

    Ray's core writes to the file itself, where no logger is asked. A process of its own filters, so that the
    last lines of one that crashes are shown too. What Python writes goes past it, to the terminal as before.
    Nothing is done where standard error is not the process's own, as in a notebook.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if sys.stderr.fileno() != 2:
            return
        sys.stderr.flush()
        shown = os.dup(2)
        command = [sys.executable, "-I", "-S", "-c", FILTER, RESTART_WARNING]
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=shown, stderr=subprocess.DEVNULL, start_new_session=True
        )
        assert child.stdin
        os.dup2(child.stdin.fileno(), 2)
        child.stdin.close()
        sys.stderr = os.fdopen(shown, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
