from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsdm_ray.config import Columns, EvaluateConfig
from wsdm_ray.errors import DataError, StorageError
from wsdm_ray.evaluation.evaluate import measure_all
from wsdm_ray.evaluation.join import Joined, join_by_id, read_predictions
from wsdm_ray.evaluation.votes import read_pairs, read_votes
from wsdm_ray.inputs.rows import Reading

Rows = dict[str, list[Any]]
Write = Callable[..., EvaluateConfig]


def joined(config: EvaluateConfig) -> Joined:
    return join_by_id(
        read_predictions(config.predictions[0]), read_votes(config.votes, Reading(columns=config.columns))
    )


def without(rows: Rows, *dropped: int) -> Rows:
    return {
        name: [value for at, value in enumerate(column) if at not in dropped] for name, column in rows.items()
    }


def test_each_vote_gets_its_own_prediction(on_disk: Write, predictions: Rows, votes: Rows):
    order = np.random.default_rng(0).permutation(60)
    shuffled = {name: [column[row] for row in order] for name, column in predictions.items()}
    rows = joined(on_disk(shuffled, votes))
    assert rows.ids == list(range(60))
    np.testing.assert_array_equal(rows.prob, np.float32(predictions["prob_a"]))
    np.testing.assert_array_equal(rows.label, [winner == "model_a" for winner in votes["winner"]])
    np.testing.assert_array_equal(rows.characters_a, [len(text) for text in votes["response_a"]])
    assert rows.group[0] == rows.group[1] != rows.group[2]


@given(st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_any_order_gives_the_same_figures(random):
    ids = [f"row-{number}" for number in range(40)]
    numbers = np.random.default_rng(0)
    votes = pa.table(
        {
            "id": ids,
            "label": numbers.integers(0, 2, 40).astype(float),
            "best_prob_a": numbers.random(40),
            "language": ["Hindi", None] * 20,
            "source": pa.nulls(40, pa.string()),
            "model_a": ["x", "y"] * 20,
            "model_b": ["y", "z"] * 20,
            "left_out": pa.nulls(40, pa.string()),
            "characters_a": numbers.integers(0, 50, 40),
            "characters_b": numbers.integers(0, 50, 40),
            "group": numbers.integers(0, 20, 40).astype(np.uint64),
            "ba_first": [True, False] * 20,
        }
    )
    probabilities = {name: numbers.random(40) for name in ("prob_a", "prob_a_ab", "prob_a_ba")}
    predictions = pa.table(
        {"id": ids}
        | probabilities
        | {"tokens": numbers.integers(1, 99, 40), "cut_tokens": [0] * 40, "error": ["late", *[None] * 39]},
    )

    def figures(predictions: pa.Table, votes: pa.Table) -> dict[str, Any]:
        config = EvaluateConfig(predictions=("p",), votes=("v",), output="o", bootstrap=20)
        return measure_all(join_by_id(predictions, votes), config)

    orders = [random.sample(range(40), 40) for _ in range(2)]
    assert figures(predictions.take(orders[0]), votes.take(orders[1])) == figures(predictions, votes)


def test_string_and_large_string_ids_are_the_same(
    tmp_path: Path, on_disk: Write, predictions: Rows, votes: Rows
):
    names = [f"row {row}" for row in range(60)]
    config = on_disk(predictions | {"id": names}, votes | {"id": pa.array(names, pa.large_string())})
    assert len(joined(config).ids) == 60


@pytest.mark.parametrize(
    ("dropped_predictions", "dropped_votes", "message"),
    [
        ((3, 4), (), r"^2 of 60 votes have no prediction \(first ids: 3, 4\); give the votes of exactly"),
        ((), (5,), r"^1 of 60 predictions have no vote \(id 5\); give"),
        (
            (0,),
            (59,),
            r"1 of 59 votes have no prediction \(id 0\) and 1 of 59 predictions have no vote \(id 59\)",
        ),
        (
            tuple(range(1, 60)),
            (0,),
            r"59 of 59 votes have no prediction \(first ids: 1, 2, 3, 4, 5\) and 1 of 1 ",
        ),
    ],
)
def test_missing_and_extra_ids(
    on_disk: Write, predictions: Rows, votes: Rows, dropped_predictions, dropped_votes, message
):
    config = on_disk(without(predictions, *dropped_predictions), without(votes, *dropped_votes))
    with pytest.raises(DataError, match=message):
        joined(config)


def test_ids_that_spell_the_same_numbers_are_the_same(on_disk: Write, predictions: Rows, votes: Rows):
    numbers = joined(on_disk(predictions, votes))
    texts = joined(on_disk(predictions, votes | {"id": [str(row) for row in range(60)]}))
    assert sorted(texts.ids) == sorted(map(str, numbers.ids))
    of_numbers = dict(zip(map(str, numbers.ids), zip(numbers.prob, numbers.label, strict=True), strict=True))
    assert dict(zip(texts.ids, zip(texts.prob, texts.label, strict=True), strict=True)) == of_numbers
    others = joined(on_disk(predictions | {"id": [str(row) for row in range(60)]}, votes))
    assert others.ids == texts.ids
    with pytest.raises(DataError, match=r"60 of 60 votes have no prediction \(first ids: 'v0'"):
        joined(on_disk(predictions, votes | {"id": [f"v{row}" for row in range(60)]}))


def test_votes_that_name_no_winner_are_left_out_and_counted(on_disk: Write, predictions: Rows, votes: Rows):
    winner = ["tie", None, "Model_B ", "tie (bothbad)", *["a"] * 56]
    rows = joined(on_disk(predictions, votes | {"winner": winner}))
    assert rows.left_out == {"tie": 2, "no winner": 1}
    assert rows.ids == [2, *range(4, 60)]
    assert rows.label.tolist() == [0, *[1] * 56]
    with pytest.raises(DataError, match=r"no vote names a winner \(tie 60\)"):
        joined(on_disk(predictions, votes | {"winner": ["tie"] * 60}))


@pytest.mark.parametrize("side", ["predictions", "votes"])
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (
            [7, *range(1, 60)],
            r"(predictions|votes): ids that appear more than once: 1 \(id 7\); every row needs",
        ),
        ([None, *range(1, 60)], r"(predictions|votes).*: row 0 \(counted from 0\) has no id"),
    ],
)
def test_duplicate_and_null_ids(on_disk: Write, predictions: Rows, votes: Rows, side, ids, message):
    given, other = ({"id": ids}, {}) if side == "predictions" else ({}, {"id": ids})
    with pytest.raises(DataError, match=message):
        joined(on_disk(predictions | given, votes | other))


