"""Storage and the jobs that need no Ray, on real S3 and GCS servers."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import gcsfs.retry
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import _main as main
from tests.integration.servers import ACCESS_KEY, SECRET_KEY, free_ports
from wsdm_ray import storage
from wsdm_ray.errors import DataError, RunBusyError, RunMismatchError, StorageError
from wsdm_ray.inputs.files import list_inputs, with_partitions
from wsdm_ray.inputs.tables import read_tables
from wsdm_ray.runs import hold_run
from wsdm_ray.storage import patience

ROOT = Path(__file__).parents[2]


def test_write_list_read_delete(bucket):
    table = pa.table({"id": list(range(5_000)), "text": ["é\x00"] * 5_000})
    for name in ("b.parquet", "a.parquet", "in/c.parquet", "_run/d.parquet"):
        storage.write_parquet(f"{bucket}/data/{name}", table)
    storage.write_json(f"{bucket}/data/run.json", {"rows": 1})
    folder = f"{bucket}/data"
    found = [f"{folder}/{name}" for name in ("a.parquet", "b.parquet", "in/c.parquet")]
    assert storage.list_files(folder) == storage.list_files(folder + "/") == found
    assert storage.list_files(f"{folder}/?.parquet") == found[:2]
    assert storage.list_files([found[2], folder]) == [found[2], *found[:2]]
    with storage.open_parquet(found[0]) as file:
        assert file.read_row_group(1).equals(table.slice(2_000, 2_000))
    assert storage.read_json(f"{folder}/run.json") == {"rows": 1}
    assert storage.exists(folder)
    storage.delete_file(found[0])
    storage.delete_file(found[0])
    assert storage.list_files(folder) == found[1:], "no listing is kept from before"
    storage.delete_folder(folder)
    storage.delete_folder(folder)
    with pytest.raises(StorageError):
        storage.list_files(folder)


def test_inputs_as_other_tools_write_them(bucket):
    packed = pa.compress(b'{"id": 1}\n{"id": "a"}\n', codec="zstd", asbytes=True)
    for name in ("_split=a%20b/x.jsonl.zst", "_split=c/x.jsonl.zst", "_SUCCESS", "_tmp/y.csv"):
        storage.write_atomic(f"{bucket}/in/{name}", lambda file: file.write(packed))
    for path in (f"{bucket}/in", f"{bucket}/in/", f"{bucket}/in/*", f"{bucket}/in/**/*.zst"):
        files = list_inputs([path])
        assert [(file.name, *file.partitions) for file in files] == [
            ("_split=a%20b/x", ("_split", "a b")),
            ("_split=c/x", ("_split", "c")),
        ]
    rows = [with_partitions(table, files[0]).to_pylist() for table in read_tables(files[0].path)]
    assert rows == [[{"id": "1", "_split": "a b"}, {"id": "a", "_split": "a b"}]]
    storage.write_atomic(f"{bucket}/in/cut.csv.zst", lambda file: file.write(packed[:-5]))
    with pytest.raises(DataError, match=r"/in/cut\.csv\.zst: cut short or damaged"):
        list(read_tables(f"{bucket}/in/cut.csv.zst"))


def test_identity_changes_with_the_bytes(bucket):
    path = f"{bucket}/f.json"
    storage.write_json(path, 1)
    before = storage.file_identity(path)
    assert storage.file_identity(path) == before
    storage.write_json(path, 2)
    assert storage.file_identity(path) != before
    assert storage.file_identity(path)["bytes"] == before["bytes"]


# Writes 120 MB in parts, and says so and stops once the first part has arrived.
SLOW_WRITER = """
import asyncio, sys
import gcsfs.core, s3fs
from wsdm_ray.storage import write_atomic

call_s3, upload_chunk = s3fs.S3FileSystem._call_s3, gcsfs.core.upload_chunk

async def slow_s3(self, method, *rest, **options):
    answer = await call_s3(self, method, *rest, **options)
    if method == "upload_part":
        print("half", flush=True)
        await asyncio.Event().wait()
    return answer

async def slow_gcs(*rest):
    await upload_chunk(*rest)
    print("half", flush=True)
    await asyncio.Event().wait()

