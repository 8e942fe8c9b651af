"""The names of the metrics that jobs export: all of them are here. docs/metrics.md shows the same tables.

Not covered: how they get to Prometheus (`exported_metrics`), and which events are counted (`events`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["EVENT_COUNTER", "METRICS", "SCORE_METRICS", "TRAIN_METRICS", "Metric"]


@dataclass(frozen=True)
class Metric:
    """One metric. Ray puts `ray_` before its name, and `_total` behind that of a counter."""

    name: str
    kind: str
    """`counter` or `gauge`."""
    unit: str
    meaning: str
    labels: tuple[str, ...] = ()

    @property
    def exported(self) -> str:
        """Its name in Prometheus."""
        return f"ray_{self.name}{'_total' if self.kind == 'counter' else ''}"


SCORE_METRICS: Mapping[str, Metric] = {
    field: Metric(f"wsdm_ray_score_{name}", kind, unit, meaning)
    for field, name, kind, unit, meaning in (
        ("rows", "rows", "counter", "rows", "have their result, by this run"),
        ("errors", "row_errors", "counter", "rows", "have an error"),
        ("tokens", "tokens", "counter", "tokens", "went through the models, padding included"),
        ("units", "units", "counter", "units", "were committed"),
        ("retries", "process_deaths", "counter", "processes", "died over a unit, or ran out of time"),
        ("total_rows", "input_rows", "gauge", "rows", "of the input"),
        ("replicas_at_work", "replicas_at_work", "gauge", "replicas", "score a unit now"),
        ("replicas_given_up", "replicas_given_up", "gauge", "replicas", "cannot start"),
        ("pairs_per_second", "pairs_per_second", "gauge", "pairs/s", "mean since the first row"),
        ("tokens_per_second", "tokens_per_second", "gauge", "tokens/s", "mean since the first row"),
        (
            *("peak_memory_bytes", "peak_memory_bytes", "gauge", "bytes"),
            "most memory that any replica took so far: of its GPU, without GPU of its process",
        ),
        ("seconds_left", "seconds_left", "gauge", "seconds", "until the run is done, at its speed so far"),
        ("cost", "cost", "gauge", "currency of `--gpu-hour-price`", "cost so far"),
    )
}
"""By the field of `scoring.run_status.RunStatus`."""

TRAIN_METRICS: Mapping[str, Metric] = {
    name: Metric(f"wsdm_ray_train_{name}", kind, unit, meaning)
    for name, kind, unit, meaning in (
        ("steps", "counter", "steps", "were taken, those taken again after a restart included"),
        ("pairs", "counter", "pairs", "went into these steps"),
        ("tokens", "counter", "tokens", "went into these steps, without padding"),
        ("checkpoints", "counter", "checkpoints", "were written and uploaded"),
        ("step", "gauge", "steps", "position of the run: the last step that was taken"),
        ("total_steps", "gauge", "steps", "of the run"),
        ("loss", "gauge", "nats", "of the last step, mean over its sequences"),
        ("accuracy", "gauge", "share", "of the orderings of the last step that are right"),
        ("learning_rate", "gauge", "1", "of the last step"),
        ("grad_norm", "gauge", "1", "of the last step, before clipping"),
        ("pairs_per_second", "gauge", "pairs/s", "of the last step"),
        ("tokens_per_second", "gauge", "tokens/s", "of the last step"),
        (
            *("peak_memory_bytes", "gauge", "bytes"),
            "most memory that the first worker took so far: of its GPU, without GPU of its process",
        ),
        ("checkpoint_seconds", "gauge", "seconds", "that writing and uploading the last checkpoint took"),
        ("valid_log_loss", "gauge", "nats", "on the valid set, at the last checkpoint"),
        ("valid_accuracy", "gauge", "share", "of the valid set that is right, at the last checkpoint"),
    )
}
"""By the field of `training.progress.TrainingStatus`."""

EVENT_COUNTER = Metric(
    "wsdm_ray_events", "counter", "events", "of the kinds below, by `job_type` (`score` or `train`)",
    ("job_type", "event"),
)  # fmt: skip

METRICS: tuple[Metric, ...] = (*SCORE_METRICS.values(), *TRAIN_METRICS.values(), EVENT_COUNTER)
