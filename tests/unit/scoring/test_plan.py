"""Work units: every row in exactly one, in input order; what the input lacks is named at once."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.scoring.fakes import plan_of
from wsdm_ray.config import Columns
from wsdm_ray.errors import DataError
from wsdm_ray.inputs.conversion import ParquetInput
from wsdm_ray.inputs.files import InputFile
from wsdm_ray.inputs.parquet_rows import row_groups_of
from wsdm_ray.scoring import plan as plan_module
from wsdm_ray.scoring.input_facts import FileFacts
from wsdm_ray.scoring.plan import (
    Slice,
    WorkUnit,
    cut_digest,
    cut_units,
    narrowed,
    part_name,
    place_of,
)
from wsdm_ray.scoring.unit_rows import read_unit


def table_of(ids: list, kind: pa.DataType | None = None) -> pa.Table:
    texts = [f"text {value}" for value in ids]
    return pa.table(
        {
            "more": ids,
            "response_b": texts,
            "id": pa.array(ids, kind or pa.int64()),
            "prompt": texts,
            "response_a": texts,
        }
    )


def places_of(unit: WorkUnit) -> list[tuple[int, int]]:
    return [(part.start, part.rows) for part in unit.slices]


def refusal(files: list[str], columns: Columns | None = None) -> str:
    with pytest.raises(DataError) as caught:
        plan_of(files, 10, columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without(name: str) -> pa.Table:
    return table_of([1, 2]).drop_columns([name])


def replaced(name: str, values: pa.Array) -> pa.Table:
    table = table_of([1, 2])
    return table.set_column(table.column_names.index(name), name, values)


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    group_rows=st.integers(1, 50),
    unit_rows=st.integers(1, 30),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_once_in_order(tmp_path, sizes, group_rows, unit_rows):
    files, first = [], 0
    for number, size in enumerate(sizes):
        files.append(str(tmp_path / f"{number}.parquet"))
        pq.write_table(table_of(list(range(first, first + size))), files[-1], row_group_size=group_rows)
        first += size
    if not first:
        assert "no rows to score" in refusal(files)
        return
    plan = plan_of(files, unit_rows)
    assert plan.rows == first
    assert plan.id_type == pa.int64()
    assert [unit.number for unit in plan.units] == list(range(len(plan.units)))
    assert all(1 <= unit.rows <= unit_rows for unit in plan.units)
    assert plan == plan_of(files, unit_rows)
    found = []
    for unit in plan.units:
        rows, faults = read_unit(unit)
        assert not faults
        assert rows.column_names == ["id", "prompt", "response_a", "response_b"]
        assert len(rows) == unit.rows
        ids = rows["id"].to_pylist()
        assert rows["response_b"].to_pylist() == [f"text {value}" for value in ids]
        found += ids
    assert found == list(range(first))


@pytest.mark.parametrize("group_rows", [7, 10_000])
def test_large_files_are_read_in_pieces(write, group_rows):
    path = write(table_of(list(range(9_000))), row_group_size=group_rows)
    plan = plan_of([path], 2_500)
    assert [place for unit in plan.units for place in places_of(unit)] == [
        (0, 2_500),
        (2_500, 2_500),
        (5_000, 2_500),
        (7_500, 1_500),
    ]
    for unit in plan.units:
        [(start, rows)] = places_of(unit)
        assert read_unit(unit).table["id"].to_pylist() == list(range(start, start + rows))


@pytest.mark.parametrize(
    ("start", "rows", "expected"),
    [
        (0, 4, ([0], 0)),
        (0, 5, ([0, 1], 0)),
        (3, 1, ([0], 3)),
        (4, 4, ([1], 0)),
        (5, 7, ([1, 2], 1)),
        (9, 1, ([2], 1)),
        (8, 99, ([2], 0)),
    ],
)
def test_no_other_row_group_is_read(write, start, rows, expected):
    path = write(table_of(list(range(10))), row_group_size=4)
    assert row_groups_of(pq.read_metadata(path), start, rows) == expected


def test_columns_by_other_names(write):
    table = table_of([5, 6]).rename_columns(["more", "second", "key", "question", "first"])
    columns = Columns(id="key", prompt="question", response_a="first", response_b="second")
    path = write(table)
    [unit] = plan_of([path], 10, columns).units
    assert read_unit(unit).table.to_pydict() == {
        "id": [5, 6], "prompt": ["text 5", "text 6"], "response_a": ["text 5", "text 6"],
        "response_b": ["text 5", "text 6"],
    }  # fmt: skip


def test_empty_files_among_others(write):
    files = [write(table_of(ids), f"{i}.parquet") for i, ids in enumerate([[], [1, 2], [], [3]])]
    plan = plan_of(files, 10)
    [unit] = plan.units
    assert [(part.source.file.path, part.rows) for part in unit.slices] == [(files[1], 2), (files[3], 1)]
    assert read_unit(unit).table["id"].to_pylist() == [1, 2, 3]


def test_an_empty_file_whose_columns_have_no_type(write):
    names = ["id", "prompt", "response_a", "response_b"]
    files = [
        write(pa.table({name: pa.nulls(0) for name in names}), "0.parquet"),
        write(table_of([1]), "1.parquet"),
    ]
    assert plan_of(files, 10).id_type == pa.int64()


def test_string_ids_of_either_width(write):
    files = [
        write(table_of(["x"], pa.string()), "0.parquet"),
        write(table_of(["y"], pa.large_string()), "1.parquet"),
    ]
    assert plan_of(files, 10).id_type == pa.string()


def test_part_names_sort_as_numbers_do():
    assert part_name(7) == "part-000007.parquet"
    assert sorted(map(part_name, [100, 20, 3])) == [part_name(3), part_name(20), part_name(100)]


def test_an_id_that_stands_twice(write):
    within = write(table_of([4, 5, 6, 5]))
    assert refusal([within]) == (
        f"id 5 is in {within} row 1 and {within} row 3; ids must be unique, drop or rename one"
    )
    first, second = (
        write(table_of(["a", "b"], pa.string()), "1.parquet"),
        write(table_of(["c", "b"], pa.string()), "2.parquet"),
    )
    assert refusal([first, second]) == (
        f"id b is in {first} row 1 and {second} row 1; ids must be unique, drop or rename one"
    )


def test_a_null_id(write):
    path = write(table_of([1, 2, None]))
    assert refusal([path]) == f"{path}: row 2 (counted from 0) has no id"


@pytest.mark.parametrize("name", ["id", "prompt", "response_a", "response_b"])
def test_a_missing_column(write, name):
    path = write(without(name))
    there = ", ".join(without(name).column_names)
    option = f"--columns.{name.replace('_', '-')}=NAME"
    message = refusal([path])
    assert message.startswith(f"{path}: no column '{name}'")
    assert f"give {option} or" in message
    assert message.endswith(f"; there are: {there}")


def test_a_mapped_column_that_is_missing(write):
    path = write(table_of([1]))
    assert f"{path}: no column 'question'; give" in refusal([path], Columns(prompt="question"))


def test_wrong_types(write):
    path = write(replaced("prompt", pa.array([1, 2])))
    assert refusal([path]) == f"{path}: column 'prompt' holds int64, but text is needed"
    path = write(replaced("id", pa.array([0.5, 1.5])))
    assert refusal([path]).startswith(f"{path}: ids are double (column 'id'), which may be rounded")


def test_ids_of_different_types(write):
    first, second = write(table_of([1]), "1.parquet"), write(table_of(["b"], pa.string()), "2.parquet")
    plan = plan_of([first, second], 10)
    assert plan.id_type == pa.string()
    first, second = write(table_of([1]), "1.parquet"), write(table_of(["1"], pa.string()), "2.parquet")
    assert refusal([first, second]).startswith(f"id 1 is in {first} row 0 and {second} row 0")


def test_not_parquet(tmp_path):
    for number, content in enumerate([b"", b"id,prompt\n1,x\n", b"PAR1" + b"\0" * 50 + b"PAR1"]):
        path = tmp_path / f"{number}.parquet"
        path.write_bytes(content)
        assert refusal([str(path)]).startswith(f"{path}: not a parquet file (")


def test_no_rows(write):
    first, second = write(table_of([]), "1.parquet"), write(table_of([]), "2.parquet")
    assert refusal([first]) == f"{first}: no rows to score"
    assert refusal([first, second]) == f"{first}: no rows to score in any of 2 files"


@pytest.mark.parametrize("left", [0, 5, 12])
def test_a_file_that_shrank(write, left):
    path = write(table_of(list(range(20))), row_group_size=4)
    [first, second] = plan_of([path], 10).units
    write(table_of(list(range(left))), row_group_size=4)
    for unit in (first, second):
        with pytest.raises(DataError) as caught:
            read_unit(unit)
        assert str(caught.value).startswith(f"{path}: has changed from ")
        assert str(caught.value).endswith(
            "bytes since the run was planned; restore it, or score what is there now into another --output"
        )


IDS = {
    "uint8": (pa.array([1, 2], pa.uint8()), [1, 2]),
    "decimal": (pa.array([1, 2], pa.decimal128(38, 0)), [1, 2]),
    "categories": (pa.array(["x", "y"]).dictionary_encode(), ["x", "y"]),
    "view": (pa.array(["x", "y"], pa.string_view()), ["x", "y"]),
    "uuid": (
        pa.array([b"\0" * 16, b"\1" * 16], pa.uuid()),
        ["00000000-0000-0000-0000-000000000000", "01010101-0101-0101-0101-010101010101"],
    ),
    "bytes": (pa.array([b"x", "é".encode()]), ["x", "é"]),
}


@pytest.mark.parametrize("kind", IDS)
def test_ids_of_any_type_that_tools_write(write, kind):
    ids, expected = IDS[kind]
    [unit] = plan_of([write(replaced("id", ids))], 10).units
    assert read_unit(unit).table["id"].to_pylist() == expected


def test_ids_that_do_not_fit(write):
    path = write(replaced("id", pa.array([1, 2**63], pa.uint64())))
    assert refusal([path]).startswith(f"{path}: an id does not fit 64 bits (")


def test_texts_of_any_type_that_tools_write(write):
    texts = ["é", None]
    for column in (
        pa.array(texts, pa.large_string()), pa.array(texts).dictionary_encode(),
        pa.array(texts, pa.string_view()), pa.array([text and text.encode() for text in texts]),
    ):  # fmt: skip
        [unit] = plan_of([write(replaced("prompt", column))], 10).units
        assert read_unit(unit).table["prompt"].to_pylist() == texts


def test_bytes_that_are_not_utf8_are_the_fault_of_their_row(write):
    [unit] = plan_of([write(replaced("prompt", pa.array([b"\xff", b"good"])))], 10).units
    rows, faults = read_unit(unit)
    assert rows["prompt"].to_pylist() == [None, "good"]
    assert {row: str(fault) for row, fault in faults.items()} == {0: "prompt is not UTF-8"}


def test_made_ids_go_on_over_units(write):
    path = write(without("id"), "x.parquet")
    units = plan_of([path], 1, make_ids=True).units
    assert [read_unit(unit).table["id"].to_pylist() for unit in units] == [["x-0"], ["x-1"]]


def test_columns_of_folders(tmp_path, write):
    (tmp_path / "language=de").mkdir()
    path = write(table_of([1, 2]), "language=de/x.parquet")
    [unit] = plan_of([path], 10).units
    assert read_unit(unit, ("language",)).table["language"].to_pylist() == ["de", "de"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [("", "no rows to score"), ("7,p,a,b\n7,q,a,b\n", "id 7 is in")],
)
def test_a_message_names_the_file_that_was_given_and_not_its_copy(tmp_path, lines, message):
    path = tmp_path / "x.csv"
    path.write_text("id,prompt,response_a,response_b\n" + lines)
    told = refusal([str(path)])
    assert message in told
    assert str(path) in told
    assert "wsdm_ray_inputs" not in told


def test_a_column_with_the_name_of_our_faults_stops_no_row(tmp_path):
    table = table_of([1, 2]).append_column("_wsdm_ray_fault", pa.array(["x", "y"]))
    pq.write_table(table, tmp_path / "x.parquet")
    [unit] = plan_of([str(tmp_path / "x.parquet")], 10).units
    assert read_unit(unit).faults == {}


# Several files


@given(
    sizes=st.lists(st.integers(1, 3_000), min_size=1, max_size=30),
    unit_rows=st.none() | st.integers(1, 2_000),
    row_bytes=st.sampled_from([1, 10_000, 200_000]),
)
def test_units_hold_every_row_once_and_are_no_larger_than_they_should(sizes, unit_rows, row_bytes):
    sources = [ParquetInput(file=InputFile(str(i), str(i)), columns=Columns()) for i in range(len(sizes))]
    files = [
        FileFacts(source, rows, rows * row_bytes, pa.int64())
        for source, rows in zip(sources, sizes, strict=True)
    ]
    units = cut_units(files, unit_rows)
    assert [unit.number for unit in units] == list(range(len(units)))
    assert all(unit.rows <= (unit_rows or 1_000) for unit in units)
    assert all(unit.rows * row_bytes <= 64 << 20 for unit in units)
    rows = [(part.source, row) for unit in units for part in unit.slices for row in rows_of(part)]
    assert rows == [(file.source, row) for file in files for row in range(file.rows)]
    for unit in units:  # only whole files share a unit
        assert len(unit.slices) == 1 or all(
            (part.start, part.rows) == (0, sizes[sources.index(part.source)]) for part in unit.slices
        )


def rows_of(part: Slice) -> range:
    return range(part.start, part.start + part.rows)


def test_units_are_small_at_the_end_of_a_run():
    source = ParquetInput(file=InputFile("x", "x"), columns=Columns())
    sizes = [unit.rows for unit in cut_units([FileFacts(source, 600_000, 1, pa.int64())], None)]
    assert sum(sizes) == 600_000
    assert max(sizes) <= 1_000
    assert max(sizes[-250:]) <= 125
    assert len(cut_units([FileFacts(source, 1_000, 1, pa.int64())], None)) == 8


@pytest.mark.parametrize(("models", "largest"), [(1, 1_000), (3, 333), (9, 125)])
def test_units_take_as_long_for_several_models(models, largest):
    source = ParquetInput(file=InputFile("x", "x"), columns=Columns())
    units = cut_units([FileFacts(source, 1_000_000, 1, pa.int64())], None, models)
    assert sum(unit.rows for unit in units) == 1_000_000
    assert max(unit.rows for unit in units) == largest


def test_small_files_share_units_and_keep_their_ids_and_faults(write):
    tables = [
        table_of([1, 2]),
        replaced("prompt", pa.array([b"\xff", b"good"])),
        table_of(["x"], pa.string()),
    ]
    files = [write(table, f"{number}.parquet") for number, table in enumerate(tables)]
    for number, ids in ((1, [3, 4]),):
        write(tables[number].set_column(2, "id", pa.array(ids)), f"{number}.parquet")
    plan = plan_of(files, 10)
    [unit] = plan.units
    rows, faults = read_unit(unit)
    assert rows["id"].to_pylist() == ["1", "2", "3", "4", "x"]
    assert {row: str(fault) for row, fault in faults.items()} == {2: "prompt is not UTF-8"}
    assert read_unit(narrowed(unit, 1, 4)).table["id"].to_pylist() == ["2", "3", "4", "x"]
    assert read_unit(narrowed(unit, 2, 1)).faults.keys() == {0}
    assert place_of(unit) == f"{files[0]} from row 0 and 2 more files"


def test_a_cut_of_several_files_is_in_the_fingerprint(write):
    files = [write(table_of([number]), f"{number}.parquet") for number in range(4)]
    assert cut_digest(plan_of(files, 1), 1) is None, "the options say all"
    pairs, all_four = cut_digest(plan_of(files, 2), 2), cut_digest(plan_of(files, 4), 4)
    assert None not in (pairs, all_four)
    assert pairs != all_four
    assert pairs == cut_digest(plan_of(files, 2), 2)


def test_a_cut_that_no_option_chose_is_in_the_fingerprint(write, monkeypatch):
    """Another version may cut the same rows to other units."""
    files = [write(table_of(range(400)), "0.parquet")]
    cut = cut_digest(plan_of(files, None), None)
    monkeypatch.setattr(plan_module, "SMALLEST_UNIT", 250)
    assert cut_digest(plan_of(files, None), None) not in (cut, None)
