"""Rows of metrics.jsonl, to and fro."""

import json

from wsdm_ray.training.metrics import StepMetrics, ValidMetrics

ROW = {
    "step": 4, "loss": 0.61, "weight": 1.0, "accuracy": 0.75, "learning_rate": 2e-4, "grad_norm": 1.5,
    "pairs": 16, "tokens": 4_000, "seconds": 0.5, "padding_share": 0.1, "memory_gb": 2.5,
    "pairs_per_second": 32.0, "tokens_per_second": 8_000.0, "valid_rows": 10, "valid_accuracy": 0.7,
    "valid_accuracy_ci95": [0.39, 0.89], "valid_log_loss": 0.6,
}  # fmt: skip
"""A row as earlier versions wrote it: checkpoints of theirs are continued."""


def test_a_row_there_and_back():
    metrics = StepMetrics.from_row(json.loads(json.dumps(ROW)))
    assert metrics.valid == ValidMetrics(rows=10, accuracy=0.7, accuracy_ci95=[0.39, 0.89], log_loss=0.6)
    assert json.dumps(metrics.to_row()) == json.dumps(ROW), "names and their order too"


def test_a_step_that_was_not_evaluated():
    row = {name: value for name, value in ROW.items() if not name.startswith("valid_")}
    metrics = StepMetrics.from_row(row)
    assert metrics.valid is None
    assert metrics.to_row() == row
    assert metrics.summary() == {"step": 4, "loss": 0.61}


def test_the_summary_has_the_step_the_loss_and_what_is_valid():
    assert StepMetrics.from_row(ROW).summary() == {
        "step": 4, "loss": 0.61, "valid_rows": 10, "valid_accuracy": 0.7,
        "valid_accuracy_ci95": [0.39, 0.89], "valid_log_loss": 0.6,
    }  # fmt: skip