def test_ids_that_are_neither_numbers_nor_text(on_disk: Write, predictions: Rows, votes: Rows):
    config = on_disk(predictions, votes | {"id": [row / 2 for row in range(60)]})
    with pytest.raises(DataError, match=r"ids are double .*write them as integers or text"):
        joined(config)


def test_rows_with_an_error_are_counted_and_left_out(on_disk: Write, predictions: Rows, votes: Rows):
    errors = ["too long", "too long", "no text", *[None] * 57]
    scored = [None if error else prob for error, prob in zip(errors, predictions["prob_a"], strict=True)]
    rows = joined(on_disk(predictions | {"prob_a": scored, "error": errors}, votes))
    assert rows.ids == list(range(3, 60))
    assert rows.errors == {"too long": 2, "no text": 1}


def test_nothing_but_errors(on_disk: Write, predictions: Rows, votes: Rows):
    config = on_disk(predictions | {"prob_a": [None] * 60, "error": ["no model"] * 60}, votes)
    with pytest.raises(DataError, match=r"all 60 predictions carry an error \(most often: no model\)"):
        joined(config)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"rows with neither prob_a nor error: 1 \(id 0\)"),
        (float("nan"), r"rows with neither prob_a nor error: 1 \(id 0\)"),
        (1.5, r"values of prob_a outside 0..1: 1 \(1.5; id 0\)"),
    ],
)
def test_bad_probabilities(on_disk: Write, predictions: Rows, votes: Rows, value, message):
    config = on_disk(predictions | {"prob_a": [value, *predictions["prob_a"][1:]]}, votes)
    with pytest.raises(DataError, match=message):
        joined(config)


