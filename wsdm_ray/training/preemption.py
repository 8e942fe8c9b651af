"""A run whose workers are asked to end: who says so, what the group makes of it, and what was lost.

A worker learns of it by SIGTERM, by Ray (the node of a worker is being drained), or from the process that
started the run. After every step the workers agree whether one of them did (`WorkerGroup.any`). Then the
first one writes a checkpoint of that step, and all return; the run goes on from there on other nodes.

How far a run was is in the cluster's key-value store: it outlives workers, and costs no process.
"""

import contextlib
import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.experimental import internal_kv
from ray.train.v2._internal.execution.callback import WorkerCallback
from ray.train.v2._internal.execution.context import get_train_context

__all__ = [
    "HandleNotices",
    "Interruption",
    "Interruptions",
    "Journal",
    "Notices",
    "ask_to_stop",
    "forget",
    "interruptions_of",
    "is_asked_to_stop",
    "step_of",
]

STOP_SECONDS = 1.0
"""A worker asks so often whether the run is to stop."""

NAMESPACE = b"wsdm_ray"

PIPE_BYTES = 4096


class Signals:
    """Whether this process got SIGTERM since it handles it.

    The main thread of a worker waits in Ray's own code, where no handler of Python's is called. So what
    counts is a pipe to which Python's C code writes each signal at once.
    """

    came = False
    pipe: int | None = None

    @classmethod
    def handle(cls) -> None:
        """Note SIGTERM from now on, in place of Ray's handler, which ends the process."""
        cls.pipe, writes = os.pipe()
        for end in (cls.pipe, writes):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)

    @classmethod
    def received(cls) -> bool:
        """Whether one came by now."""
        if cls.pipe is not None:
            with contextlib.suppress(BlockingIOError):
                cls.came |= signal.SIGTERM in os.read(cls.pipe, PIPE_BYTES)
        return cls.came


class HandleNotices(WorkerCallback):
    """Has SIGTERM noted in Ray Train's workers."""

    def after_init_train_context(self) -> None:
        if threading.current_thread() is threading.main_thread():  # the only one that may
            Signals.handle()


class Notices:
    """Why this worker is to end after the step at hand: the reason, or "".

    Args:
        output: of the run. is_first: it alone asks whether the whole run is to stop.
    """

    def __init__(self, output: str, is_first: bool, clock: Callable[[], float] = time.monotonic):
        self.output, self.is_first, self.clock = output, is_first, clock
        self.asked = float("-inf")

    def reason(self) -> str:
        """Why, by the first that says so."""
        if Signals.received():
            return "SIGTERM"
        if is_node_drained():
            return "its node is being drained"
        if self.is_first and self.clock() - self.asked >= STOP_SECONDS:
            self.asked = self.clock()
            if is_asked_to_stop(self.output):
                return "the job is stopped"
        return ""


def is_node_drained() -> bool:
    """Whether Ray Train's watcher told this worker that the node of one of the workers is being drained.

    `ray.train.get_preemption_info` would tell the same, but waits for all workers at each call.
    """
    try:
        context = get_train_context()
    except RuntimeError:  # in Ray Train's local mode there is none
        return False
    return context.preemption_context.preemption_info is not None


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """A point at which a run was begun again from its checkpoint.

    reached: steps that had been taken. resumed_from: the checkpoint's step.
    noticed: the workers were asked to end, and wrote a checkpoint before.
    """

    reached: int
    resumed_from: int
    noticed: bool

    @property
    def steps_lost(self) -> int:
        return max(self.reached - self.resumed_from, 0)


@dataclass(frozen=True, kw_only=True)
class Interruptions:
    """All interruptions of a run, as far as this cluster knows them."""

    each: tuple[Interruption, ...] = ()

    def to_dict(self) -> dict[str, int]:
        """How often, how often with a notice, and the steps that were taken again."""
        return {
            "times": len(self.each),
            "noticed": sum(one.noticed for one in self.each),
            "steps_lost": sum(one.steps_lost for one in self.each),
        }


class Journal:
    """How far a run is, kept by its first worker.

    Args:
        step: of the checkpoint that it goes on from; 0 at the start.
    """

    def __init__(self, output: str, step: int):
        self.key = key_of(output)
        stored = read(self.key)
        self.interruptions = list(interruptions_of(output).each)
        self.last: Interruption | None = None
        if stored.get("step"):
            self.last = Interruption(
                reached=int(stored["step"]), resumed_from=step, noticed=bool(stored.get("left"))
            )
            self.interruptions.append(self.last)
        self.write(step, left=False)

    def write(self, step: int, *, left: bool) -> None:
        """Note the steps taken, and whether the workers end after them as they were asked to."""
        each = [dataclasses.asdict(one) for one in self.interruptions]
        put(self.key, {"step": step, "left": left, "interruptions": each})


def interruptions_of(output: str) -> Interruptions:
    """The interruptions of a run so far."""
    each = read(key_of(output)).get("interruptions", ())
    return Interruptions(each=tuple(Interruption(**one) for one in each))


def step_of(output: str, *, left: bool = False) -> int | None:
    """The steps that a run has taken, as far as this cluster knows; None where it knows nothing.

    Args:
        left: None, too, unless its workers ended after that step as they were asked to.
    """
    stored = read(key_of(output))
    return stored["step"] if stored and (stored["left"] or not left) else None


def forget(output: str) -> None:
    """Delete what is known of a run, which is finished or begins anew."""
    for key in (key_of(output), stop_key(output)):
        internal_kv._internal_kv_del(key, namespace=NAMESPACE)


def ask_to_stop(output: str, asked: bool = True) -> None:
    """Ask the workers of a run to write a checkpoint after the step at hand, and to end; or no longer."""
    if asked:
        put(stop_key(output), {"stop": True})
    else:
        internal_kv._internal_kv_del(stop_key(output), namespace=NAMESPACE)


def is_asked_to_stop(output: str) -> bool:
    """Whether `ask_to_stop` was called."""
    return bool(read(stop_key(output)))


def key_of(output: str) -> bytes:
    return f"train {output}".encode()


def stop_key(output: str) -> bytes:
    return f"stop {output}".encode()


def put(key: bytes, value: dict[str, Any]) -> None:
    internal_kv._internal_kv_put(key, json.dumps(value).encode(), overwrite=True, namespace=NAMESPACE)


def read(key: bytes) -> dict[str, Any]:
    found = internal_kv._internal_kv_get(key, namespace=NAMESPACE)
    return json.loads(found) if found else {}
