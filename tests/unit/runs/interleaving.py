"""Drivers whose every request to a store waits for its turn: any order of them can be played.

Requests go to the file system in memory of fsspec. One driver runs at a time, from one request to the next.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

__all__ = ["Actor", "Turns", "gated_store", "play"]


class Killed(BaseException):
    """Ends an actor as `kill -9` does: nothing more that it asks of the store is done."""


class Turns(threading.local):
    """The actor of this thread, if it is one."""

    actor: "Actor | None" = None
    inside: bool = False


TURNS = Turns()


class Actor:
    """A driver in a thread of its own.

    requests: how many it made. result: what it returned, or raised.
    """

    def __init__(self, run: Callable[[], Any]):
        self.run, self.requests, self.result, self.is_done, self.is_killed = run, 0, None, False, False
        self.may_go, self.has_stopped = threading.Semaphore(0), threading.Semaphore(0)
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def work(self) -> None:
        TURNS.actor = self
        try:
            self.wait()
            self.result = self.run()
        except (Exception, Killed) as error:
            self.result = error
        self.is_done = True
        self.has_stopped.release()

    def wait(self) -> None:
        """Until its turn comes."""
        self.may_go.acquire()
        if self.is_killed:
            raise Killed

    def request(self) -> None:
        """Let others have their turns, before it asks the store for something."""
        if self.is_killed:
            raise Killed
        self.requests += 1
        self.has_stopped.release()
        self.wait()

    def step(self) -> None:
        """Let it make its next request, and come to the one after it."""
        self.may_go.release()
        self.has_stopped.acquire()

    def go_on(self, requests: int | None = None) -> "Actor":
        """Let it make so many requests more, or all that it makes."""
        while not self.is_done and (requests is None or requests > 0):
            self.step()
            requests = None if requests is None else requests - 1
        return self

    def kill(self) -> None:
        """End it where it is."""
        self.is_killed = True
        if not self.is_done:
            self.step()


def play(actors: Sequence[Actor], turns: Sequence[int]) -> None:
    """Let `actors` make a request each in the order of `turns`, by index, and then each all others."""
    for index in turns:
        actors[index].go_on(1)
    for actor in actors:
        actor.go_on()


@contextmanager
def gated_store() -> Iterator[None]:
    """`memory://` as a store on which actors take turns."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    fsspec.register_implementation("memory", GatedFileSystem, clobber=True)
    try:
        yield
    finally:
        fsspec.register_implementation("memory", MemoryFileSystem, clobber=True)
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]


def gated(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a store as one request: all of it happens at once."""

    def request(*args: Any, **kwargs: Any) -> Any:
        if TURNS.actor is None or TURNS.inside:
            return method(*args, **kwargs)
        TURNS.actor.request()
        TURNS.inside = True
        try:
            return method(*args, **kwargs)
        finally:
            TURNS.inside = False

    return request


class GatedFileSystem(MemoryFileSystem):
    """Requests as a store has them; deleting a folder is one for each file."""

    cachable = False
    pipe_file = gated(MemoryFileSystem.pipe_file)
    cat_file = gated(MemoryFileSystem.cat_file)
    ls = gated(MemoryFileSystem.ls)
    rm_file = gated(MemoryFileSystem.rm_file)
    open = gated(MemoryFileSystem.open)

    def isfile(self, path: str) -> bool:
        return self._strip_protocol(path) in self.store  # of a listing, which is a request of its own
