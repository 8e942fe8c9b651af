"""Passes over the units of a run, without Ray."""

import contextlib
import gc
import weakref
from types import SimpleNamespace
from typing import Any

from wsdm_ray.scoring import ray_data
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
