"""Whether replicas and a reader fit, for clusters of all shapes."""

from typing import Any

import pytest

from wsdm_ray.errors import ClusterError
from wsdm_ray.scoring.cluster import (
    begin_with,
    fit_readers,
    fit_replicas,
    least_of,
    replicas_at_most,
    replicas_that_fit,
    waits_for_gpu,
)


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
        ([(2, 0), (2, 0), (2, 0)], None, (3, False)),  # one for each node
        ([(1, 0), (1, 0)], None, (1, False)),
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


def test_as_many_as_the_nodes_of_this_moment_have_room_for():
    assert replicas_that_fit(cluster((8, 2), (8, 4)), None, on_gpu=True) == 6
    assert replicas_that_fit(cluster((8, 2), (8, 4)), 4, on_gpu=True) == 4
    assert replicas_that_fit(cluster((2, 0), (2, 0)), None, on_gpu=False) == 2
    with pytest.raises(ClusterError, match="0 GPUs: too small for 1 replicas of 1 CPU and 1 GPU"):
        replicas_that_fit(cluster((8, 0)), None, on_gpu=True)


def test_a_run_begins_with_the_fewest():
    nodes = cluster((8, 2))
    assert begin_with(nodes, None, None, needs_gpu=True) == (2, True)
    assert begin_with(nodes, 8, 1, needs_gpu=True) == (2, True)
    with pytest.raises(ClusterError, match=r"too small for 4 replicas .* or lower --min-replicas"):
        begin_with(nodes, None, 4, needs_gpu=True)
    with pytest.raises(ClusterError, match=r"too small for 8 replicas .* or lower --replicas"):
        begin_with(nodes, 8, None, needs_gpu=True)
    with pytest.raises(ClusterError, match="too small for 1 replicas of 1 CPU and 1 GPU"):
        begin_with(cluster((8, 0)), None, None, needs_gpu=True)
    assert begin_with(cluster((8, 0)), None, None, needs_gpu=False) == (1, False)


@pytest.mark.parametrize(
    ("nodes", "asked", "limits", "seconds", "expected"),
    [
        ([(8, 1)], None, {}, None, True),
        ([(8, 0)], None, {}, None, False),
        ([(8, 0)], None, {"GPU": 4}, None, True),
        ([(8, 0)], None, {"CPU": 64, "GPU": 0}, 60.0, False),  # no node with a GPU will come
        ([(8, 0)], None, {}, 60.0, True),  # for what else?
        ([(2, 0)], 5, {}, 60.0, False),  # for more CPUs
        ([(8, 0)], None, {}, 0.0, False),
    ],
)
def test_whether_a_run_waits_for_gpus(nodes, asked, limits, seconds, expected):
    assert waits_for_gpu(cluster(*nodes), asked, limits, seconds) == expected


def test_how_far_a_cluster_scales():
    limits = {"CPU": 64.0, "GPU": 8.0}
    assert replicas_at_most(limits, None, on_gpu=True) == 8
    assert replicas_at_most(limits, None, on_gpu=False) == 0
    assert replicas_at_most(limits, 3, on_gpu=False) == 42
    assert replicas_at_most({}, 3, on_gpu=True) == 0


def test_a_node_whose_pytorch_finds_no_gpu_is_named():
    assert least_of({"10.0.0.1": (9, 0), "10.0.0.2": (8, 6)}) == (8, 6)
    with pytest.raises(
        ClusterError, match=r"PyTorch: 10\.0\.0\.2: it finds none of the GPUs; install its build"
    ):
        least_of({"10.0.0.1": (9, 0), "10.0.0.2": None})
