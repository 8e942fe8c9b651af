"""A judge in this process: the numbers of `score`, for frames, tables, data sets and iterables."""

import dataclasses
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.unit.scoring.conftest import column, random_rows
from wsdm_ray.config import Columns
from wsdm_ray.errors import ConfigError, DataError, ModelError
from wsdm_ray.scoring.judge import Comparison, Judge
from wsdm_ray.scoring.replica import Replica

TEXTS = ["prompt", "response_a", "response_b"]
NUMBERS = ["prob_a", "prob_a_ab", "prob_a_ba", "tokens", "cut_tokens"]


@pytest.fixture(scope="module")
def judge(classifiers) -> Judge:
    return Judge(classifiers[0].folder)


def test_the_numbers_are_those_of_score(score, classifiers):
    rows = random_rows(50)
    for models, orders in ((classifiers[:1], "both"), (classifiers, "both"), (classifiers, "adaptive")):
        weights = (1.0, 3.0)[: len(models)]
        expected, _ = score(
            rows, unit_rows=20, models=models, orders=orders, model_weights=weights, logits=True
        )
        folders = [model.folder for model in models]
        with Judge(
            folders,
            model_weights=weights,
            orders=orders,
            precision="fp32",
            layout="padded",
            token_budget=600,
            unit_rows=20,
            logits=True,
        ) as judge:
            found = judge.score(rows.to_pandas())
        pd.testing.assert_frame_equal(found, expected.to_pandas(), check_exact=True)


def test_by_default_the_options_are_those_of_score(classifiers, score):
    rows = random_rows(30, seed=1)
    expected, _ = score(rows, token_budget=2_048, device="cpu")
    with Judge(classifiers[0].folder, device="cpu") as judge:
        np.testing.assert_array_equal(judge.score(rows)["prob_a"], column(expected, "prob_a"))


def test_one_pair(judge):
    prompt, a, b = "What is the sum?", "42, of course", "sorry " * 40
    said = judge.compare(prompt, a, b)
    (row,) = judge.score([(prompt, a, b)]).to_dict("records")
    assert dataclasses.asdict(said) == {name: row[name] for name in dataclasses.asdict(said)}
    assert float(said) == said.prob_a == pytest.approx((said.prob_a_ab + said.prob_a_ba) / 2, abs=1e-6)
    assert said.winner == ("model_a" if said.prob_a >= 0.5 else "model_b")
    assert said.cut_tokens > 0
    assert said.tokens == 96
    assert float(judge.compare(prompt, b, a)) == np.float32(1) - np.float32(said.prob_a)
    with pytest.raises(dataclasses.FrozenInstanceError):
        said.prob_a = 0.5
    with pytest.raises(DataError, match=r"^response_a is null$"):
        judge.compare(prompt, None, b)


def test_one_ordering_of_a_pair(classifiers):
    said = Judge(classifiers[0].folder, orders="ab").compare("a", "b", "c")
    assert (said.prob_a_ab, said.prob_a_ba) == (said.prob_a, None)


KINDS = (
    "pandas", "pandas, arrow types", "pandas, categories", "polars", "polars, categories", "arrow",
    "record batch", "dataset", "formatted dataset", "selected dataset", "list of dicts", "generator",
)  # fmt: skip


@pytest.fixture(scope="module")
def inputs() -> dict[str, object]:
    """The same 20 rows in every shape."""
    import datasets
    import polars

    table = random_rows(20, seed=2)
    frame = table.to_pandas()
    rows = table.to_pylist()
    return {
        "pandas": frame,
        "pandas, arrow types": table.to_pandas(types_mapper=pd.ArrowDtype),
        "pandas, categories": frame.assign(prompt=frame["prompt"].astype("category")),
        "polars": polars.from_arrow(table),
        "polars, categories": polars.from_arrow(table).cast({"prompt": polars.Categorical}),
        "arrow": table,
        "record batch": table.combine_chunks().to_batches()[0],
        "dataset": datasets.Dataset(table),
        "formatted dataset": datasets.Dataset(table).with_format("torch"),
        "selected dataset": datasets.Dataset(pa.concat_tables([table, table])).select(range(20)),
        "list of dicts": rows,
        "generator": (row for row in rows),
    }


