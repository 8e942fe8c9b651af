"""Twelve votes as the tools of the trade ordinarily write them: each writer is a row of docs/inputs.md.

Spark and Snowflake are not installed: their files are made with pyarrow in the shapes and types that they
write. `wrote` says what each writer is called, and what a job needs to be told to read its files.
"""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tests.unit.vote_rows import (
    CANONICAL,
    LABELS,
    Ids,
    Writer,
    frame,
    made_id,
    rows,
    table,
    text_id,
    uuid_of,
    vote,
)
from wsdm_ray.config import Columns

WRITERS: list[Writer] = []


def wrote(tool: str, how: str, path: str, ids: Ids = int, soft: bool = False, **options: Any):
    """Register a writer of `path`."""

    def register(write: Callable[[Path], Any]) -> Callable[[Path], Any]:
        WRITERS.append(
            Writer(tool=tool, how=how, write=write, path=path, ids=ids, soft=soft, options=options)
        )
        return write

    return register


# pandas


@wrote("pandas", "`to_parquet` of a filtered frame (`__index_level_0__`)", "votes.parquet")
def pandas_filtered(folder: Path):
    frame().sample(frac=1, random_state=0).to_parquet(folder / "votes.parquet")


@wrote("pandas", "`to_parquet` with the ids as index", "votes.parquet", text_id)
def pandas_index(folder: Path):
    frame(text_id).set_index("id").to_parquet(folder / "votes.parquet")


@wrote("pandas", "`to_parquet` of `category`, `Int64` and objects with `None`", "votes.parquet")
def pandas_types(folder: Path):
    votes = frame(id="Int64", winner="category", language="category", turns="Int64", prompt="category")
    votes["source"] = pd.Series([None, *"abcdefghijk"], dtype=object)
    votes["tags"] = pd.Series([None, ["x"], *[[]] * 10], dtype=object)
    votes.to_parquet(folder / "votes.parquet")


@wrote("pandas", "`to_parquet` with Arrow's strings, in `zstd`", "votes.parquet", text_id)
def pandas_arrow(folder: Path):
    votes = frame(text_id).convert_dtypes(dtype_backend="pyarrow")
    votes.to_parquet(folder / "votes.parquet", compression="zstd")


@wrote("pandas", "`to_csv(index=False)`", "votes.csv", str)
def pandas_csv(folder: Path):
    frame().to_csv(folder / "votes.csv", index=False)


@wrote("pandas", "`to_csv`, with the index in a column without a name", "votes.csv.gz", str)
def pandas_csv_index(folder: Path):
    frame().to_csv(folder / "votes.csv.gz")


@wrote("pandas", '`to_csv(sep="\\t")` to `.tsv`', "votes.tsv", text_id)
def pandas_tsv(folder: Path):
    frame(text_id).to_csv(folder / "votes.tsv", index=False, sep="\t")


@wrote("pandas", '`to_json(orient="records", lines=True)` to `.jsonl.bz2`', "votes.jsonl.bz2")
def pandas_lines(folder: Path):
    frame().to_json(folder / "votes.jsonl.bz2", orient="records", lines=True)


@wrote("pandas", '`to_json(orient="records")`', "votes.json")
def pandas_json(folder: Path):
    frame().to_json(folder / "votes.json", orient="records")


@wrote("pandas", "`to_feather`", "votes.feather")
def pandas_feather(folder: Path):
    frame(winner="category").to_feather(folder / "votes.feather")


@wrote("pandas", "`to_csv` without ids", "votes.csv", made_id, make_ids=True)
def pandas_no_ids(folder: Path):
    frame().drop(columns="id").to_csv(folder / "votes.csv", index=False)


@wrote("pandas", "`to_parquet` with other names of columns", "votes.parquet",
       columns=Columns(prompt="question", winner="preferred"))  # fmt: skip
