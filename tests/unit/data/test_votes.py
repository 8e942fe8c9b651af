"""Votes as training reads them: labels by hand, and messages that name the file, the id and the remedy."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wsdm_ray.data.votes import read_votes
from wsdm_ray.errors import DataError


def table_of(ids=(7, 8, 9), **columns) -> pa.Table:
    texts = {name: [f"{name} of {i}" for i in ids] for name in ("prompt", "response_a", "response_b")}
    return pa.table({"id": list(ids), **texts, **columns})


@pytest.fixture
def write(tmp_path):
    def write_tables(*tables: pa.Table) -> list[str]:
        paths = [str(tmp_path / f"{number}.parquet") for number in range(len(tables))]
        for path, table in zip(paths, tables, strict=True):
            pq.write_table(table, path)
        return paths

    return write_tables


def refusal(paths: list[str]) -> str:
    with pytest.raises(DataError) as caught:
        read_votes(paths)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_winners_and_soft_labels(write):
    paths = write(
        table_of(winner=["model_a", "model_b", "model_a"]),
        table_of((1, 2), prob_a=[0.25, 1.0], more=[0, 0]),
        table_of((3, 4), winner=["model_a", None], prob_a=pa.array([None, 0.5], pa.float32())),
        table_of((5,), winner=["model_b"], prob_a=pa.nulls(1)),
        table_of((6,), winner=["model_b"], prob_a=[1]),
    )
    votes = read_votes(paths)
    assert votes.table["id"].to_pylist() == [7, 8, 9, 1, 2, 3, 4, 5, 6]
    assert votes.prob_a_N.tolist() == [1, 0, 1, 0.25, 1, 1, 0.5, 0, 1]
    assert votes.prob_a_N.dtype == np.float64
    assert len(votes) == 9
    assert votes.texts(np.array([8, 0])) == (
        ["prompt of 6", "prompt of 7"], ["response_a of 6", "response_a of 7"],
        ["response_b of 6", "response_b of 7"],
    )  # fmt: skip


def test_usual_spellings_of_winners(write):
    assert read_votes(write(table_of(winner=["MODEL_A", "model_b ", "a"]))).prob_a_N.tolist() == [1, 0, 1]


@pytest.mark.parametrize("winner", ["tie", "", None])
def test_an_unknown_winner(write, winner):
    [path] = write(table_of(winner=["model_a", winner, "tie"]))
    assert refusal([path]) == (
        f"{path}: id 8 has winner {winner!r}; winner must be model_a or model_b, prob_a in 0..1 "
        "(run `python -m jobs.prepare`)"
    )


@pytest.mark.parametrize("prob_a", [-0.01, 1.01, float("inf")])
def test_a_soft_label_outside_its_range(write, prob_a):
    [path] = write(table_of(winner=["model_a"] * 3, prob_a=[0.0, 1.0, prob_a]))
    assert refusal([path]) == f"{path}: prob_a {prob_a} (id 9) is not within 0..1"


def test_a_soft_label_that_is_nan_is_none(write):
    [path] = write(table_of(winner=["model_a"] * 3, prob_a=[0.0, 1.0, float("nan")]))
    assert read_votes([path]).prob_a_N.tolist() == [0, 1, 1]


@pytest.mark.parametrize("name", ["prompt", "response_a", "response_b"])
def test_a_null_text(write, name):
    table = table_of(winner=["model_a"] * 3)
    table = table.set_column(table.column_names.index(name), name, pa.array(["x", None, None]))
    first, second = write(table_of((1,), winner=["model_b"]), table)
    assert refusal([first, second]) == f"{second}: {name} of id 8 is null; run `python -m jobs.prepare`"


@pytest.mark.parametrize(
    ("drop", "named"),
    [("id", "'id' for the ids"), ("response_b", "'response_b'"), ("winner", "'winner' or 'prob_a'")],
)
def test_a_missing_column(write, drop, named):
    [path] = write(table_of(winner=["model_a"] * 3).drop_columns([drop]))
    assert refusal([path]).startswith(f"{path}: no column {named}")


def test_wrong_types(write):
    [path] = write(table_of(prob_a=["0.5", "many", "1"]))
    assert refusal([path]).startswith(f"{path}: column 'prob_a' is not double (")
    table = table_of(winner=["model_a"] * 3)
    [path] = write(table.set_column(1, "prompt", pa.array([[1], [2], [3]])))
    assert refusal([path]).startswith(f"{path}: id 7: ")


def test_no_rows(write):
    paths = write(
        table_of((), winner=pa.array([], pa.string())), table_of((), winner=pa.array([], pa.string()))
    )
    assert refusal(paths) == f"{paths[0]}: holds no votes"


def test_an_empty_file_among_others(write):
    paths = write(table_of((), winner=pa.array([], pa.string())), table_of(winner=["model_b"] * 3))
    assert read_votes(paths[1:]).prob_a_N.tolist() == read_votes(paths).prob_a_N.tolist() == [0, 0, 0]


def test_files_of_different_types(write):
    one = table_of(winner=["model_a"] * 3, source=["x"] * 3)
    other = table_of((1,), winner=["model_a"], source=pa.array(["y"]).dictionary_encode())
    assert read_votes(write(one, other)).sources_N.tolist() == ["x", "x", "x", "y"]


def test_ids_are_unique_over_all_sets(write):
    one, two = write(table_of(winner=["model_a"] * 3), table_of((10, 8), winner=["model_a"] * 2))
    assert refusal([one, two]) == (
        f"{two}: id 8 is in {one} too; ids must be unique over all sets: give one of them other ids and "
        "prepare it again"
    )
    (twice,) = write(table_of((1, 1), winner=["model_a"] * 2))
    assert f"{twice}: id 1 is there twice" in refusal([twice])


def test_sets_with_ids_of_two_types(write):
    votes = read_votes(write(table_of(winner=["model_a"] * 3), table_of(("p-1", "p-2"), prob_a=[0.5, 0.75])))
    assert votes.table["id"].to_pylist() == ["7", "8", "9", "p-1", "p-2"]
    assert votes.prob_a_N.tolist() == [1, 1, 1, 0.5, 0.75]
