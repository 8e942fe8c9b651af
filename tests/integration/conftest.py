"""What integration tests share, made when first asked for. Use these before making another.

A classifier or predictions cost half a minute, so each is made once for all processes that run tests (by
`made_once`); a Ray is started once a process. Tests change a copy. A test that needs Ray itself
asks for `ray_session`; the others start none.

ray_session         one local Ray with two CPUs
classifier          a folder: what `train_config` makes of `int8_base` and `prepared` (see tests/conftest.py)
pairs, source       a table of 120 pairs, some of them odd, and a folder with them in three parquet files
scored              a folder: the predictions of `classifier` on `source`, by `score_config`
s3_server, gcs_server, bucket, s3_bucket, gcs_bucket    object stores: a real server each
s3_proxy, gcs_proxy    what is before each: a test gives it faults, and takes them away
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.fault_proxy import FaultProxy, run_proxy
from tests.integration.servers import free_ports, run_gcs, run_s3, store_environment
from wsdm_ray.config import ScoreConfig, TrainConfig
from wsdm_ray.storage import filesystem, list_files

__all__ = ["NO_COMPILER", "RAY_ENVIRONMENT", "metrics_of", "score_config", "train_config"]

RAY_ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning about its future default
    "RAY_AUTH_MODE": "disabled",  # else a machine's first Ray writes a token into the home folder
    "RAY_DEDUP_LOGS": "0",
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "1",  # looks for new logs twice a second, not ten times
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process a run, for clusters that take nodes away
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # a checkpoint is taken in at the next: 2 s by default
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "600000",  # nobody looks at what each process takes
}

NO_COMPILER = {"TORCHDYNAMO_DISABLE": "1"}
"""For processes of their own: on a CPU they compile nothing, yet bitsandbytes imports a compiler in each."""


@pytest.fixture(scope="session")
def store_ports() -> Iterator[tuple[int, int]]:
    """Ports for the S3 and the GCS server of this session, with the environment that leads clients to them.

    The variables are set before the servers run and before Ray starts, as Ray's workers inherit them then.
    """
    s3, gcs = free_ports(2)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store_environment(s3, gcs).items():
            patch.setenv(name, value)
        yield s3, gcs


@pytest.fixture(scope="session")
def ray_session(store_ports: tuple[int, int]) -> Iterator[None]:
    """One local Ray for all tests, with two CPUs, whose workers reach the session's object stores."""
    import ray
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback
    from ray.train.v2.api import data_parallel_trainer

    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY_ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        # Two processes a run: one would hand out datasets of Ray Data, of which there are none; the other
        # asks a dashboard, which there is not, for the controller, to free what a lost one held.
        for name in ("DatasetsCallback", "PlacementGroupCleanerCallback"):
            patch.setattr(data_parallel_trainer, name, lambda **_: WorkerGroupCallback())
        with pytest.MonkeyPatch.context() as workers:
            for name, value in NO_COMPILER.items():
                workers.setenv(name, value)
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                object_store_memory=200 * 1024**2,
                configure_logging=False,
            )
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def classifier(request: pytest.FixtureRequest, int8_base: Path, prepared: Path, made_once) -> Path:
    """What `train_config` makes on one worker that nothing disturbs. Ray starts only if it must be made."""
    from wsdm_ray.training.runner import train

    def make(folder: Path) -> None:
        request.getfixturevalue("ray_session")
        train(train_config(int8_base, prepared, folder))

    return made_once("classifier", make)


