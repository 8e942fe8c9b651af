"""The Ray that all integration tests share."""

import os
import subprocess
import sys
from pathlib import Path

import ray

from wsdm_ray import storage

ROOT = Path(__file__).parents[2]


def test_workers_reach_the_stores(ray_session, bucket):
    """Workers inherit the session's environment, so that what they write is where the driver looks for it."""

    @ray.remote(num_cpus=0.5)
    def write(path: str) -> int:
        storage.write_json(path, {"by": "worker"})
        return os.getpid()

    assert ray.cluster_resources()["CPU"] == 2
    assert ray.get(write.remote(f"{bucket}/from.json")) != os.getpid()
    assert storage.read_json(f"{bucket}/from.json") == {"by": "worker"}


def test_a_terminated_job_removes_its_temporary_files(ray_session, tmp_path):
    """Also within Ray, which has a handler of its own. The job's own task ends it."""
    code = f"""
import os, ray, signal, sys, tempfile, threading
from jobs._main import main
from wsdm_ray.session import connect
from wsdm_ray.config import ArenaConfig

@ray.remote(num_cpus=0)
def terminate(pid):
    os.kill(pid, signal.SIGTERM)
    threading.Event().wait()

def run(config):
    connect()
    with tempfile.TemporaryDirectory(dir={str(tmp_path)!r}):
        ray.get(terminate.remote(os.getpid()))

sys.exit(main(run, ArenaConfig, ["--output", "x"]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True,
        env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
    )  # fmt: skip
    assert (ended.returncode, list(tmp_path.iterdir())) == (143, []), ended.stderr
    assert "Traceback" not in ended.stderr
