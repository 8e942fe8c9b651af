"""Scoring through Ray Data: every row once and in order, the same whoever computes it, whatever dies."""

import dataclasses
import json
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.conftest import score_config
from tests.integration.gates import gated_replica, pids_of, wait_for
from wsdm_ray.errors import ClusterError, ConfigError, DataError, ModelError, RunMismatchError, StorageError
from wsdm_ray.scoring.encode import encode_unit
from wsdm_ray.scoring.pipeline import check, execute, score
from wsdm_ray.scoring.replica import Replica

pytestmark = pytest.mark.usefixtures("ray_session")


def read(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("part-*.parquet"))])


def run_of(output: Path) -> dict[str, Any]:
    return json.loads(Path(f"{output}.run", "run.json").read_text())


def test_every_row_once_and_in_input_order(scored, pairs):
    found = read(scored)
    assert found["id"].to_pylist() == pairs["id"].to_pylist()
    run = run_of(scored)
    assert run["counts"]["rows"] == 120
    assert run["counts"]["units"] == len(list(scored.glob("part-*.parquet"))) == 4 + 5
    assert found.schema.field("prob_a").type == pa.float32()


def test_a_row_that_cannot_be_scored_carries_its_error(scored):
    rows = read(scored).to_pylist()
    assert rows[7]["error"] == "prompt is null"
    assert rows[7]["prob_a"] is rows[7]["winner"] is rows[7]["prob_a_ab"] is None
    assert [row["error"] for row in rows if row["error"]] == ["prompt is null"]
    assert all(0 < row["prob_a"] < 1 for i, row in enumerate(rows) if i != 7)
    assert rows[9]["prob_a"] == 0.5  # two equal responses


def test_adaptive_orders_of_two_models_beside_one_base(scored, classifier, source, tmp_path):
    """Both models are the same, so that what they give together is what one gives."""
    given = score_config(
        classifier, source, tmp_path / "out", model=(str(classifier),) * 2, model_weights=(2.0, 1.0),
        orders="adaptive", adaptive_threshold=0.05, precision="bnb-int8", token_budget=None,
    )  # fmt: skip
    run = score(given)
    found, both = read(tmp_path / "out"), read(scored)
    assert found["id"].to_pylist() == both["id"].to_pylist()
    ran = np.stack([np.isfinite(found[f"prob_a_{name}"].to_numpy()) for name in ("ab", "ba")])
    again = ran.all(axis=0)
    assert (ran.any(axis=0) == (np.arange(120) != 7)).all()
    assert 0 < again.sum() < 119
    # All rows in doubt are run again, those with two equal responses too: by the other model.
    p, a, b = (both[name].to_numpy() for name in ("prob_a", "prob_a_ab", "prob_a_ba"))
    expected = np.where(again, p, np.where(ran[0], a, b))
    # The adapter stands beside 8-bit weights here, and is merged into what they stand for there.
    valid = np.arange(120) != 7
    assert found["prob_a"].to_numpy()[valid] == pytest.approx(expected[valid], abs=0.02)
    assert run["adaptive"]["rerun"] == run["counts"]["rerun"] == again.sum()
    assert run["adaptive"]["share_rerun"] == pytest.approx(again.sum() / 120, abs=1e-4)
    assert run["budget_halved"] == {"times": 0, "smallest": None}
    assert run["replicas_lost"] == 0
    # The budget is no part of what the output is; the threshold is.
    assert score(dataclasses.replace(given, token_budget=4_096)) == run
    with pytest.raises(RunMismatchError, match=r"adaptive_threshold: 0.05 -> 0.1"):
        score(dataclasses.replace(given, adaptive_threshold=0.1))


