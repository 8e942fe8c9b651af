"""Object stores for integration tests: a real server each, started when first asked for."""

import re
from collections.abc import Iterator

import pytest

from tests.integration.servers import run_gcs, run_s3
from wsdm_ray.storage import filesystem


@pytest.fixture(scope="session")
def s3_server(store_ports: tuple[int, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a bucket on an S3 server of this session."""
    with run_s3(tmp_path_factory.mktemp("s3"), store_ports[0]):
        yield make_bucket("s3://tests")


@pytest.fixture(scope="session")
def gcs_server(store_ports: tuple[int, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a bucket on a GCS server of this session."""
    with run_gcs(tmp_path_factory.mktemp("gcs"), store_ports[1]):
        yield make_bucket("gs://tests")


@pytest.fixture(params=["s3", "gcs"])
def bucket(request: pytest.FixtureRequest) -> str:
    """URL of an empty folder of its own in a bucket, of either kind."""
    return own_folder(request.getfixturevalue(f"{request.param}_server"), request)


@pytest.fixture
def s3_bucket(s3_server: str, request: pytest.FixtureRequest) -> str:
    """URL of an empty folder of its own in an S3 bucket."""
    return own_folder(s3_server, request)


def own_folder(bucket: str, request: pytest.FixtureRequest) -> str:
    # One bucket for all tests, as SeaweedFS gives each bucket volumes of its own, which run out.
    return f"{bucket}/{re.sub(r'[^a-z0-9]+', '-', request.node.name.lower()).strip('-')}"


def make_bucket(url: str) -> str:
    fs, inner = filesystem(url)
    fs.mkdir(inner)
    return url
