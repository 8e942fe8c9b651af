"""How long a job waits for nodes, and what it says meanwhile."""

import pytest

from wsdm_ray.errors import ClusterError
from wsdm_ray.waiting import wait_for_resources, wait_limit


def test_how_long():
    assert wait_limit(None, {}) == 0
    assert wait_limit(None, {"GPU": 8}) == 1_800
    assert wait_limit(5.0, {}) == wait_limit(5.0, {"GPU": 8}) == 5
    assert wait_limit(0.0, {"GPU": 8}) == 0


def waited(polls: list[bool], seconds: float) -> str:
    """What comes of polls at a cluster, thirty seconds apart."""
    now, left = iter(range(0, 100_000, 15)), iter(polls)

    def poll() -> str:
        if next(left):
            return "found"
        raise ClusterError("the cluster has 0 GPUs: too small for 1 replicas")

    return wait_for_resources(
        poll, job="score", seconds=seconds, clock=lambda: next(now), sleep=lambda seconds: None
    )


def test_it_waits_until_the_nodes_are_there(caplog):
    assert waited([False] * 5 + [True], 900) == "found"
    lines = [record.message for record in caplog.records]
    assert lines[0].endswith(" s more at most: the cluster has 0 GPUs: too small for 1 replicas")
    assert lines[0].startswith("score: waits for nodes, ")
    assert 1 < len(lines) < 5, "not at every poll"


def test_it_ends_with_one_line():
    with pytest.raises(ClusterError, match=r"too small for 1 replicas; waited 90 s \(--wait-for-resources"):
        waited([False] * 50, 90)
    with pytest.raises(ClusterError, match=r"too small for 1 replicas$"):
        waited([False] * 50, 0)