def pandas_names(folder: Path):
    named = frame().rename(columns={"prompt": "question", "winner": "preferred"})
    named.to_parquet(folder / "votes.parquet")


# polars


def polars_votes(ids: Ids = int) -> pl.DataFrame:
    return pl.DataFrame(rows(ids))


@wrote("polars", "`write_parquet` of `Categorical` and `Enum`", "votes.parquet", text_id)
def polars_categorical(folder: Path):
    polars_votes(text_id).with_columns(
        pl.col("id", "language", "prompt").cast(pl.Categorical),
        pl.col("winner").cast(pl.Enum(["model_a", "model_b", "tie"])),
    ).write_parquet(folder / "votes.parquet")


@wrote("polars", "`write_parquet` of `UInt64` ids", "votes.parquet")
def polars_unsigned(folder: Path):
    polars_votes().with_columns(pl.col("id").cast(pl.UInt64)).write_parquet(folder / "votes.parquet")


@wrote("polars", "`write_ipc` (string views)", "votes.arrow", text_id)
def polars_ipc(folder: Path):
    polars_votes(text_id).write_ipc(folder / "votes.arrow", compat_level=pl.CompatLevel.newest())


@wrote("polars", "`write_ipc_stream` (large strings)", "votes.arrow", text_id)
def polars_stream(folder: Path):
    oldest = pl.CompatLevel.oldest()
    polars_votes(text_id).write_ipc_stream(folder / "votes.arrow", compat_level=oldest)


@wrote("polars", "`write_ndjson`", "votes.ndjson")
def polars_ndjson(folder: Path):
    polars_votes().write_ndjson(folder / "votes.ndjson")


@wrote("polars", "`write_csv`", "votes.csv", text_id)
def polars_csv(folder: Path):
    polars_votes(text_id).write_csv(folder / "votes.csv")


@wrote("polars", '`write_parquet(DIR, partition_by="language")`', "votes")
def polars_partitions(folder: Path):
    (folder / "votes").mkdir()
    polars_votes().write_parquet(folder / "votes", partition_by="language")


# DuckDB


def duckdb_copy(votes: pa.Table, target: Path, options: str, select: str = "*") -> None:
    with duckdb.connect() as connection:
        connection.register("votes", votes)
        connection.sql(f"SELECT {select} FROM votes").create("chosen")
        connection.execute(f"COPY chosen TO '{target}' ({options})")


@wrote("DuckDB", "`COPY TO` parquet, ids `UUID`", "votes.parquet", uuid_of)
def duckdb_uuid(folder: Path):
    select = "* REPLACE (id::UUID AS id, winner::ENUM('model_a', 'model_b') AS winner)"
    duckdb_copy(table(uuid_of), folder / "votes.parquet", "FORMAT parquet", select)


@wrote("DuckDB", "`COPY TO` parquet, ids and soft labels `DECIMAL`", "votes.parquet", soft=True)
def duckdb_decimal(folder: Path):
    select = "* REPLACE (id::DECIMAL(18, 0) AS id, prob_a::DECIMAL(3, 2) AS prob_a)"
    duckdb_copy(table(soft=True), folder / "votes.parquet", "FORMAT parquet", select)


@wrote("DuckDB", "`COPY TO` with `PARTITION_BY (language, winner)`", "votes")
def duckdb_partitions(folder: Path):
    duckdb_copy(table(), folder / "votes", "FORMAT parquet, PARTITION_BY (language, winner)")


@wrote("DuckDB", "`COPY TO` CSV", "votes.csv", str)
def duckdb_csv(folder: Path):
    duckdb_copy(table(), folder / "votes.csv", "HEADER")


@wrote("DuckDB", "`COPY TO` JSON, in `gzip`", "votes.jsonl.gz")
def duckdb_json(folder: Path):
    duckdb_copy(table(), folder / "votes.jsonl.gz", "FORMAT json, COMPRESSION gzip")


# Spark