def test_scoring_goes_on_whatever_a_batch_fails_of(scored, classifier, source, pairs, tmp_path):
    """Too little memory for most passes, a row that fails alone, and one that takes its GPU with it.

    The run goes on from where one of an earlier version died: its marker is within the output, after a unit.
    """
    output = tmp_path / "out"
    output.mkdir()
    shutil.copy(scored / "part-000006.parquet", output)
    marker = {"job": "score", "fingerprint": run_of(scored)["fingerprint"]}
    (output / "_run.json").write_text(json.dumps(marker))
    checked = check(score_config(classifier, source, output))
    table = pa.concat_tables(encode_unit(unit, checked.replica.models) for unit in checked.plan.units[:3])
    fails, kills = (table["prefix_0"][row].values.to_numpy() for row in (20, 30))

    class Breaking(Replica):
        def __init__(self, options):
            import torch

            from wsdm_ray.modeling.loading import load_scorer
            from wsdm_ray.modeling.scorers import TransformersScorer

            class Broken(TransformersScorer):
                def __call__(self, layout):
                    def has(ids):
                        return any(np.array_equal(row[: len(ids)], ids) for row in layout.tokens_BT)

                    if has(kills):
                        raise torch.AcceleratorError("CUDA error: device-side assert triggered")
                    if has(fails):
                        raise RuntimeError("no kernel for this row")
                    if layout.tokens_BT.size > 700:
                        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
                    return super().__call__(layout)

            def load(folder, **options):
                scorer, manifest = load_scorer(folder, **options)
                return Broken(scorer.network), manifest

            super().__init__(options, load)

    run = execute(checked, Breaking)
    found, expected = read(output), read(scored)
    assert found["id"].to_pylist() == pairs["id"].to_pylist()
    errors = {row: error for row, error in enumerate(found["error"].to_pylist()) if error}
    assert errors == {
        7: "prompt is null",
        20: "the model fails on this row (no kernel for this row)",
        30: "the GPU is lost on this row (CUDA error: device-side assert triggered)",
    }
    good = np.array([row not in errors for row in range(120)])
    assert found["prob_a"].to_numpy()[good] == pytest.approx(expected["prob_a"].to_numpy()[good], abs=1e-5)
    assert run["counts"]["errors"] == 3
    assert run["counts"]["resumed_units"] == 1
    assert run["replicas_lost"] == 2
    assert run["budget_halved"]["smallest"] == 512
    assert run["budget_halved"]["times"] >= 2
    assert sorted(path.name for path in output.iterdir()) == [
        f"part-{number:06d}.parquet" for number in range(9)
    ]
    assert [path.name for path in (tmp_path / "out.run").iterdir()] == ["run.json"]


def test_fewer_tokens_than_in_training(classifier, source, tmp_path):
    asked = score_config(classifier, source, tmp_path / "out", max_tokens=64, unit_rows=50)
    checked = check(asked)
    table = encode_unit(checked.plan.units[0], checked.replica.models)
    lengths = [len(a) + len(b) for a, b in zip(table["prefix_0"], table["suffix_ab_0"], strict=True)]
    assert max(lengths) == 64
    assert max(table["cut_0"].to_pylist()) > 0


@pytest.mark.long
def test_a_run_goes_on_with_the_parts_that_are_missing_and_a_killed_replica_is_replaced(
    scored, classifier, source, pairs, tmp_path, caplog
):
    """Of a finished run, some are lost, spoilt or of another unit. The replica waits in its third unit until
    it is killed, so that the run cannot be over by then.
    """
    output, gate, ended = tmp_path / "out", tmp_path / "killed", []
    shutil.copytree(scored, output)
    whole = {path.name: path.read_bytes() for path in output.glob("part-*")}
    shutil.copytree(f"{scored}.run", f"{output}.run")
    run = run_of(scored)
    for number in (1, 2, 4, 8):
        (output / f"part-{number:06d}.parquet").unlink()
    (output / "part-000003.parquet").write_bytes(whole["part-000003.parquet"][:500])
    (output / "part-000005.parquet").write_bytes(whole["part-000006.parquet"])

    def done() -> set[str]:
        return {path.name for path in output.glob("part-*") if path.read_bytes() == whole[path.name]}

    kept = done()
    assert kept == {f"part-{number:06d}.parquet" for number in (0, 6, 7)}
    before = {name: (output / name).stat().st_mtime_ns for name in kept}

    def go_on() -> None:
        try:
            given = score_config(classifier, source, output)
            ended.append(execute(check(given), gated_replica(2, str(gate))))
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=go_on)
    thread.start()
    wait_for(lambda: ended or len(done()) == 5)
    assert not ended
    os.kill(wait_for(lambda: pids_of("GatedReplica"))[0], signal.SIGKILL)
    gate.touch()
    thread.join()
    assert ended[0]["counts"] == run["counts"] | {"resumed_units": 3}
    assert {path.name: path.read_bytes() for path in output.glob("part-*")} == whole
    assert {name: (output / name).stat().st_mtime_ns for name in before} == before
    assert read(output)["id"].to_pylist() == pairs["id"].to_pylist()
    assert not [path for path in output.iterdir() if path.name.endswith(".tmp") and path.name[0] != "."]
    assert "part-000003.parquet: not a parquet file" in caplog.text
    assert "part-000005.parquet: is not the part of that number" in caplog.text


