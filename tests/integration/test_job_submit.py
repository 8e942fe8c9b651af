"""`ray job submit` from the repository's root to a Ray head of our own, as docs/deploy.md shows it.

Token authentication: without RAY_AUTH_MODE, `ray start` asks for a token where it finds one (RAY_AUTH_TOKEN,
RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token), and the first `ray.init` of a machine makes one: whether a head
asks for a token depends on what ran there before. Here it is said: RAY_AUTH_MODE=token and a token file for
both sides. A client with another token is refused.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.integration.conftest import NO_COMPILER, metrics_of
from tests.integration.gates import wait_for
from tests.integration.lines import unexpected
from tests.integration.servers import free_ports, run_process, wait_until
from tests.integration.struck_run import make_pairs
from wsdm_ray.storage import read_json

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

UPLOAD_LIMIT_BYTES = 2 << 20


@pytest.fixture(scope="module")
def head() -> Iterator[dict[str, str]]:
    """The environment of clients of a Ray head with two CPUs and a dashboard, apart from every other Ray."""
    ports = free_ports(9 + 40)
    names = [
        "port", "dashboard-port", "object-manager-port", "node-manager-port", "ray-client-server-port",
        "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port",
        "metrics-export-port",
    ]  # fmt: skip
    options = dict(zip(names, ports, strict=False))
    # Not a folder of pytest's: its name is too long for Ray's Unix sockets, whose paths end after 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="wsdm-"))
    token = folder / "token"
    token.write_text("0123456789abcdef" * 4)
    environment = (
        os.environ
        | NO_COMPILER
        | {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # the job's `python` is this one
            "RAY_ADDRESS": f"http://127.0.0.1:{options['dashboard-port']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_JOB_STOP_WAIT_TIME_S": "90",
            "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "REPORTER_UPDATE_INTERVAL_MS": "600000",
        }
    )
    command = [
        BIN / "ray", "start", "--head", "--block", "--num-cpus=2", "--include-dashboard=true",
        "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--object-store-memory=100000000",
        f"--temp-dir={folder / 'ray'}", f"--worker-port-list={','.join(map(str, ports[9:]))}",
        *(f"--{name}={port}" for name, port in options.items()),
    ]  # fmt: skip
    log = folder / "head.log"
    server_environment = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    try:
        with contextlib.ExitStack() as stack:
            for tries_left in (2, 1, 0):  # Ray gives a node 30 s to start, which a busy machine may not
                process = stack.enter_context(
                    run_process(command, log, patience_seconds=2, env=server_environment, cwd=folder)
                )
                try:
                    wait_until(f"{environment['RAY_ADDRESS']}/api/version", process, log)
                    # It takes no job before its agent is there. The manifests' probes ask the same: no token.
                    agent = f"http://127.0.0.1:{options['dashboard-agent-listen-port']}"
                    wait_until(f"{agent}/api/healthz", process, log)
                    break
                except AssertionError:
                    if not tries_left:
                        raise
                    stack.pop_all().close()
            yield environment
    finally:
        shutil.rmtree(folder, ignore_errors=True)


SENT = ("--runtime-env", "cluster/runtime-env.yaml")


def submit(
    environment: dict[str, str], *job: str, options: Sequence[str] = SENT, folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """`ray job submit` from a folder."""
    return ray_job(environment, "submit", *options, "--", *job, folder=folder)


def ray_job(
    environment: dict[str, str], verb: str, *words: str, folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    command = [BIN / "ray", "job", verb, "--address", environment["RAY_ADDRESS"], *words]
    return subprocess.run(
        command,
        cwd=folder,
        env={name: value for name, value in environment.items() if name != "RAY_ADDRESS"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


LIST = (
    'import pathlib, wsdm_ray; print("FROM", wsdm_ray.__file__); '
    '[print("FILE", path.stat().st_size, path) for path in pathlib.Path().rglob("*") if path.is_file()]'
)


@pytest.mark.long
def test_a_submitted_job(head, classifier, prepared, tmp_path):
    """What it is sent, a job that fails and one that scores on the cluster it was submitted to, in one."""
    missing, output = tmp_path / "missing", tmp_path / "predictions"
    fails = f"python -m jobs.prepare --input {missing} --output {tmp_path / 'out'}"
    scores = f"python -m jobs.score --model {classifier} --input {prepared}/valid --output {output}"
    run = submit(head, "sh", "-c", f"python -c '{LIST}' && {fails} || {scores} --token-budget 1024")
    assert run.returncode == 0, run.stdout
    assert "succeeded" in run.stdout
    assert f"error: {missing}: not found; check the path\n" in run.stdout
    assert "rows" in run.stdout, "the job's own lines come back"
    listed = [line for line in run.stdout.splitlines() if line.startswith(("FROM ", "FILE "))]
    assert not [line for line in unexpected(run.stdout, submitted=True) if line not in listed]
    counts = read_json(f"{output}.run/run.json")["counts"]
    assert counts["rows"] == read_json(f"{prepared}/run.json")["counts"]["kept"]["valid"]
    check_upload(listed)


@pytest.mark.long
def test_a_stopped_job_goes_on(head, classifier, tmp_path):
    """As in an image that has the package: nothing is sent, and no copy of the repository is there."""
    make_pairs(str(tmp_path / "pairs"), 4, 4_000)
    output = tmp_path / "predictions"
    job = f"wsdm-ray score --model {classifier} --input {tmp_path}/pairs --output {output} --unit-rows 40"
    first = submit(head, *job.split(), options=("--no-wait", "--submission-id", "first"), folder=tmp_path)
    assert first.returncode == 0, first.stdout
    wait_for(lambda: list(output.glob("part-*.parquet")))
    assert ray_job(head, "stop", "first").returncode == 0
    log = ray_job(head, "logs", "first").stdout
    assert "score: stopped; of 100 units that were left" in log, log
    assert "run the same command to go on" in log
    committed = {path.name: path.stat().st_mtime_ns for path in output.glob("part-*.parquet")}
    assert 0 < len(committed) < 100
    second = submit(head, *job.split(), options=(), folder=tmp_path)
    assert second.returncode == 0, second.stdout
    assert f"{len(committed)} of 100 parts are there" in second.stdout, second.stdout
    there = {path.name: path.stat().st_mtime_ns for path in output.glob("part-*.parquet")}
    assert len(there) == 100
    assert committed.items() <= there.items(), "a committed unit is not written again"
    assert read_json(f"{output}.run/run.json")["counts"]["rows"] == 4_000


@pytest.mark.long
def test_what_one_submitted_job_trains_another_makes_pseudolabels_with(head, int8_base, prepared, tmp_path):
    model, labels = tmp_path / "model", tmp_path / "labels"
    train = (
        f"python -m jobs.train --preset tiny --base {int8_base} --train {prepared}/train "
        f"--valid {prepared}/valid --output {model} --max-steps 4 --pairs-per-step 8 --checkpoint-steps 2"
    )
    label = (
        f"python -m jobs.pseudolabel --model {model} --input {prepared}/train --exclude {prepared}/valid "
        f"--output {labels} --token-budget 1024"
    )
    for job, told in ((train, f"{model} holds the classifier of step"), (label, "rows")):
        run = submit(head, *job.split())
        assert run.returncode == 0, run.stdout
        assert told in run.stdout
        assert not unexpected(run.stdout, submitted=True)
    counts = read_json(f"{prepared}/run.json")["counts"]["kept"]
    assert len(metrics_of(model)) == 4
    assert sum(pq.read_metadata(path).num_rows for path in (labels / "train").iterdir()) == counts["train"]


def test_a_job_that_fails_is_a_failure_of_submit(head, tmp_path):
    run = submit(
        head, "wsdm-ray", "prepare", "--input", "missing", "--output", "out", options=(), folder=tmp_path
    )
    assert run.returncode == 1, run.stdout
    assert "error: missing: not found; check the path\n" in run.stdout


def check_upload(listed: list[str]) -> None:
    """It is small: the job's working directory holds the two packages and nothing else."""
    (package,) = (line for line in listed if line.startswith("FROM "))
    assert package.startswith("FROM /")
    assert not package.startswith(f"FROM {ROOT}"), "the job runs what was uploaded"
    lines = [line.split(" ", 2) for line in listed if line.startswith("FILE ")]
    sizes = {path: int(size) for _, size, path in lines}
    assert {
        "wsdm_ray/storage/files.py",
        "wsdm_ray/data/languages/english.toml",
        "wsdm_ray/evaluation/report.html",
        "jobs/prepare.py",
    } <= sizes.keys()
    files = [
        path for package in ("jobs", "wsdm_ray") for path in (ROOT / package).rglob("*") if path.is_file()
    ]
    ours = {str(path.relative_to(ROOT)): path.stat().st_size for path in files}
    assert sizes == {path: size for path, size in ours.items() if "__pycache__" not in path}
    assert sum(sizes.values()) < UPLOAD_LIMIT_BYTES


def test_client_with_another_token_is_refused(head):
    run = submit(head | {"RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_TOKEN": "f" * 64}, "true")
    assert run.returncode != 0
    assert "authentication" in run.stdout.lower()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{head['RAY_ADDRESS']}/api/jobs/")
