"""Metrics of a scoring run in Ray's own export for Prometheus (docs/scoring.md lists them).

They have no labels of ours: a run is one time series each.
"""

from ray.util.metrics import Counter, Gauge

from wsdm_ray.scoring.run_status import RunStatus

__all__ = ["COUNTERS", "GAUGES", "RunMetrics"]

COUNTERS = {
    "rows": ("wsdm_ray_score_rows", "Rows that this run gave a result."),
    "errors": ("wsdm_ray_score_row_errors", "Rows whose result is an error."),
    "tokens": ("wsdm_ray_score_tokens", "Tokens that went through the models, padding included."),
    "units": ("wsdm_ray_score_units", "Work units that this run committed."),
    "retries": ("wsdm_ray_score_process_deaths", "Processes that died over a unit or ran out of time."),
}
"""By the field of `RunStatus`: the name and meaning of what only grows."""

GAUGES = {
    "total_rows": ("wsdm_ray_score_input_rows", "Rows of the input."),
    "replicas_at_work": ("wsdm_ray_score_replicas_at_work", "Replicas that score a unit now."),
    "replicas_given_up": ("wsdm_ray_score_replicas_given_up", "Replicas that cannot start."),
    "seconds_left": ("wsdm_ray_score_seconds_left", "Seconds until the run is done, at its speed so far."),
    "cost": ("wsdm_ray_score_cost", "Cost so far, in the currency of --gpu-hour-price."),
}
"""By the field of `RunStatus`: the name and meaning of what goes up and down."""


class RunMetrics:
    """Sets the metrics of a run.

    Args:
        earlier_rows: that an earlier run gave a result.
    """

    def __init__(self, earlier_rows: int = 0):
        self.counters = {field: Counter(*metric) for field, metric in COUNTERS.items()}
        self.gauges = {field: Gauge(*metric) for field, metric in GAUGES.items()}
        self.counted = dict.fromkeys(COUNTERS, 0) | {"rows": earlier_rows}

    def update(self, status: RunStatus) -> None:
        """Bring the metrics to a status."""
        for field, counter in self.counters.items():
            value = getattr(status, field)
            if value > self.counted[field]:
                counter.inc(value - self.counted[field])
                self.counted[field] = value
        for field, gauge in self.gauges.items():
            value = getattr(status, field)
            if value is not None:
                gauge.set(value)
