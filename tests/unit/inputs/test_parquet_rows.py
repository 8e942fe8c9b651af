"""Slices of parquet files: any rows, each row group read once by neighbours, damage and changes named."""

import contextlib
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsdm_ray import storage
from wsdm_ray.errors import DataError, StorageError
from wsdm_ray.inputs import parquet_rows
from wsdm_ray.inputs.files import InputFile, list_inputs
from wsdm_ray.inputs.parquet_rows import check_version, read_slice, unchanged


@pytest.fixture(autouse=True)
def none_kept():
    yield
    while parquet_rows.kept:
        parquet_rows.kept.pop().close()


def written(path, rows: int, **options) -> InputFile:
    """A file of numbered rows, whose texts do not compress."""
    noise = np.random.default_rng(0).integers(97, 123, (rows, 40), np.uint8)
    texts = [f"{row} {bytes(noise[row]).decode()}" for row in range(rows)]
    pq.write_table(pa.table({"id": range(rows), "text": texts, "more": texts}), path, **options)
    [file] = list_inputs([str(path)])
    return file


@given(
    group_rows=st.integers(1, 60),
    places=st.lists(st.tuples(st.integers(0, 110), st.integers(1, 60)), min_size=1, max_size=6),
    whole_bytes=st.sampled_from([0, 3_000, 1 << 20]),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rows_in_any_order(tmp_path, monkeypatch, group_rows, places, whole_bytes):
    monkeypatch.setattr(storage, "WHOLE_BYTES", whole_bytes)
    monkeypatch.setattr(parquet_rows, "BATCH_ROWS", 7)
    file = written(tmp_path / "x.parquet", 100, row_group_size=group_rows)
    for start, rows in places:
        table = read_slice(file, ["id", "text", "none"], start, rows)
        assert table.column_names == ["id", "text"]
        assert table["id"].to_pylist() == list(range(100))[start : start + rows]


class Counting:
    """A local file that counts the bytes that are read of it."""

    total = 0

    def __init__(self, file):
        self.file = file

    def read(self, *size):
        data = self.file.read(*size)
        Counting.total += len(data)
        return data

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.fixture
def counted(monkeypatch):
    """Bytes read of parquet files from here on."""
    opened = pq.ParquetFile
    monkeypatch.setattr(
        pq, "ParquetFile", lambda file, *given, **options: opened(Counting(file), *given, **options)
    )
    Counting.total = 0
    return Counting


def test_neighbours_read_a_large_row_group_once_between_them(tmp_path, monkeypatch, counted):
    monkeypatch.setattr(storage, "WHOLE_BYTES", 1_000)
    monkeypatch.setattr(storage, "STREAM_BYTES", 4_096)
    file = written(
        tmp_path / "x.parquet", 20_000, compression="none", use_dictionary=False, data_page_size=4_096
    )
    size = os.path.getsize(file.path)
    for start in range(0, 20_000, 2_000):
        assert read_slice(file, ["id", "text"], start, 2_000)["id"][0].as_py() == start
    assert counted.total < 0.8 * size, "id and text are about half of the file"
    assert not parquet_rows.kept, "the group is done"
    counted.total = 0
    assert len(read_slice(file, ["id", "text"], 0, 1_000)) == 1_000
    assert counted.total < 0.2 * size


def test_a_stream_serves_no_other_version_of_its_file(tmp_path):
    path = tmp_path / "x.parquet"
    file = written(path, 50)
    read_slice(file, ["id"], 0, 10)
    assert parquet_rows.kept
    pq.write_table(pa.table({"id": range(1_000, 1_050)}), tmp_path / "new")
    os.replace(tmp_path / "new", path)
    [new] = list_inputs([str(path)])
    assert read_slice(new, ["id"], 10, 2)["id"].to_pylist() == [1_010, 1_011]


def test_a_file_that_changes_is_refused_by_name(tmp_path):
    path = tmp_path / "x.parquet"
    file = written(path, 5)
    with unchanged(file):
        pass
    planned = r"x\.parquet: has changed since the run was planned; restore it"
    with pytest.raises(DataError, match=planned), unchanged(file):
        os.utime(path, (1, 1))
    with pytest.raises(DataError, match=r"x\.parquet: has changed"), unchanged(file):
        raise StorageError("what a reader says of bytes that are not those of the footer")
    path.unlink()
    with pytest.raises(DataError, match=r"x\.parquet: is gone since the run was planned"):
        check_version(file)
    with pytest.raises(StorageError, match="of itself"), unchanged(InputFile(str(path), "x")):
        raise StorageError("of itself")


def flip(path, name: str) -> None:
    """Change a byte in the middle of a column's last page."""
    column = pq.read_metadata(path).row_group(0)
    [part] = [column.column(i) for i in range(column.num_columns) if column.column(i).path_in_schema == name]
    data = bytearray(path.read_bytes())
    data[part.data_page_offset + part.total_compressed_size // 2] ^= 0x04
    path.write_bytes(data)


@pytest.mark.parametrize("compression", ["none", "zstd", "snappy"])
@pytest.mark.parametrize("checksum", [True, False])
def test_a_damaged_page_is_an_error_of_one_line(tmp_path, compression, checksum):
    path = tmp_path / "x.parquet"
    written(path, 300, compression=compression, use_dictionary=False, write_page_checksum=checksum)
    flip(path, "text")
    [file] = list_inputs([str(path)])
    if not checksum:  # what is not checked may be anything, but for a traceback
        with contextlib.suppress(DataError):
            read_slice(file, ["id", "text"], 0, 300)
        return
    with pytest.raises(DataError) as caught:
        read_slice(file, ["id", "text"], 0, 300)
    assert str(caught.value).startswith(f"{path}: cannot be read from row 0 on (")
    assert str(caught.value).endswith("it is damaged: copy or make it anew")
    assert len(read_slice(file, ["id"], 0, 300)) == 300, "the other columns can be read"


def test_a_page_whose_header_is_damaged(tmp_path):
    path = tmp_path / "x.parquet"
    written(path, 300, compression="none", use_dictionary=False)
    group = pq.read_metadata(path).row_group(0)
    data = bytearray(path.read_bytes())
    data[group.column(1).data_page_offset : group.column(1).data_page_offset + 8] = b"\xff" * 8
    path.write_bytes(data)
    [file] = list_inputs([str(path)])
    with pytest.raises(DataError, match=r"x\.parquet: cannot be read from row 0 on \(.*it is damaged"):
        read_slice(file, ["id", "text"], 0, 300)


def test_sizes_are_of_the_columns_that_are_read_also_where_names_have_dots(tmp_path):
    texts = [f"{row} " * 300 for row in range(50)]
    table = pa.table({"pair.prompt": texts, "pair": [{"prompt": text} for text in texts], "other": texts})
    pq.write_table(table, tmp_path / "x.parquet")
    metadata = pq.read_metadata(tmp_path / "x.parquet")
    sizes = {
        name: parquet_rows.reads_of(metadata, [0], [name])[0].decoded
        for name in ("pair.prompt", "other", "pai")
    }
    assert sizes["pair.prompt"] >= sizes["other"] > 1_000
    assert sizes["pai"] == 0


@pytest.mark.parametrize("whole_bytes", [0, 1 << 20])
def test_rows_of_which_no_column_is_read_are_those_of_the_footer(tmp_path, monkeypatch, whole_bytes):
    monkeypatch.setattr(storage, "WHOLE_BYTES", whole_bytes)
    path = tmp_path / "x.parquet"
    written(path, 100, compression="none", use_dictionary=False, row_group_size=30, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    end = pq.read_metadata(path).row_group(3).column(2)
    last = end.data_page_offset + end.total_compressed_size
    data[4:last] = b"\xff" * (last - 4)
    path.write_bytes(data)
    [file] = list_inputs([str(path)])
    for start, rows, left in ((0, 100, 100), (25, 10, 10), (35, 65, 65), (90, 20, 10), (100, 5, 0)):
        assert len(read_slice(file, ["none"], start, rows)) == left
    with pytest.raises(DataError, match="it is damaged"):
        read_slice(file, ["id"], 0, 1)
