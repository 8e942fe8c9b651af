"""A small set of votes with its predictions, on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from wsdm_ray.config import EvaluateConfig
from wsdm_ray.schema import predictions_schema
from wsdm_ray.storage import write_parquet

Rows = dict[str, list[Any]]


@pytest.fixture
def votes() -> Rows:
    """Sixty votes on thirty prompts in two languages."""
    random = np.random.default_rng(7)
    return {
        "id": list(range(60)),
        "prompt": [f"question {row // 2}" for row in range(60)],
        "response_a": ["a" * int(size) for size in random.integers(1, 90, 60)],
        "response_b": ["b" * int(size) for size in random.integers(1, 90, 60)],
        "winner": random.choice(["model_a", "model_b"], 60).tolist(),
        "language": ["English", "Hindi"] * 30,
    }


@pytest.fixture
def predictions() -> Rows:
    random = np.random.default_rng(8)
    ab, ba = random.random((2, 60)).astype(np.float32)
    return {
        "id": list(range(60)),
        "prob_a": ((ab + ba) / 2).tolist(),
        "prob_a_ab": ab.tolist(),
        "prob_a_ba": ba.tolist(),
        "tokens": random.integers(20, 400, 60).tolist(),
        "cut_tokens": random.choice([0, 0, 7], 60).tolist(),
    }


@pytest.fixture
def on_disk(tmp_path: Path) -> Callable[..., EvaluateConfig]:
    """Writes both and gives the config that evaluates them."""

    def write(predictions: Rows, votes: Rows, **options: Any) -> EvaluateConfig:
        given = pa.table(predictions)
        schema = predictions_schema(given.schema.field("id").type)
        rows = pa.table(
            [given[name] if name in predictions else pa.nulls(len(given)) for name in schema.names],
            names=schema.names,
        ).cast(schema)
        half = len(rows) // 2
        write_parquet(f"{tmp_path}/predictions/part-000000.parquet", rows[:half])
        write_parquet(f"{tmp_path}/predictions/part-000001.parquet", rows[half:])
        write_parquet(f"{tmp_path}/votes/part-000000.parquet", pa.table(votes))
        return EvaluateConfig(
            **{
                "predictions": (f"{tmp_path}/predictions",),
                "votes": (f"{tmp_path}/votes",),
                "output": f"{tmp_path}/report",
                "bootstrap": 50,
            }
            | options
        )

    return write
