"""How tests read a file as tables, and what was warned of."""

import json
import logging
from pathlib import Path

import pyarrow as pa

from wsdm_ray.inputs.tables import read_tables

NEEDED = ("id", "prompt")


def read(path: Path, needed=NEEDED) -> pa.Table:
    """The file's rows; that its tables have one schema is part of the contract."""
    return pa.concat_tables(read_tables(str(path), needed))


def write_lines(path: Path, *rows: dict | str) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
