"""Files that are not canonical parquet become it: the same rows, ids and faults, in their order."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wsdm_ray.config import Columns
from wsdm_ray.errors import DataError
from wsdm_ray.inputs import tables
from wsdm_ray.inputs.conversion import FAULT, ParquetInput, faults_in, parquet_inputs
from wsdm_ray.inputs.faults import BadFiles
from wsdm_ray.inputs.files import list_inputs
from wsdm_ray.inputs.rows import Reading

UNLABELLED = Reading(labels=False)


def rows_of(source: ParquetInput) -> pa.Table:
    return pq.read_table(source.file.path)


def write_lines(path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair(number: int, **other) -> dict:
    texts = {"prompt": f"p{number}", "response_a": f"a{number}", "response_b": f"b{number}"}
    return {"id": number, **texts, **other}


def test_canonical_parquet_is_read_where_it_is(tmp_path):
    table = pa.Table.from_pylist([pair(1)]).rename_columns(["key", "prompt", "response_a", "response_b"])
    pq.write_table(table, tmp_path / "x.parquet")
    columns = Columns(id="key")
    files = list_inputs([str(tmp_path / "x.parquet")])
    reading = Reading(columns=columns, labels=False, make_ids=True)
    assert parquet_inputs(files, reading) == [ParquetInput(file=files[0], columns=columns, make_ids=True)]


@pytest.mark.parametrize("batch_rows", [1, 1_000])
def test_lines_and_csv_become_the_same_rows(tmp_path, monkeypatch, batch_rows):
    monkeypatch.setattr(tables, "BATCH_ROWS", batch_rows)
    rows = [pair(1, language="de"), pair(2), pair(3, model_a="m"), pair(2**62)]
    lines = write_lines(tmp_path / "x.jsonl", *rows)
    with (tmp_path / "y.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "prompt", "response_a", "response_b", "language", "model_a"])
        writer.writeheader()
        writer.writerows(rows)
    of_lines, of_csv = parquet_inputs(list_inputs([lines, str(tmp_path / "y.csv")]), UNLABELLED)
    for source, as_id in ((of_lines, int), (of_csv, str)):
        assert source.converted
        assert source.columns == Columns()
        found = rows_of(source).to_pylist()
        names = ("id", "prompt", "response_a", "response_b")
        assert [tuple(row[name] for name in names) for row in found] == [
            (as_id(row["id"]), row["prompt"], row["response_a"], row["response_b"]) for row in rows
        ]
    assert rows_of(of_lines)["model_a"].to_pylist() == [None, None, "m", None]
    assert [source.file.name for source in (of_lines, of_csv)] == ["x", "y"]


def test_a_malformed_row_stays_with_its_fault(tmp_path):
    reading = Reading(format="lmsys-57k", labels=False)
    good = {"prompt": ["p"], "response_a": ["a"], "response_b": ["b"]}
    path = write_lines(
        tmp_path / "x.jsonl",
        {"id": 1, **good},
        {"id": 2, **good, "response_b": ["b", "c"]},
        {"id": 3, **good},
    )
    [source] = parquet_inputs(list_inputs([path]), reading)
    table = rows_of(source)
    assert table["id"].to_pylist() == [1, 2, 3]
    assert table["response_b"].to_pylist() == ["b", None, "b"]
    faults = faults_in(table, source)
    assert list(faults) == [1]
    assert str(faults[1]).startswith("the numbers of turns differ")
    bad = {"id": 1, **good, "response_b": ["b", "c"]}
    with pytest.raises(DataError, match=r"x.jsonl: row 0 .*; 1 of 1 rows are malformed"):
        parquet_inputs(list_inputs([write_lines(tmp_path / "x.jsonl", bad)]), reading)


def test_a_column_with_the_name_of_our_faults_is_the_users(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", pair(1, **{FAULT: "boo"}), pair(2, **{FAULT: "hoo"}))
    pq.write_table(pa.Table.from_pylist([pair(3, **{FAULT: "boo"})]), tmp_path / "y.parquet")
    for source in parquet_inputs(list_inputs([path, str(tmp_path / "y.parquet")]), UNLABELLED):
        assert faults_in(rows_of(source), source) == {}
    of_lines, _ = parquet_inputs(list_inputs([path, str(tmp_path / "y.parquet")]), UNLABELLED)
    assert rows_of(of_lines)[f"input_{FAULT}"].to_pylist() == ["boo", "hoo"]


def test_ids_that_become_text_within_a_file_are_text_in_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH_ROWS", 1)
    one = {"prompt": "p", "chosen": ["x"], "rejected": ["y"]}
    several = {"prompt": "p", "chosen": ["x", "z"], "rejected": ["y"]}
    path = write_lines(tmp_path / "x.jsonl", {"id": 1, **one}, {"id": 2, **several}, {"id": 3, **one})
    [source] = parquet_inputs(list_inputs([path]), Reading(format="dpo", labels=False))
    assert rows_of(source)["id"].to_pylist() == ["1", "2-1", "2-2", "3"]


def test_a_file_without_rows_is_one(tmp_path):
    (tmp_path / "x.csv").write_text("id,prompt,response_a,response_b\n")
    [source] = parquet_inputs(list_inputs([str(tmp_path / "x.csv")]), UNLABELLED)
    assert len(rows_of(source)) == 0


def test_the_same_file_is_converted_to_the_same_bytes(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", *[pair(number) for number in range(50)])
    first, second = (parquet_inputs(list_inputs([path]), UNLABELLED)[0] for _ in range(2))
    assert first.file.path != second.file.path
    assert pq.read_table(first.file.path).equals(pq.read_table(second.file.path))
    with open(first.file.path, "rb") as one, open(second.file.path, "rb") as other:  # noqa: PTH123
        assert one.read() == other.read()


def test_rows_that_are_read_twice_are_counted_once(tmp_path, monkeypatch, caplog):
    """Those of a file whose ids become text on the way, the malformed ones after it too."""
    monkeypatch.setattr(tables, "BATCH_ROWS", 1)
    one = {"prompt": "p", "chosen": ["x"], "rejected": ["y"]}
    several = {"prompt": "p", "chosen": ["x", "z"], "rejected": ["y"]}
    rows = [{"id": 1, **one}, {"id": 2, **several}, {"id": 3, **one}, {"id": 4, **one, "chosen": []}]
    path = write_lines(tmp_path / "x.jsonl", *rows)
    parquet_inputs(list_inputs([path]), Reading(format="dpo", labels=False))
    assert "1 of 5 rows are malformed" in caplog.text


def test_columns_that_a_file_does_not_have_are_none_of_its_own(tmp_path):
    [source] = parquet_inputs(list_inputs([write_lines(tmp_path / "x.jsonl", pair(1, mine="m"))]), UNLABELLED)
    names = source.own_schema(pq.read_schema(source.file.path)).names
    assert sorted(names) == ["id", "mine", "prompt", "response_a", "response_b"]


def test_rows_of_a_file_that_is_left_out_are_not_counted(tmp_path, monkeypatch):
    """Malformed ones of it are no reason to refuse the others."""
    monkeypatch.setattr(tables, "BATCH_ROWS", 1)
    completions = [{"response": name, "overall_score": 1.0} for name in "xy"]
    good = write_lines(tmp_path / "a.jsonl", {"instruction": "q", "completions": completions})
    bad = tmp_path / "b.csv"
    bad.write_text("instruction,completions\n" + "q,no list\n" * 9 + "a line of one field\n")
    reading = Reading(format="ultrafeedback-raw", labels=False, make_ids=True)
    files = BadFiles(skip=True)
    [source] = parquet_inputs(list_inputs([good, str(bad)]), reading, files)
    assert source.given == good
    assert [file.file for file in files.skipped] == [str(bad)]