def test_every_kind_is_tried(inputs):
    assert tuple(inputs) == KINDS


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_input_gives_the_same(judge, inputs, name):
    found = judge.score(inputs[name])
    expected = judge.score(random_rows(20, seed=2).to_pandas())
    assert found["id"].tolist() == list(range(20))
    np.testing.assert_array_equal(found[NUMBERS], expected[NUMBERS])
    assert found.index.tolist() == list(range(20))


def test_triples_have_no_ids(judge):
    rows = random_rows(5, seed=2)
    found = judge.score(zip(*(rows[name].to_pylist() for name in TEXTS), strict=True))
    assert found.columns.tolist() == [
        "prob_a",
        "winner",
        "prob_a_ab",
        "prob_a_ba",
        "tokens",
        "cut_tokens",
        "error",
    ]
    np.testing.assert_array_equal(found["prob_a"], judge.score(rows)["prob_a"])


def test_index_ids_and_order_are_kept(judge):
    frame = random_rows(10, seed=3).to_pandas().rename(columns={"prompt": "question", "id": "key"})
    frame.index = pd.Index(list("jihgfedcba"), name="place")
    frame["key"] = [None, 1, "x", 2.5, *range(6)]
    found = Judge(judge.replica.options.models[0].folder, columns={"prompt": "question", "id": "key"}).score(
        frame
    )
    assert found.index.equals(frame.index)
    assert found.index.name == "place"
    assert found["id"].tolist() == frame["key"].tolist()
    plain = judge.score(frame.rename(columns={"question": "prompt"}).drop(columns="key"))
    assert "id" not in plain
    np.testing.assert_array_equal(found["prob_a"], plain["prob_a"])


def test_case_of_names_matters_only_between_columns_alike(judge):
    frame = random_rows(3).to_pandas()
    upper = frame.rename(columns=str.upper)
    for rows in (upper, pa.Table.from_pandas(upper)):
        pd.testing.assert_frame_equal(judge.score(rows).rename(columns={"ID": "id"}), judge.score(frame))


def test_every_row_has_one_row_and_says_why_it_has_no_probability(judge):
    rows = [
        ("a", "b", "c"), (None, "b", "c"), ("a", float("nan"), "c"), ("a", "b", b"caf\xc3\xa9"),
        ("a", "b", b"\xff"), ("a", ["b"], "c"), ("half \ud83d", "b", "c"), {"prompt": "a", "response_a": "b"},
        {"prompt": "a", "response_a": "b", "response_b": "c", "id": 7},
    ]  # fmt: skip
    found = judge.score(rows)
    assert [None if pd.isna(error) else error for error in found["error"]] == [
        None, "prompt is null", "response_a is null", None, "response_b is not UTF-8",
        "response_a is of type list, not text", None, "response_b is null", None,
    ]  # fmt: skip
    assert found["prob_a"].isna().tolist() == found["error"].notna().tolist()
    assert found["winner"].isna().tolist() == found["error"].notna().tolist()
    assert found["id"].tolist() == [None] * 8 + [7]


def test_no_rows(judge):
    for rows in ([], random_rows(0), random_rows(0).to_pandas()):
        found = judge.score(rows)
        assert len(found) == 0
        assert [name for name in found.columns if name != "id"] == [
            "prob_a", "winner", "prob_a_ab", "prob_a_ba", "tokens", "cut_tokens", "error",
        ]  # fmt: skip
        assert found["prob_a"].dtype == np.float32


