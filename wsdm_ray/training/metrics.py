"""The records of one optimizer step and of one validation, as rows of metrics.jsonl and back."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["METRICS_FILE", "Row", "StepMetrics", "ValidMetrics", "format_metrics"]

METRICS_FILE = "metrics.jsonl"
"""The file, in an output folder and in a checkpoint, that has one row a step."""
Row = Mapping[str, Any]
"""JSON-like values by name: `step` and the numbers of that step."""

VALID = "valid_"
RATES = ("pairs_per_second", "tokens_per_second")


@dataclass(frozen=True, kw_only=True)
class ValidMetrics:
    """How well the model does on the whole valid set, by the mean probability over the orderings."""

    rows: int
    accuracy: float
    accuracy_ci95: list[float]
    """95 % interval, low and high."""
    log_loss: float
    """In nats."""


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """What one optimizer step measured, over all workers."""

    step: int
    """From 1."""
    loss: float
    """Nats, mean over the sequences of the step."""
    weight: float
    """Mean weight of the step's rows."""
    accuracy: float
    learning_rate: float
    grad_norm: float
    """Before clipping."""
    pairs: int
    tokens: int
    seconds: float
    padding_share: float
    memory_gb: float
    """Peak memory of this worker so far."""
    valid: ValidMetrics | None = None
    """Of the model after this step, where it was evaluated."""

    @property
    def pairs_per_second(self) -> float:
        return self.pairs / self.seconds

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    def to_row(self) -> dict[str, Any]:
        """The metrics as one flat row, those of the valid set as `valid_*`."""
        row = {name: value for name, value in vars(self).items() if name != "valid"}
        row |= {name: getattr(self, name) for name in RATES}
        return row | self.valid_row()

    def late_row(self) -> dict[str, Any]:
        """What a validation adds to the row of a step that was logged without it."""
        return {"step": self.step} | self.valid_row()

    def summary(self) -> dict[str, Any]:
        """What a checkpoint and run.json say of the step: step, loss and `valid_*`."""
        return {"step": self.step, "loss": self.loss} | self.valid_row()

    def valid_row(self) -> dict[str, Any]:
        return {f"{VALID}{name}": value for name, value in vars(self.valid).items()} if self.valid else {}

    @classmethod
    def from_row(cls, row: Row) -> "StepMetrics":
        """The inverse of `to_row`."""
        own = [field.name for field in dataclasses.fields(cls) if field.name != "valid"]
        valid = {name.removeprefix(VALID): value for name, value in row.items() if name.startswith(VALID)}
        return cls(**{name: row[name] for name in own}, valid=ValidMetrics(**valid) if valid else None)


def format_metrics(summary: dict[str, Any]) -> str:
    """The valid metrics of a checkpoint as the end of a log line; empty where there are none."""
    if "valid_accuracy" not in summary:
        return ""
    low, high = summary["valid_accuracy_ci95"]
    return (
        f": valid accuracy {summary['valid_accuracy']:.4f} ({low:.4f} to {high:.4f}), "
        f"log loss {summary['valid_log_loss']:.4f} on {summary['valid_rows']} rows"
    )
