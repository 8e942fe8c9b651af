"""Ray's metrics, in place of those that need a Ray."""

from collections import Counter
from typing import Any

import pytest

__all__ = ["FakeMetric", "fake_metrics"]


class FakeMetric:
    """A counter or gauge that keeps what it was given.

    recorded: values, in order. value: the sum of a counter, the last of a gauge. by_event: sums by label.
    """

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...] = ()):
        assert name.startswith("wsdm_ray_")
        assert description
        self.name, self.tag_keys, self.value = name, tag_keys, 0.0
        self.recorded: list[float] = []
        self.by_event: Counter[Any] = Counter()

    def inc(self, value: float, tags: dict[str, str] | None = None) -> None:
        assert value > 0
        assert set(tags or {}) == set(self.tag_keys)
        self.recorded.append(value)
        self.value += value
        self.by_event[(tags or {}).get("event")] += round(value)

    def set(self, value: float) -> None:
        self.recorded.append(value)
        self.value = value


def fake_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let metrics be `FakeMetric`."""
    monkeypatch.setattr("wsdm_ray.exported_metrics.Counter", FakeMetric)
    monkeypatch.setattr("wsdm_ray.exported_metrics.Gauge", FakeMetric)
