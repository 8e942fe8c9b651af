"""Rows, files and configs of the tests of `prepare`."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from wsdm_ray.config import PrepareConfig


def vote(number: int, **values) -> dict:
    return {
        "id": f"v{number}", "prompt": f"prompt {number}", "response_a": f"first {number}",
        "response_b": f"second {number}", "winner": "model_a", **values,
    }  # fmt: skip


def write(path: Path, rows: list[dict]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def config(tmp_path: Path, *inputs: str, **options) -> PrepareConfig:
    return PrepareConfig(input=inputs, output=str(tmp_path / "out"), **options)


def read(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]


def both(tmp_path: Path) -> list[dict]:
    return read(tmp_path / "out/train") + read(tmp_path / "out/valid")


LMSYS_57K = ("id", "model_a", "model_b", "prompt", "response_a", "response_b",
             "winner_model_a", "winner_model_b", "winner_tie")  # fmt: skip


def write_57k(path: Path, *rows: tuple) -> str:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(LMSYS_57K)
        for number, prompt, a, b, label in rows:
            marks = [int(label == name) for name in ("a", "b", "tie")]
            writer.writerow([number, "gpt-4", "koala", *map(json.dumps, (prompt, a, b)), *marks])
    return str(path)
