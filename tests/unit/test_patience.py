"""What a store's client raises is told apart, and what passes is tried again until the time is over."""

import pickle
from types import SimpleNamespace
from typing import Any

import aiohttp
import botocore.exceptions
import fsspec
import gcsfs.retry
import pytest
from aiohttp.http_exceptions import ContentLengthError
from s3fs.errors import translate_boto_error

from wsdm_ray import storage
from wsdm_ray.errors import StorageError
from wsdm_ray.storage import patience


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """A process that has met no store."""
    monkeypatch.setattr(patience, "PATIENCE", patience.Patience())
    return patience.PATIENCE


def of_s3(status: int, code: str) -> Exception:
    """An error as s3fs raises it."""
    response = {"Error": {"Code": code, "Message": ""}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = botocore.exceptions.ClientError(response, "GetObject")
    return translate_boto_error(error)


def within(cause: Exception, error: Exception) -> Exception:
    error.__cause__ = cause
    return error


PASSES = [
    of_s3(503, "SlowDown"),
    of_s3(500, "InternalError"),
    of_s3(502, "502"),
    of_s3(400, "RequestTimeout"),
    of_s3(400, "BadDigest"),
    botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"),
    botocore.exceptions.ReadTimeoutError(endpoint_url="http://x"),
    within(ContentLengthError("cut"), aiohttp.ClientPayloadError()),
    aiohttp.ServerDisconnectedError(),
    gcsfs.retry.HttpError({"code": 503}),
    gcsfs.retry.HttpError({"code": "429"}),
    ConnectionResetError(),
    TimeoutError(),
]
STAYS = [
    of_s3(403, "InvalidAccessKeyId"),
    of_s3(403, "SignatureDoesNotMatch"),
    of_s3(404, "NoSuchBucket"),
    of_s3(412, "PreconditionFailed"),
    of_s3(301, "PermanentRedirect"),
    botocore.exceptions.NoCredentialsError(),
    gcsfs.retry.HttpError({"code": 401}),
    OSError("Forbidden: x"),
    FileNotFoundError("x"),
    within(TimeoutError(), FileExistsError("x")),
    StorageError("x"),
    ValueError("x"),
]


@pytest.mark.parametrize("error", PASSES, ids=repr)
def test_what_passes(error):
    assert patience.is_transient(error)


@pytest.mark.parametrize("error", STAYS, ids=repr)
def test_what_stays(error):
    assert not patience.is_transient(error)


class Store:
    """An operation that fails until a time, on a clock that only its pauses move."""

    def __init__(self, back_at: float, error: Exception):
        self.now, self.back_at, self.error, self.calls = 0.0, back_at, error, 0

    def act(self) -> str:
        self.calls += 1
        if self.now < self.back_at:
            raise self.error
        return "done"

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def run(self) -> str:
        return patience.patiently("s3", self.act, clock=lambda: self.now, sleep=self.sleep)


@pytest.mark.parametrize("error", [of_s3(503, "SlowDown"), ConnectionResetError()])
def test_a_store_that_was_known_has_its_time(error):
    storage.set_store_timeout(60.0, reached=True)
    store = Store(back_at=45.0, error=error)
    assert store.run() == "done"
    assert 45 <= store.now < 45 + patience.LONGEST_PAUSE_SECONDS
    assert 5 <= store.calls <= 25, "pauses grow"
    assert storage.retries() == {"s3": store.calls - 1}
    store = Store(back_at=1e9, error=error)
    with pytest.raises(patience.StoreAwayError, match=rf"{type(error).__name__}: .*tries in \d+ s\)"):
        store.run()
    assert 60 - patience.LONGEST_PAUSE_SECONDS < store.now <= 60


def test_an_endpoint_that_never_answered_has_little_time():
    storage.set_store_timeout(60.0)
    store = Store(back_at=1e9, error=ConnectionRefusedError())
    with pytest.raises(patience.StoreAwayError) as caught:
        store.run()
    assert store.now <= patience.FIRST_CONTACT_SECONDS
    assert not caught.value.has_answered
    assert Store(back_at=45.0, error=of_s3(503, "SlowDown")).run() == "done", "it answered"
    assert Store(back_at=45.0, error=ConnectionRefusedError()).run() == "done"


def test_what_stays_is_raised_at_once():
    store = Store(back_at=1e9, error=PermissionError("no"))
    with pytest.raises(PermissionError):
        store.run()
    assert store.calls == 1
    assert not storage.retries()


def test_operations_and_reads_of_a_store_are_repeated(monkeypatch):
    """`isfile` too, which takes errors for a no in fsspec."""
    failures = iter([ConnectionResetError()] * 4)
    monkeypatch.setattr(patience, "PAUSE_SECONDS", 0.0)

    def failing_first(act):
        def once(*arguments, **options):
            for error in failures:
                raise error
            return act(*arguments, **options)

        return once

    inner = fsspec.filesystem("memory")
    inner.pipe_file("/bucket/a", b"abc")
    fs = patience.PatientStore(SimpleNamespace(**{
        name: failing_first(getattr(inner, name)) for name in ("info", "ls", "open", "pipe_file", "rm_file")
    }), "s3")  # fmt: skip
    assert fs.isfile("/bucket/a")
    assert storage.retries() == {"s3": 4}
    cache = SimpleNamespace(fetcher=failing_first(lambda start, stop: b"abc"[start:stop]))
    fs.fs.open = lambda path, mode: SimpleNamespace(cache=cache)
    failures = iter([aiohttp.ClientPayloadError()] * 2)
    assert fs.open("/bucket/a").cache.fetcher(0, 2) == b"ab"
    assert storage.retries() == {"s3": 6}
    inner.rm_file("/bucket/a")


def test_it_travels_to_other_processes():
    fs: Any = storage.filesystem("memory://bucket/a")[0]
    copy = pickle.loads(pickle.dumps(fs))
    assert (type(copy), copy.scheme, copy.fs) == (patience.PatientStore, "memory", fs.fs)
