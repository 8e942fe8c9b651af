"""The rows of a unit: a row is read alike in whatever unit it is."""

import dataclasses

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.scoring.fakes import plan_of
from wsdm_ray.config import Columns
from wsdm_ray.errors import DataError
from wsdm_ray.inputs.conversion import ParquetInput
from wsdm_ray.inputs.files import list_inputs
from wsdm_ray.scoring.plan import Slice, WorkUnit
from wsdm_ray.scoring.unit_rows import read_ids, read_unit


def test_lists_of_turns_are_joined_with_a_warning(write, caplog):
    lists = {name: pa.array([["one"], ["1", None]]) for name in ("prompt", "response_a", "response_b")}
    as_json = {name: pa.array(['["one"]', '["1", null]']) for name in lists}
    for columns in (lists, as_json):
        [unit] = plan_of([write(pa.table({"id": [1, 2], **columns}))], 10).units
        assert read_unit(unit).table["prompt"].to_pylist() == ["one", "[turn 1]\n1\n\n[turn 2]\n"]
        assert "their texts are joined as by --format lmsys-57k" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("odd", [3, 150])
def test_a_text_is_the_same_in_whatever_unit_it_is_read(write, odd):
    """Whether texts are lists is a matter of the file, not of what a row is read with."""
    plain = [f"text {row}" for row in range(200)]
    lists = [f'["turn {row}", "more"]' for row in range(200)]
    for most, few in ((plain, lists), (lists, plain)):
        texts = [few[row] if row == odd else most[row] for row in range(200)]
        columns = dict.fromkeys(("prompt", "response_a", "response_b"), texts)
        path = write(pa.table({"id": range(200), **columns}))
        whole, *parts = (
            [
                text
                for unit in plan_of([path], rows).units
                for text in read_unit(unit).table["prompt"].to_pylist()
            ]
            for rows in (200, 7, 1)
        )
        assert parts == [whole, whole]
        assert whole[0] == (texts[0] if most is plain or odd < 100 else "[turn 1]\nturn 0\n\n[turn 2]\nmore")


def damaged_in_its_first_column(path) -> str:
    """A file whose ids are made, and whose prompts cannot be read."""
    texts = [f"text {row}" for row in range(200)]
    columns = dict.fromkeys(("prompt", "response_a", "response_b"), texts)
    pq.write_table(pa.table(columns), path, use_dictionary=False, write_page_checksum=True)
    part = pq.read_metadata(path).row_group(0).column(0)
    data = bytearray(path.read_bytes())
    data[part.data_page_offset + part.total_compressed_size // 2] ^= 0x04
    path.write_bytes(data)
    return str(path)


def unit_of(path: str, **options) -> WorkUnit:
    [file] = list_inputs([path])
    source = ParquetInput(file=file, columns=Columns(), make_ids=True, **options)
    return WorkUnit(0, (Slice(source, 50, 100),))


@pytest.mark.parametrize("folder", ["", "id=7/"])
def test_rows_whose_ids_are_not_in_the_file_get_an_error_whichever_column_is_damaged(tmp_path, folder):
    """Their number is in the footer, and their ids are made, or those of the folder."""
    (tmp_path / folder).mkdir(exist_ok=True)
    path = damaged_in_its_first_column(tmp_path / folder / "x.parquet")
    ids = [7] * 100 if folder else [f"x-{row}" for row in range(50, 150)]
    unit = unit_of(path, errors_in_rows=True)
    rows = read_unit(unit)
    assert rows.table["id"].to_pylist() == ids
    assert len(rows.faults) == 100
    assert f"{path}: cannot be read from row 0 on (" in str(rows.faults[0])
    assert read_ids(unit).to_pylist() == ids
    with pytest.raises(DataError, match="it is damaged"):
        read_unit(unit_of(path))


def test_rows_that_are_gone_are_an_error_of_the_run_also_where_no_column_is_read(tmp_path):
    path = damaged_in_its_first_column(tmp_path / "x.parquet")
    [part] = unit_of(path, errors_in_rows=True).slices
    gone = WorkUnit(0, (dataclasses.replace(part, start=150),))
    for read in (read_ids, read_unit):
        with pytest.raises(DataError, match=r"x\.parquet: 50 rows fewer than when the run was planned"):
            read(gone)
