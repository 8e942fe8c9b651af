"""A replica without Ray: rows keep their ids or say why they cannot be scored, models are averaged."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.scoring.conftest import column, random_rows, swapped
from tests.unit.scoring.fakes import plan_of, spoiling_first
from wsdm_ray.schema import predictions_schema
from wsdm_ray.scoring.encode import encode_unit, encoder_of, table_to_bytes
from wsdm_ray.scoring.parts import COUNTS_KEY
from wsdm_ray.scoring.probabilities import combine, to_probability


def test_predictions(score):
    rows = random_rows(50)
    table, [report] = score(rows)
    assert table.schema == predictions_schema(pa.int64())
    assert table["id"].to_pylist() == rows["id"].to_pylist()
    p, ab, ba = (column(table, name) for name in ("prob_a", "prob_a_ab", "prob_a_ba"))
    np.testing.assert_allclose(p, (ab.astype(float) + ba) / 2, rtol=0, atol=2.0**-24)
    assert table["winner"].to_pylist() == ["model_a" if value >= 0.5 else "model_b" for value in p]
    assert 5 < sum(value >= 0.5 for value in p) < 45
    assert table["error"].null_count == 50
    assert report.rows == 50
    assert report.errors == 0
    assert report.cut == np.count_nonzero(column(table, "cut_tokens")) > 0
    assert report.tokens == column(table, "tokens").sum() <= report.forward_tokens / 2
    assert column(table, "tokens").max() <= 96


@pytest.mark.parametrize("layout", ["padded", "packed", "shared"])
def test_swapped_rows_give_exactly_the_rest(score, classifiers, layout):
    rows = random_rows(40, seed=1)
    for models in (classifiers[:1], classifiers):
        table, _ = score(rows, models=models, layout=layout)
        turned, _ = score(swapped(rows), models=models, layout=layout)
        for name, other in (("prob_a", "prob_a"), ("prob_a_ab", "prob_a_ba"), ("prob_a_ba", "prob_a_ab")):
            np.testing.assert_array_equal(column(turned, name), np.float32(1) - column(table, other))


def test_equal_responses(score):
    rows = random_rows(20, seed=2)
    table, _ = score(rows.set_column(3, "response_b", rows["response_a"]))
    np.testing.assert_array_equal(column(table, "prob_a"), np.float32(0.5))


def test_a_row_is_scored_alike_in_any_company(score):
    rows = random_rows(30, seed=3)
    expected = column(score(rows)[0], "prob_a")
    order = np.random.default_rng(0).permutation(30)
    for taken, options in (
        (np.arange(30), {"unit_rows": 1}),
        (np.arange(30), {"unit_rows": 7, "layout": "shared", "token_budget": 3_000}),
        (order, {"layout": "packed"}),
        (order[:5], {}),
    ):
        table, _ = score(rows.take(pa.array(taken)), **options)
        assert table["id"].to_pylist() == taken.tolist()
        np.testing.assert_allclose(column(table, "prob_a"), expected[taken], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("orders", "empty", "filled"), [("ab", "prob_a_ba", "prob_a_ab"), ("ba", "prob_a_ab", "prob_a_ba")]
)
def test_one_ordering(score, orders, empty, filled):
    rows = random_rows(20, seed=4)
    both, _ = score(rows)
    table, _ = score(rows, orders=orders)
    assert table[empty].null_count == 20
    np.testing.assert_array_equal(column(table, "prob_a"), column(table, filled))
    np.testing.assert_allclose(column(table, filled), column(both, filled), rtol=0, atol=1e-5)


def test_logits(score):
    rows = random_rows(20, seed=5)
    table, _ = score(rows, logits=True)
    for name in ("ab", "ba"):
        assert table.schema.field(f"logit_{name}").type == pa.float32()
        found = combine(to_probability(column(table, f"logit_{name}"))[:, None])
        np.testing.assert_array_equal(found, column(table, f"prob_a_{name}"))
    table, _ = score(rows, logits=True, orders="ba")
    assert table["logit_ab"].null_count == 20
    assert table["logit_ba"].null_count == 0


def test_models_are_averaged_each_with_its_temperature(score, classifiers):
    rows = random_rows(25, seed=6)
    alone = [score(rows, models=(model,), logits=True)[0] for model in classifiers]
    together, [report] = score(rows, models=classifiers, logits=True)
    for name in ("prob_a", "prob_a_ab", "prob_a_ba"):
        mean = (column(alone[0], name).astype(float) + column(alone[1], name)) / 2
        np.testing.assert_allclose(column(together, name), mean, rtol=0, atol=2.0**-23)
    cooled = to_probability(column(alone[1], "logit_ab"), 2.5)
    np.testing.assert_allclose(column(alone[1], "prob_a_ab"), cooled, rtol=0, atol=2.0**-24)
    logits = (column(alone[0], "logit_ab") + column(alone[1], "logit_ab")) / 2
    np.testing.assert_allclose(column(together, "logit_ab"), logits, rtol=1e-6)
    assert report.tokens == column(alone[0], "tokens").sum(), "of the first model"


def test_null_texts(score):
    rows = random_rows(6)
    for name, row in (("prompt", 1), ("response_a", 3), ("response_b", 3), ("response_b", 5)):
        values = rows[name].to_pylist()
        values[row] = None
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(values, pa.string()))
    clean, _ = score(random_rows(6))
    table, [report] = score(rows, logits=True)
    assert table["id"].to_pylist() == list(range(6))
    assert table["error"].to_pylist() == [
        None, "prompt is null", None, "response_a is null", None, "response_b is null",
    ]  # fmt: skip
    for name in ("prob_a", "winner", "prob_a_ab", "prob_a_ba", "logit_ab", "logit_ba"):
        assert [value is None for value in table[name].to_pylist()] == [False, True] * 3
    np.testing.assert_allclose(column(table, "prob_a")[::2], column(clean, "prob_a")[::2], rtol=0, atol=1e-5)
    assert report.errors == 3


def test_a_column_of_nulls_alone(score):
    rows = random_rows(3).drop_columns(["prompt"]).append_column("prompt", pa.nulls(3))
    table, [report] = score(rows)
    assert table["error"].to_pylist() == ["prompt is null"] * 3
    assert report.errors == 3


def test_text_that_is_not_utf8(score):
    clean = random_rows(4)
    data = [text.encode() for text in clean["response_a"].to_pylist()]
    data[2] = b"half a character: \xe4\xb8"
    data[3] = b"a surrogate: \xed\xa0\x80"
    raw = pa.array(data, pa.binary())
    wrong = pa.StringArray.from_buffers(len(raw), *raw.buffers()[1:])
    table, [report] = score(clean.set_column(2, "response_a", wrong))
    assert table["error"].to_pylist() == [None, None, *["response_a is not UTF-8"] * 2]
    expected = column(score(clean)[0], "prob_a")[:2]
    np.testing.assert_allclose(column(table, "prob_a")[:2].astype(float), expected, rtol=0, atol=1e-5)
    assert report.errors == 2


def test_blank_and_odd_texts_are_scored(score):
    odd = ["", " \n", "nul \0", "\u200fשלום", "<eos><bos><pad>", "\x1b[31mred"]
    rows = pa.table(
        {"id": [f"row {i}" for i in range(6)], "prompt": odd, "response_a": odd, "response_b": odd[::-1]}
    )
    table, [report] = score(rows)
    assert report.errors == 0
    assert table.schema.field("id").type == pa.string()
    assert np.isfinite(column(table, "prob_a")).all()


def test_what_is_not_finite_is_an_error_of_its_row(score):
    rows = random_rows(8, seed=7)
    table, [report] = score(rows, token_budget=100_000, logits=True, change=spoiling_first)
    errors = table["error"].to_pylist()
    assert sorted(filter(None, errors)) == ["the model's output is not finite"]
    row = next(i for i, error in enumerate(errors) if error)
    assert table.slice(row, 1).to_pylist()[0] | {"tokens": 0, "cut_tokens": 0} == {
        "id": row, "prob_a": None, "winner": None, "prob_a_ab": None, "prob_a_ba": None, "tokens": 0,
        "cut_tokens": 0, "error": "the model's output is not finite", "logit_ab": None, "logit_ba": None,
    }  # fmt: skip
    assert report.errors == 1


def test_a_unit_is_committed_with_its_counts(write, tmp_path, classifiers, replica_of):
    plan = plan_of([write(random_rows(15))], 10)
    replica = replica_of(output=str(tmp_path / "out"))
    for unit in plan.units:
        batch = {
            "unit": np.array([unit.number]),
            "encoded": np.array([table_to_bytes(encode_unit(unit, classifiers[:1]))], object),
            "error": np.array([""]),
        }
        report = replica(batch)
        assert report["unit"].tolist() == [unit.number]
        path = tmp_path / "out" / f"part-00000{unit.number}.parquet"
        first = path.read_bytes()
        with pq.ParquetFile(path) as file:
            counts = json.loads(file.metadata.metadata[COUNTS_KEY])
            start = unit.slices[0].start
            assert file.read()["id"].to_pylist() == list(range(start, start + unit.rows))
        names = ("unit", "rows", "errors", "cut", "tokens", "rerun")
        assert counts == {name: report[name].item() for name in names}
        replica(batch)
        assert path.read_bytes() == first, "doing a unit again writes the same bytes"


def test_models_have_weights(score, classifiers):
    rows = random_rows(25, seed=6)
    alone = [score(rows, models=(model,))[0] for model in classifiers]
    together, _ = score(rows, models=classifiers, model_weights=(1.0, 3.0))
    for name in ("prob_a", "prob_a_ab", "prob_a_ba"):
        mean = (column(alone[0], name).astype(float) + 3 * column(alone[1], name)) / 4
        np.testing.assert_allclose(column(together, name), mean, rtol=0, atol=2.0**-23)


def test_encoders_are_kept(classifiers):
    model = classifiers[0]
    assert encoder_of(model.folder, model.manifest.text) is encoder_of(model.folder, model.manifest.text)