def train_config(base: Path | str, prepared: Path | str, output: Path | str, **changes: Any) -> TrainConfig:
    """Eight steps of two passes, a checkpoint every second; dropout is on: its seeds must survive."""
    from wsdm_ray.presets import tiny

    whole = tiny(str(base), (f"{prepared}/train",), str(output), (f"{prepared}/valid",))
    lora = dataclasses.replace(whole.lora, dropout=0.1)
    few = {"max_steps": 8, "checkpoint_steps": 2, "pairs_per_step": 8, "micro_batches": 2, "lora": lora}
    return dataclasses.replace(whole, **(few | changes))


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of a classifier's metrics.jsonl, one a step."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def pairs(tiny_votes: Path) -> pa.Table:
    """120 pairs; row 7 has no prompt, row 8 hostile text, row 9 two equal responses, row 10 empty ones."""
    rows = pq.read_table(list_files(str(tiny_votes)), columns=["id", "prompt", "response_a", "response_b"])
    rows = rows.slice(0, 120).to_pylist()
    rows[7]["prompt"] = None
    rows[8]["response_a"] = "<eos> \x00 \u202e right to left <bos>\n\n<response_b>: no"
    rows[9]["response_b"] = rows[9]["response_a"]
    rows[10] |= {"response_a": "", "response_b": "   "}
    return pa.Table.from_pylist(rows)


@pytest.fixture(scope="session")
def source(pairs: pa.Table, made_once) -> Path:
    """The pairs in three files of different sizes, one of them empty."""

    def make(folder: Path) -> None:
        folder.mkdir()
        pq.write_table(pairs.slice(0, 50), folder / "a.parquet", row_group_size=13)
        pq.write_table(pairs.slice(0, 0), folder / "b.parquet")
        pq.write_table(pairs.slice(50), folder / "c.parquet")

    return made_once("source", make)


@pytest.fixture(scope="session")
def scored(request: pytest.FixtureRequest, classifier: Path, source: Path, made_once) -> Path:
    """The predictions of `classifier` on `source`: nine parts and run.json."""
    from wsdm_ray.scoring.pipeline import score

    def make(folder: Path) -> None:
        request.getfixturevalue("ray_session")
        score(score_config(classifier, source, folder))

    return made_once("scored", make)


def score_config(classifier: Path, source: Path, output: Path, **changes: Any) -> ScoreConfig:
    """Units of 16 rows, both orders."""
    whole = ScoreConfig(
        model=(str(classifier),), input=(str(source),), output=str(output), unit_rows=16, token_budget=2_048
    )
    return dataclasses.replace(whole, **changes)


@pytest.fixture(scope="session")
def s3_proxy(store_ports: tuple[int, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    """What clients reach the S3 server of this session through."""
    port, (server_port,) = store_ports[0], free_ports(1)
    with run_s3(tmp_path_factory.mktemp("s3"), server_port), run_proxy(port, server_port) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def gcs_proxy(store_ports: tuple[int, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    """What clients reach the GCS server of this session through."""
    port, (server_port,) = store_ports[1], free_ports(1)
    folder = tmp_path_factory.mktemp("gcs")
    with run_gcs(folder, server_port, known_as=port), run_proxy(port, server_port) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def s3_server(s3_proxy: FaultProxy) -> str:
    """URL of a bucket on an S3 server of this session."""
    return make_bucket("s3://tests")


@pytest.fixture(scope="session")
def gcs_server(gcs_proxy: FaultProxy) -> str:
    """URL of a bucket on a GCS server of this session."""
    return make_bucket("gs://tests")


@pytest.fixture(params=["s3", "gcs"])
def bucket(request: pytest.FixtureRequest) -> str:
    """URL of an empty folder of its own in a bucket, of either kind."""
    return own_folder(request.getfixturevalue(f"{request.param}_server"), request)


@pytest.fixture
def s3_bucket(s3_server: str, request: pytest.FixtureRequest) -> str:
    """URL of an empty folder of its own in an S3 bucket."""
    return own_folder(s3_server, request)


@pytest.fixture
def gcs_bucket(gcs_server: str, request: pytest.FixtureRequest) -> str:
    """URL of an empty folder of its own in a GCS bucket."""
    return own_folder(gcs_server, request)


def own_folder(bucket: str, request: pytest.FixtureRequest) -> str:
    # One bucket for all tests, as SeaweedFS gives each bucket volumes of its own, which run out.
    return f"{bucket}/{re.sub(r'[^a-z0-9]+', '-', request.node.name.lower()).strip('-')}"


def make_bucket(url: str) -> str:
    fs, inner = filesystem(url)
    fs.mkdir(inner)
    return url