def spark_folder(folder: Path, part: str = "") -> Path:
    """A folder as Spark leaves it, with its markers; returns the path of a part in it, without an ending."""
    inner = folder / "votes" / part
    inner.mkdir(parents=True, exist_ok=True)
    (folder / "votes/_SUCCESS").touch()
    (folder / "votes/._SUCCESS.crc").write_bytes(b"crc\0")
    name = f"part-00000-{uuid_of(1)}-c000"
    (inner / f".{name}.snappy.parquet.crc").write_bytes(b"crc\0")
    return inner / name


@wrote("Spark", "`df.write.parquet(DIR)`, times as `int96`", "votes", text_id)
def spark_parquet(folder: Path):
    votes = table(text_id).append_column("at", pa.array(range(12), pa.timestamp("ns")))
    path = f"{spark_folder(folder)}.snappy.parquet"
    pq.write_table(votes, path, compression="snappy", use_deprecated_int96_timestamps=True)


@wrote("Spark", '`df.write.partitionBy("language").parquet(DIR)`', "votes")
def spark_partitions(folder: Path):
    votes = table(id=pa.int32())
    for language in ("de", "en"):
        part = votes.filter(pc.field("language") == language).drop_columns(["language"])
        pq.write_table(part, f"{spark_folder(folder, f'language={language}')}.snappy.parquet")


@wrote("Spark", '`df.write.csv(DIR, header=True, escape="\\"")`', "votes", str)
def spark_csv(folder: Path):
    frame().to_csv(f"{spark_folder(folder)}.csv", index=False)


@wrote("Spark", '`df.write.json(DIR, compression="gzip")`', "votes")
def spark_json(folder: Path):
    lines = [json.dumps(row, separators=(",", ":"), ensure_ascii=False) for row in rows()]
    Path(f"{spark_folder(folder)}.json.gz").write_bytes(gzip.compress("\n".join(lines).encode()))


# Snowflake


@wrote("Snowflake", "unload to parquet: `NUMBER(38,0)`, upper case, `VARIANT` as JSON text", "stage")
def snowflake_parquet(folder: Path):
    (folder / "stage").mkdir()
    votes = table(id=pa.decimal128(38, 0), turns=pa.decimal128(38, 0))
    votes = votes.append_column("raw", pa.array([json.dumps({"turn": turn}) for turn in range(12)]))
    votes = votes.rename_columns([name.upper() for name in votes.column_names])
    pq.write_table(votes, folder / "stage/data_0_0_0.snappy.parquet", compression="snappy")


@wrote("Snowflake", "the same with `HEADER = FALSE`", "stage",
       columns=Columns(**{name: f"_COL_{place}" for place, name in enumerate(CANONICAL)}))  # fmt: skip
def snowflake_no_header(folder: Path):
    (folder / "stage").mkdir()
    votes = table(id=pa.decimal128(38, 0))
    votes = votes.rename_columns([f"_COL_{place}" for place in range(votes.num_columns)])
    pq.write_table(votes, folder / "stage/data_0_0_0.snappy.parquet", compression="snappy")


@wrote("Snowflake", "unload to CSV with a header, in `gzip`", "stage", text_id)
def snowflake_csv(folder: Path):
    (folder / "stage").mkdir()
    votes = frame(text_id).rename(columns=str.upper)
    votes.to_csv(folder / "stage/data_0_0_0.csv.gz", index=False, quoting=csv.QUOTE_ALL)


@wrote("Snowflake", "unload to JSON (`OBJECT_CONSTRUCT(*)`)", "stage")
def snowflake_json(folder: Path):
    (folder / "stage").mkdir()
    lines = [json.dumps({name.upper(): value for name, value in row.items()}) for row in rows()]
    (folder / "stage/data_0_0_0.json.gz").write_bytes(gzip.compress("\n".join(lines).encode()))


# Kaggle


