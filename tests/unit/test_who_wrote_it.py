"""Who wrote it x which job: the same twelve votes of every tool are the same rows to every job.

docs/inputs.md is the table of these tests: its rows are the writers, its cells what each job needs.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.unit.data.prepare_rows import read as read_shards
from tests.unit.vote_rows import Writer, rows
from tests.unit.vote_writers import WRITERS
from wsdm_ray.config import Columns, PrepareConfig
from wsdm_ray.data import votes as training
from wsdm_ray.data.prepare import prepare
from wsdm_ray.errors import DataError
from wsdm_ray.evaluation import votes as evaluation
from wsdm_ray.inputs.conversion import parquet_inputs
from wsdm_ray.inputs.files import input_paths, list_inputs
from wsdm_ray.inputs.rows import Reading
from wsdm_ray.scoring.plan import make_plan
from wsdm_ray.scoring.unit_rows import read_unit

PAGE = Path(__file__).parents[2] / "docs/inputs.md"
TEXTS = ("prompt", "response_a", "response_b")
FIRST = "`prepare` first"
"""What the page says of `train`, which takes no options of its input, where one is needed."""

WITHOUT_LANGUAGE = ("snowflake_no_header", "kaggle_lmsys", "kaggle_lmsys_parquet")

Row = tuple[Any, ...]


def expected(writer: Writer, *, labels: bool = True) -> list[Row]:
    """Id, texts and the probability of response_a of each vote, by id."""
    label = (lambda row: row["prob_a"]) if writer.soft else (lambda row: float(row["winner"] == "model_a"))
    found = rows(writer.ids, writer.soft)
    return sorted(
        (row["id"], *(row[name] for name in TEXTS), *([label(row)] if labels else [])) for row in found
    )


def reading_of(writer: Writer, **more: Any) -> Reading:
    return Reading(**writer.options, **more)


def texts_of(table: pa.Table, labels: Sequence[float] | None = None) -> list[Row]:
    columns = [table[name].to_pylist() for name in ("id", *TEXTS)]
    return sorted(zip(*columns, *([] if labels is None else [labels]), strict=True))


@pytest.fixture(params=WRITERS, ids=lambda writer: writer.name)
def writer(request: pytest.FixtureRequest) -> Writer:
    return request.param


@pytest.fixture
def path(writer: Writer, tmp_path: Path) -> str:
    writer.write(tmp_path)
    return str(tmp_path / writer.path)


def test_prepare(writer: Writer, path: str, tmp_path: Path):
    output = tmp_path / "prepared"
    run = prepare(PrepareConfig(input=(path,), output=str(output), valid_fraction=0, **writer.options))
    found = read_shards(output / "train")
    label = [row["prob_a"] if writer.soft else float(row["winner"] == "model_a") for row in found]
    assert texts_of(pa.Table.from_pylist(found), label) == expected(writer)
    assert run["counts"]["texts_fixed"] == 0
    if writer.name in WITHOUT_LANGUAGE:
        assert "language" not in found[0]
    else:
        assert sorted(row["language"] for row in found) == ["de"] * 6 + ["en"] * 6


def test_score(writer: Writer, path: str):
    inputs = parquet_inputs(list_inputs([path]), reading_of(writer, labels=False))
    plan = make_plan(inputs, unit_rows=5)
    units = [read_unit(unit) for unit in plan.units]
    assert not any(unit.faults for unit in units)
    found = pa.concat_tables([unit.table.select(["id", *TEXTS]) for unit in units])
    assert texts_of(found) == expected(writer, labels=False)
    assert plan.id_type == found["id"].type


def test_train(writer: Writer, path: str):
    if train_cell(writer) == FIRST:
        with pytest.raises(DataError, match="no column"):
            training.read_votes([path])
        return
    found = training.read_votes(input_paths([path]))  # workers are given the files of what was named
    assert texts_of(found.table, found.prob_a_N.tolist()) == expected(writer)


def test_evaluate(writer: Writer, path: str):
    found = evaluation.read_votes([path], reading_of(writer))
    lengths = [found[name].to_pylist() for name in ("characters_a", "characters_b", "group")]
    read = sorted(zip(found["id"].to_pylist(), *lengths, found["label"].to_pylist(), strict=True))
    assert read == [
        (id, len(a), len(b), evaluation.group_of(prompt), label)
        for id, prompt, a, b, label in expected(writer)
    ]
    assert found["left_out"].null_count == len(found)


def train_cell(writer: Writer) -> str:
    """What the page says of `train`, which finds columns by their names, and lists of turns by their look."""
    own_names = writer.options.get("columns", Columns()) == Columns() and not writer.options.get("make_ids")
    return "as it is" if own_names and writer.options.get("format") != "arena-140k" else FIRST


def test_the_page_has_a_row_for_each_writer():
    found = re.findall(r"^\| (\w+) " + r"\| (.+?) " * 5 + r"\|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert [tuple(row) for row in found[1:]] == [
        (writer.tool, writer.how, writer.cell, writer.cell, train_cell(writer), writer.cell)
        for writer in WRITERS
    ]