def test_soft_labels_win_over_winners(on_disk: Write, predictions: Rows, votes: Rows):
    soft = [0.25, 0.5, *[None] * 58]
    rows = joined(on_disk(predictions, votes | {"prob_a": soft, "winner": ["model_a"] * 60}))
    assert rows.label[:3].tolist() == [0.25, 0.5, 1]


def test_a_soft_label_stands_for_a_missing_winner(on_disk: Write, predictions: Rows, votes: Rows):
    rows = joined(on_disk(predictions, votes | {"prob_a": [0.3] * 60, "winner": [None] * 60}))
    assert set(rows.label.tolist()) == {0.3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"winner": ["Ann", *["model_a"] * 59]}, r"unknown winner 'Ann' \(id 0\); give model_a, model_b or"),
        ({"prob_a": [-0.1] * 60}, r"prob_a -0.1 \(id 0\) is not within 0..1"),
        ({"prob_a": ["high"] * 60}, r"column 'prob_a' is not double"),
        ({"best_prob_a": [2.0] * 60}, r"values of best_prob_a outside 0..1: 60"),
        ({"prompt": [5] * 60}, r"column 'prompt' holds int64, but text is needed"),
    ],
)
def test_bad_votes(on_disk: Write, predictions: Rows, votes: Rows, change, message):
    with pytest.raises(DataError, match=message):
        joined(on_disk(predictions, votes | change))


def test_missing_columns(on_disk: Write, predictions: Rows, votes: Rows):
    config = on_disk(
        predictions, {name: votes[name] for name in ("id", "prompt", "response_a", "response_b")}
    )
    with pytest.raises(
        DataError, match=r"no column 'winner' or 'prob_a' with the votes; give --columns.winner"
    ):
        joined(config)
    with pytest.raises(DataError, match=r"no column 'question'; give --columns.prompt=NAME"):
        read_votes(config.votes, Reading(columns=Columns(prompt="question")))
    with pytest.raises(DataError, match=r"no column 'prob_a' .*give the output folder of jobs.score"):
        read_predictions(config.votes[0])


def test_columns_by_other_names(on_disk: Write, predictions: Rows, votes: Rows):
    renamed = {f"my_{name}": column for name, column in votes.items()}
    columns = Columns(**{name: f"my_{name}" for name in votes})
    config = on_disk(predictions, renamed, columns=columns)
    assert joined(config).label.tolist() == joined(on_disk(predictions, votes)).label.tolist()
    on_disk(predictions, renamed)
    pairs = read_pairs(config.votes, Reading(columns=columns), [3])
    assert pairs == {3: {name: votes[name][3] for name in ("prompt", "response_a", "response_b")}}


def test_missing_empty_and_foreign_files(tmp_path: Path, on_disk: Write, predictions: Rows, votes: Rows):
    config = on_disk(predictions, votes)
    with pytest.raises(StorageError, match=r"nowhere: not found"):
        read_predictions(f"{tmp_path}/nowhere")
    with pytest.raises(DataError, match=r"votes: no rows"):
        joined(on_disk(predictions, {name: pa.array(column)[:0] for name, column in votes.items()}))
    (tmp_path / "predictions" / "part-000002.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"part-000002.parquet: not a parquet file"):
        read_predictions(config.predictions[0])


def test_null_texts_count_as_empty_and_broken_ones_are_left_out(tmp_path: Path):
    broken = pa.Array.from_buffers(pa.string(), 3, pa.array([b"\xffok", b"good", b"\0"]).buffers())
    table = pa.table(
        {
            "id": [1, 2, 3],
            "prompt": pa.nulls(3, pa.string()),
            "response_a": broken,
            "response_b": ["x", "yy", "z"],
            "prob_a": [0.5, 0.25, 1.0],
        }
    )
    pq.write_table(table, tmp_path / "votes.parquet")
    votes = read_votes([f"{tmp_path}/votes.parquet"], Reading())
    assert votes["characters_a"].to_pylist() == [0, 4, 1]
    assert votes["left_out"].to_pylist() == ["malformed", None, None]
    assert votes["label"].to_pylist() == [None, 0.25, 1.0]
    pair = read_pairs([f"{tmp_path}/votes.parquet"], Reading(), [2])[2]
    assert pair == {"prompt": "", "response_a": "good", "response_b": "yy"}
