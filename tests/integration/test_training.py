"""Training through Ray Train: what comes out, and that nothing which dies changes it."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ray
from ray._raylet import PlacementGroupID
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from jobs._main import run_job
from tests.integration.conftest import NO_COMPILER, metrics_of, train_config
from tests.integration.gates import gated_work, pids_of, wait_for
from tests.integration.lines import unexpected
from tests.integration.scrape import scraped
from wsdm_ray.errors import ClusterError, ModelError, RunMismatchError, StorageError, WsdmRayError
from wsdm_ray.failures import WorkerDefectError
from wsdm_ray.training import progress, ray_train
from wsdm_ray.training.progress import StepProgress
from wsdm_ray.training.runner import train

pytestmark = pytest.mark.usefixtures("ray_session")

ROOT = Path(__file__).parents[2]
GATED_JOB = """
import runpy
from tests.integration.gates import gated_work
from wsdm_ray.training import ray_train

ray_train.work = gated_work({gates!r})
runpy.run_module("jobs.train", run_name="__main__", alter_sys=True)
"""


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def test_a_trained_folder_is_a_checkpoint_with_its_metrics(classifier: Path):
    names = {path.name for path in classifier.iterdir()}
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "wsdm_ray.json",
        "run.json",
    } <= names
    assert not [path for path in classifier.rglob("*") if path.suffix in (".pkl", ".pt", ".bin", ".pickle")]
    run = json.loads((classifier / "run.json").read_text())
    low, high = run["metrics"]["valid_accuracy_ci95"]
    assert low < run["metrics"]["valid_accuracy"] < high
    assert run["metrics"]["valid_rows"] == run["counts"]["valid"]  # the whole valid set
    rows = metrics_of(classifier)
    assert [row["step"] for row in rows] == list(range(1, run["metrics"]["step"] + 1))
    assert all(row["pairs"] == 8 for row in rows)


def test_a_finished_run_whose_weights_are_gone(classifier: Path, int8_base, prepared, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(classifier, folder)
    asked = train_config(int8_base, prepared, folder)
    assert train(asked) == json.loads((folder / "run.json").read_text())
    run = json.loads((folder / "run.json").read_text())
    assert run["published"].keys() >= {"wsdm_ray.json", "adapter_model.safetensors", "tokenizer.json"}
    weights = folder / "adapter_model.safetensors"
    size = weights.stat().st_size
    os.truncate(weights, 1_000)
    with pytest.raises(ModelError, match=rf"adapter_model.safetensors is of 1000 bytes instead of {size}; "):
        train(asked)
    weights.unlink()
    del run["published"]  # as runs once were
    for stored in (json.loads((folder / "run.json").read_text()), run):
        (folder / "run.json").write_text(json.dumps(stored))
        with pytest.raises(
            ModelError, match=r"finished run, but adapter_model.safetensors is gone.*--restart"
        ):
            train(asked)


def test_only_the_best_and_the_last_checkpoint_are_kept(classifier: Path):
    kept = [path for path in (classifier / "_checkpoints" / "run").iterdir() if path.name.startswith("step-")]
    assert 1 <= len(kept) <= 2
    assert max(path.name for path in kept) == "step-000008"


def test_what_people_see_of_the_steps(classifier: Path):
    rows = metrics_of(classifier)
    assert all(row["memory_gb"] > 0.05 and row["seconds"] > 0 for row in rows)
    assert [row["step"] for row in rows if "valid_log_loss" in row] == [2, 4, 6, 8]
    events = sorted((classifier / "tensorboard").iterdir())
    assert events[0].name == "events.out.tfevents.0000000001"


def test_the_config_beside_the_output_says_what_auto_was(classifier: Path):
    run = json.loads((classifier / "run.json").read_text())
    resolved = {"layout": "padded", "precision": "fp32", "quantization": "bnb-int8", "compile": "no"}
    assert {name: run["config"][name] for name in resolved} == dict.fromkeys(resolved, "auto")
    assert run["resolved"] == resolved | {"decoder": False}


def test_a_finished_run_is_not_done_again_and_a_changed_one_is_refused(classifier, int8_base, prepared):
    before = (classifier / "adapter_model.safetensors").stat().st_mtime_ns
    train(train_config(int8_base, prepared, classifier))
    assert (classifier / "adapter_model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(RunMismatchError, match=r"options\.seed: 0 -> 1.*--restart"):
        train(train_config(int8_base, prepared, classifier, seed=1))


@pytest.mark.long
def test_whatever_is_killed_changes_nothing(classifier, monkeypatch, int8_base, prepared, tmp_path, capfd):
    """A job, then a worker and the controller of the run that goes on with it, each between two steps.

    What a checkpoint has is not done again. The runs wait for each kill, before the steps at index 2, 4 and
    6, so that they cannot be over by then.
    """
    output = tmp_path / "model"
    idle = [pid for name in ("RayTrainWorker", "TrainController") for pid in pids_of(name)]
    options = f"""
        --preset tiny --base {int8_base} --output {output} --train {prepared}/train --valid {prepared}/valid
        --max-steps 8 --checkpoint-steps 2 --pairs-per-step 8 --micro-batches 2 --lora.dropout 0.1
    """.split()
    first = kill_after_two_steps(options, output)
    wait_for(lambda: not pids_of("RayTrainWorker", idle) and not pids_of("TrainController", idle))
    victims = {"RayTrainWorker": tmp_path / "worker-killed", "TrainController": tmp_path / "other-killed"}
    gates = dict(zip((4, 6), map(str, victims.values()), strict=True))
    monkeypatch.setattr(ray_train, "work", gated_work(gates))
    ended: list[int | BaseException] = []

    def run() -> None:
        try:
            ended.append(run_job("train", options))
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    before = first
    for name, killed in victims.items():
        before = wait_for(
            lambda known=before: ended or steps_kept(output / "_checkpoints" / "run", beyond=known)
        )
        assert not ended
        os.kill(wait_for(lambda name=name: pids_of(name, idle))[0], signal.SIGKILL)
        killed.touch()
    thread.join()
    free_placement_groups()
    assert ended == [0]
    of_this_run = len(metrics_of(output)) - len(first)
    wait_for(lambda: scraped("ray_wsdm_ray_train_").get("steps_total", 0) >= of_this_run)
    assert {"pairs_total", "tokens_total", "checkpoints_total"} <= scraped("ray_wsdm_ray_train_").keys()
    assert weights(output) == weights(classifier)
    rows = metrics_of(output)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[: len(before)] == before, "the seconds of each step too, so none of them was taken twice"
    assert "<svg" in (output / "training.html").read_text()
    said = ""
    for line in ("resuming from step 2 of 8", "steps 3 to 8", "resuming from step 4 of 8", "steps 5 to 8"):
        while line not in said:  # lines of workers come a little later
            said += "".join(capfd.readouterr())
            time.sleep(0.05)


def free_placement_groups() -> None:
    """Free the CPU that the killed controller held: Ray Train's process for that asks a dashboard."""
    for number, group in placement_group_table().items():
        if group["state"] == "CREATED":
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(number))))


