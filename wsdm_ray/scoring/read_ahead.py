"""How Ray Data runs a scoring run: what is read ahead is bounded, and what is lost does not stop it."""

import logging

import ray.data
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)
from ray.data._internal.execution.interfaces import PhysicalOperator

__all__ = ["data_context", "most_open_units"]

READERS = "MapBatches(read)"
"""Ray Data's name of the stage that reads."""


def most_open_units(slots: int, readers: int) -> int:
    """The most units that are being read, or were read and not finished: each slot has one at hand and one
    that waits for it, each reader one."""
    return 2 * slots + readers


class BoundedReadAhead(BackpressurePolicy):
    """Reads no more units ahead of the replicas than `limit`, lest they fill the object store."""

    limit = 1

    def can_add_input(self, op: PhysicalOperator) -> bool:
        """Whether another task of an operator may start."""
        if op.name != READERS:
            return True
        [replicas] = op.output_dependencies
        read = op.metrics.num_tasks_submitted - op.metrics.num_tasks_failed
        return read - replicas.metrics.num_tasks_finished < self.limit  # those that failed are finished


def data_context(limit: int) -> "ray.data.DataContext":
    """The context of a dataset of which at most `limit` units are read and not finished.

    Ray Data's own bars and logs are off: they say nothing of pairs or tokens, and show a traceback for every
    unit that was lost with a Ray worker, which is run again.
    """
    context = ray.data.DataContext.get_current().copy()
    bounded = type("BoundedReadAhead", (BoundedReadAhead,), {"limit": limit})
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*ENABLED_BACKPRESSURE_POLICIES, bounded])
    context.max_errored_blocks = -1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that the bars are off
    # It warns that a replica asks for a GPU and CPUs, which is what it takes.
    logging.getLogger("ray.data._internal.execution.operators.map_operator").setLevel(logging.ERROR)
    logging.getLogger("ray.data._internal.execution.streaming_executor_state").setLevel(logging.CRITICAL)
    return context
