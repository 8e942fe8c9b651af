"""Sets of predictions on disk for the tests of `ensemble`."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wsdm_ray.config import EnsembleConfig
from wsdm_ray.schema import predictions_schema


def write(folder: Path, rows: list[dict[str, Any]], id_type: pa.DataType | None = None) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    schema = predictions_schema(id_type or pa.string())
    full = [
        dict.fromkeys(schema.names) | {"winner": "model_a", "tokens": 9, "cut_tokens": 0} | row
        for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(full, schema=schema), folder / "part-000000.parquet")
    return str(folder)


def predicted(*rows: tuple[str, float | None], **values: Any) -> list[dict[str, Any]]:
    return [
        {"id": name, "prob_a": p, "error": None if p is not None else "prompt is null", **values}
        for name, p in rows
    ]


def config(tmp_path: Path, predictions: tuple[str, ...], **options: Any) -> EnsembleConfig:
    return EnsembleConfig(predictions=predictions, output=str(tmp_path / "out"), **options)


def read(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]
