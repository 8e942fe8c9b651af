"""A function of each of many files in a child process: one that ends the process costs only itself.

Native code that reads a damaged file may crash. Files begin in order, and each result is sent at once: only
the first few without one can have ended the process, and those are read again alone.
"""

import faulthandler
import functools
import logging
import pickle
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from wsdm_ray.errors import ClusterError
from wsdm_ray.failures import pack_error, unpack_error
from wsdm_ray.scoring.child_process import ChildProcess, Death
from wsdm_ray.storage import count_retry, retries, set_store_timeout, store_timeout
from wsdm_ray.telemetry import logger

__all__ = ["each_apart"]

MAX_STARTS = 3
"""So many times in a row a process is started that ends before it is ready."""

MAX_ALONE = 2
"""So many processes a file may end alone. The first may have been by chance: memory is scarce, say."""

Numbered = list[tuple[int, Any]]


def each_apart(
    function: Callable[[Any], Any],
    files: Sequence[Any],
    take: Callable[[int, Any], None],
    died: Callable[[Any, str], Any],
    threads: int = 1,
) -> None:
    """An `EachFile`.

    Raises:
        ClusterError: no process can be started.
    """
    left = dict(enumerate(files))

    def on_message(message: tuple[str, Any]) -> None:
        kind, value = message
        if kind == "result":
            place, result = value
            if left.pop(place, None) is not None:  # one that was read before its process died may come again
                take(place, result)
        elif kind == "retries":
            count_retry(*value)
        else:
            logger.log(*value)

    target = pickle.dumps(functools.partial(answering, function, threads, store_timeout()))
    child = ChildProcess(target, "files", on_message)
    try:
        while left:
            if not called(child, list(left.items())):
                continue
            for place, file in list(left.items())[:threads]:
                reason = called_alone(child, place, file)
                if left.pop(place, None) is not None:
                    take(place, died(file, reason))
    finally:
        child.close()


def called(child: ChildProcess, files: Numbered) -> str:
    """Have the child read files; how it ended, or ""."""
    if not child.alive:
        start(child)
    outcome = child.call(files)
    if isinstance(outcome, Death):
        return outcome.reason
    if outcome:
        raise unpack_error(outcome)
    return ""


def called_alone(child: ChildProcess, place: int, file: Any) -> str:
    """Have the child read one file; how it ended each time, or ""."""
    reason = ""
    for _ in range(MAX_ALONE):
        reason = called(child, [(place, file)])
        if not reason:
            break
    return reason


def start(child: ChildProcess) -> None:
    reason = ""
    for _ in range(MAX_STARTS):
        death = child.start()
        if death is None:
            return
        reason = death.reason
    raise ClusterError(f"no process can be started to read the input: {reason}")


class Sender(logging.Handler):
    """Sends to the parent what threads of the child tell, log lines among it."""

    def __init__(self, notify: Callable[[Any], None]):
        super().__init__()
        self.notify, self.turn = notify, threading.Lock()

    def send(self, kind: str, value: Any) -> None:
        with self.turn:
            self.notify((kind, value))

    def emit(self, record: logging.LogRecord) -> None:
        self.send("log", (record.levelno, "%s", record.getMessage()))


def answering(
    function: Callable[[Any], Any], threads: int, timeout: float, notify: Callable[[Any], None]
) -> Callable[[Numbered], str]:
    """What the child answers calls with: an error that ends all, packed, or "". Results are sent before."""
    faulthandler.disable()  # the parent tells what a user needs to know of a crash
    set_store_timeout(timeout, reached=True)
    sender = Sender(notify)
    logger.addHandler(sender)
    logger.setLevel(logging.INFO)
    logger.propagate = False

    def answer(files: Numbered) -> str:
        before = retries()

        def one(numbered: tuple[int, Any]) -> None:
            place, file = numbered
            sender.send("result", (place, function(file)))

        pool = ThreadPoolExecutor(threads)
        try:
            for done in [pool.submit(one, numbered) for numbered in files]:
                done.result()
        except Exception as error:
            return pack_error(error)
        finally:
            pool.shutdown(cancel_futures=True)
            for scheme, count in retries().items():
                sender.send("retries", (scheme, count - before.get(scheme, 0)))
        return ""

    return answer
