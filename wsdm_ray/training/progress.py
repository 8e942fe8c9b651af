"""The bar of a training run in a terminal. It follows the first worker, which runs in another process."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import ray

from wsdm_ray.telemetry import in_terminal, track_rows

__all__ = ["ProgressActor", "show_progress"]

REFRESH_SECONDS = 0.5


class ProgressActor:
    """Holds how far the first worker is, for the bar of the process that started the run."""

    def __init__(self) -> None:
        self.pairs = self.tokens = 0

    def update(self, pairs: int, tokens: int) -> None:
        """Set the pairs and tokens since the start of the run."""
        self.pairs, self.tokens = pairs, tokens

    def read(self) -> tuple[int, int]:
        """Pairs and tokens since the start of the run."""
        return self.pairs, self.tokens


@contextlib.contextmanager
def show_progress(pairs: int) -> Iterator[Any]:
    """In a terminal, a bar of the run's pairs, and the `ProgressActor` that it follows; else None."""
    if not in_terminal():
        yield None
        return
    actor: Any = ray.remote(num_cpus=0)(ProgressActor).remote()
    ended = threading.Event()
    thread = threading.Thread(target=follow, args=(actor, pairs, ended), daemon=True)
    thread.start()
    try:
        yield actor
    finally:
        ended.set()
        thread.join(5)


def follow(actor: Any, pairs: int, ended: threading.Event) -> None:
    """Advance a bar of `pairs` pairs as the actor is updated, until `ended` is set."""
    shown = (0, 0)
    with track_rows("train", pairs) as bar:
        while not ended.wait(REFRESH_SECONDS):
            now = ray.get(actor.read.remote())
            if now != shown:
                bar.advance(now[0] - shown[0], now[1] - shown[1])
                shown = now
