"""Whether replicas and a reader fit, for clusters of all shapes."""

from typing import Any

import pytest

from wsdm_ray.errors import ClusterError
from wsdm_ray.scoring.cluster import fit_readers, fit_replicas, replicas_that_fit


def cluster(*nodes: tuple[float, int]) -> list[dict[str, Any]]:
    """A cluster of nodes with (CPUs, GPUs); a dead node with many of both is there, too."""
    alive = [{"Alive": True, "Resources": {"CPU": cpus, "GPU": gpus}} for cpus, gpus in nodes]
    return [*alive, {"Alive": False, "Resources": {"CPU": 64, "GPU": 8}}]


@pytest.mark.parametrize(
    ("nodes", "asked", "expected"),
    [
        ([(2, 0)], None, (1, False)),
        ([(1.5, 0)], None, (1, False)),
        ([(4, 0)], 3, (3, False)),
        ([(8, 2)], None, (2, True)),
        ([(16, 8), (16, 8)], None, (16, True)),
        ([(1, 1), (2, 0)], None, (1, True)),  # the reader runs beside, on the node without a GPU
        ([(2, 0), (2, 0)], 3, (3, False)),
    ],
)
def test_what_fits(nodes, asked, expected):
    assert fit_replicas(cluster(*nodes), asked) == expected


@pytest.mark.parametrize(
    ("nodes", "asked", "message"),
    [
        (
            [(1, 0)],
            None,
            "1 CPUs and 0 GPUs: too small for 1 replicas of 1 CPU beside one reader of 0.5 CPU; add nodes",
        ),
        ([(1, 1)], None, "too small for 1 replicas of 1 CPU and 1 GPU"),
        ([(8, 1)], 2, "too small for 2 replicas of 1 CPU and 1 GPU .* or lower --replicas"),
        ([(1.25, 0), (1.25, 0)], 2, "too small for 2 replicas"),  # 2.5 CPUs, but half a CPU on no node
        ([(0.5, 1), (8, 0)], None, "too small for 1 replicas"),  # the GPU's node has no CPU for the replica
    ],
)
def test_what_would_wait_for_ever_is_refused(nodes, asked, message):
    with pytest.raises(ClusterError, match=message):
        fit_replicas(cluster(*nodes), asked)


def test_replicas_and_readers_are_as_many_as_fit_what_is_left():
    assert replicas_that_fit(cluster((4, 0), (4, 0)), 7) == 7
    assert replicas_that_fit(cluster((4, 0)), 7) == 3
    assert replicas_that_fit(cluster((8, 2)), 4) == 2
    with pytest.raises(ClusterError, match="too small for 1 replicas"):
        replicas_that_fit(cluster((1, 0)), 7)
    assert [fit_readers(cpus, 1) for cpus in (1, 1.5, 2, 3, 64)] == [1, 1, 2, 4, 4]
    assert fit_readers(64, 8) == 32
