"""Pseudolabels: each label on its own row, every row kept or counted, whatever the probabilities are."""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.scoring.fakes import plan_of
from wsdm_ray.config import Columns, PrepareConfig, PseudolabelConfig, ScoreConfig
from wsdm_ray.data.prepare import prepare
from wsdm_ray.data.splitting import digests
from wsdm_ray.data.votes import read_votes
from wsdm_ray.errors import ConfigError, DataError, RunMismatchError, StorageError
from wsdm_ray.runs import file_versions
from wsdm_ray.schema import predictions_schema
from wsdm_ray.scoring.check import Cluster, ScoreRun
from wsdm_ray.scoring.kept_columns import NO_COLUMNS
from wsdm_ray.scoring.label_counts import REASONS, Distribution
from wsdm_ray.scoring.model_spec import ModelSpec
from wsdm_ray.scoring.plan import part_name
from wsdm_ray.scoring.pseudolabels import drop_codes, pseudolabel
from wsdm_ray.scoring.replica import ReplicaOptions
from wsdm_ray.scoring.unit_rows import read_unit
from wsdm_ray.storage import list_files

NONE = np.empty(0, "S16")


def pair(number: int, **values: Any) -> dict[str, Any]:
    return {
        "id": f"p{number}", "prompt": f"prompt {number}", "response_a": f"first {number}",
        "response_b": f"second {number}", **values,
    }  # fmt: skip


def codes(rows: list[dict[str, Any]], prob: list[float], excluded=NONE, threshold=None) -> list[str | None]:
    found = drop_codes(pa.Table.from_pylist(rows), np.array(prob), excluded, threshold)
    return [REASONS[code] if code >= 0 else None for code in found]


def test_each_reason():
    rows = [
        pair(0),
        pair(1, prompt=None),
        pair(2),
        pair(3, prompt=" \n"),
        pair(4, response_a=" "),
        pair(5, response_b="\n"),
        pair(6, response_a="same", response_b="same"),
        pair(7, prompt="Ｓeen\n “before”"),
        pair(8, response_a=""),
    ]
    prob = [0.2, np.nan, np.nan, 0.9, 0.9, 0.9, 0.5, 0.9, np.nan]
    assert codes(rows, prob, digests(['seen "before"'])) == [
        None, "null_text", "not_scored", "empty_prompt", "empty_response", "empty_response",
        "identical_responses", "excluded_prompt", "not_scored",
    ]  # fmt: skip


def test_the_threshold_is_of_either_winner_and_reached_by_equality():
    rows = [pair(number) for number in range(6)]
    prob = [0.75, 0.25, 0.74, 0.26, 1.0, 0.5]
    assert codes(rows, prob, threshold=0.75) == [None, None, "below_threshold", "below_threshold", None,
                                                 "below_threshold"]  # fmt: skip
    assert codes(rows, prob, threshold=0.5)[5] == "below_threshold"  # a tie has no winner
    assert codes(rows, prob) == [None] * 6


def test_bytes_that_are_no_text_are_dropped_unread():
    # What a file can hold though Arrow's strings are UTF-8: its row was not scored.
    bad = pa.array([b"\xff\xfe"]).view(pa.string())
    rows = pa.table({"id": ["x"], "prompt": bad, "response_a": ["1"], "response_b": ["2"]})
    assert drop_codes(rows, np.array([np.nan]), NONE, None).tolist() == [REASONS.index("not_scored")]


def test_distribution():
    whole = Distribution()
    for prob in ([0.0, 0.05, 0.5], [], [0.95, 1.0]):
        whole.add(np.array(prob))
    assert whole.summary() == {
        "rows": 5,
        "share_over_half": 0.4,
        "mean_confidence": pytest.approx((1 + 0.95 + 0.5 + 0.95 + 1) / 5),
        "histogram": [2, 0, 0, 0, 0, 1, 0, 0, 0, 2],
    }
    assert Distribution().summary()["mean_confidence"] is None


