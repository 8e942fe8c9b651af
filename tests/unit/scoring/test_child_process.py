"""A process that answers calls until it dies, and what its parent learns of its death."""

import functools
import os
import pickle
import signal
import time

import psutil
import pytest

from wsdm_ray.scoring import child_process
from wsdm_ray.scoring.child_process import ChildProcess, Death


def target(start_with, notify):
    """What the child answers with; it does what it is told."""
    if start_with == "signal":
        os.kill(os.getpid(), signal.SIGKILL)
    if start_with == "error":
        raise RuntimeError("no GPU\nat all")
    if start_with == "disk":
        raise OSError("no space left")
    if start_with == "sleep":
        time.sleep(600)

    def answer(payload):
        what, value = payload
        if what == "signal":
            os.kill(os.getpid(), value)
        if what == "exit":
            os._exit(value)
        if what == "raise":
            raise OSError("the disk is gone")
        if what == "sleep":
            time.sleep(value)
        if what == "notify and die":
            os.kill(os.getpid(), signal.SIGTERM)
            notify(value)
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "notify":
            notify(value)
        return what, value, os.getpid()

    return answer


def child_of(start_with="", **options) -> ChildProcess:
    return ChildProcess(pickle.dumps(functools.partial(target, start_with)), "test", **options)


def test_one_process_answers_until_it_dies_and_is_started_again():
    messages: list[str] = []
    child = child_of(on_message=messages.append)
    assert not child.alive
    assert child.start() is None
    assert child.process
    pid = child.process.pid
    big = b"x" * 5_000_000
    assert child.call(("echo", big)) == ("echo", big, pid)
    assert child.call(("notify", "half")) == ("notify", "half", pid)
    assert messages == ["half"]
    assert child.call(("signal", signal.SIGKILL)) == Death("process died: signal 9")
    assert not child.alive
    assert child.start() is None
    assert child.call(("exit", 3)) == Death("process died: exit status 3")
    assert child.start() is None
    assert child.call(("raise", 0)) == Death("process failed: OSError: the disk is gone")
    assert child.start() is None
    assert child.call(("signal", signal.SIGSEGV)) == Death("process died: signal 11")
    assert child.start() is None
    assert child.call(("sleep", 600), timeout_seconds=0.05) == Death("timed out after 0.05 s")
    assert not child.alive


@pytest.mark.parametrize(
    ("start_with", "reason"),
    [("signal", "process died: signal 9"), ("error", "process failed: RuntimeError: no GPU")],
)
def test_a_process_that_cannot_start_says_why(start_with, reason):
    child = child_of(start_with)
    assert child.start() == Death(reason)
    assert not child.alive


def test_a_process_that_never_starts_is_ended(monkeypatch):
    monkeypatch.setattr(child_process, "START_SECONDS", 0.05)
    child = child_of("sleep")
    assert child.start() == Death("timed out after 0.05 s")
    assert not child.alive


def test_a_child_ends_with_its_parent():
    """The parent's end of the lifeline closes, whatever ends the parent, also while the child is busy."""
    child = child_of()
    child.start()
    assert child.process
    child.connection.send(("sleep", 600))
    os.close(child.lifeline)
    assert child.process.wait(60) == 1
    child.lifeline = os.open(os.devnull, os.O_RDONLY)
    pid = child.process.pid
    child.close()
    assert not psutil.pid_exists(pid)


def test_a_process_that_is_asked_to_end_finishes_its_call():
    """What it is called with is not to blame for its end."""
    child = child_of()
    child.start()
    assert child.process
    pid = child.process.pid
    assert child.call(("signal", signal.SIGTERM)) == ("signal", signal.SIGTERM, pid)
    assert child.call(("echo", 1)) == Death("process died: signal 15", preempted=True)
    child.start()
    assert child.process
    child.process.terminate()  # it is idle
    assert child.call(("echo", 1)) == Death("process died: signal 15", preempted=True)


def test_a_process_that_is_killed_after_it_was_asked_to_end():
    child = child_of()
    child.start()
    assert child.call(("notify and die", "half")) == Death("process died: signal 9", preempted=True)
    child.start()
    assert child.call(("signal", signal.SIGKILL)) == Death("process died: signal 9"), "of another process"
    child.close()


@pytest.mark.parametrize(("start_with", "shown"), [("error", True), ("disk", False)])
def test_only_a_defect_shows_its_traceback(start_with, shown, capfd):
    """What a machine does is told by the reason of the death."""
    death = child_of(start_with).start()
    assert isinstance(death, Death)
    assert death.reason.startswith("process failed: ")
    assert ("Traceback" in capfd.readouterr().err) == shown


def test_a_process_whose_parent_goes_while_it_answers_ends_without_a_word(capfd):
    child = child_of()
    child.start()
    assert child.process
    child.connection.send(("echo", b"x" * 50_000_000))
    child.connection.close()  # with most of the answer on its way
    assert child.process.wait(60) == 1
    assert not capfd.readouterr().err
