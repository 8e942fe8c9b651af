"""Storage behind a proxy with faults: what passes is tried again and counted, what lasts ends in one line."""

import time
from collections.abc import Iterator

import gcsfs.retry
import numpy as np
import pyarrow as pa
import pytest

from tests.integration.fault_proxy import KINDS, FaultProxy, Faults
from wsdm_ray import storage
from wsdm_ray.errors import StorageError
from wsdm_ray.runs import names_in
from wsdm_ray.storage import patience


@pytest.fixture(params=["s3", "gcs"])
def faulty(request: pytest.FixtureRequest) -> Iterator[tuple[str, FaultProxy]]:
    """An empty folder of a bucket, and the proxy before its store."""
    proxy: FaultProxy = request.getfixturevalue(f"{request.param}_proxy")
    yield request.getfixturevalue(f"{request.param}_bucket"), proxy
    proxy.use(Faults())


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """gcsfs pauses for seconds where botocore pauses for parts of one."""
    sleep = gcsfs.retry.asyncio.sleep
    quick = type("Quick", (), {"sleep": staticmethod(lambda seconds: sleep(seconds / 30))})
    monkeypatch.setattr(gcsfs.retry, "asyncio", quick)
    monkeypatch.setattr(patience, "PATIENCE", patience.Patience())


def test_everything_arrives_whatever_fails_in_passing(faulty, tmp_path):
    bucket, proxy = faulty
    rng = np.random.default_rng(0)
    tables = {f"{bucket}/in/{name}.parquet": pa.table({"x": rng.integers(0, 9, 3_000)}) for name in range(4)}
    before = proxy.counts.copy()
    proxy.use(Faults(seed=4, rate=0.4))
    for path, table in tables.items():
        storage.write_parquet(path, table)
    assert storage.list_files(f"{bucket}/in") == list(tables)
    for path, table in tables.items():
        with storage.open_parquet(path) as file:
            assert file.read().equals(table)
    weights = rng.bytes(3 << 20)
    (tmp_path / "w.safetensors").write_bytes(weights)
    storage.upload_folder(str(tmp_path), f"{bucket}/model", last="w.safetensors")
    with storage.open_read(f"{bucket}/model/w.safetensors") as file:
        assert file.read() == weights
    for path in list(tables)[1:]:
        storage.delete_file(path)
    counts = proxy.counts - before
    proxy.use(Faults())
    assert storage.list_files(f"{bucket}/in") == list(tables)[:1]
    storage.delete_folder(f"{bucket}/in")
    assert sum(counts[kind] > 0 for kind in KINDS) >= 4, counts
    assert sum(storage.retries().values()) >= counts["500"] + counts["503"]


@pytest.mark.timeout(60)
def test_a_clock_that_is_set_back_stops_no_request(faulty, monkeypatch):
    """Clients that throttle themselves by the wall clock would wait until it is where it was."""
    bucket, proxy = faulty
    proxy.use(Faults(seed=1, rate=0.5, kinds=("503",)))
    storage.write_json(f"{bucket}/a.json", 0)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 3_600)
    for number in range(1, 6):
        storage.write_json(f"{bucket}/a.json", number)
        assert storage.read_json(f"{bucket}/a.json") == number
    assert storage.retries()


def test_a_store_that_comes_back_in_time(faulty):
    """Reads, writes and what fsspec's `isfile` guesses: it takes an error for no file."""
    bucket, proxy = faulty
    storage.write_json(f"{bucket}/a.json", 1)
    proxy.use(Faults(away_after=1, away_seconds=0.7))
    assert storage.list_files(f"{bucket}/a.json", (".json",)) == [f"{bucket}/a.json"]
    proxy.use(Faults(away_after=1, away_seconds=0.7))
    storage.write_json(f"{bucket}/a.json", 2)
    assert storage.read_json(f"{bucket}/a.json") == 2
    assert sum(storage.retries().values()) > 0


def test_a_store_that_stays_away_ends_in_one_line(faulty):
    bucket, proxy = faulty
    storage.set_store_timeout(1.0)
    storage.write_json(f"{bucket}/a.json", 1)
    proxy.use(Faults(away_after=1, away_seconds=60.0))
    with pytest.raises(StorageError, match=r"a\.json: .*tries in \d+ s\); run the same command again when"):
        storage.read_json(f"{bucket}/a.json")


def test_what_is_denied_is_not_tried_again(faulty):
    bucket, proxy = faulty
    storage.check_writable(f"{bucket}/out")
    assert names_in(f"{bucket}/out") == []
    proxy.use(Faults(rate=1.0, kinds=("403",)))
    with pytest.raises(StorageError, match=r"/out: .*credentials"):
        storage.check_writable(f"{bucket}/out")
    assert proxy.requests == 1
    assert not storage.retries()