class FakeScoring:
    """Scoring without a cluster or a model: response_a of `p7` wins with probability 0.07, and so on."""

    def __init__(self, models: tuple[ModelSpec, ...] = ()) -> None:
        self.models = models
        self.checked: list[ScoreConfig] = []
        self.executed: list[str] = []
        self.stop = False

    def check(self, config: ScoreConfig) -> ScoreRun:
        self.checked.append(config)
        files = list_files(config.input)
        plan = plan_of(files, config.unit_rows, config.columns)
        replica = ReplicaOptions(
            self.models, config.output, plan.id_type, config.orders, "padded", None, False, None
        )
        return ScoreRun(
            output=config.output, restart=config.restart, files=tuple(files), plan=plan,
            keep=NO_COLUMNS, replica=replica, cluster=Cluster(replicas=1, on_gpu=False, threads=1),
            fingerprint={"models": [{"digest": "d"}], "inputs": file_versions(files)}, config={}, started=0.0,
        )  # fmt: skip

    def execute(self, run: ScoreRun) -> dict[str, Any]:
        if self.stop:
            raise KeyboardInterrupt
        self.executed.append(run.output)
        for unit in run.plan.units:
            rows = read_unit(unit).table.to_pylist()
            table = pa.Table.from_pylist(
                [self.prediction(row) for row in rows], schema=predictions_schema(run.plan.id_type)
            )
            Path(run.output).mkdir(parents=True, exist_ok=True)
            pq.write_table(table, Path(run.output) / part_name(unit.number))
        return {}

    def prediction(self, row: dict[str, Any]) -> dict[str, Any]:
        failed = None in row.values()
        prob = None if failed else int(str(row["id"]).lstrip("p")) / 100
        return {"id": row["id"], "prob_a": prob, "error": "a text is null" if failed else None}


@pytest.fixture
def scoring() -> FakeScoring:
    return FakeScoring()


@pytest.fixture
def label(scoring: FakeScoring) -> Callable[[PseudolabelConfig], dict[str, Any]]:
    """`pseudolabel` with the fake scoring."""
    return lambda config: pseudolabel(config, scoring)