def wsdm_rows() -> list[dict[str, Any]]:
    """The columns of the competition's train.parquet, in their order; its ids are SHA-256 in hex."""
    models = {"model_a": "gpt-4", "model_b": "koala"}
    return [
        {name: row[name] for name in CANONICAL} | models | {"language": row["language"]}
        for row in rows(text_id)
    ]


@wrote("Kaggle", "WSDM Cup, `train.parquet`", "train.parquet", text_id, format="wsdm")
def kaggle_wsdm(folder: Path):
    pd.DataFrame(wsdm_rows()).to_parquet(folder / "train.parquet")


@wrote("Kaggle", "WSDM Cup as CSV", "train.csv", text_id, format="wsdm")
def kaggle_wsdm_csv(folder: Path):
    pd.DataFrame(wsdm_rows()).to_csv(folder / "train.csv", index=False)


def lmsys_rows() -> list[dict[str, Any]]:
    """The columns of the competition's train.csv, in their order: texts are JSON lists of turns."""
    texts = ("prompt", "response_a", "response_b")
    return [
        {"id": row["id"], "model_a": "gpt-4", "model_b": "koala"}
        | {name: json.dumps([row[name]]) for name in texts}
        | {name: int(name == f"winner_{row['winner']}") for name in LABELS}
        for row in rows()
    ]


@wrote("Kaggle", "LMSYS, `train.csv`", "train.csv", str, format="lmsys-57k")
def kaggle_lmsys(folder: Path):
    pd.DataFrame(lmsys_rows()).to_csv(folder / "train.csv", index=False)


@wrote("Kaggle", "LMSYS as parquet", "train.parquet", format="lmsys-57k")
def kaggle_lmsys_parquet(folder: Path):
    pd.DataFrame(lmsys_rows()).to_parquet(folder / "train.parquet")


# The Hub


def hub_set(ids: Ids = int) -> datasets.Dataset:
    return datasets.Dataset.from_list(rows(ids))


@wrote("Hub", "a repository of parquet shards, with its README.md", "set")
def hub_parquet(folder: Path):
    (folder / "set/data").mkdir(parents=True)
    (folder / "set/README.md").write_text("---\nlicense: other\n---\n")
    hub_set().select(range(7)).to_parquet(folder / "set/data/train-00000-of-00002.parquet")
    hub_set().select(range(7, 12)).to_parquet(folder / "set/data/train-00001-of-00002.parquet")


@wrote("Hub", "`to_json` to `.jsonl.gz`", "votes.jsonl.gz", text_id)
def hub_lines(folder: Path):
    hub_set(text_id).to_json(folder / "votes.jsonl.gz", compression="gzip")


@wrote("Hub", "`Dataset.save_to_disk(DIR)`", "saved")
def hub_saved(folder: Path):
    hub_set().save_to_disk(folder / "saved", num_shards=2)


@wrote("Hub", "`DatasetDict.save_to_disk(DIR)`, as `DIR/train`", "saved/train")
def hub_saved_splits(folder: Path):
    test = datasets.Dataset.from_list([{**vote(99), "prompt": "another"}])
    datasets.DatasetDict({"train": hub_set(), "test": test}).save_to_disk(folder / "saved")


@wrote("Hub", "`lmarena-ai/arena-human-preference-140k`, parquet", "set", text_id, format="arena-140k")
def hub_arena(folder: Path):
    (folder / "set").mkdir()

    def talk(prompt: str, answer: str) -> list[dict[str, Any]]:
        both = (("user", prompt), ("assistant", answer))
        return [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in both]

    found = [
        {"id": row["id"], "model_a": "gpt-4", "model_b": "koala", "winner": row["winner"]}
        | {f"conversation_{side}": talk(row["prompt"], row[f"response_{side}"]) for side in "ab"}
        | {"language": row["language"]}
        for row in rows(text_id)
    ]
    pq.write_table(pa.Table.from_pylist(found), folder / "set/train-00000-of-00001.parquet")
