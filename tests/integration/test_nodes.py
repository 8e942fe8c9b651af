"""Several nodes: replicas follow those that are there, and workers that are asked to end lose no step."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from tests.integration.campaign import processes
from tests.integration.gates import wait_for
from tests.integration.preempted import RAY_ENVIRONMENT, Nodes, nodes_of, start_score, start_train
from tests.integration.struck_run import make_model, make_pairs

ROWS, UNIT_ROWS = 240, 10


@pytest.mark.long
def test_nodes_join_and_leave(monkeypatch, classifier: Path, int8_base, prepared, tmp_path: Path):
    """One cluster for both jobs, as nodes take long to start."""
    for name, value in RAY_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with nodes_of(1, 2) as nodes:
        check_score(nodes, tmp_path)
        check_train(nodes, classifier, int8_base, prepared, tmp_path)


def check_score(nodes: Nodes, folder: Path) -> None:
    """Two nodes, a third joins, the second is lost: replicas are where nodes are, and each row is once."""
    make_pairs(str(folder / "pairs"), 3, ROWS)
    make_model(str(folder / "scorer"))
    notes, gate, log, output = (folder / name for name in ("notes", "gate", "score.log", "out"))
    notes.mkdir()
    options = f"--model {folder}/scorer --input {folder}/pairs --output {output} --unit-rows {UNIT_ROWS}"
    driver = start_score(nodes.address, [*options.split(), "--token-budget", "2048"], notes, gate, log)

    def replicas() -> set[str]:
        assert driver.is_alive(), log.read_text()
        return {path.name.partition("-")[0] for path in notes.iterdir()}

    wait_for(lambda: len(replicas()) == 2)
    nodes.add(1)
    wait_for(lambda: len(replicas()) == 3)
    nodes.lose(nodes.nodes[1])
    gate.touch()
    assert ended(driver) == 0, log.read_text()
    found = pa.concat_tables([pq.read_table(path) for path in sorted(output.glob("part-*.parquet"))])
    assert found["id"].to_pylist() == [f"row-{row}" for row in range(ROWS)]
    assert found["error"].null_count == ROWS
    run = json.loads((folder / "out.run" / "run.json").read_text())
    assert run["processes_died"] == 0, "a node that is lost is no fault of a unit"
    assert run["preemptions"]["times"] >= 1
    said = log.read_text()
    assert "nodes joined; 3 replicas instead of 2" in said
    assert "lost with their Ray workers, and are run again" in said


def check_train(nodes: Nodes, classifier: Path, base: Any, prepared: Any, folder: Path) -> None:
    """A worker on each of two nodes; one gets SIGTERM before the third step, and there is a checkpoint after
    it: the run that goes on from it is as one that nobody disturbed."""
    output, gate, log = (folder / name for name in ("model", "train-gate", "train.log"))
    options = f"""
        --preset tiny --base {base} --output {output} --train {prepared}/train --valid {prepared}/valid
        --max-steps 8 --checkpoint-steps 2 --pairs-per-step 8 --micro-batches 2 --lora.dropout 0.1
        --num-workers 2
    """.split()
    driver = start_train(nodes.address, options, {2: str(gate)}, log)
    checkpoints = output / "_checkpoints" / "run"

    def kept(name: str) -> bool:
        assert driver.is_alive(), log.read_text()
        return (checkpoints / name / "wsdm_ray.json").exists()

    wait_for(lambda: kept("step-000002"))
    workers = processes("RayTrainWorker")
    assert len({worker.ppid() for worker in workers}) == 2, "one on each node"
    os.kill(workers[1].pid, signal.SIGTERM)
    wait_for(lambda: not is_pending(workers[1].pid, signal.SIGTERM))
    gate.touch()
    assert ended(driver) == 0, log.read_text()
    run = json.loads((output / "run.json").read_text())
    assert run["interruptions"] == {"times": 1, "noticed": 1, "steps_lost": 0}
    steps = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps] == list(range(1, 9))
    assert [row["step"] for row in steps if "valid_log_loss" in row] == [2, 4, 6, 8]
    assert "workers were asked to end; the checkpoint of step 3 is written" in log.read_text()
    found, calm = (load_file(path / "adapter_model.safetensors") for path in (output, classifier))
    for name, value in calm.items():
        assert np.array_equal(found[name], value), f"{name}: the other run has one worker"


def is_pending(pid: int, number: int) -> bool:
    """Whether a signal was sent to a process that it has not taken yet."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (pending,) = (int(line.split()[1], 16) for line in lines if line.startswith("ShdPnd"))
    return bool(pending >> (number - 1) & 1)


def ended(driver: Any) -> int | None:
    """The exit status of a driver."""
    driver.join()
    return driver.exitcode