def config(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> PseudolabelConfig:
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet", row_group_size=7)
    given = {
        "model": (str(tmp_path / "model"),), "input": (str(tmp_path / "pairs.parquet"),),
        "output": str(tmp_path / "out"), "unit_rows": 10,
    }  # fmt: skip
    return PseudolabelConfig(**given | options)


def read(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_soft_labels_are_on_their_own_rows_and_train_and_prepare_read_them(tmp_path, label):
    rows = [pair(number, language="Hindi", winner="model_a", note="x") for number in range(1, 36)]
    np.random.default_rng(0).shuffle(rows)
    rows[3]["response_b"] = None
    rows[5]["prompt"] = "  "
    run = label(config(tmp_path, rows))
    found = read(tmp_path / "out/train")
    kept = [row for number, row in enumerate(rows) if number not in (3, 5)]
    assert [list(row) for row in found] == [
        ["id", "prompt", "response_a", "response_b", "prob_a", "language", "source"]
    ] * 33
    for row, own in zip(found, kept, strict=True):
        assert row["prob_a"] == np.float32(int(own["id"][1:]) / 100)
        assert {name: row[name] for name in ("id", "prompt", "response_a", "response_b", "language")} == {
            name: own[name] for name in ("id", "prompt", "response_a", "response_b", "language")
        }
        assert row["source"] == "pseudolabels"
    assert run["counts"] == {
        "input_rows": 35,
        "kept": 33,
        "dropped": dict.fromkeys(REASONS, 0) | {"null_text": 1, "empty_prompt": 1},
    }
    assert run["labels"]["kept"]["rows"] == 33
    assert run["labels"]["scored"]["rows"] == 34
    assert json.loads((tmp_path / "out/run.json").read_text()) == run
    votes = read_votes([str(tmp_path / "out/train")])
    assert votes.prob_a_N.tolist() == [row["prob_a"] for row in found]
    prepared = prepare(PrepareConfig(input=(str(tmp_path / "out/train"),), output=str(tmp_path / "prepared")))
    assert sum(prepared["counts"]["kept"].values()) == 33


def test_hard_labels(tmp_path, label):
    rows = [pair(number) for number in (3, 5, 6, 50, 94, 95, 97)]
    run = label(config(tmp_path, rows, hard_threshold=0.945, source="teacher"))
    assert [(row["id"], row["winner"], row["source"]) for row in read(tmp_path / "out/train")] == [
        ("p3", "model_b", "teacher"), ("p5", "model_b", "teacher"), ("p95", "model_a", "teacher"),
        ("p97", "model_a", "teacher"),
    ]  # fmt: skip
    assert "prob_a" not in pq.read_schema(tmp_path / "out/train/part-000000.parquet").names
    assert run["counts"]["dropped"]["below_threshold"] == 3


def test_names_types_and_files_that_differ(tmp_path, label):
    first = [{"key": number, "q": "x", "response_a": "1", "response_b": "2"} for number in (1, 2)]
    second = [{**row, "key": row["key"] + 10, "lang": "Thai"} for row in first]
    for name, rows in (("a", first), ("b", second)):
        table = pa.Table.from_pylist(rows)
        pq.write_table(
            table.set_column(0, "key", table["key"].cast(pa.int32())), tmp_path / f"{name}.parquet"
        )
    given = config(
        tmp_path,
        [pair(1)],
        input=(str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")),
        columns=Columns(id="key", prompt="q", language="lang"),
    )
    label(given)
    assert [(row["id"], row["language"]) for row in read(tmp_path / "out/train")] == [
        (1, None), (2, None), (11, "Thai"), (12, "Thai")
    ]  # fmt: skip
    assert pq.read_schema(tmp_path / "out/train/part-000000.parquet").field("id").type == pa.int64()
    with pytest.raises(DataError, match=r"no column 'tongue' in any .*--columns.language"):
        label(dataclasses.replace(given, columns=Columns(id="key", prompt="q", language="tongue")))


def test_excluded_prompts(tmp_path, caplog, label):
    pq.write_table(pa.table({"prompt": ["PROMPT  4", "other"]}), tmp_path / "seen.parquet")
    rows = [pair(number) for number in range(3, 6)]
    with caplog.at_level(logging.INFO, logger="wsdm_ray"):
        run = label(config(tmp_path, rows, exclude=(str(tmp_path / "seen.parquet"),)))
    assert [row["id"] for row in read(tmp_path / "out/train")] == ["p3", "p5"]
    assert run["counts"]["dropped"]["excluded_prompt"] == 1
    lines = [" ".join(record.getMessage().split()) for record in caplog.records]
    assert lines[0] == "3 input rows"
    assert "1 dropped: excluded_prompt" in lines
    assert "2 kept in train/" in lines
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "seen.parquet")
    with pytest.raises(DataError, match=r"seen.parquet: no column 'prompt'"):
        label(config(tmp_path, rows, exclude=(str(tmp_path / "seen.parquet"),)))


@pytest.mark.parametrize(("taken", "row"), [([0, 1, 2, 4, 3, *range(5, 10)], 3), (list(range(9)), 9)])
def test_predictions_of_other_rows_are_refused(tmp_path, scoring, taken, row):
    class Spoiling(FakeScoring):
        def execute(self, run: ScoreRun) -> dict[str, Any]:
            super().execute(run)
            part = Path(run.output) / part_name(1)
            pq.write_table(pq.read_table(part).take(taken), part)
            return {}

    with pytest.raises(DataError, match=rf"part-000001.*from row 10, first in row {row}; delete"):
        pseudolabel(config(tmp_path, [pair(number) for number in range(20)]), Spoiling())
    assert not (tmp_path / "out/run.json").exists()


def test_the_same_command_again_finishes_the_work(tmp_path, scoring, label):
    given = config(tmp_path, [pair(number) for number in range(25)])
    scoring.stop = True
    with pytest.raises(KeyboardInterrupt):
        label(given)
    assert not (tmp_path / "out/run.json").exists()
    scoring.stop = False
    run = label(dataclasses.replace(given, token_budget=1_024, replicas=2))  # they decide nothing
    assert run["counts"]["kept"] == 25
    scoring.stop = True
    assert label(given) == run
    with pytest.raises(RunMismatchError, match=r"hard_threshold: null -> 0.9"):
        label(dataclasses.replace(given, hard_threshold=0.9))


def test_other_models_or_inputs_are_refused_by_name(tmp_path, scoring, label):
    given = config(tmp_path, [pair(number) for number in range(5)])
    label(given)

    class Retrained(FakeScoring):
        def check(self, config: ScoreConfig) -> ScoreRun:
            run = super().check(config)
            return dataclasses.replace(run, fingerprint={**run.fingerprint, "models": [{"digest": "e"}]})

    with pytest.raises(RunMismatchError, match=r'models\[0\].digest: "d" -> "e"'):
        pseudolabel(given, Retrained())
    pq.write_table(pa.Table.from_pylist([pair(1)]), tmp_path / "pairs.parquet")
    with pytest.raises(RunMismatchError, match=r"inputs.*pairs.parquet.*bytes"):
        label(given)


def test_the_run_is_checked_once_and_scored_once(tmp_path, scoring, label):
    given = config(tmp_path, [pair(number) for number in range(5)])
    label(given)
    assert [config.output for config in scoring.checked] == [f"{given.output}/predictions"]
    assert scoring.executed == [f"{given.output}/predictions"]
    label(
        dataclasses.replace(given, predictions=f"{given.output}/predictions", output=str(tmp_path / "again"))
    )
    assert len(scoring.checked) == len(scoring.executed) == 2
    assert not any(config.restart for config in scoring.checked)


def test_a_dry_run_scores_nothing(tmp_path, classifiers):
    scoring = FakeScoring(classifiers[:1])
    figures = pseudolabel(config(tmp_path, [pair(1)], dry_run=True), scoring)
    assert figures["rows"] == 1
    assert not scoring.executed
    assert not (tmp_path / "out").exists()


def test_an_output_that_takes_no_file_is_found_before_scoring_is_checked(tmp_path, scoring, monkeypatch):
    def denied(*arguments: Any, **options: Any) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", denied)
    with pytest.raises(StorageError, match="memory://b/out: permission denied"):
        pseudolabel(config(tmp_path, [pair(1)], output="memory://b/out"), scoring)
    assert not scoring.checked


def test_predictions_that_are_there_make_other_shards(tmp_path, label):
    given = config(tmp_path, [pair(number) for number in range(90, 100)])
    label(given)
    hard = dataclasses.replace(
        given, predictions=f"{given.output}/predictions", output=str(tmp_path / "hard"), hard_threshold=0.955
    )
    label(hard)
    assert [row["id"] for row in read(tmp_path / "hard/train")] == ["p96", "p97", "p98", "p99"]
    assert not (tmp_path / "hard/predictions").exists()
    for output in (f"{given.output}/predictions", f"{given.output}/predictions/hard"):
        with pytest.raises(ConfigError, match="predictions"):
            label(dataclasses.replace(hard, output=output))


def test_nothing_left_says_why(tmp_path, label):
    rows = [pair(60), pair(61), pair(62, prompt=None)]
    message = (
        r"all 3 input rows were dropped \(null_text 1, below_threshold 2\); lower --hard-threshold 0.95 "
    )
    with pytest.raises(DataError, match=message + r"\(the surest row has 0.6100\), with --predictions .*out"):
        label(config(tmp_path, rows, hard_threshold=0.95))
    assert not (tmp_path / "out/run.json").exists()


def test_inputs_are_safe(tmp_path, label):
    given = config(tmp_path, [pair(1)])
    for output in (str(tmp_path), f"{given.model[0]}/out"):
        with pytest.raises(ConfigError, match="--output"):
            label(dataclasses.replace(given, output=output))


TEXT = st.sampled_from(["x", "X ", "y", "", " ", "\n", None])


@given(
    st.lists(st.tuples(TEXT, TEXT, TEXT, st.none() | st.floats(0, 1)), max_size=12),
    st.none() | st.floats(0.5, 0.99),
)
def test_a_row_is_kept_or_has_the_first_reason(rows, threshold):
    table = pa.table(
        {
            name: pa.array([row[number] for row in rows], pa.string())
            for number, name in enumerate(("prompt", "response_a", "response_b"))
        }
    )
    prob = np.array([np.nan if row[3] is None else row[3] for row in rows], float)
    found = drop_codes(table, prob, digests(["y"]), threshold)
    for (prompt, a, b, p), code in zip(rows, found.tolist(), strict=True):
        applies = {
            "null_text": None in (prompt, a, b),
            "not_scored": p is None,
            "empty_prompt": not (prompt or "").strip(),
            "empty_response": not (a or "").strip() or not (b or "").strip(),
            "identical_responses": a == b,
            "excluded_prompt": prompt == "y",
            "below_threshold": threshold is not None
            and p is not None
            and (max(p, 1 - p) < threshold or p == 0.5),
        }
        expected = next((reason for reason in REASONS if applies[reason]), None)
        assert (REASONS[code] if code >= 0 else None) == expected
