"""A replica without Ray: rows keep their ids or say why they cannot be scored, models are averaged."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.unit.scoring.conftest import random_rows, swapped
from wsdm_ray.config import Columns
from wsdm_ray.schema import Ordering, first_ordering, predictions_schema
from wsdm_ray.scoring import engine, replica
from wsdm_ray.scoring.engine import NOT_FINITE, combine, to_probability
from wsdm_ray.scoring.plan import make_plan
from wsdm_ray.scoring.replica import COUNTS, crash_record_name, encode_unit, from_bytes, to_bytes

COLUMNS = Columns()


@pytest.fixture
def score(write, classifiers, replica_of):
    """Score a table as one unit, or as units of `unit_rows`: predictions and the counts of each unit."""

    def run(table: pa.Table, unit_rows: int = 1_000, **options) -> tuple[pa.Table, list[dict]]:
        plan = make_plan([write(table)], unit_rows, COLUMNS)
        models = options.pop("models", classifiers[:1])
        scorer = replica_of(models, id_type=plan.id_type, **options)
        # Through the bytes that travel between the two halves.
        done = [scorer.score(from_bytes(to_bytes(encode_unit(unit, models, COLUMNS)))) for unit in plan.units]
        return pa.concat_tables([table.replace_schema_metadata(None) for table, _ in done]), [
            c for _, c in done
        ]

    return run


def column(table: pa.Table, name: str) -> np.ndarray:
    return table.column(name).to_numpy()


def test_predictions(score):
    rows = random_rows(50)
    table, [counts] = score(rows)
    assert table.schema == predictions_schema(pa.int64())
    assert table["id"].to_pylist() == rows["id"].to_pylist()
    p, ab, ba = (column(table, name) for name in ("prob_a", "prob_a_ab", "prob_a_ba"))
    np.testing.assert_allclose(p, (ab.astype(float) + ba) / 2, rtol=0, atol=2.0**-24)
    assert table["winner"].to_pylist() == ["model_a" if value >= 0.5 else "model_b" for value in p]
    assert 5 < sum(value >= 0.5 for value in p) < 45
    assert table["error"].null_count == 50
    assert counts["rows"] == 50
    assert counts["errors"] == 0
    assert counts["cut"] == np.count_nonzero(column(table, "cut_tokens")) > 0
    assert counts["tokens"] == column(table, "tokens").sum() <= counts["forward_tokens"] / 2
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
    together, [counts] = score(rows, models=classifiers, logits=True)
    for name in ("prob_a", "prob_a_ab", "prob_a_ba"):
        mean = (column(alone[0], name).astype(float) + column(alone[1], name)) / 2
        np.testing.assert_allclose(column(together, name), mean, rtol=0, atol=2.0**-23)
    cooled = to_probability(column(alone[1], "logit_ab"), 2.5)
    np.testing.assert_allclose(column(alone[1], "prob_a_ab"), cooled, rtol=0, atol=2.0**-24)
    logits = (column(alone[0], "logit_ab") + column(alone[1], "logit_ab")) / 2
    np.testing.assert_allclose(column(together, "logit_ab"), logits, rtol=1e-6)
    assert counts["tokens"] == column(alone[0], "tokens").sum(), "of the first model"


def test_null_texts(score):
    rows = random_rows(6)
    for name, row in (("prompt", 1), ("response_a", 3), ("response_b", 3), ("response_b", 5)):
        values = rows[name].to_pylist()
        values[row] = None
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(values, pa.string()))
    clean, _ = score(random_rows(6))
    table, [counts] = score(rows, logits=True)
    assert table["id"].to_pylist() == list(range(6))
    assert table["error"].to_pylist() == [
        None, "prompt is null", None, "response_a is null", None, "response_b is null",
    ]  # fmt: skip
    for name in ("prob_a", "winner", "prob_a_ab", "prob_a_ba", "logit_ab", "logit_ba"):
        assert [value is None for value in table[name].to_pylist()] == [False, True] * 3
    np.testing.assert_allclose(column(table, "prob_a")[::2], column(clean, "prob_a")[::2], rtol=0, atol=1e-5)
    assert counts["errors"] == 3


def test_a_column_of_nulls_alone(score):
    rows = random_rows(3).drop_columns(["prompt"]).append_column("prompt", pa.nulls(3))
    table, [counts] = score(rows)
    assert table["error"].to_pylist() == ["prompt is null"] * 3
    assert counts["errors"] == 3


def test_text_that_is_not_utf8(score):
    clean = random_rows(4)
    data = [text.encode() for text in clean["response_a"].to_pylist()]
    data[2] = b"half a character: \xe4\xb8"
    data[3] = b"a surrogate: \xed\xa0\x80"
    raw = pa.array(data, pa.binary())
    wrong = pa.StringArray.from_buffers(len(raw), *raw.buffers()[1:])
    table, [counts] = score(clean.set_column(2, "response_a", wrong))
    assert table["error"].to_pylist() == [None, None, *["response_a is not UTF-8"] * 2]
    expected = column(score(clean)[0], "prob_a")[:2]
    np.testing.assert_allclose(column(table, "prob_a")[:2].astype(float), expected, rtol=0, atol=1e-5)
    assert counts["errors"] == 2


def test_blank_and_odd_texts_are_scored(score):
    odd = ["", " \n", "nul \0", "\u200fשלום", "<eos><bos><pad>", "\x1b[31mred"]
    rows = pa.table(
        {"id": [f"row {i}" for i in range(6)], "prompt": odd, "response_a": odd, "response_b": odd[::-1]}
    )
    table, [counts] = score(rows)
    assert counts["errors"] == 0
    assert table.schema.field("id").type == pa.string()
    assert np.isfinite(column(table, "prob_a")).all()


def test_what_is_not_finite_is_an_error_of_its_row(monkeypatch, score):
    rows = random_rows(8, seed=7)
    real = engine.ordering_logits

    def spoiled(network, layout):
        logits = real(network, layout)
        logits[0] = float("nan")  # the first ordering of the pass's first pair
        return logits

    monkeypatch.setattr(engine, "ordering_logits", spoiled)
    table, [counts] = score(rows, token_budget=100_000, logits=True)
    errors = table["error"].to_pylist()
    assert sorted(filter(None, errors)) == ["the model's output is not finite"]
    row = next(i for i, error in enumerate(errors) if error)
    assert table.slice(row, 1).to_pylist()[0] | {"tokens": 0, "cut_tokens": 0} == {
        "id": row, "prob_a": None, "winner": None, "prob_a_ab": None, "prob_a_ba": None, "tokens": 0,
        "cut_tokens": 0, "error": "the model's output is not finite", "logit_ab": None, "logit_ba": None,
    }  # fmt: skip
    assert counts["errors"] == 1


def test_a_unit_is_committed_with_its_counts(write, tmp_path, classifiers, replica_of):
    plan = make_plan([write(random_rows(15))], 10, COLUMNS)
    scorer = replica_of(output=str(tmp_path / "out"))
    for unit in plan.units:
        batch = {
            "unit": np.array([unit.number]),
            "encoded": np.array([to_bytes(encode_unit(unit, classifiers[:1], COLUMNS))], object),
            "error": np.array([""]),
        }
        report = scorer(batch)
        assert report["unit"].tolist() == [unit.number]
        path = tmp_path / "out" / f"part-00000{unit.number}.parquet"
        first = path.read_bytes()
        with pq.ParquetFile(path) as file:
            counts = json.loads(file.metadata.metadata[COUNTS])
            assert file.read()["id"].to_pylist() == list(range(unit.start, unit.start + unit.rows))
        names = ("unit", "rows", "errors", "cut", "tokens", "rerun")
        assert counts == {name: report[name].item() for name in names}
        scorer(batch)
        assert path.read_bytes() == first, "doing a unit again writes the same bytes"


# Adaptive orders


def once_and_again(table: pa.Table) -> np.ndarray:
    """Which rows were run in both orderings: bool [N]."""
    return np.array([value is not None for value in table["prob_a_ab"].to_pylist()]) & np.array(
        [value is not None for value in table["prob_a_ba"].to_pylist()]
    )


@pytest.mark.parametrize("threshold", [0.05, 0.1, 0.5])
def test_adaptive_runs_again_what_the_first_ordering_leaves_in_doubt(score, threshold):
    rows = random_rows(50, seed=8)
    same = [*rows["response_a"].to_pylist()[:3], *rows["response_b"].to_pylist()[3:]]
    rows = rows.set_column(3, "response_b", pa.array(same))
    both, _ = score(rows)
    table, [counts] = score(rows, orders="adaptive", adaptive_threshold=threshold)
    ab, ba = (column(both, name).astype(float) for name in ("prob_a_ab", "prob_a_ba"))
    ba_first = [
        first_ordering(*pair) is Ordering.BA
        for pair in zip(rows["response_a"].to_pylist(), rows["response_b"].to_pylist(), strict=True)
    ]
    first = np.where(ba_first, ba, ab)
    equal = ab + ba == 1  # the same tokens in both orderings
    assert 3 <= equal.sum() < 6
    assert equal[:3].all()
    doubt = np.abs(first - 0.5) < threshold
    assert (np.abs(np.abs(first - 0.5) - threshold) > 1e-5).all(), "no row's rounding decides"
    np.testing.assert_array_equal(once_and_again(table), doubt | equal)
    expected = np.where(equal, 0.5, np.where(doubt, column(both, "prob_a"), first))
    np.testing.assert_allclose(column(table, "prob_a"), expected, rtol=0, atol=1e-5)
    assert (column(table, "prob_a")[equal] == 0.5).all()
    for i in np.flatnonzero(~doubt & ~equal):
        row = table.slice(int(i), 1).to_pylist()[0]
        assert row["prob_a"] == row["prob_a_ba" if ba_first[i] else "prob_a_ab"]
        assert row["prob_a_ab" if ba_first[i] else "prob_a_ba"] is None
    assert counts["rerun"] == (doubt & ~equal).sum() > 0
    assert threshold == 0.5 or counts["rerun"] < 40
    assert counts["errors"] == 0


@pytest.mark.parametrize("layout", ["padded", "packed", "shared"])
def test_adaptive_swapped_rows_give_exactly_the_rest(score, classifiers, layout):
    rows = random_rows(40, seed=1)
    options = {"layout": layout, "orders": "adaptive", "adaptive_threshold": 0.1, "logits": True}
    for models, weights in ((classifiers[:1], ()), (classifiers, (1.0, 0.3))):
        table, [counts] = score(rows, models=models, model_weights=weights, **options)
        turned, [other] = score(swapped(rows), models=models, model_weights=weights, **options)
        assert 0 < counts["rerun"] == other["rerun"] < 40
        for name, twin in (("prob_a", "prob_a"), ("prob_a_ab", "prob_a_ba"), ("prob_a_ba", "prob_a_ab")):
            np.testing.assert_array_equal(column(turned, name), np.float32(1) - column(table, twin))
        np.testing.assert_array_equal(column(turned, "logit_ab"), -column(table, "logit_ba"))


def test_adaptive_a_rows_company_does_not_decide(score):
    rows = random_rows(30, seed=3)
    options = {"orders": "adaptive", "adaptive_threshold": 0.1}
    expected, _ = score(rows, **options)
    order = np.random.default_rng(0).permutation(30)
    for taken, more in (
        (np.arange(30), {"unit_rows": 7, "layout": "shared"}),
        (order, {"token_budget": 250}),
    ):
        table, _ = score(rows.take(pa.array(taken)), **options, **more)
        np.testing.assert_array_equal(once_and_again(table), once_and_again(expected)[taken])
        np.testing.assert_allclose(
            column(table, "prob_a"), column(expected, "prob_a")[taken], rtol=0, atol=1e-5
        )


def test_adaptive_later_models_see_only_the_doubtful_rows(score, classifiers):
    rows = random_rows(40, seed=9)
    options = {"orders": "adaptive", "adaptive_threshold": 0.1}
    alone, _ = score(rows, **options)
    all_of_it, _ = score(rows, models=classifiers, model_weights=(3.0, 1.0))
    table, [counts] = score(rows, models=classifiers, model_weights=(3.0, 1.0), **options)
    doubt = once_and_again(alone)
    assert 0 < doubt.sum() == counts["rerun"] < 40
    np.testing.assert_array_equal(once_and_again(table), doubt)
    expected = np.where(doubt, column(all_of_it, "prob_a"), column(alone, "prob_a"))
    np.testing.assert_allclose(column(table, "prob_a"), expected, rtol=0, atol=1e-5)


def test_adaptive_rows_with_errors(monkeypatch, score):
    rows = random_rows(8, seed=7).set_column(1, "prompt", pa.array([None, *["what?"] * 7]))
    real = engine.ordering_logits

    def spoiled(network, layout):
        logits = real(network, layout)
        logits[0] = float("nan")  # of the longest row of each of the two passes
        return logits

    monkeypatch.setattr(engine, "ordering_logits", spoiled)
    table, [counts] = score(rows, orders="adaptive", adaptive_threshold=0.5, token_budget=100_000)
    errors = table["error"].to_pylist()
    assert errors[0] == "prompt is null"
    assert sorted(error for error in errors if error) == ["prompt is null", *[NOT_FINITE] * 2]
    assert [value is None for value in table["prob_a"].to_pylist()] == [bool(error) for error in errors]
    assert counts["errors"] == 3
    assert counts["rerun"] == 6, "a row that failed in the first ordering is not run again"


def test_models_have_weights(score, classifiers):
    rows = random_rows(25, seed=6)
    alone = [score(rows, models=(model,))[0] for model in classifiers]
    together, _ = score(rows, models=classifiers, model_weights=(1.0, 3.0))
    for name in ("prob_a", "prob_a_ab", "prob_a_ba"):
        mean = (column(alone[0], name).astype(float) + 3 * column(alone[1], name)) / 4
        np.testing.assert_allclose(column(together, name), mean, rtol=0, atol=2.0**-23)


# What fails


def batch_of(number: int, encoded: pa.Table) -> dict[str, np.ndarray]:
    return {
        "unit": np.array([number]),
        "encoded": np.array([to_bytes(encoded)], object),
        "error": np.array([""]),
    }


def test_a_lowered_budget_stays_so_and_is_told(monkeypatch, write, tmp_path, classifiers, replica_of):
    plan = make_plan([write(random_rows(40, seed=2))], 20, COLUMNS)
    encoded = [encode_unit(unit, classifiers[:1], COLUMNS) for unit in plan.units]
    expected = [replica_of().score(table)[0] for table in encoded]
    real, sizes = engine.ordering_logits, []

    def short_of_memory(network, layout):
        sizes.append(layout.tokens_BT.size)
        if layout.tokens_BT.size > 700:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return real(network, layout)

    monkeypatch.setattr(engine, "ordering_logits", short_of_memory)
    scorer = replica_of(output=str(tmp_path / "out"), token_budget=2_048)
    reports = []
    for number, table in enumerate(encoded):
        sizes.clear()
        reports.append({name: value[0] for name, value in scorer(batch_of(number, table)).items()})
        assert (max(sizes) > 700) == (number == 0), "the next unit begins with what the first one found"
        with pq.ParquetFile(tmp_path / "out" / f"part-00000{number}.parquet") as file:
            kept = json.loads(file.metadata.metadata[COUNTS])
            found = file.read()
        assert kept.get("halved") == (2 if number == 0 else None)
        assert kept.get("token_budget") == (512 if number == 0 else None)
        np.testing.assert_allclose(
            column(found, "prob_a"), column(expected[number], "prob_a"), rtol=0, atol=1e-5
        )
    assert [(report["halved"], report["token_budget"], report["error"]) for report in reports] == [
        (2, 512, ""),
        (0, 512, ""),
    ]


def test_a_budget_of_the_replicas_own(replica_of):
    assert replica_of(token_budget=None).token_budget == 2_048


def test_a_model_that_fails_on_every_row_fails_the_run(monkeypatch, write, classifiers, replica_of):
    def fail(network, layout):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(engine, "ordering_logits", fail)
    [unit] = make_plan([write(random_rows(5))], 10, COLUMNS).units
    report = replica_of()(batch_of(0, encode_unit(unit, classifiers[:1], COLUMNS)))
    kind, text = json.loads(report["error"][0])
    assert kind == "ModelError"
    assert text.startswith(
        f"{classifiers[0].folder}: all 5 pairs of a unit fail, each alone: the model fails"
    )


class Died(BaseException):
    """In place of the end of the process."""


def test_a_row_that_kills_its_process_is_found_and_left_out(
    monkeypatch, write, tmp_path, classifiers, replica_of, capsys
):
    """Each process is a new replica; the row that the GPU does not survive is known by its text."""
    rows = random_rows(12, seed=4)
    texts = rows["prompt"].to_pylist()
    texts[5] = "help"
    rows = rows.set_column(1, "prompt", pa.array(texts))
    [unit] = make_plan([write(rows)], 20, COLUMNS).units
    encoded = encode_unit(unit, classifiers[:1], COLUMNS)
    expected, _ = replica_of().score(encoded)
    row = replica.pairs_of(encoded, 0).prefix[5]
    real, hits = engine.ordering_logits, []

    def assertion(network, layout):
        if any(np.array_equal(ids[: len(row)], row) for ids in layout.tokens_BT):
            hits.append(layout.tokens_BT.shape[0] // 2)
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        return real(network, layout)

    def die(status):
        raise Died(status)

    monkeypatch.setattr(engine, "ordering_logits", assertion)
    monkeypatch.setattr(os, "_exit", die)
    deaths = 0
    while True:
        try:
            report = replica_of(output=str(tmp_path / "out"))(batch_of(0, encoded))
            break
        except Died:
            deaths += 1
            assert deaths < 4
    assert deaths == 2
    assert hits[0] > hits[1] == 1, "first among others, then alone"
    assert report["error"].tolist() == [""]
    assert report["errors"].tolist() == [1]
    found = pq.read_table(tmp_path / "out" / "part-000000.parquet")
    assert found["error"].to_pylist()[5] == (
        "the GPU is lost on this row (CUDA error: device-side assert triggered)"
    )
    good = np.arange(12) != 5
    np.testing.assert_allclose(
        column(found, "prob_a")[good], column(expected, "prob_a")[good], rtol=0, atol=1e-5
    )
    assert capsys.readouterr().err.count("lost its GPU (CUDA error: device-side assert triggered)") == 2
    losses = json.loads((tmp_path / "out" / crash_record_name(0)).read_text())
    assert losses[1] == {"rows": [5], "reason": "CUDA error: device-side assert triggered"}
    assert len(losses) == 2


def test_a_unit_may_not_cost_processes_without_end(write, tmp_path, classifiers, replica_of):
    [unit] = make_plan([write(random_rows(3))], 10, COLUMNS).units
    path = tmp_path / "out" / crash_record_name(0)
    path.parent.mkdir()
    path.write_text(json.dumps([{"rows": [i % 3, 7], "reason": "illegal memory access"} for i in range(8)]))
    report = replica_of(output=str(tmp_path / "out"))(
        batch_of(0, encode_unit(unit, classifiers[:1], COLUMNS))
    )
    kind, text = json.loads(report["error"][0])
    assert kind == "ClusterError"
    assert text == (
        f"{path}: 8 processes lost their GPU over this unit, the last by 'illegal memory access'; check the "
        "GPU and the model, then delete this file"
    )


def test_encoders_are_kept(classifiers):
    model = classifiers[0]
    assert replica.encoder(model.folder, model.manifest.text) is replica.encoder(
        model.folder, model.manifest.text
    )
