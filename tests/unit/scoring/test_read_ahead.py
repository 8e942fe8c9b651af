"""How many units are read before replicas are done with them."""

from types import SimpleNamespace
from typing import Any

import ray.data
from ray.data._internal.actor_autoscaler.autoscaling_actor_pool import AutoscalingActorConfig
from ray.data._internal.execution.interfaces import ExecutionResources

from wsdm_ray.scoring.pool import Pool
from wsdm_ray.scoring.read_ahead import BoundedReadAhead, data_context, most_open_units


class Actors:
    """A pool of actors of Ray Data, of which only the sizes are of use."""

    def __init__(self, size: int):
        self._config = AutoscalingActorConfig(
            min_size=size, max_size=size, initial_size=size, max_tasks_in_flight_per_actor=2,
            max_actor_concurrency=1, per_actor_resource_usage=ExecutionResources(cpu=1),
        )  # fmt: skip

    def min_size(self) -> int:
        return self._config.min_size


def readers(
    submitted: int, failed: int = 0, finished: int = 0, running: int = 0, actors: Actors | None = None
) -> Any:
    replicas = SimpleNamespace(
        metrics=SimpleNamespace(num_tasks_finished=finished),
        get_autoscaling_actor_pools=lambda: [actors] if actors else [],
    )
    metrics = SimpleNamespace(
        num_tasks_submitted=submitted, num_tasks_failed=failed, num_tasks_running=running
    )
    return SimpleNamespace(name="MapBatches(read)", metrics=metrics, output_dependencies=[replicas])


def test_a_few_units_a_replica_are_read_ahead():
    before = ray.data.DataContext.get_current()
    assert most_open_units(slots=3, readers=2) == 8
    context = data_context(Pool(slots=3, readers=2, units=99, poll=lambda: (3, 2)))
    policy: Any = context.get_config("backpressure_policies.enabled")[0](context, None, None)
    assert isinstance(policy, BoundedReadAhead)
    assert policy.can_add_input(readers(7))
    assert not policy.can_add_input(readers(8))
    assert policy.can_add_input(readers(8, finished=1))
    assert policy.can_add_input(readers(8, failed=1)), "no replica will see it"
    assert not policy.can_add_input(readers(3, running=2)), "as many readers as there are"
    assert policy.can_add_input(SimpleNamespace(name="MapBatches(Replica)"))
    assert before.max_errored_blocks == 0, "a user's own datasets keep theirs"
    assert context.max_errored_blocks == -1
    assert before.execution_no_progress_timeout_s == 1800, "Ray's own: a unit may take longer"
    assert context.execution_no_progress_timeout_s == -1


def test_the_pool_and_what_is_read_ahead_grow_with_the_cluster():
    now, actors = iter([0.0, 1.0, 3.0]), Actors(1)
    pool = Pool(slots=1, readers=1, units=9, poll=lambda: (4, 6), clock=lambda: next(now))
    context = data_context(pool)
    policy: Any = context.get_config("backpressure_policies.enabled")[0](context, None, None)
    assert not policy.can_add_input(readers(3, actors=actors))
    assert not policy.can_add_input(readers(3, actors=actors)), "it looked a second ago"
    assert policy.can_add_input(readers(3, actors=actors))
    config = actors._config
    assert (config.min_size, config.initial_size, config.max_size) == (4, 4, 4)
