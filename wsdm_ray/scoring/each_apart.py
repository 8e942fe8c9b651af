"""A function of each of many files in a child process: one that ends the process costs only itself.

Native code that reads a damaged file may crash. Files begin in order, and each result is sent at once: only
the first few without one can have ended the process, and those are read again alone.
"""

import faulthandler
import functools
import logging
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from wsdm_ray.errors import ClusterError
from wsdm_ray.failures import pack_error, unpack_error
from wsdm_ray.inputs.each_file import FileWork, Take
from wsdm_ray.noise import quiet_libraries
from wsdm_ray.scoring.child_process import MAX_PREEMPTED, ChildProcess, Death, StartError, start_ready
from wsdm_ray.storage import count_retry, retries, set_store_timeout, store_timeout
from wsdm_ray.telemetry import logger

__all__ = ["each_apart"]

MAX_ALONE = 2
"""So many processes a file may end alone. The first may have been by chance: memory is scarce, say."""

Numbered = list[tuple[int, Any]]


def each_apart(work: FileWork, files: Sequence[Any], take: Take) -> None:
    """An `EachFile`.

    Raises:
        ClusterError: no process can be started.
    """
    left = dict(enumerate(files))

    def on_message(message: tuple[str, Any]) -> None:
        kind, value = message
        if kind == "result":
            place, result = value
            if place in left:  # one that was read before its process died may come again
                take(place, result)
                del left[place]
        elif kind == "retries":
            count_retry(*value)
        else:
            logger.log(*value)

    target = functools.partial(
        answering, work.function, work.threads, store_timeout(), logger.getEffectiveLevel()
    )
    child = ChildProcess(pickle.dumps(target), "files", on_message, own_session=True)
    try:
        while left:
            if not called(child, list(left.items())):
                continue
            for place, file in list(left.items())[: work.threads]:
                death = called_alone(child, place, file)
                if death and place in left:
                    take(place, work.died(file, death.reason))
                    del left[place]
    finally:
        child.close()


def called(child: ChildProcess, files: Numbered) -> Death | None:
    """Have the child read files; its death, if it dies."""
    if not child.alive:
        try:
            start_ready(child)
        except (StartError, OSError) as error:
            raise ClusterError(
                f"no process can be started to read the input ({error}); free memory on this machine"
            ) from error
    outcome = child.call(files)
    if isinstance(outcome, Death):
        return outcome
    if outcome:
        raise unpack_error(outcome)
    return None


def called_alone(child: ChildProcess, place: int, file: Any) -> Death | None:
    """Have the child read one file; its death, if it dies each time."""
    deaths, preempted = 0, 0
    while death := called(child, [(place, file)]):
        deaths, preempted = deaths + (not death.preempted), preempted + death.preempted
        if deaths == MAX_ALONE or preempted == MAX_PREEMPTED:
            return death
    return None


class Sender(logging.Handler):
    """Sends to the parent what threads of the child tell: results, retries of requests, log lines."""

    def __init__(self, notify: Callable[[Any], None]):
        super().__init__()
        self.notify, self.turn = notify, threading.Lock()
        self.told = Counter(retries())

    def send(self, kind: str, value: Any) -> None:
        with self.turn:
            self.notify((kind, value))

    def send_retries(self) -> None:
        with self.turn:
            now = Counter(retries())
            for scheme, count in (now - self.told).items():
                self.notify(("retries", (scheme, count)))
            self.told = now

    def emit(self, record: logging.LogRecord) -> None:
        self.send("log", (record.levelno, "%s", record.getMessage()))


def answering(
    function: Callable[[Any], Any],
    threads: int,
    timeout: float,
    level: int,
    notify: Callable[[Any], None],
) -> Callable[[Numbered], str]:
    """What the child answers calls with: an error that ends all, packed, or "". Results are sent before.

    Args:
        timeout: of `set_store_timeout`, in seconds. level: of the parent's logger.
    """
    faulthandler.disable()  # the parent tells what a user needs to know of a crash
    quiet_libraries()
    set_store_timeout(timeout, reached=True)
    sender = Sender(notify)
    logger.addHandler(sender)
    logger.setLevel(level)
    logger.propagate = False

    def one(numbered: tuple[int, Any]) -> None:
        place, file = numbered
        result = function(file)
        sender.send_retries()
        sender.send("result", (place, result))

    def answer(files: Numbered) -> str:
        pool = ThreadPoolExecutor(threads)
        try:
            for done in [pool.submit(one, numbered) for numbered in files]:
                done.result()
        except Exception as error:
            return pack_error(error)
        finally:
            pool.shutdown(cancel_futures=True)
            sender.send_retries()
        return ""

    return answer
