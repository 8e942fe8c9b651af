"""What a replica makes of failures: of memory, of the model, of its GPU."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.unit.scoring.conftest import column, random_rows
from tests.unit.scoring.fakes import plan_of, with_memory_for, wrapped
from wsdm_ray.errors import ClusterError, ModelError, StorageError
from wsdm_ray.failures import WorkerDefectError, unpack_error
from wsdm_ray.modeling.scorers import Scorer
from wsdm_ray.packing.layouts import Layout
from wsdm_ray.scoring.crash_records import crash_record_path
from wsdm_ray.scoring.encode import encode_unit, encoded_pairs, table_to_bytes
from wsdm_ray.scoring.parts import COUNTS_KEY


def batch_of(number: int, encoded: pa.Table) -> dict[str, np.ndarray]:
    return {
        "unit": np.array([number]),
        "encoded": np.array([table_to_bytes(encoded)], object),
        "error": np.array([""]),
    }


def test_a_lowered_budget_stays_lowered_and_is_reported(write, tmp_path, classifiers, replica_of):
    plan = plan_of([write(random_rows(40, seed=2))], 20)
    encoded = [encode_unit(unit, classifiers[:1]) for unit in plan.units]
    expected = [replica_of().score(table)[0] for table in encoded]
    sizes: list[int] = []

    def short_of_memory(scorer: Scorer) -> Scorer:
        return wrapped(scorer, with_memory_for(700, sizes, real=scorer))

    replica = replica_of(output=str(tmp_path / "out"), token_budget=2_048, change=short_of_memory)
    reports = []
    for number, table in enumerate(encoded):
        sizes.clear()
        reports.append({name: value[0] for name, value in replica(batch_of(number, table)).items()})
        assert (max(sizes) > 700) == (number == 0), "the next unit begins with what the first one found"
        with pq.ParquetFile(tmp_path / "out" / f"part-00000{number}.parquet") as file:
            kept = json.loads(file.metadata.metadata[COUNTS_KEY])
            found = file.read()
        assert kept.get("halved") == (2 if number == 0 else None)
        assert kept.get("token_budget") == (512 if number == 0 else None)
        np.testing.assert_allclose(
            column(found, "prob_a"), column(expected[number], "prob_a"), rtol=0, atol=1e-5
        )
    assert [(report["halvings"], report["token_budget"], report["error"]) for report in reports] == [
        (2, 512, ""),
        (0, 512, ""),
    ]


def test_a_budget_of_the_replicas_own(replica_of):
    assert replica_of(token_budget=None).token_budget == 2_048


@pytest.mark.parametrize("error", [StorageError("/cache: no space left"), ClusterError("the GPU is taken")])
def test_what_is_wrong_with_a_node_is_not_a_failure_of_the_run(replica_of, error):
    """Its process ends, and its slot is given up; other nodes go on."""

    def fail(scorer: Scorer) -> Scorer:
        raise error

    with pytest.raises(type(error)):
        replica_of(change=fail)


def test_other_versions_are(write, classifiers, replica_of):
    """Its reader and those of other units would not agree."""
    [unit] = plan_of([write(random_rows(5))], 10).units
    replica = replica_of(numbers={"torch": "1.0"})
    report = replica(batch_of(0, encode_unit(unit, classifiers[:1])))
    assert json.loads(report["error"][0])[0] == "RunMismatchError"


def test_what_is_wrong_with_a_model_is(write, classifiers, replica_of):
    def fail(scorer: Scorer) -> Scorer:
        raise ModelError("model: its head is missing")

    [unit] = plan_of([write(random_rows(5))], 10).units
    report = replica_of(change=fail)(batch_of(0, encode_unit(unit, classifiers[:1])))
    assert json.loads(report["error"][0]) == ["ModelError", "model: its head is missing"]


def test_a_model_that_fails_on_every_row_fails_the_run(write, classifiers, replica_of):
    def fail(layout: Layout) -> torch.Tensor:
        raise RuntimeError("no kernel image is available")

    [unit] = plan_of([write(random_rows(5))], 10).units
    report = replica_of(change=lambda scorer: wrapped(scorer, fail))(
        batch_of(0, encode_unit(unit, classifiers[:1]))
    )
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
    [unit] = plan_of([write(rows)], 20).units
    encoded = encode_unit(unit, classifiers[:1])
    expected, _ = replica_of().score(encoded)
    row = encoded_pairs(encoded, 0).prefix[5]
    hits: list[int] = []

    def losing_the_gpu(scorer: Scorer) -> Scorer:
        def logits(layout: Layout) -> torch.Tensor:
            if any(np.array_equal(ids[: len(row)], row) for ids in layout.tokens_BT):
                hits.append(layout.tokens_BT.shape[0] // 2)
                raise torch.AcceleratorError("CUDA error: device-side assert triggered")
            return scorer(layout)

        return wrapped(scorer, logits)

    def die(status):
        raise Died(status)

    monkeypatch.setattr(os, "_exit", die)
    deaths = 0
    while True:
        try:
            report = replica_of(output=str(tmp_path / "out"), change=losing_the_gpu)(batch_of(0, encoded))
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
    crashes = json.loads(Path(crash_record_path(str(tmp_path / "out"), 0)).read_text())
    assert crashes[1] == {"rows": [5], "reason": "CUDA error: device-side assert triggered"}
    assert len(crashes) == 2


def test_a_unit_may_not_cost_processes_without_end(write, tmp_path, classifiers, replica_of):
    [unit] = plan_of([write(random_rows(3))], 10).units
    path = Path(crash_record_path(str(tmp_path / "out"), 0))
    path.parent.mkdir()
    path.write_text(json.dumps([{"rows": [i % 3, 7], "reason": "illegal memory access"} for i in range(8)]))
    report = replica_of(output=str(tmp_path / "out"))(batch_of(0, encode_unit(unit, classifiers[:1])))
    kind, text = json.loads(report["error"][0])
    assert kind == "ClusterError"
    assert text == (
        f"{path}: 8 processes lost their GPU over this unit, the last by 'illegal memory access'; check the "
        "GPU and the model, then delete this file"
    )


@pytest.mark.parametrize("broken", ["encoded", "model"])
def test_a_defect_ends_the_run_with_the_traceback_of_its_process(write, classifiers, replica_of, broken):
    """Ray Data would make other replicas, which fail each the same way."""

    def no_scorer(scorer: Scorer) -> Scorer:
        raise AttributeError("no such layer")

    [unit] = plan_of([write(random_rows(3))], 5).units
    batch = batch_of(0, encode_unit(unit, classifiers[:1]))
    if broken == "encoded":
        batch["encoded"][0] = table_to_bytes(pa.table({"error": pa.array([None], pa.string())}))
    replica = replica_of(change=no_scorer) if broken == "model" else replica_of()
    found = unpack_error(replica(batch)["error"][0])
    assert type(found) is WorkerDefectError
    lines = str(found).splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("AttributeError: no such layer" if broken == "model" else "KeyError: ")


def test_what_may_pass_is_left_to_ray(write, classifiers, replica_of):
    def no_gpu(scorer: Scorer) -> Scorer:
        raise RuntimeError("CUDA error: out of resources")

    with pytest.raises(RuntimeError, match="out of resources"):
        replica_of(change=no_gpu)
