"""Passes over the units of a run, without Ray."""

import contextlib
import dataclasses
import gc
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray.data
from ray import cloudpickle

from wsdm_ray.errors import ClusterError
from wsdm_ray.scoring import ray_data
from wsdm_ray.scoring.coordinator import Coordinator
from wsdm_ray.scoring.parts import UnitReport


class Replica:
    """One that only garbage collection finds, as the actors of a pool of Ray Data."""

    def __init__(self) -> None:
        self.itself = self


def test_a_pass_begins_when_the_replicas_of_the_one_before_are_gone(monkeypatch):
    passes: list[weakref.ref[Replica]] = []

    def unit_reports(run: Any, units: Any, *_: Any) -> Any:
        assert not [each for each in passes if each() is not None], "it would hold its GPU"
        passes.append(weakref.ref(Replica()))
        yield UnitReport(unit=units[0].number, rows=1)

    coordinator = SimpleNamespace(dropped=SimpleNamespace(remote=list))
    monkeypatch.setattr(ray_data, "ray", SimpleNamespace(get=lambda value: value, kill=lambda actor: None))
    monkeypatch.setattr(ray_data, "actor_here", lambda kind: coordinator)
    monkeypatch.setattr(ray_data, "following", lambda follower: contextlib.nullcontext())
    follower = SimpleNamespace(log=SimpleNamespace(counts={}))
    monkeypatch.setattr(ray_data, "Follower", lambda *_: follower)
    for name in ("pool_of", "record_lost"):
        monkeypatch.setattr(ray_data, name, lambda *_: 0)
    monkeypatch.setattr(ray_data, "unit_reports", unit_reports)
    units: Any = [SimpleNamespace(number=number, rows=1) for number in range(3)]
    run: Any = SimpleNamespace(
        plan=SimpleNamespace(rows=3),
        output="out",
        gpu_hour_price=None,
        cluster=SimpleNamespace(replicas=1, on_gpu=False),
    )
    gc.disable()
    try:
        reports = ray_data.score_units(run, units).reports
    finally:
        gc.enable()
    assert [report.unit for report in reports] == [0, 1, 2]
    assert len(passes) == 3


def test_room_for_replicas_that_cannot_start_is_none(monkeypatch):
    """Others may be on their way: the pool waits for nodes, and then ends the run."""
    coordinator = Coordinator()
    coordinator.begin_pass(3, ())
    coordinator.give_up("a", "gone", "no disk")
    coordinator.give_up("b", "here", "no GPU")
    handle = SimpleNamespace(given_up_on=SimpleNamespace(remote=coordinator.given_up_on))
    monkeypatch.setattr(ray_data, "ray", SimpleNamespace(get=lambda value: value))
    monkeypatch.setattr(ray_data, "nodes_that_stay", lambda: {"here"})
    assert ray_data.working_room(lambda: (2, 4), handle) == (2, 4)
    with pytest.raises(ClusterError, match=r"^all 1 replicas .* cannot start: no GPU$"):
        ray_data.working_room(lambda: (1, 2), handle)
    coordinator.starting("b")
    assert ray_data.working_room(lambda: (1, 2), handle) == (1, 2)


@dataclasses.dataclass
class Supervised:
    """Stands in for `Supervision`."""

    target: bytes = b""
    coordination: Any = dataclasses.field(
        default_factory=lambda: SimpleNamespace(unit_at=lambda index: f"unit {index}")
    )


def test_a_task_that_reads_is_sent_no_units_and_asks_for_its_own(monkeypatch):
    """Each unpickles its function: with all units in it, the work would grow with their square. The object
    store holds the items of all tasks to the end of a pass."""
    functions: list[Any] = []
    rows: list[dict[str, Any]] = []

    class Dataset:
        def map_batches(self, function: Any, **_: Any) -> "Dataset":
            functions.append(function)
            return self

    def from_items(items: list[dict[str, Any]], **_: Any) -> Dataset:
        rows[:] = items
        return Dataset()

    monkeypatch.setattr(ray.data, "from_items", from_items)
    monkeypatch.setattr(ray_data, "data_context", lambda pool: ray.data.DataContext.get_current())
    monkeypatch.setattr(ray_data, "most_open_units", lambda *_: 10_000)
    monkeypatch.setattr(ray_data, "pickled", lambda *_: b"")
    monkeypatch.setattr(ray_data, "reader_of_process", lambda *_: lambda unit: {"unit": unit})
    run: Any = SimpleNamespace(replica=None, cluster=SimpleNamespace(on_gpu=False))
    pool: Any = SimpleNamespace(slots=1, readers=1)
    supervision: Any = Supervised()
    sizes = []
    for number in (1, 1_000):
        units: Any = [f"unit {unit}" for unit in range(number)]
        ray_data.dataset(run, units, supervision, None, Replica, pool)  # pyright: ignore[reportArgumentType]
        read = functions[-2]
        sizes.append(len(cloudpickle.dumps(read)))
    assert sizes[0] == sizes[1]
    batch = {name: np.array([value], object) for name, value in rows[7].items()}
    assert read(batch) == {"unit": ["unit 7"]}
    assert rows[7] == {"index": 7}
