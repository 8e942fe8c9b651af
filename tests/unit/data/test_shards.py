"""Shards: every row once, in order, whatever the sizes."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsdm_ray.data import shards
from wsdm_ray.data.shards import row_groups, write_shards
from wsdm_ray.errors import RunBusyError

SCHEMA = pa.schema([("id", pa.int64()), ("text", pa.string())])


def tables_of(sizes: list[int], text: str = "x") -> list[pa.Table]:
    tables, first = [], 0
    for size in sizes:
        ids = list(range(first, first + size))
        tables.append(pa.table({"id": ids, "text": [text] * size}, schema=SCHEMA))
        first += size
    return tables


@given(
    sizes=st.lists(st.integers(0, 9_000), max_size=5),
    shard_rows=st.integers(1, 7_000),
)
@settings(deadline=None, max_examples=60)
def test_row_groups_keep_every_row_in_order(sizes, shard_rows):
    shard_rows = max(shard_rows, sum(sizes) // 20)
    groups = list(row_groups(iter(tables_of(sizes)), shard_rows))
    assert [row for group in groups for row in group["id"].to_pylist()] == list(range(sum(sizes)))
    done = 0
    for group in groups:
        assert 0 < len(group) <= 2_000
        assert done // shard_rows == (done + len(group) - 1) // shard_rows, "no group crosses a shard's end"
        done += len(group)


def test_files(tmp_path):
    assert write_shards(str(tmp_path), SCHEMA, tables_of([2_500, 2_500, 1]), 3_000) == [3_000, 2_001]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["part-000000.parquet", "part-000001.parquet"]
    groups, ids = [], []
    for name in names:
        with pq.ParquetFile(tmp_path / name) as file:
            groups.append([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
            ids += file.read()["id"].to_pylist()
    assert groups == [[2_000, 1_000], [2_000, 1]]
    assert ids == list(range(5_001))


def test_an_empty_stream_leaves_its_schema(tmp_path):
    assert write_shards(str(tmp_path), SCHEMA, [], 10) == [0]
    assert pq.read_schema(tmp_path / "part-000000.parquet") == SCHEMA


def test_row_groups_end_early_where_rows_are_large(monkeypatch):
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 1_000)
    groups = list(row_groups(iter(tables_of([6] * 20, text="y" * 100)), 80))
    assert sum(map(len, groups)) == 120
    assert max(map(len, groups)) == 12, "two tables of 6 rows and 112 bytes a row bring it over"


def test_a_folder_that_is_another_process_s_by_now_gets_no_shard(tmp_path):
    def check() -> None:
        if list(tmp_path.glob("part-*")):
            raise RunBusyError("taken over")

    with pytest.raises(RunBusyError):
        write_shards(str(tmp_path), SCHEMA, tables_of([2_500, 2_500]), 3_000, check)
    assert [path.name for path in tmp_path.iterdir()] == ["part-000000.parquet"]
