"""How many units are read before replicas are done with them."""

from types import SimpleNamespace
from typing import Any

import ray.data

from wsdm_ray.scoring.read_ahead import BoundedReadAhead, data_context, most_open_units


def readers(submitted: int, failed: int = 0, finished: int = 0) -> Any:
    replicas = SimpleNamespace(metrics=SimpleNamespace(num_tasks_finished=finished))
    metrics = SimpleNamespace(num_tasks_submitted=submitted, num_tasks_failed=failed)
    return SimpleNamespace(name="MapBatches(read)", metrics=metrics, output_dependencies=[replicas])


def test_a_few_units_a_replica_are_read_ahead():
    before = ray.data.DataContext.get_current()
    assert most_open_units(slots=3, readers=2) == 8
    context = data_context(limit=8)
    policy: Any = context.get_config("backpressure_policies.enabled")[-1](context, None, None)
    assert isinstance(policy, BoundedReadAhead)
    assert policy.can_add_input(readers(7))
    assert not policy.can_add_input(readers(8))
    assert policy.can_add_input(readers(8, finished=1))
    assert policy.can_add_input(readers(8, failed=1)), "no replica will see it"
    assert policy.can_add_input(SimpleNamespace(name="MapBatches(Replica)"))
    assert before.max_errored_blocks == 0, "a user's own datasets keep theirs"
    assert context.max_errored_blocks == -1
