"""How many replicas a pass has, as nodes come and go."""

import pickle
import threading
import time

import pytest

from wsdm_ray.errors import ClusterError
from wsdm_ray.scoring.pool import Pool, first_slots


def pool_of(rooms: list[int], units: int = 100, **given) -> tuple[Pool, list[tuple[int, int]]]:
    """Two replicas in a cluster that has room for so many, one after the other, every ten seconds."""
    sizes: list[tuple[int, int]] = []
    seconds = iter(range(0, 10_000, 10))
    left = iter(rooms)

    def poll() -> tuple[int, int]:
        room = next(left)
        if not room:
            raise ClusterError("the cluster has 0 GPUs")
        return room, 2 * room

    pool = Pool(
        slots=2,
        readers=3,
        units=units,
        poll=poll,
        clock=lambda: next(seconds),
        resized=lambda slots, there: sizes.append((slots, there)),
        **given,
    )
    return pool, sizes


def test_it_grows_as_nodes_join_and_keeps_its_places_as_they_leave():
    """Ray starts a replica whose node is gone again where a node has room."""
    pool, sizes = pool_of([2, 3, 1, 3, 5])
    assert [pool.update(0) for _ in range(6)] == [2, 2, 3, 3, 3, 5]
    assert sizes == [(2, 2), (3, 3), (3, 1), (3, 3), (5, 5)]
    assert pool.readers == 10


def test_workers_get_it_without_what_only_the_driver_has():
    pool, _ = pool_of([])
    pool.clock = time.monotonic
    pool.resized = threading.Lock().acquire  # pyright: ignore[reportAttributeAccessIssue]
    assert pickle.loads(pickle.dumps(pool)).slots == 2


def test_no_more_replicas_than_units_are_left():
    pool, sizes = pool_of([8, 8], units=10)
    assert [pool.update(finished) for finished in (0, 7, 9)] == [2, 3, 3]
    assert sizes == [(3, 3)]


def test_a_run_that_lost_its_nodes_waits_with_a_line_and_a_limit(caplog):
    pool, _ = pool_of([0, 0, 2] + [0] * 30, wait_seconds=100.0)
    assert [pool.update(0) for _ in range(4)] == [2, 2, 2, 2]
    with pytest.raises(ClusterError, match=r"0 GPUs; waited 100 s; run the same command again to go on"):
        [pool.update(0) for _ in range(30)]
    lines = [record.message for record in caplog.records]
    assert lines == ["score: no replica can work; waits for nodes, 100 s at most: the cluster has 0 GPUs"] * 3


@pytest.mark.parametrize(
    ("room", "units", "most", "limit", "expected"),
    [
        (2, 100, None, 0, 2),
        (2, 1, None, 0, 1),
        (2, 100, None, 8, 8),  # six wait for nodes
        (2, 100, 4, 8, 4),
        (2, 100, 16, 8, 8),
        (2, 12, None, 8, 3),  # of fewer units no other node would come in time
        (2, 2, None, 8, 2),
        (8, 100, None, 8, 8),
    ],
)
def test_a_cluster_that_scales_by_itself_is_asked_for_more(room, units, most, limit, expected):
    assert first_slots(room, units, most, limit) == expected
