"""A process for what may end a process: native code that crashes, memory that runs out, a call without end.

Its parent learns by which signal or status it ended, and ends it itself where a call passes its time limit.
The child ends when its parent is gone. At SIGTERM it finishes the call that it answers, and ends then.
Neither Ray nor torch is imported here.
"""

import contextlib
import faulthandler
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from typing import Any

from wsdm_ray.errors import WsdmRayError
from wsdm_ray.plain_text import one_line, redact
from wsdm_ray.scoring.preemption import died_of_notice

__all__ = ["MAX_PREEMPTED", "MAX_STARTS", "ChildProcess", "Death", "StartError", "start_ready"]

COMMAND = "from wsdm_ray.scoring.child_process import main; main()"

MAX_REASON_CHARACTERS = 200
"""A library's message is cut to this many characters."""

END_SECONDS = 10.0
"""A process that closed its connection has so long to end."""

START_SECONDS = 3_600.0
"""A process has so long to make its target: a large model may come from a slow store."""


MAX_STARTS = 3
"""So many times in a row a process is started that ends before it is ready."""

MAX_PREEMPTED = 10
"""So many processes in a row may be asked to end over one call, or while they start. Then it is the rows'
doing: some guards of a machine's memory ask first, too."""


class StartError(Exception):
    """A process ends each time before it is ready; the text says how."""


@dataclass(frozen=True)
class Death:
    """Why a process ended before it answered, such as `process died: signal 9`.

    preempted: it was asked to end, so that nothing is wrong with what it was called with.
    process: its id on its node.
    """

    reason: str
    preempted: bool = False
    process: int | None = field(default=None, compare=False)


class ChildProcess:
    """A process that answers one call at a time, until it dies. It may be started again.

    Args:
        target: pickled; takes a function that sends a message to the parent, and returns the function that
            answers calls. It is called once in each process.
        name: shown in the command line of the process.
        on_message: takes what the target sends.
        own_session: the process is not of the parent's terminal, whose Ctrl-C would reach it while it starts.
    """

    def __init__(
        self,
        target: bytes,
        name: str,
        on_message: Callable[[Any], None] = lambda message: None,
        *,
        own_session: bool = False,
    ):
        self.target, self.name, self.on_message = target, name, on_message
        self.own_session = own_session
        self.process: subprocess.Popen[bytes] | None = None
        self.noticed = False
        """Whether the process has said that it was asked to end."""

    def start(self) -> Death | None:
        """Start the process and wait until its target is made; a death where it is not."""
        self.noticed = False
        self.connection, theirs = Pipe()
        parent_is_gone, self.lifeline = os.pipe()
        command = [sys.executable, "-c", COMMAND, str(theirs.fileno()), str(parent_is_gone), self.name]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), parent_is_gone),
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUNBUFFERED": "1"},
                start_new_session=self.own_session,
            )
        except OSError:
            self.connection.close()
            os.close(self.lifeline)
            raise
        finally:
            theirs.close()
            os.close(parent_is_gone)
        started = self.ask(lambda: self.connection.send_bytes(self.target), START_SECONDS)
        return started if isinstance(started, Death) else None

    @property
    def alive(self) -> bool:
        return self.process is not None

    def call(self, payload: Any, timeout_seconds: float | None = None) -> Any:
        """The answer to `payload`, which is pickled; a `Death` where the process ends before it answers.

        Args:
            timeout_seconds: the process is ended after so long; None: there is no limit.
        """
        return self.ask(lambda: self.connection.send(payload), timeout_seconds)

    def ask(self, send: Callable[[], None], timeout_seconds: float | None) -> Any:
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        process = self.process.pid if self.process else None
        sent = False
        while True:
            # Of the connection alone: what the parent does with a message may fail for reasons of its own.
            try:
                if not sent:
                    send()
                    sent = True
                left = None if deadline is None else max(deadline - time.monotonic(), 0)
                if not self.connection.poll(left):
                    self.close()
                    return Death(f"timed out after {timeout_seconds:g} s", process=process)
                kind, value = self.connection.recv()
            except (EOFError, OSError):
                status = self.close(ends_itself=True)
                reason = f"process died: {as_words(status)}"
                return Death(reason, died_of_notice(status, self.noticed), process)
            if kind == "answer":
                return value
            if kind == "failed":
                self.close()
                return Death(value, process=process)
            if kind == "noticed":
                self.noticed = True
            else:
                self.on_message(value)

    def close(self, *, ends_itself: bool = False) -> int:
        """End the process, if there is one; returns its status, the negative signal where one ended it.

        Args:
            ends_itself: it has closed its connection, and is given the time to end.
        """
        if self.process is None:
            return 0
        process, self.process = self.process, None
        if ends_itself:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
        process.kill()
        status = process.wait()
        self.connection.close()
        os.close(self.lifeline)
        return status

    def __del__(self) -> None:
        self.close()


def start_ready(child: ChildProcess, leaving: Callable[[], bool] = lambda: False) -> None:
    """Start the child. Raises `StartError` where it ended too often.

    Args:
        leaving: whether no other is to be started.
    """
    deaths, preempted = 0, 0
    while death := child.start():
        deaths, preempted = deaths + (not death.preempted), preempted + death.preempted
        if deaths == MAX_STARTS or preempted == MAX_PREEMPTED or leaving():
            raise StartError(death.reason)


def as_words(status: int) -> str:
    """`signal 9` or `exit status 1`."""
    return f"signal {-status}" if status < 0 else f"exit status {status}"


def main() -> None:
    """What the child runs, with the file descriptors of its connection and its lifeline as arguments."""
    connection, lifeline = Connection(int(sys.argv[1])), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent decides
    faulthandler.enable()
    threading.Thread(target=end_with_parent, args=(lifeline,), daemon=True).start()
    try:
        serve(connection)
    except EOFError:
        os._exit(0)
    except Exception as error:
        if not isinstance(error, WsdmRayError | OSError | MemoryError):  # the line below tells all of these
            print(redact(traceback.format_exc()), file=sys.stderr)
            sys.stderr.flush()
        first_line = one_line(f"process failed: {type(error).__name__}: {error}".splitlines()[0])
        with contextlib.suppress(OSError):  # its parent may be gone, which is what failed then
            connection.send(("failed", first_line[:MAX_REASON_CHARACTERS]))
        os._exit(1)


def serve(connection: Connection) -> None:
    """Make the target and answer calls, until the parent is gone."""
    notice = Notice()
    make = pickle.loads(connection.recv_bytes())

    def send(kind: str, value: Any) -> None:
        if notice.came and not notice.told:  # never from within the handler, which may interrupt another send
            notice.told = True
            connection.send(("noticed", None))
        connection.send((kind, value))

    answer = make(lambda message: send("message", message))
    send("answer", None)
    while True:
        call = connection.recv()
        notice.busy = True
        outcome = answer(call)
        send("answer", outcome)
        notice.busy = False
        if notice.came:
            notice.end()


class Notice:
    """SIGTERM in a process that answers calls: between two of them it ends at once, else after the call."""

    def __init__(self) -> None:
        self.busy = self.came = self.told = False
        signal.signal(signal.SIGTERM, self.handle)

    def handle(self, *_: object) -> None:
        self.came = True
        if not self.busy:
            self.end()

    def end(self) -> None:
        """End as SIGTERM ends a process that does not handle it."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(1)
