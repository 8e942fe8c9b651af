"""How Ray Data runs a scoring run: the pool follows the cluster, what is read ahead is bounded, and what is
lost does not stop it.
"""

import dataclasses
import logging
from typing import Any

import ray.data
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)
from ray.data._internal.execution.interfaces import PhysicalOperator

from wsdm_ray.scoring.pool import Pool

__all__ = ["data_context", "most_open_units"]

READERS = "MapBatches(read)"
"""Ray Data's name of the stage that reads."""


def most_open_units(slots: int, readers: int) -> int:
    """The most units that are being read, or were read and not finished: each slot has one at hand and one
    that waits for it, each reader one."""
    return 2 * slots + readers


class BoundedReadAhead(BackpressurePolicy):
    """Reads no more units ahead of the replicas than there is use for, lest they fill the object store.

    Ray Data asks it again and again, so that it also makes the pool of replicas grow with the cluster.
    """

    pool: Pool

    def can_add_input(self, op: PhysicalOperator) -> bool:
        """Whether another task of an operator may start."""
        if op.name != READERS:
            return True
        [replicas] = op.output_dependencies
        finished = replicas.metrics.num_tasks_finished
        slots = self.pool.update(finished)
        for actors in replicas.get_autoscaling_actor_pools():
            resize(actors, slots)
        if op.metrics.num_tasks_running >= self.pool.readers:
            return False
        read = op.metrics.num_tasks_submitted - op.metrics.num_tasks_failed  # those that failed are finished
        return read - finished < most_open_units(slots, self.pool.readers)


def resize(actors: Any, size: int) -> None:
    """Have Ray Data's autoscaler bring a pool of actors to a size at its next look.

    Its own rule grows a pool where enough tasks wait for each actor, and what is read ahead is too little for
    that; a pool below its least size it brings there at once.
    """
    if actors.min_size() < size:
        config = actors._config
        actors._config = dataclasses.replace(config, min_size=size, initial_size=size, max_size=size)


def data_context(pool: Pool) -> "ray.data.DataContext":
    """The context of a dataset whose stages are of the sizes of `pool`.

    Ray Data's own bars and logs are off: they say nothing of pairs or tokens, and show a traceback for every
    unit that was lost with a Ray worker, which is run again.
    """
    context = ray.data.DataContext.get_current().copy()
    bounded = type("BoundedReadAhead", (BoundedReadAhead,), {"pool": pool})
    # First, as none is asked after one that refuses, and the pool must look at the cluster all the same.
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [bounded, *ENABLED_BACKPRESSURE_POLICIES])
    context.max_errored_blocks = -1
    # By default a run ends when no unit does for half an hour: some take longer, as may a store that is away,
    # a model that loads, and nodes that are waited for.
    context.execution_no_progress_timeout_s = -1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that the bars are off
    # It warns that a replica asks for a GPU and CPUs, which is what it takes.
    logging.getLogger("ray.data._internal.execution.operators.map_operator").setLevel(logging.ERROR)
    logging.getLogger("ray.data._internal.execution.streaming_executor_state").setLevel(logging.CRITICAL)
    return context
