"""Reading: three formats, any column names, and messages that name the place."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wsdm_ray.config import Columns
from wsdm_ray.errors import ConfigError, DataError, StorageError
from wsdm_ray.inputs import tables
from wsdm_ray.inputs.faults import Fault
from wsdm_ray.inputs.files import list_inputs
from wsdm_ray.inputs.rows import Reading, read_rows
from wsdm_ray.schema import TEXTS

ROW = {"id": "1", "prompt": "p", "response_a": "a", "response_b": "b", "winner": "model_a"}


def read(path: Path, columns: Columns | None = None, **options) -> pa.Table:
    return pa.concat_tables(
        [
            rows.table
            for file in list_inputs([str(path)])
            for rows in read_rows(file, Reading(columns=columns or Columns(), **options))
        ],
        promote_options="permissive",
    )


def write_lines(path: Path, *rows: dict | str | bytes) -> Path:
    lines = [row if isinstance(row, (str, bytes)) else json.dumps(row) for row in rows]
    path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines))
    return path


def write_parquet(path: Path, rows: list[dict], **types: pa.DataType) -> Path:
    table = pa.Table.from_pylist(rows)
    for name, kind in types.items():
        table = table.set_column(table.column_names.index(name), name, table[name].cast(kind))
    pq.write_table(table, path)
    return path


def test_the_three_formats_hold_the_same(tmp_path):
    rows = [ROW, {**ROW, "id": "2", "prompt": 'Quote " and\nnew line, comma', "winner": "tie"}]
    write_lines(tmp_path / "x.jsonl", *rows, "")
    write_parquet(tmp_path / "x.parquet", rows)
    header = ",".join(ROW)
    quoted = '2,"Quote "" and\nnew line, comma",a,b,tie'
    (tmp_path / "x.csv").write_text(f"\ufeff{header}\n1,p,a,b,model_a\n{quoted}\n\n", newline="")
    tables = [read(tmp_path / f"x.{ending}") for ending in ("jsonl", "parquet", "csv")]
    assert tables[0].to_pylist() == rows
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


@pytest.mark.parametrize("kind", [pa.int32(), pa.int64(), pa.uint16()])
def test_integer_ids_stay_integers(tmp_path, kind):
    path = write_parquet(tmp_path / "x.parquet", [{**ROW, "id": 7}], id=kind)
    assert read(path)["id"].type == pa.int64()


def test_large_and_dictionary_strings_become_strings(tmp_path):
    kinds = {
        "id": pa.large_string(),
        "prompt": pa.large_string(),
        "winner": pa.dictionary(pa.int8(), pa.string()),
    }
    table = read(write_parquet(tmp_path / "x.parquet", [ROW], **kinds))
    assert table.to_pylist() == [ROW]
    assert {str(field.type) for field in table.schema} == {"string"}


def test_other_columns_pass_through_after_the_canonical_ones(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", [{"turns": 2, **ROW, "tags": ["x", "y"]}])
    assert read(path).to_pylist() == [{**ROW, "turns": 2, "tags": ["x", "y"]}]
    assert read(path).column_names == [*ROW, "turns", "tags"]


def test_columns_can_be_mapped(tmp_path):
    row = {"key": 3, "question": "q", "chosen": "x", "rejected": "y", "vote": "a", "prompt": "another"}
    path = write_parquet(tmp_path / "x.parquet", [row])
    columns = Columns(id="key", prompt="question", response_a="chosen", response_b="rejected", winner="vote")
    assert read(path, columns).to_pylist() == [
        {
            "id": 3,
            "prompt": "q",
            "response_a": "x",
            "response_b": "y",
            "winner": "a",
            "input_prompt": "another",
        }
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (["en", "de"], '["en", "de"]'),
        ({"by": "x"}, '{"by": "x"}'),
        (b"\xffen", "\ufffden"),
    ],
)
@pytest.mark.parametrize("name", ["language", "source", "model_a"])
def test_a_name_that_is_no_text_stops_no_job(tmp_path, caplog, name, value, text):
    path = write_parquet(tmp_path / "x.parquet", [{**ROW, name: value}, {**ROW, "id": "2", name: None}])
    assert read(path)[name].to_pylist() == [text, None]
    assert f"{path}: column '{name}' is not string" in caplog.text


def test_a_header_with_spaces_after_its_commas(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("id, prompt, response_a, response_b, winner\n1, p, a, b, model_a\n")
    assert read(path).to_pylist() == [
        {"id": "1", "prompt": " p", "response_a": " a", "response_b": " b", "winner": " model_a"}
    ]


def test_a_column_can_have_a_role_besides_another(tmp_path):
    row = {**ROW, "model_a": "x", "winner": 0.25}
    columns = Columns(source="model_a", prob_a="winner")
    [found] = read(write_parquet(tmp_path / "x.parquet", [row]), columns).to_pylist()
    assert (found["source"], found["model_a"], found["prob_a"]) == ("x", "x", 0.25)
    assert "winner" not in found


@pytest.mark.parametrize("columns", [{"id": "prompt"}, {"response_a": "x", "response_b": "x"}])
def test_a_column_that_is_needed_twice_is_refused(columns):
    with pytest.raises(ConfigError, match=r"--columns (prompt|x): must be the column of one role"):
        Columns(**columns)


@pytest.mark.parametrize("names", [["input_id", "id"], ["id", "input_id"]])
def test_a_column_that_passes_through_never_takes_the_place_of_another(tmp_path, names):
    row = {**dict.fromkeys(names, "old"), "id": "mine", **{n: ROW[n] for n in ROW if n != "id"}, "key": 7}
    row = {name: row[name] for name in [*names, *(set(row) - set(names))]}
    [found] = read(write_parquet(tmp_path / "x.parquet", [row]), Columns(id="key")).to_pylist()
    assert found["id"] == 7
    assert (found["input_input_id"], found["input_id"]) == ("mine", "old")


def test_made_ids_count_from_the_first_row_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH_ROWS", 2)
    rows = [{name: ROW[name] for name in ROW if name != "id"}] * 5
    path = write_lines(tmp_path / "votes.2024.jsonl", *rows)
    assert read(path, make_ids=True)["id"].to_pylist() == [f"votes.2024-{row}" for row in range(5)]


def test_half_characters_become_whole(tmp_path):
    line = json.dumps(ROW).replace('"p"', r'"\ud83d\ude00 \ud800 \\ud800"')
    path = write_lines(tmp_path / "x.jsonl", line, {**ROW, "id": "2", "prompt": "nul \x00 byte"})
    assert read(path)["prompt"].to_pylist() == ["😀 \ufffd \\ud800", "nul \x00 byte"]


def test_hostile_texts_survive(tmp_path):
    texts = ["nul\x00byte", "אב\u200fגד\u202e", "<eos> <|im_start|>", "x" * 5_000_000, "a\u2028b\x85c"]
    rows = [{**ROW, "id": str(number), "prompt": text} for number, text in enumerate(texts)]
    write_parquet(tmp_path / "x.parquet", rows)
    write_lines(tmp_path / "x.jsonl", *rows)
    lines = "\n".join(f"{row['id']},{row['prompt']},a,b,a" for row in rows)
    (tmp_path / "x.csv").write_text(f"{','.join(ROW)}\n{lines}\n", newline="")
    for ending in ("parquet", "jsonl", "csv"):
        assert read(tmp_path / f"x.{ending}")["prompt"].to_pylist() == texts


def test_numbers_of_csv(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("id,prompt,response_a,response_b,prob_a\n1,p,a,b,0.25\n2,p,a,b,\n")
    assert read(path)["prob_a"].to_pylist() == [0.25, None]


def test_missing_keys_are_null(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH_ROWS", 1)
    path = write_lines(tmp_path / "x.jsonl", ROW, {"id": "2", "response_a": "a", "extra": 1})
    assert read(path)["prompt"].to_pylist() == ["p", None]
    assert read(path)["extra"].to_pylist() == [None, 1]


def test_ids_that_a_later_batch_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH_ROWS", 1)
    path = write_lines(tmp_path / "x.jsonl", ROW, {name: ROW[name] for name in ROW if name != "id"})
    with pytest.raises(DataError, match=r"x.jsonl: row 1 \(counted from 0\) has no id"):
        read(path)


@pytest.mark.parametrize("start", ["", "\ufeff", "\n "])
def test_a_json_file_may_be_one_list(tmp_path, start):
    rows = [{**ROW, "id": str(i), "prompt": "\ud83d\ude00 \ud800"} for i in range(1_001)]
    (tmp_path / "x.json").write_text(start + json.dumps(rows, indent=2))
    write_lines(tmp_path / "lines.json", *rows)
    assert read(tmp_path / "x.json").equals(read(tmp_path / "lines.json"))
    assert read(tmp_path / "x.json")["prompt"][1_000].as_py() == "\U0001f600 \ufffd"


def test_folders_hold_no_run_json(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    write_lines(tmp_path / "b.jsonl", ROW)
    write_parquet(tmp_path / "a.parquet", [ROW])
    assert [Path(file.path).name for file in list_inputs([str(tmp_path)])] == ["a.parquet", "b.jsonl"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match="holds no file that ends with"):
        list_inputs([str(tmp_path / "empty")])
    with pytest.raises(StorageError, match="gone: not found; check the path"):
        list_inputs([str(tmp_path / "gone")])


WITHOUT_PROMPT = {name: value for name, value in ROW.items() if name != "prompt"}


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        (
            WITHOUT_PROMPT,
            Columns(),
            r"x.parquet: no column 'prompt'; give --columns.prompt=NAME or, .* --format; there are: id",
        ),
        (ROW, Columns(response_a="first"), r"no column 'first'; give --columns.response-a=NAME"),
        (ROW, Columns(language="lang"), r"no column 'lang'; give --columns.language=NAME"),
        (ROW, Columns(id="key"), r"no column 'key' for the ids; give --columns.id=NAME or --make-ids"),
        (
            ROW,
            Columns(winner="vote"),
            r"no column 'vote'; give --columns.winner=NAME",
        ),
        (
            {**WITHOUT_PROMPT, "prompt": 5},
            Columns(),
            r"x.parquet: column 'prompt' holds int64, but text is needed",
        ),
        ({**ROW, "id": None}, Columns(), r"x.parquet: row 0 \(counted from 0\) has no id"),
        (
            {**ROW, "id": 0.5},
            Columns(),
            r"x.parquet: ids are double .*, which may be rounded; write them as",
        ),
        ({**ROW, "prob_a": "high"}, Columns(), r"column 'prob_a' is not double .*high"),
        ({**ROW, "winner": ["a"]}, Columns(), r"column 'winner' is not string"),
    ],
)
def test_wrong_columns(tmp_path, row, columns, message):
    with pytest.raises(DataError, match=message):
        read(write_parquet(tmp_path / "x.parquet", [row]), columns)


def test_no_votes(tmp_path):
    row = {name: ROW[name] for name in ROW if name != "winner"}
    with pytest.raises(
        DataError, match=r"no column 'winner' or 'prob_a' with the votes; give --columns.winner=NAME"
    ):
        read(write_parquet(tmp_path / "x.parquet", [row]))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.parquet", b"not parquet at all", r"x.parquet: not a parquet file"),
        ("x.parquet", b"", r"x.parquet: not a parquet file"),
        ("x.txt", b"hello", r"x.txt: not a parquet file"),
        ("x.jsonl", b'{"id": 1}\n{"id": \n', r"x.jsonl:2: not JSON .*one object a line is needed"),
        ("x.json", b'[{"id": 1}', r"x.json: not JSON .*a list of objects, or one object a line, is needed"),
        ("x.json", b'[{"id": 1}, 2]', r"x.json: item 2 is a JSON int, but objects are needed"),
        ("x.json", b'["\xff"]', r"x.json: not UTF-8 \(invalid start byte at byte 2\)"),
        ("x.jsonl", b'[{"id": 1}]', r"x.jsonl:1: a JSON list, but one object a line is needed"),
        ("x.jsonl", b"\n[" * 100_000, r"x.jsonl:2: not JSON"),
        ("x.jsonl", b"[" * 100_000, r"x.jsonl:1: not JSON"),
        ("x.jsonl", b'{"id": "\xff"}', r"x.jsonl:1: not UTF-8 \(invalid start byte at byte 8\)"),
        ("x.csv", b"id,prompt\n1,p\n2,p,q\n", r"x.csv:3: 3 fields, but the header has 2"),
        ("x.csv", b"id,prompt,id\n1,p,2\n", r"x.csv: the header names the column 'id' twice"),
        ("x.csv", b"id\n\xff\n", r"x.csv:2: not UTF-8"),
        ("x.csv", b'id,prompt\n1,"p\n2,q\n', r"x.csv:3: not CSV \(unexpected end of data\)"),
        ("x.csv", b'id,prompt\n1,"p\n2,"q"\n', r"x.csv:3: not CSV"),
    ],
)
def test_files_that_cannot_be_parsed(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_a_damaged_parquet_file(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", [{**ROW, "prompt": f"p{i * 7919}"} for i in range(1_000)])
    data = bytearray(path.read_bytes())
    data[100:3_000] = bytes(2_900)
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"x.parquet: cannot be read after row 0"):
        read(path)


def test_strings_that_are_not_utf8(tmp_path):
    table = pa.Table.from_pylist([ROW])
    broken = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    pq.write_table(table.set_column(1, "prompt", broken), tmp_path / "x.parquet")
    [rows] = [
        rows for file in list_inputs([str(tmp_path / "x.parquet")]) for rows in read_rows(file, Reading())
    ]
    assert rows.faults == {0: Fault("malformed", "prompt is not UTF-8", "is not UTF-8")}
    assert rows.table["prompt"].to_pylist() == [None]
    for name in ("id", "winner"):
        broken_table = table.set_column(table.column_names.index(name), name, broken)
        pq.write_table(broken_table, tmp_path / "y.parquet")
        with pytest.raises(DataError, match=r"y.parquet: (an id is not UTF-8|column 'winner' is not string)"):
            read(tmp_path / "y.parquet")


def test_case_decides_only_between_columns_that_are_spelled_alike(tmp_path):
    upper = {name.upper(): value for name, value in ROW.items()}
    assert read(write_parquet(tmp_path / "upper.parquet", [upper])).to_pylist() == [ROW]
    assert read(write_lines(tmp_path / "upper.jsonl", upper)).to_pylist() == [ROW]
    both = {**ROW, "PROMPT": "another"}
    assert read(write_parquet(tmp_path / "both.parquet", [both])).to_pylist() == [both]
    unclear = {name: value for name, value in ROW.items() if name != "id"} | {"ID": 1, "Id": 2}
    with pytest.raises(DataError, match="no column 'id' for the ids"):
        read(write_parquet(tmp_path / "unclear.parquet", [unclear]))
    mapped = read(
        write_parquet(tmp_path / "q.parquet", [{**ROW, "QUESTION": "q"}]), Columns(prompt="Question")
    )
    assert mapped["prompt"].to_pylist() == ["q"]


def test_bad_bytes_of_a_needed_column_are_a_fault_however_its_name_is_spelled(tmp_path):
    table = pa.table({name.upper(): [value, value] for name, value in {**ROW, "id": "1"}.items()})
    broken = pa.array([b"\xff", b"fine"], pa.binary()).view(pa.string())
    pq.write_table(table.set_column(1, "PROMPT", broken), tmp_path / "x.parquet")
    (rows,) = read_rows(list_inputs([str(tmp_path / "x.parquet")])[0], Reading())
    assert list(rows.faults) == [0]
    assert rows.table["prompt"].to_pylist() == [None, "fine"]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_other_columns_are_passed_on_where_they_are_asked_for(tmp_path, kind):
    row = {**ROW, "more": 1, "left": 2}
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        write_lines(path, row)
    names = ["id", "prompt", "response_a", "response_b", "winner"]
    assert read(path).column_names == [*names, "more", "left"]
    assert read(path, others=("more",)).column_names == [*names, "more"]
    assert read(path, others=()).column_names == names


def test_lists_as_text_whose_bytes_are_not_utf8_are_a_fault_of_their_row(tmp_path):
    texts = [b'["a"]', b'["\xff"]']
    table = pa.table({"id": ["1", "2"]} | dict.fromkeys(TEXTS, texts) | {"winner": ["model_a"] * 2})
    for name in TEXTS:
        column = table[name].cast(pa.binary()).combine_chunks()
        text = pa.Array.from_buffers(pa.string(), 2, column.buffers())
        table = table.set_column(table.column_names.index(name), name, text)
    pq.write_table(table, tmp_path / "x.parquet")
    [rows] = read_rows(list_inputs([f"{tmp_path}/x.parquet"])[0], Reading())
    assert rows.table["prompt"].to_pylist() == ["a", None]
    assert {row: str(fault) for row, fault in rows.faults.items()} == {1: "prompt is not UTF-8"}


def test_an_error_names_all_columns_of_a_file_that_is_read_for_some(tmp_path):
    path = write_parquet(
        tmp_path / "x.parquet", [{"question" if k == "prompt" else k: v for k, v in ROW.items()}]
    )
    with pytest.raises(DataError, match=r"no column 'prompt'.*there are: .*question"):
        read(path, others=())


def test_spaces_around_a_name_in_parquet_that_is_read_for_some_columns(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", [{f" {name}": value for name, value in ROW.items()}])
    assert read(path, others=()).to_pylist() == [ROW]


def test_labels_in_three_columns_in_capitals(tmp_path):
    row = {name: value for name, value in ROW.items() if name != "winner"}
    marks = {"WINNER_MODEL_A": 0, "WINNER_MODEL_B": 1, "WINNER_TIE": 0}
    path = write_parquet(
        tmp_path / "x.parquet", [{name.upper(): value for name, value in (row | marks).items()}]
    )
    assert read(path)["winner"].to_pylist() == ["model_b"]


def test_lists_as_text_that_are_stored_as_bytes_are_joined(tmp_path, caplog):
    """As Hive writes LMSYS's votes."""
    table = pa.table({"id": ["1"], "winner": ["model_a"]} | dict.fromkeys(TEXTS, pa.array([b'["a", "b"]'])))
    pq.write_table(table, tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet")["response_a"].to_pylist() == ["[turn 1]\na\n\n[turn 2]\nb"]
    assert "prompt and responses hold lists" in caplog.text
