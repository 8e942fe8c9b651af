"""How people read a folder of parquet files, one function a library: it returns the ids of all rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any


def pandas(folder: Path) -> list[Any]:
    import pandas as pd

    return pd.read_parquet(folder)["id"].tolist()


def polars(folder: Path) -> list[Any]:
    import polars as pl

    return pl.read_parquet(folder)["id"].to_list()


def polars_scan(folder: Path) -> list[Any]:
    import polars as pl

    return pl.scan_parquet(folder).select("id").collect()["id"].to_list()


def duckdb(folder: Path) -> list[Any]:
    return query(f"SELECT id FROM '{folder}/*.parquet'")


def duckdb_any_depth(folder: Path) -> list[Any]:
    return query(f"SELECT id FROM read_parquet('{folder}/**')")


def query(text: str) -> list[Any]:
    import duckdb

    with duckdb.connect() as connection:
        return [row[0] for row in connection.execute(text).fetchall()]


def datasets(folder: Path) -> list[Any]:
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    cache = str(folder.parent / "datasets-cache")
    return list(load_dataset("parquet", data_dir=str(folder), split="train", cache_dir=cache)["id"])


def ray(folder: Path) -> list[Any]:
    import ray.data

    return [row["id"] for row in ray.data.read_parquet(str(folder)).select_columns(["id"]).take_all()]


READERS: dict[str, Callable[[Path], list[Any]]] = {
    "pandas": pandas,
    "polars": polars,
    "polars scan": polars_scan,
    "duckdb": duckdb,
    "duckdb at any depth": duckdb_any_depth,
    "datasets": datasets,
}
"""By name, those that need no Ray."""
