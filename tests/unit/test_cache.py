"""The cache of remote models is its user's own: where it is, who may write into it, what is in it."""

import errno
import os
import stat
import tempfile
from pathlib import Path

import fsspec
import pytest

from wsdm_ray import storage
from wsdm_ray.errors import StorageError
from wsdm_ray.storage import cache as module
from wsdm_ray.storage import folders


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder of this test's, with nothing in it, and a folder for temporary files."""
    monkeypatch.delenv("WSDM_RAY_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "home").mkdir()
    (tmp_path / "temporary").mkdir()
    return tmp_path / "home"


def test_it_is_in_the_home_folder_and_its_users_alone(home):
    folder = storage.cache_folder()
    assert folder == f"{home}/.cache/wsdm_ray"
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert storage.cache_folder() == folder


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("XDG_CACHE_HOME", "{home}/xdg", "{home}/xdg/wsdm_ray"),
        ("WSDM_RAY_CACHE", "{home}/own/cache", "{home}/own/cache"),
        ("WSDM_RAY_CACHE", "~/own", "{home}/own"),
    ],
)
def test_variables_name_another_place(home, monkeypatch, variable, value, expected):
    monkeypatch.setenv(variable, value.format(home=home))
    folder = storage.cache_folder()
    assert folder == expected.format(home=home)
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700


def test_a_home_that_cannot_be_written_is_done_without(home, monkeypatch):
    (home / ".cache").write_text("a file, as no folder can be made there, not even by root")
    folder = storage.cache_folder()
    assert folder == f"{home.parent}/temporary/wsdm_ray-{os.geteuid()}"
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    monkeypatch.setenv("WSDM_RAY_CACHE", str(home / ".cache" / "own"))
    with pytest.raises(StorageError, match=r"\.cache/own: "):
        storage.cache_folder()  # what the user names is not replaced


@pytest.mark.parametrize("place", ["home", "temporary"])
def test_a_folder_that_everybody_may_write_into_is_refused(home, place):
    folder = home / ".cache" / "wsdm_ray"
    if place == "temporary":
        (home / ".cache").write_text("")
        folder = home.parent / "temporary" / f"wsdm_ray-{os.geteuid()}"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(StorageError) as caught:
        storage.cache_folder()
    assert str(caught.value) == (
        f"{folder}: everybody may write into it; `chmod 700 {folder}`, or set WSDM_RAY_CACHE to a folder of "
        "your own"
    )