def test_another_run_in_the_folder_is_refused_by_name(scored, classifier, source, pairs, tmp_path):
    with pytest.raises(RunMismatchError, match=r'orders: "both" -> "ab".*--restart'):
        score(score_config(classifier, source, scored, orders="ab"))
    files = [str(source / name) for name in ("a.parquet", "b.parquet", "c.parquet")]
    with pytest.raises(RunMismatchError, match=r"a\.parquet\.place: 0 -> 2"):
        score(score_config(classifier, source, scored, input=tuple(reversed(files))))
    pq.write_table(pairs, tmp_path / "other.parquet")
    with pytest.raises(RunMismatchError, match=r"inputs.*a\.parquet: gone"):
        score(score_config(classifier, tmp_path / "other.parquet", scored))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunMismatchError, match=r"holds thesis.txt"):
        score(score_config(classifier, source, tmp_path / "mine", restart=True))
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_dry_run_prints_the_plan_and_writes_nothing(ray_session, classifier, source, tmp_path, capsys):
    figures = score(score_config(classifier, source, tmp_path / "out", dry_run=True))
    assert (figures["rows"], figures["units"]) == (120, 9)
    shown = capsys.readouterr().out
    assert "120" in shown
    assert "1 x 1 CPU; they fit beside a reader" in shown, "this Ray was asked"
    assert not (tmp_path / "out").exists()


def test_an_error_within_a_replica_comes_back_as_itself(classifier, source, tmp_path):
    class Failing(Replica):
        def __init__(self, options):
            def load(folder, **options):
                raise ModelError(f"{folder}: its adapter does not fit the base")

            super().__init__(options, load)

    with pytest.raises(ModelError, match=r"classifier: its adapter does not fit the base"):
        execute(check(score_config(classifier, source, tmp_path / "out")), Failing)


def test_what_cannot_be_done_is_refused_at_the_start(classifier, int8_base, source, pairs, tmp_path):
    (tmp_path / "text.parquet").write_text("no parquet at all")
    pq.write_table(pairs.drop_columns(["response_b"]), tmp_path / "less.parquet")
    pq.write_table(pairs.slice(0, 0), tmp_path / "none.parquet")
    pq.write_table(pa.concat_tables([pairs, pairs.slice(3, 1)]), tmp_path / "twice.parquet")
    pq.write_table(
        pairs.set_column(0, "id", pa.array([*pairs["id"].to_pylist()[:-1], None])), tmp_path / "null.parquet"
    )
    given = score_config(classifier, source, tmp_path / "out")
    for changes, kind, message in (
        ({"replicas": 9}, ClusterError, r"2 CPUs and 0 GPUs: too small for 9 replicas.*beside one reader"),
        ({"input": (str(tmp_path / "nothing"),)}, StorageError, r"nothing: not found; check the path"),
        ({"input": (str(tmp_path / "text.parquet"),)}, DataError, r"text.parquet: not a parquet file"),
        (
            {"input": (str(tmp_path / "less.parquet"),)},
            DataError,
            r"no column 'response_b'; give --columns.response-b=NAME",
        ),
        ({"input": (str(tmp_path / "none.parquet"),)}, DataError, r"none.parquet: no rows to score"),
        (
            {"input": (str(tmp_path / "twice.parquet"),)},
            DataError,
            r"id arena.* is in .*twice.parquet row 3 and ",
        ),
        (
            {"input": (str(tmp_path / "null.parquet"),)},
            DataError,
            r"null.parquet: row 119 \(counted from 0\) has no id",
        ),
        ({"model": (str(int8_base),)}, ModelError, r"a base without a head; train it first"),
        ({"model": (str(source),)}, ModelError, r"no wsdm_ray.json"),
        (
            {"precision": "nf4"},
            ConfigError,
            r"--precision nf4: the adapter was trained on a base in bnb-int8",
        ),
        ({"token_budget": 600}, ConfigError, r"--token-budget 600: must be at least twice the 512 tokens"),
        ({"output": str(source)}, ConfigError, r"holds the input"),
        ({"output": str(source / "out")}, ConfigError, r"lies within the input"),
        ({"output": str(classifier), "restart": True}, ConfigError, r"holds the input"),
    ):
        with pytest.raises(kind, match=message):
            score(dataclasses.replace(given, **changes))
    assert not (tmp_path / "out").exists()
