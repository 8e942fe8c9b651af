"""A file that is created only where there is none: on a disk, and with the answers that stores give."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from wsdm_ray import storage
from wsdm_ray.errors import StorageError
from wsdm_ray.storage import read_json, write_json


class ClientError(Exception):
    """An answer of S3, as botocore raises it."""

    def __init__(self, status: int):
        super().__init__(f"An error occurred ({status})")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


@pytest.fixture
def path(tmp_path) -> str:
    """A path in the store in memory."""
    return f"memory://{tmp_path.name}/file.json"


def answers(monkeypatch, *statuses: int, writes: bool = False) -> list[str]:
    """Let the store answer its next conditional puts so (0: as it should); returns the modes of all puts.

    Args:
        writes: the puts are done nevertheless, as where an answer is lost and the client asks again.
    """
    ahead, modes = list(statuses), []
    put = MemoryFileSystem.pipe_file

    def pipe_file(self, path, value, mode="overwrite", **options):
        modes.append(mode)
        status = ahead.pop(0) if mode == "create" and ahead else 0
        if writes or not status:
            put(self, path, value, mode=mode, **options)
        if status:
            raise OSError(errno.EINVAL, "refused") from ClientError(status)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    return modes


@pytest.mark.parametrize("remote", [False, True])
def test_what_is_there_stays(tmp_path, path, remote):
    place = path if remote else str(tmp_path / "new" / "file.json")
    assert write_json(place, 1, only_new=True)
    assert not write_json(place, 2, only_new=True)
    assert read_json(place) == 1
    assert write_json(place, 3)
    assert read_json(place) == 3
    if not remote:
        assert [each.name for each in (tmp_path / "new").iterdir()] == ["file.json"]


def test_one_of_many_at_once_creates_it(tmp_path):
    many = 16
    begin = threading.Barrier(many)

    def create(value: int) -> bool:
        begin.wait()
        return write_json(str(tmp_path / "file.json"), value, only_new=True)

    with ThreadPoolExecutor(many) as pool:
        created = list(pool.map(create, range(many)))
    assert created.count(True) == 1
    assert read_json(str(tmp_path / "file.json")) == created.index(True)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_a_disk_without_links_creates_it_too(tmp_path, monkeypatch, number):
    def link(*_):
        raise OSError(number, "no links here")

    monkeypatch.setattr(os, "link", link)
    test_what_is_there_stays(tmp_path, "", remote=False)


def test_other_errors_of_a_disk_are_errors(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StorageError, match=r"file\.json: .*free space on its disk"):
        write_json(str(tmp_path / "file.json"), 1, only_new=True)
    assert not list(tmp_path.iterdir())


def test_s3_refuses_where_another_file_is_there(path, monkeypatch):
    write_json(path, "another's")
    answers(monkeypatch, 412)
    assert not write_json(path, "mine", only_new=True)
    assert read_json(path) == "another's"


def test_a_lost_answer_is_known_by_what_is_there(path, monkeypatch):
    answers(monkeypatch, 412, writes=True)
    assert write_json(path, "mine", only_new=True)


def test_two_requests_of_the_same_instant_are_tried_again(path, monkeypatch):
    modes = answers(monkeypatch, 409, 409)
    assert write_json(path, "mine", only_new=True)
    assert modes == ["create"] * 3


def test_a_file_that_is_deleted_meanwhile_is_created(path, monkeypatch):
    modes = answers(monkeypatch, 412)
    assert write_json(path, "mine", only_new=True)
    assert modes == ["create"] * 2
    assert read_json(path) == "mine"


def test_a_store_that_knows_no_conditions_is_asked_first(path, monkeypatch):
    modes = answers(monkeypatch, 501, 501)
    assert write_json(path, "mine", only_new=True)
    assert not write_json(path, "another's", only_new=True)
    assert read_json(path) == "mine"
    assert modes == ["create", "overwrite", "create"]


def test_other_answers_are_errors(path, monkeypatch):
    answers(monkeypatch, 403)
    with pytest.raises(StorageError, match=r"file\.json"):
        write_json(path, "mine", only_new=True)
    assert not storage.exists(path)