def test_a_folder_of_somebody_else_is_refused(home, monkeypatch):
    folder = storage.cache_folder()
    monkeypatch.setattr(module.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(StorageError) as caught:
        storage.cache_folder()
    assert str(caught.value) == (
        f"{folder}: belongs to another user (id {os.getuid()}); set WSDM_RAY_CACHE to a folder of your own"
    )


def test_copies_are_named_measured_and_cleared(home):
    fs = fsspec.filesystem("memory")
    model = "memory://cached-models/gemma"
    for name, size in (("a.json", 10), ("b.safetensors", 90)):
        fs.pipe_file(f"/cached-models/gemma/{name}", bytes(size))
    copy = storage.local_copy(model)
    os.utime(copy, (1, 1))
    half = Path(storage.cache_folder(), f"{module.UNFINISHED}x")
    half.mkdir()
    first, second = storage.cached_folders()
    assert first.name == half.name
    assert second.name == Path(copy).name
    assert second.name.startswith("memory-cached-models-gemma-")
    assert (second.bytes, second.last_used) == (100, 1)
    assert storage.local_copy(model) == copy
    assert storage.cached_folders()[0].name == Path(copy).name, "a copy that is used is the last used"
    assert {folder.name for folder in storage.clear_cache()} == {half.name, Path(copy).name}
    assert storage.cached_folders() == []
    assert os.listdir(storage.local_copy(model))
    fs.rm("/cached-models", recursive=True)


def test_names_differ_where_versions_do():
    long = "s3://bucket/" + "models/" * 60 + "gemma"
    names = {module.entry_name(long, identity) for identity in ("1", "2")}
    assert len(names) == 2
    assert all(len(name) < 128 and name.split("-")[1] == "models" for name in names), names


@pytest.mark.parametrize("remote", [False, True])
def test_a_models_identity_changes_with_its_files_and_fetches_none(home, tmp_path, remote):
    folder = "memory://identity" if remote else str(tmp_path / "model")
    fs, inner = storage.filesystem(folder)
    fs.makedirs(inner, exist_ok=True)
    fs.pipe_file(f"{inner}/a", b"1")
    before = storage.folder_identity(folder)
    assert storage.folder_identity(folder) == before
    fs.pipe_file(f"{inner}/b", b"2")
    assert storage.folder_identity(folder) != before
    fs.rm_file(f"{inner}/b")
    if not remote:
        assert storage.folder_identity(folder) == before
    fs.pipe_file(f"{inner}/a", b"12")
    assert storage.folder_identity(folder) != before
    assert not list(Path(home).rglob("*-*")), "nothing is cached"


@pytest.fixture
def model():
    """A model folder in a store, of three files and a folder."""
    fs = fsspec.filesystem("memory")
    for name in ("config.json", "tokenizer.json", "model.safetensors", "checkpoints/tokenizer.json"):
        fs.pipe_file(f"/files-of-models/gemma/{name}", name.encode())
    yield "memory://files-of-models/gemma"
    fs.rm("/files-of-models", recursive=True)


NAMES = ("tokenizer.json", "config.json", "other.json")


def test_some_files_are_fetched_alone_and_for_a_while(home, model):
    with storage.copy_of_files(model, NAMES) as folder:
        assert sorted(os.listdir(folder)) == ["config.json", "tokenizer.json"]
        assert Path(folder, "tokenizer.json").read_text() == "tokenizer.json"
        assert Path(folder).parent == Path(tempfile.gettempdir())
    assert os.listdir(tempfile.gettempdir()) == []
    assert storage.cached_folders() == []
    whole = storage.local_copy(model)
    with storage.copy_of_files(model, NAMES) as folder:
        assert folder == whole
    with storage.copy_of_files(whole, NAMES) as folder:
        assert folder == whole
    assert "model.safetensors" in os.listdir(whole)


def test_some_files_fit_into_memory_where_the_disk_is_full(home, model, tmp_path, monkeypatch):
    fs, fetched = fsspec.filesystem("memory"), type(fsspec.filesystem("memory")).get_file
    full = [home, tmp_path / "temporary"]

    def get_file(self, path, target, **options):
        if any(Path(target).is_relative_to(folder) for folder in full):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fetched(self, path, target, **options)

    monkeypatch.setattr(type(fs), "get_file", get_file)
    monkeypatch.setattr(folders, "IN_MEMORY", (str(tmp_path),))
    with storage.copy_of_files(model, NAMES) as folder:
        assert Path(folder).parent == tmp_path
        assert sorted(os.listdir(folder)) == ["config.json", "tokenizer.json"]
    assert sorted(os.listdir(tmp_path)) == ["home", "temporary"]
    full.append(tmp_path)
    with (
        pytest.raises(StorageError, match=r"gemma: .*No space left on device; free space on its disk"),
        storage.copy_of_files(model, NAMES),
    ):
        pass
    assert sorted(os.listdir(tmp_path)) == ["home", "temporary"]
    monkeypatch.setattr(folders, "IN_MEMORY", ())
    with pytest.raises(StorageError, match="No space left"), storage.copy_of_files(model, NAMES):
        pass


def test_some_files_fit_into_memory_where_no_disk_takes_a_file(home, model, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    monkeypatch.setattr(folders, "IN_MEMORY", (str(tmp_path),))
    with storage.copy_of_files(model, NAMES) as folder:
        assert Path(folder).parent == tmp_path
    monkeypatch.setattr(folders, "IN_MEMORY", ())
    said = "gemma: no folder takes temporary files; free space on the disk, or set TMPDIR"
    with pytest.raises(StorageError, match=said), storage.copy_of_files(model, NAMES):
        pass
