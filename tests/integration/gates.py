"""Runs that wait until a test has done what it wants to do to them: no test races a run.

gated_work      training that waits at a step
gated_replica   scoring that waits in a unit
wait_for        what a test waits by
pids_of         the processes of Ray's actors, to kill one
"""

import contextlib
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import psutil

__all__ = ["gated_replica", "gated_work", "pids_of", "wait_for"]

T = TypeVar("T")


def wait_for(condition: Callable[[], T]) -> T:
    """The first true value of `condition()`, however long it takes: pytest's own timeout ends a test."""
    while not (value := condition()):
        time.sleep(0.05)
    return value


def pids_of(name: str, beside: Collection[int] = ()) -> list[int]:
    """Processes below this one that hold Ray's actors of class `name`, without those known from before."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            words = " ".join(process.cmdline() or [process.name()])
            if words.startswith("ray::") and name in words and process.pid not in beside:
                found.append(process.pid)
    return found


def gated_work(gates: Mapping[int, str]) -> Callable[[Any], Any]:
    """What a worker runs, in place of `wsdm_ray.training.worker.work`.

    Ray sends this function to the workers by value, as it is defined within another.

    Args:
        gates: by the index of a step, a file: the step is not taken until the file exists.
    """

    def work(arguments: Any) -> Any:
        import time
        from pathlib import Path

        from wsdm_ray.training import worker
        from wsdm_ray.training.loop import Trainer

        train_step = Trainer.train_step

        def gated_step(trainer: Trainer, *batch: Any) -> Any:
            gate = gates.get(trainer.step)
            while gate and not Path(gate).exists():
                time.sleep(0.05)
            return train_step(trainer, *batch)

        Trainer.train_step = gated_step
        return worker.work(arguments)

    return work


def gated_replica(units: int, gate: str) -> type:
    """Replicas that wait in every unit after the first `units` of theirs until the file `gate` exists.

    Ray sends this class to the workers by value, too.
    """
    from wsdm_ray.scoring.replica import Replica

    class GatedReplica(Replica):
        done = 0

        def __call__(self, batch: Any) -> Any:
            import time
            from pathlib import Path

            while self.done >= units and not Path(gate).exists():
                time.sleep(0.05)
            self.done += 1
            return super().__call__(batch)

    return GatedReplica