FRAME = pd.DataFrame({"prompt": [1], "response_a": ["b"], "response_b": ["c"]})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("text", r"^a str: give a DataFrame .*, a table, a data set, or a list of dicts"),
        (3, "^a int: give a DataFrame"),
        ({"train": [], "test": []}, r"^a dict of train, test: give one .* \(such as rows\['train'\]\)"),
        ([("a", "b")], r"^row 0 \(counted from 0\) is a tuple of 2; give a dict or \(prompt"),
        (["abc"], r"^row 0 \(counted from 0\) is a str; give a dict or"),
        ([{"promt": "a", "response_a": "b"}], "^no column 'prompt'; did you mean 'promt'? give columns="),
        (FRAME, "^column 'prompt' holds .* int, not"),
        (FRAME.assign(prompt=[["a"]]), "^column 'prompt' holds .* list, not"),
        (FRAME.iloc[:, [0, 0, 1, 2]], "^has the column 'prompt' 2 times"),
    ],
)  # fmt: skip
def test_what_holds_no_pairs_takes_one_line(judge, rows, message):
    with pytest.raises(DataError, match=message.replace("?", r"\?")) as caught:
        judge.score(rows)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"orders": "bth"}, "orders='bth': must be one of both, ab, ba, adaptive"),
        ({"precision": "fp16"}, "precision='fp16': must be one of auto, fp32, "),
        ({"layout": "paded"}, "layout='paded': must be one of padded, packed, shared, auto"),
        ({"device": "tpu"}, "device='tpu': must be one of auto, cuda, cpu"),
        ({"device": "cuda"}, "device='cuda': no GPU is visible to this process"),
        ({"columns": {"promt": "x"}}, "columns='promt': must be one of id, prompt"),
        ({"token_budget": 100}, "--token-budget 100: must be at least twice the 96 tokens"),
        ({"model_weights": (1, 2)}, "--model-weights (1, 2): must be one for each of the 1 models"),
    ],
)
def test_wrong_options(classifiers, monkeypatch, options, message):
    monkeypatch.setattr("wsdm_ray.scoring.judge.default_device", lambda: "cpu")
    with pytest.raises(ConfigError) as caught:
        Judge(classifiers[0].folder, **options)
    assert str(caught.value).startswith(message)


def test_a_model_that_cannot_be_loaded_is_an_error_of_its_kind(classifiers, monkeypatch):
    def fail(*_, **__):
        raise ModelError("x: a tensor is missing")

    monkeypatch.setattr("wsdm_ray.scoring.replica.Models", fail)
    with pytest.raises(ModelError, match=r"^x: a tensor is missing$"):
        Judge(classifiers[0].folder)


def test_closing_frees_the_models(classifiers):
    with Judge(Path(classifiers[0].folder), columns=Columns()) as judge:
        assert judge.replica is not None
        scorer = weakref.ref(judge.replica.models.scorers[0])
        assert isinstance(judge.compare("a", "b", "c"), Comparison)
    gc.collect()
    assert scorer() is None
    with pytest.raises(ConfigError, match=r"^this Judge is closed"):
        judge.compare("a", "b", "c")
    judge.close()


def test_calls_of_several_threads_run_one_after_the_other(judge, monkeypatch):
    running, most = [], []
    real = Replica.score

    def score(self, *arguments):
        running.append(threading.get_ident())
        most.append(len(running))
        found = real(self, *arguments)
        running.pop()
        return found

    monkeypatch.setattr(Replica, "score", score)
    pairs = [("a", "b " * n, "c") for n in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pair: float(judge.compare(*pair)), pairs))
    assert max(most) == 1
    monkeypatch.undo()
    assert found == [float(judge.compare(*pair)) for pair in pairs]


def test_a_bar_where_it_is_asked_for(judge, capsys):
    judge.score(random_rows(4))
    assert capsys.readouterr().err == ""
    judge.score(random_rows(4), progress=True)
    assert "4/4" in capsys.readouterr().err