s3fs.S3FileSystem._call_s3, gcsfs.core.upload_chunk = slow_s3, slow_gcs
write_atomic(sys.argv[1], lambda file: file.write(bytes(120 << 20)))
"""


def test_killed_writer_leaves_the_old_object(bucket):
    path = f"{bucket}/part-000000.parquet"
    storage.write_json(path, "old")
    command = [sys.executable, "-c", SLOW_WRITER, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "half\n"
        writer.kill()
    assert storage.read_json(path) == "old"
    assert storage.list_files(bucket) == [path]


def test_one_of_many_at_once_gets_a_folder(bucket):
    """Of requests at the same instant the store lets one through; so of drivers one gets the lease."""
    many = 8
    begin, end = threading.Barrier(many), threading.Barrier(many)

    def create(value: int) -> bool:
        begin.wait()
        return storage.write_json(f"{bucket}/only.json", value, only_new=True)

    def hold(seed: int) -> str:
        begin.wait()
        try:
            with hold_run(f"{bucket}/out", "score", {"seed": seed // 2}, restart=False) as run:
                end.wait()
                run.check()
                return "finished" if run.finish({"seed": seed}) else ""
        except (RunBusyError, RunMismatchError) as error:
            end.wait()
            return type(error).__name__

    with ThreadPoolExecutor(many) as pool:
        created = list(pool.map(create, range(many)))
        held = list(pool.map(hold, range(many)))
    assert created.count(True) == 1
    assert storage.read_json(f"{bucket}/only.json") == created.index(True)
    assert held.count("finished") == 1
    assert set(held) <= {"finished", "RunBusyError", "RunMismatchError"}
    run = storage.read_json(f"{bucket}/out.run/run.json")
    assert run["seed"] == held.index("finished")
    assert [name.rpartition("/")[2] for name in storage.find_files(f"{bucket}/out.run").names] == ["run.json"]


def test_failing_writer_leaves_nothing(bucket):
    def fail(file):
        file.write(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        storage.write_atomic(f"{bucket}/in/new.json", fail)
    assert not storage.exists(f"{bucket}/in")


def test_folder_goes_up_and_comes_back(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("WSDM_RAY_CACHE", str(tmp_path / "cache"))
    local = tmp_path / "local"
    local.mkdir()
    weights = np.random.default_rng(0).bytes(12 << 20)  # more than one part of a multipart upload
    (local / "adapter_model.safetensors").write_bytes(weights)
    (local / "wsdm_ray.json").write_text("{}")
    storage.upload_folder(str(local), f"{bucket}/model", last="wsdm_ray.json")
    storage.write_json(f"{bucket}/model/_checkpoints/wsdm_ray.json", "not of the folder itself")
    fs, inner = storage.filesystem(f"{bucket}/model/")
    fs.pipe_file(inner.rstrip("/") + "/", b"")  # as a console's `create folder` does
    copy = Path(storage.local_copy(f"{bucket}/model"))
    assert sorted(path.name for path in copy.iterdir()) == ["adapter_model.safetensors", "wsdm_ray.json"]
    assert (copy / "adapter_model.safetensors").read_bytes() == weights
    assert storage.local_copy(f"{bucket}/model/") == str(copy), "a version is fetched once"
    storage.write_json(f"{bucket}/model/wsdm_ray.json", {"new": 1})
    assert storage.local_copy(f"{bucket}/model") != str(copy)


def test_what_is_missing_is_named(bucket):
    here, there = bucket, bucket.split("://")[0] + "://no-such-bucket-of-ours"
    for path in (f"{here}/none", f"{there}/none"):
        for act in (
            lambda path: storage.read_json(path + ".json"),
            lambda path: storage.open_parquet(path + ".parquet").__enter__(),
            storage.list_files,
            storage.local_copy,
            storage.file_identity,
        ):
            with pytest.raises(StorageError) as caught:
                act(path)
            assert path in str(caught.value)
            assert "not found; check the path and the bucket" in str(caught.value)
    with pytest.raises(StorageError, match=r"no-such-bucket-of-ours/f\.json: .*bucket"):
        storage.write_json(f"{there}/f.json", 1)
    storage.write_json(f"{here}/f.parquet", 1)
    with pytest.raises(DataError, match=r"f\.parquet: not a parquet file"):
        storage.open_parquet(f"{here}/f.parquet").__enter__()


def test_wrong_key_is_named_and_no_secret_shown(s3_bucket):
    path = f"{s3_bucket}/f.json"
    storage.write_json(path, 1)
    for key, secret in ((ACCESS_KEY, "wrong-secret-key"), ("wrong-access-key", SECRET_KEY)):
        environment = os.environ | {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
        # A process of its own: a client keeps the key that it began with.
        code = "import sys; from wsdm_ray.storage import *; read_json(sys.argv[1])"
        run = subprocess.run(
            [sys.executable, "-c", code, path], env=environment, capture_output=True, text=True, timeout=60
        )
        last = run.stderr.splitlines()[-1]
        assert f"StorageError: {path}: permission denied; check the credentials; FSSPEC_S3_ANON=true" in last
        assert secret not in run.stderr


def test_endpoint_that_is_down_is_one_line(store_ports):
    (port,) = free_ports(1)
    environment = os.environ | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    arguments = ["--input", "s3://bucket/votes", "--output", "s3://bucket/out"]
    arguments += ["--store-timeout-seconds", "1"]
    run = subprocess.run(
        [sys.executable, "-m", "jobs.prepare", *arguments],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 1
    *told, line = run.stderr.splitlines()
    assert all("trying again for up to 1 s" in each for each in told)
    assert line.startswith("error: s3://bucket/")
    assert "AWS_ENDPOINT_URL is the endpoint" in line
    assert line.endswith("check the bucket, the credentials and the endpoint")
    assert SECRET_KEY not in line


def test_gcs_endpoint_that_is_down_is_one_line(store_ports, monkeypatch, caplog):
    async def at_once(seconds):
        return None

    (port,) = free_ports(1)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(gcsfs.retry.asyncio, "sleep", at_once)  # six attempts, half a minute in all
    monkeypatch.setattr(patience, "PATIENCE", patience.Patience(first_seconds=0.1))
    client = fsspec.get_filesystem_class("gs")
    client.clear_instance_cache()  # it has the endpoint of the session
    try:
        with pytest.raises(
            StorageError, match=r"gs://bucket/f: .*check the bucket, the credentials and the endp"
        ):
            storage.read_json("gs://bucket/f")
    finally:
        client.clear_instance_cache()
    assert not caplog.records


def test_prepare_and_evaluate(bucket, tiny_votes, capsys):
    """Raw votes in a bucket -> shards -> (predictions of an oracle) -> a report, all in the bucket."""
    raw = pq.read_table(storage.list_files(str(tiny_votes)))
    storage.write_parquet(f"{bucket}/raw/votes.parquet", raw)
    arguments = ["--input", f"{bucket}/raw", "--output", f"{bucket}/data", "--valid-fraction", "0.5"]
    assert main.run_job("prepare", arguments) == 0
    counts = storage.read_json(f"{bucket}/data/run.json")
    valid = pa.concat_tables(
        file.read()
        for path in storage.list_files(f"{bucket}/data/valid")
        for file in [pq.ParquetFile(fetch(path))]
    )
    assert 100 < len(valid) < len(raw)

    assert main.run_job("prepare", arguments) == 0
    assert storage.read_json(f"{bucket}/data/run.json") == counts, "finished work is not done again"
    capsys.readouterr()
    assert main.run_job("prepare", [*arguments, "--seed", "1"]) == 1
    assert "options.seed: 0 -> 1" in capsys.readouterr().err.splitlines()[-1]

    best = dict(zip(raw["id"].to_pylist(), raw["best_prob_a"].to_pylist(), strict=True))
    prob = np.array([best[row] for row in valid["id"].to_pylist()], np.float32)
    winner = np.where(prob >= 0.5, "model_a", "model_b")
    count = len(prob)
    predictions = pa.table(
        {
            "id": valid["id"], "prob_a": prob, "winner": winner, "prob_a_ab": prob, "prob_a_ba": prob,
            "tokens": np.full(count, 9, np.int32), "cut_tokens": np.zeros(count, np.int32),
            "error": pa.nulls(count, pa.string()),
        }
    )  # fmt: skip
    storage.write_parquet(f"{bucket}/predictions/part-000000.parquet", predictions)
    arguments = ["--predictions", f"{bucket}/predictions", "--votes", f"{bucket}/data/valid"]
    assert main.run_job("evaluate", [*arguments, "--output", f"{bucket}/report"]) == 0
    metrics = storage.read_json(f"{bucket}/report/metrics.json")
    assert metrics["rows"] == count
    assert metrics["accuracy"] > 0.7
    assert metrics["flip_rate"] == 0
    with storage.open_read(f"{bucket}/report/report.html") as file:
        assert b"</html>" in file.read()
    assert json.dumps(metrics)


def fetch(path: str) -> pa.BufferReader:
    with storage.open_read(path) as file:
        return pa.BufferReader(file.read())
