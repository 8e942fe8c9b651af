"""Metrics in Ray's own export for Prometheus (docs/metrics.md lists them).

They are set by the process that started a run, from what others tell it, so that totals survive whatever else
dies. But for the counter of events they have no labels of ours: a run is one time series each.
"""

import time
from collections.abc import Callable, Mapping

from ray.util.metrics import Counter, Gauge

from wsdm_ray.events import Event
from wsdm_ray.metric_names import EVENT_COUNTER, Metric
from wsdm_ray.telemetry import logger

__all__ = ["EventLog", "ExportedMetrics"]

FREQUENT = frozenset({"store_retried"})
"""Events of which a process logs one in `LOG_SECONDS`; all are counted."""
LOG_SECONDS = 30.0


class ExportedMetrics:
    """Sets the metrics of a run.

    Args:
        metrics: by the name of the value that `update` takes.
        counted: what counters have behind them already, which is not exported.
    """

    def __init__(self, metrics: Mapping[str, Metric], counted: Mapping[str, float] | None = None):
        self.counters = {field: Counter(*of(m)) for field, m in metrics.items() if m.kind == "counter"}
        self.gauges = {field: Gauge(*of(m)) for field, m in metrics.items() if m.kind == "gauge"}
        self.counted = dict.fromkeys(self.counters, 0.0) | dict(counted or {})

    def update(self, values: Mapping[str, float | None]) -> None:
        """Bring the metrics to these values: of counters, the totals so far. None leaves a gauge as it is."""
        for field, counter in self.counters.items():
            value = values[field] or 0
            if value > self.counted[field]:
                counter.inc(value - self.counted[field])
                self.counted[field] = value
        for field, gauge in self.gauges.items():
            value = values[field]
            if value is not None:
                gauge.set(value)


def of(metric: Metric) -> tuple[str, str]:
    """Name and description, as Ray takes them."""
    return metric.name, f"{metric.unit}: {metric.meaning}"


class EventLog:
    """Counts events and logs them, with the ids of what they are about. counts: by kind.

    Args:
        job: the label `job_type`. (Prometheus has a label `job` of its own.)
    """

    def __init__(self, job: str, clock: Callable[[], float] = time.monotonic):
        self.job, self.clock = job, clock
        name, description = of(EVENT_COUNTER)
        self.counter = Counter(name, description, EVENT_COUNTER.labels)
        self.logged: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def note(self, event: Event) -> None:
        """Count an event, and log it."""
        self.counts[event.kind] = self.counts.get(event.kind, 0) + event.count
        self.counter.inc(event.count, {"job_type": self.job, "event": event.kind})
        now = self.clock()
        if event.kind in FREQUENT and now - self.logged.get(event.kind, float("-inf")) < LOG_SECONDS:
            return
        self.logged[event.kind] = now
        logger.warning("%s: %s", self.job, event)
