"""Training that waits at a step until a test has done what it wants to do there: no test races a run."""

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["gated_work"]


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
