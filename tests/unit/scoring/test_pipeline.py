"""The flow of a run, with a function in place of Ray that commits parts."""

import dataclasses
import re
import sys
import time
import types
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.scoring.conftest import random_rows
from tests.unit.scoring.fakes import plan_of
from wsdm_ray.config import ScoreConfig
from wsdm_ray.errors import DataError, RunBusyError
from wsdm_ray.modeling.manifest import Manifest
from wsdm_ray.runs import digest_of, numeric_versions, read_run, versions
from wsdm_ray.scoring import pipeline
from wsdm_ray.scoring.check import Cluster, ScoreRun
from wsdm_ray.scoring.error_kinds import ErrorKind, kinds_to_json
from wsdm_ray.scoring.model_spec import ModelSpec
from wsdm_ray.scoring.parts import RUN_KEY, Scored, UnitReport, write_part
from wsdm_ray.scoring.replica import ReplicaOptions


@pytest.fixture
def run(tmp_path) -> ScoreRun:
    """Three units of ten rows."""
    pq.write_table(random_rows(30), tmp_path / "rows.parquet")
    output = str(tmp_path / "out")
    replica = ReplicaOptions(
        models=(), output=output, id_type=pa.int64(), orders="both", layout="padded", token_budget=None,
        logits=False, threads=1,
    )  # fmt: skip
    return ScoreRun(
        output=output, restart=False, files=(), plan=plan_of([str(tmp_path / "rows.parquet")], 10),
        replica=replica, cluster=Cluster(replicas=1, on_gpu=False, threads=1),
        fingerprint={"seed": 0}, config={}, started=time.monotonic(),
    )  # fmt: skip


def libraries_of(run: ScoreRun) -> list[str]:
    return ["bitsandbytes"] if run.replica.models else []


@pytest.fixture
def scored(monkeypatch) -> list[int]:
    """The units that were scored, in their order."""
    numbers = []

    def score_units(run, units, replica_class, on_report, encode):
        reports = []
        for unit in units:
            report = UnitReport(unit=unit.number, rows=unit.rows, kinds=run.config.get("kinds", ""))
            rows = unit.rows
            table = pa.table({"id": range(rows), "prob_a": [0.25] * rows, "winner": ["model_b"] * rows})
            reports.append(write_part(run.output, table, report, run.replica.run_digest))
            assert run.replica.numbers == numeric_versions(libraries_of(run))
            numbers.append(unit.number)
            on_report()
        return Scored(reports, events={"store_retried": 5})

    fake = types.SimpleNamespace(score_units=score_units)
    monkeypatch.setitem(sys.modules, "wsdm_ray.scoring.ray_data", fake)
    return numbers


def test_parts_carry_the_run_and_those_of_another_are_scored_again(run, scored, caplog):
    written = pipeline.execute(run)
    assert scored == [0, 1, 2]
    digest = digest_of({"seed": 0})
    for path in Path(run.output).iterdir():
        assert pq.read_metadata(path).metadata[RUN_KEY] == digest.encode()
    assert written == read_run(run.output)
    assert written["computed_with"] == numeric_versions()
    assert written["store_retries"] == 5
    assert pipeline.execute(run) == written, "complete"
    path = Path(run.output, "part-000001.parquet")
    path.unlink()
    write_part(run.output, pa.table({"id": [1] * 10}), UnitReport(unit=1, rows=10), "another")
    Path(run.output, "part-000002.parquet").unlink()
    again = pipeline.execute(run)
    assert scored == [0, 1, 2, 1, 2]
    assert f"{path}: is of another run; its rows are scored again" in caplog.text
    assert again["counts"] == written["counts"] | {"resumed_units": 1}
    assert [each.name for each in Path(f"{run.output}.run").iterdir()] == ["run.json"]


def test_a_process_whose_run_was_taken_over_does_not_finish_it(run, scored, monkeypatch):
    def add_up(*arguments):
        lease = Path(f"{run.output}.run", "_lease-000001.json")
        lease.rename(lease.with_name("_lease-000002.json"))  # as another process's
        return totals(*arguments)

    totals = pipeline.add_up
    monkeypatch.setattr(pipeline, "add_up", add_up)
    with pytest.raises(RunBusyError, match="was taken over by process"):
        pipeline.execute(run)
    assert scored == [0, 1, 2]
    assert not read_run(run.output)


def test_a_strict_run_writes_its_submission_before_it_says_that_rows_ended_their_process(
    run, scored, monkeypatch, tmp_path
):
    died = kinds_to_json({"process died: signal 9": ErrorKind(2, "7")})
    monkeypatch.setattr(pipeline, "check", lambda config: dataclasses.replace(run, config={"kinds": died}))
    submission = tmp_path / "submission.csv"
    config = ScoreConfig(
        model=("m",), input=("i",), output=run.output, strict=True, submission=str(submission)
    )
    for _ in range(2):  # run again, it is complete
        with pytest.raises(DataError, match=r"6 rows end the process .* \(--strict\)"):
            pipeline.score(config)
        assert submission.read_text().splitlines()[:2] == ["id,winner", "0,model_b"]
        submission.unlink()
    assert read_run(run.output)["submission"]["file"] == str(submission)
    assert pipeline.score(dataclasses.replace(config, strict=False))["rows_given_up"] == 6


def test_a_run_keeps_the_versions_of_what_changes_the_numbers_of_its_models(run, scored):
    model = ModelSpec("folder", None, Manifest(kind="full"), "bnb-int8")
    run = dataclasses.replace(run, replica=dataclasses.replace(run.replica, models=(model,)))
    found = versions()["bitsandbytes"]
    assert pipeline.execute(run)["computed_with"] == numeric_versions() | {"bitsandbytes": found}


def test_the_log_names_the_most_frequent_kinds_and_how_many_more_there_are(caplog):
    caplog.set_level("INFO", logger="wsdm_ray")
    kinds = {f"kind {number}": ErrorKind(30 - number, "id") for number in range(25)}
    pipeline.log_kinds("out", {name: kinds[name] for name in [*kinds][:20]})
    assert len(caplog.messages) == 20
    caplog.clear()
    pipeline.log_kinds("out", kinds)
    assert len(caplog.messages) == 21
    assert caplog.messages[19] == "score: 11 rows: kind 19; one is id id"
    more = r"score: 40 rows have errors of 5 kinds more, which `error_kinds` in \S+/out\.run/run\.json lists"
    assert re.fullmatch(more, caplog.messages[20])