def kill_after_two_steps(options: list[str], output: Path) -> list[dict]:
    """Begin a run as a job on this cluster and kill it; returns the steps that its checkpoint has."""
    log = output.with_name("job.log")
    with log.open("wb") as out:
        job = subprocess.Popen(
            [sys.executable, "-c", GATED_JOB.format(gates={2: str(output.with_name("never"))}), *options],
            cwd=ROOT,
            env=os.environ | NO_COMPILER | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        kept = wait_for(
            lambda: job.poll() is not None or steps_kept(output / "_checkpoints" / "run", beyond=[])
        )
        assert job.poll() is None, log.read_text()
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    assert [row["step"] for row in kept] == [1, 2]
    assert not (output / "run.json").exists()
    assert not unexpected(log.read_text())
    return kept


def test_what_cannot_be_done_is_refused_before_anything_starts(int8_base, tiny_model, prepared, tmp_path):
    given = train_config(int8_base, prepared, tmp_path / "model")
    for changes, kind, message in (
        ({"num_workers": 99}, ClusterError, r"2 CPUs and 0 GPUs: too small for 99 workers.*--num-workers"),
        ({"base": str(tmp_path / "nothing")}, StorageError, r"nothing: no such folder"),
        ({"base": str(prepared)}, ModelError, r"no config.json|no .safetensors"),
        ({"train": (str(tmp_path / "none.parquet"),)}, StorageError, r"none.parquet: not found"),
        ({"quantization": "nf4"}, WsdmRayError, r"--quantization nf4: .* is stored as bnb-int8"),
        (
            {"base": str(tiny_model), "quantization": "none", "int8_activations": True},
            WsdmRayError,
            r"--int8-activations: the base is held as none; leave it out",
        ),
    ):
        with pytest.raises(kind, match=message):
            train(dataclasses.replace(given, **changes))
    assert not (tmp_path / "model").exists()


def test_an_injected_nan_stops_the_run_with_the_step_and_the_ids(monkeypatch, int8_base, prepared, tmp_path):
    """In Ray Train's local mode: what other processes add is in the test after this one."""
    scaling = ray.train.ScalingConfig
    monkeypatch.setattr(ray.train, "ScalingConfig", lambda **_: scaling(num_workers=0))
    given = train_config(int8_base, prepared, tmp_path / "model")
    wild = dataclasses.replace(given.optimizer, learning_rate=1e30, warmup_fraction=0.0)
    with pytest.raises(
        WsdmRayError, match=r"step \d+: loss (nan|inf).* worst are \[.*arena.*lower --optimizer.learning-rate"
    ):
        train(dataclasses.replace(given, optimizer=wild))


def test_a_defect_in_one_of_two_workers_ends_the_run_at_once(monkeypatch, int8_base, prepared, tmp_path):
    """The other one waits for it, and Ray Train would begin anew three times."""
    tries = tmp_path / "tries"
    tries.mkdir()

    def broken_work(arguments):
        import uuid

        import torch

        from wsdm_ray.training import worker
        from wsdm_ray.training.distributed import current_group

        def run_worker(task):  # no step and no model are needed for it
            group = current_group()
            if group.is_first:
                (tries / uuid.uuid4().hex).touch()
                return task.no_such_name
            return group.all_reduce(torch.zeros(1))

        worker.run_worker = run_worker
        return worker.work(arguments)

    monkeypatch.setattr(ray_train, "work", broken_work)
    with pytest.raises(WorkerDefectError) as caught:
        train(train_config(int8_base, prepared, tmp_path / "model", num_workers=2))
    lines = str(caught.value).splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "AttributeError: 'WorkerTask' object has no attribute 'no_such_name'"
    assert len(list(tries.iterdir())) == 1


@pytest.mark.long
def test_workers_that_share_the_base_train_the_same_weights(monkeypatch, tiny_model, prepared, tmp_path):
    """Three micro-batches on two workers, so that one gathers along; rows of the valid set, too."""
    notes = tmp_path / "gathered"
    notes.mkdir()

    def noted_work(arguments):
        import os

        from wsdm_ray.modeling import sharded_weights
        from wsdm_ray.training import worker
        from wsdm_ray.training.distributed import WorkerGroup

        sharded_weights.LEAST_BYTES = 1  # else all layers of so small a model stay whole
        gather, sent = WorkerGroup.start_all_gather, []

        def start_all_gather(group, whole, part):
            sent.append(len(part))
            return gather(group, whole, part)

        WorkerGroup.start_all_gather = start_all_gather
        try:
            return worker.work(arguments)
        finally:
            (notes / str(os.getpid())).write_text(json.dumps(sent))

    monkeypatch.setattr(ray_train, "work", noted_work)
    changes = {"num_workers": 2, "micro_batches": 3, "max_steps": 3, "checkpoint_steps": 3}
    given = train_config(tiny_model, prepared, tmp_path / "whole", quantization="w8a8-int8", **changes)
    found = []
    for name, shared in (("whole", False), ("shared", True)):
        output = tmp_path / name
        train(dataclasses.replace(given, output=str(output), shard_base=shared))
        steps = [(row["loss"], row["grad_norm"], row.get("valid_log_loss")) for row in metrics_of(output)]
        found.append((weights(output), steps))
        first, second = (json.loads(path.read_text()) for path in notes.iterdir())
        assert first == second
        assert bool(first) == shared
        shutil.rmtree(notes)
        notes.mkdir()
    assert found[0] == found[1]


def test_the_bar_follows_the_first_worker(monkeypatch):
    seen: list[tuple[int, str]] = []

    class Recorder:
        def __init__(self, name: str, total: int, unit: str):
            assert (name, total, unit) == ("train", 100, "steps")

        def show(self, done: int, text: str) -> None:
            if (done, text) not in seen:
                seen.append((done, text))

        def close(self) -> None:
            seen.append((-1, "closed"))

    def after(step: int) -> StepProgress:
        return StepProgress(
            step=step, loss=0.5, accuracy=0.75, learning_rate=0.0, grad_norm=0.0, tokens_per_second=0.0,
            pairs_per_second=0.0, seconds_left=7.0,
        )  # fmt: skip

    monkeypatch.setattr(progress, "in_terminal", lambda: True)
    monkeypatch.setattr(progress, "Display", Recorder)
    with progress.show_progress(100) as actor:
        ray.get(actor.update.remote(after(10)))
        wait_for(lambda: len(seen) == 2)
        ray.get(actor.update.remote(after(30)))
    text = "loss 0.5000 accuracy 0.750 ETA 7 s"
    assert seen == [(0, "starting"), (10, text), (30, text), (-1, "closed")]


def steps_kept(folder: Path, beyond: list[dict]) -> list[dict]:
    """The steps in the last checkpoint that Ray has recorded, where they begin with those of `beyond` and are
    more; else none.
    """
    with contextlib.suppress(OSError):
        recorded = (folder / "checkpoint_manager_snapshot.json").read_text()
        found = metrics_of(folder / max(re.findall(r"step-\d+", recorded), default="none"))
        if len(found) > len(beyond):
            assert found[: len(beyond)] == beyond
            return found
    return []
