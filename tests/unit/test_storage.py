"""Files on a local disk are whole or not there; whatever goes wrong is one line. Stores: integration."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pyarrow as pa
import pytest

from tests.runs import open_run
from wsdm_ray import storage
from wsdm_ray.errors import DataError, ModelError, StorageError
from wsdm_ray.storage import listing

SLOW_WRITER = """
import sys, time
from wsdm_ray.storage import write_atomic

def write(file):
    file.write(b"half")
    file.flush()
    print("half", flush=True)
    time.sleep(60)

write_atomic(sys.argv[1], write)
"""


@pytest.fixture
def remote():
    """An empty folder of fsspec's in-memory file system, which goes the way of the object stores."""
    fs = fsspec.filesystem("memory")
    folder = f"memory://bucket-{time.monotonic_ns()}"
    yield folder
    with contextlib.suppress(FileNotFoundError):
        fs.rm(folder.removeprefix("memory:/"), recursive=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_killed_writer_leaves_the_old_file_and_the_folder_usable(tmp_path):
    path = tmp_path / "run" / "part-000000.parquet"
    storage.write_atomic(str(path), lambda file: file.write(b"old"))
    with subprocess.Popen(
        [sys.executable, "-c", SLOW_WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "half\n"
        writer.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"old"
    (leftover,) = [name for name in names(path.parent) if name != path.name]
    assert storage.is_leftover(leftover)
    assert storage.list_files(str(path.parent)) == [str(path)]
    path.unlink()
    assert open_run(str(path.parent), "prepare", {}, restart=False) is None, "the leftover is nobody's file"


@pytest.mark.parametrize("where", ["local", "remote"])
def test_failing_writer_leaves_nothing(tmp_path, remote, where):
    folder = str(tmp_path) if where == "local" else remote

    def fail(file):
        file.write(b"half")
        raise ZeroDivisionError

    storage.write_json(storage.join(folder, "old.json"), 1)
    with pytest.raises(ZeroDivisionError):  # a defect of the caller keeps its type
        storage.write_atomic(storage.join(folder, "new.json"), fail)
    assert storage.list_files(folder, (".json", ".tmp")) == [storage.join(folder, "old.json")]
    assert where == "remote" or names(tmp_path) == ["old.json"]


def test_json_and_parquet_come_back(tmp_path, remote):
    table = pa.table({"id": list(range(5_000)), "text": ["é\x00"] * 5_000})
    for folder in (str(tmp_path / "new"), remote, f"file://{tmp_path}/scheme"):
        storage.write_json(storage.join(folder, "a.json"), {"é": [1, None]})
        assert storage.read_json(storage.join(folder, "a.json")) == {"é": [1, None]}
        storage.write_parquet(storage.join(folder, "t.parquet"), table)
        with storage.open_parquet(storage.join(folder, "t.parquet")) as file:
            assert file.num_row_groups == 3
            assert file.read().equals(table)
        assert storage.exists(folder)
        assert not storage.exists(storage.join(folder, "none"))


def test_list_files_takes_files_folders_and_globs(tmp_path, remote):
    for folder in (str(tmp_path), remote):
        for name in (
            "b.parquet",
            "a.parquet",
            "in/c.parquet",
            "x.txt",
            "_run.json",
            ".h/d.parquet",
            "_t/e.parquet",
        ):
            storage.write_json(storage.join(folder, name), 1)

        def full(*names, folder=folder):
            return [storage.join(folder, name) for name in names]

        assert storage.list_files(folder) == full("a.parquet", "b.parquet", "in/c.parquet")
        assert storage.list_files([*full("b.parquet"), folder]) == full(
            "b.parquet", "a.parquet", "in/c.parquet"
        )
        assert storage.list_files(full("?.parquet")) == full("a.parquet", "b.parquet")
        assert storage.list_files(full("x.txt")) == full("x.txt")
        with pytest.raises(StorageError, match=r"none: not found; check the path"):
            storage.list_files(full("none"))
        with pytest.raises(StorageError, match=r"\.csv"):
            storage.list_files(folder, (".csv",))


def test_folders_in_capitals_in_brackets_and_by_glob(tmp_path, caplog):
    folder = tmp_path / "sets [1]" / "more"
    folder.mkdir(parents=True)
    for name in ("a.parquet", "b.PARQUET", "c.csv.gz", "run.json", "notes.txt"):
        (folder / name).write_bytes(b"")
    expected = [str(folder / name) for name in ("a.parquet", "b.PARQUET")]
    for path in (tmp_path / "sets [1]", tmp_path / "sets*", tmp_path / "s*" / "m*"):
        assert storage.list_files(str(path)) == expected
    (told,) = {record.getMessage() for record in caplog.records if "sets [1]: " in record.getMessage()}
    assert "holds 1 files that are left out, as they do not end with .parquet, such as more/c.csv.gz" in told


def test_identity_tells_versions_apart(tmp_path, remote):
    for path in (str(tmp_path / "f"), storage.join(remote, "f")):
        storage.write_json(path, 1)
        before = storage.file_identity(path)
        assert before == storage.file_identity(path)
        assert before["bytes"] == 2
        time.sleep(0.01)
        storage.write_json(path, 2)
        assert storage.file_identity(path) != before


@pytest.mark.parametrize(
    ("content", "read", "error", "message"),
    [
        (None, storage.read_json, StorageError, "/f: not found; check the path"),
        (b"{", storage.read_json, DataError, "/f: not JSON"),
        (b"\xff\xfe", storage.read_json, DataError, "/f: not JSON"),
        (b"", lambda path: storage.open_parquet(path).__enter__(), DataError, "/f: not a parquet file"),
        (
            b"id,prompt\n" * 9,
            lambda path: storage.open_parquet(path).__enter__(),
            DataError,
            "; other kinds are known by their endings, such as .jsonl or .csv; rename, unpack or convert it",
        ),
        (b"", storage.local_copy, StorageError, "/f: no such folder; check the path"),
        (b"", lambda path: storage.write_json(path + "/x", 1), StorageError, "/f/x: "),
    ],
)
def test_errors_name_the_path_on_one_line(tmp_path, content, read, error, message):
    path = tmp_path / "f"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error) as caught:
        read(str(path))
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("/f", "file's owner and mode"),
        (
            "s3://b/f",
            "credentials; FSSPEC_S3_ANON=true reads a public bucket, FSSPEC_S3_REQUESTER_PAYS=true one whose "
            "user pays",
        ),
        (
            "gs://b/f",
            "credentials; FSSPEC_GS_TOKEN=anon reads a public bucket, FSSPEC_GS_REQUESTER_PAYS=PROJECT one "
            "whose user pays",
        ),
    ],
)
def test_no_permission(path, remedy):
    with pytest.raises(StorageError) as caught, storage.errors_for(path):
        raise PermissionError(13, "denied")
    assert str(caught.value) == f"{path}: permission denied; check the {remedy}"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free space on its disk, and run the same command again"),
        (errno.EROFS, "choose another folder"),
        (errno.EISDIR, "give a file, not a folder"),
        (errno.EEXIST, "choose another, as a folder in it is a file"),
        (errno.EIO, "check the disk"),
        (None, "it may be damaged: copy or make it anew"),
    ],
)
def test_what_a_disk_refuses(number, remedy):
    with pytest.raises(StorageError) as caught, storage.errors_for("/f"):
        raise OSError("no") if number is None else OSError(number, "no")
    assert str(caught.value).startswith("/f: ")
    assert str(caught.value).endswith(f"; {remedy}")


@pytest.mark.parametrize(
    ("path", "said", "hint"),
    [
        (
            "s3://b/f",
            "NoCredentialsError: Unable to locate credentials",
            "set AWS_PROFILE, or AWS_ACCESS_KEY_ID",
        ),
        (
            "s3://b/f",
            "PermanentRedirect: use the endpoint of",
            "set AWS_REGION to the bucket's region, and AWS_EN",
        ),
        (
            "s3://b/f",
            "AuthorizationHeaderMalformed: the region 'us-east-1' is wrong",
            "set AWS_REGION to the b",
        ),
        ("s3://b/f", "Could not connect to the endpoint URL", "AWS_ENDPOINT_URL is the endpoint"),
        (
            "gs://b/f",
            "Anonymous caller does not have storage.objects.get",
            "run `gcloud auth application-default",
        ),
        ("gs://b/f", "Bucket is a requester pays bucket but no user project", "FSSPEC_GS_TOKEN=anon reads"),
        ("s3://b/f", "InvalidArgument", "check the bucket"),
    ],
)
def test_a_stores_error_names_what_helps(path, said, hint):
    with pytest.raises(StorageError) as caught, storage.errors_for(path):
        raise OSError(errno.EINVAL, said)
    assert f"; {hint}" in str(caught.value)
    assert str(caught.value).endswith("check the bucket, the credentials and the endpoint")


def test_stores_are_reached_without_credentials_where_the_environment_says_so():
    """By fsspec, which reads its variables when it is imported."""
    code = (
        "from wsdm_ray.storage import filesystem\n"
        "s3, gs = (filesystem(f'{scheme}://bucket/key')[0] for scheme in ('s3', 'gs'))\n"
        "print(s3.anon, s3.req_kw, gs.storage_options['token'], gs.requester_pays)"
    )
    names = {"FSSPEC_S3_ANON": "true", "FSSPEC_S3_REQUESTER_PAYS": "true", "FSSPEC_GS_TOKEN": "anon"}
    environment = os.environ | names | {"FSSPEC_GS_REQUESTER_PAYS": "project"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.stdout == "True {'RequestPayer': 'requester'} anon project\n", run.stderr


def test_no_space_for_what_is_fetched():
    with pytest.raises(StorageError, match=r"^s3://b/f: OSError: .*; free space on its disk"):  # noqa: SIM117
        with storage.errors_for("s3://b/f"):
            raise OSError(errno.ENOSPC, "no")


def test_unknown_scheme():
    with pytest.raises(StorageError, match="hdfs://x: unknown scheme; use a local path, s3:// or gs://"):
        storage.exists("hdfs://x")


@pytest.mark.parametrize("own", [ModelError("no head"), KeyError("defect")])
def test_errors_of_the_reader_are_not_the_stores(remote, own):
    path = storage.join(remote, "f")
    storage.write_json(path, 1)
    with pytest.raises(type(own)) as caught, storage.open_read(path):
        raise own
    assert caught.value is own


def test_deleting_what_is_not_there(tmp_path, remote):
    for folder in (str(tmp_path / "new"), remote):
        storage.write_json(storage.join(folder, "in", "f"), 1)
        storage.delete_file(storage.join(folder, "in", "f"))
        storage.delete_file(storage.join(folder, "in", "f"))
        storage.write_json(storage.join(folder, "in", "g"), 1)
        storage.delete_folder(storage.join(folder, "in"))
        storage.delete_folder(storage.join(folder, "in"))
        assert not storage.exists(storage.join(folder, "in"))
        storage.write_json(storage.join(folder, "end"), 1)


def test_upload_ends_with_the_file_that_says_whole(tmp_path, remote, monkeypatch):
    local = tmp_path / "local"
    (local / "sub").mkdir(parents=True)
    for name in ("adapter.safetensors", "wsdm_ray.json", "zz.json"):
        (local / name).write_text(name)
    order = []
    rename, put = os.replace, type(fsspec.filesystem("memory")).put_file

    def seen_rename(source, path):  # what gives a local file its final name
        order.append(os.path.basename(path))
        assert not storage.exists(storage.join(target, "wsdm_ray.json"))
        rename(source, path)

    def seen_put(fs, source, path, **rest):
        order.append(os.path.basename(path))
        assert not storage.exists(storage.join(target, "wsdm_ray.json"))
        put(fs, source, path, **rest)

    monkeypatch.setattr(os, "replace", seen_rename)
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "put_file", seen_put)
    expected = ["adapter.safetensors", "zz.json", "wsdm_ray.json"]
    for target in (str(tmp_path / "there"), remote) * 2:  # the second time, over the first
        order.clear()
        storage.upload_folder(str(local), target, last="wsdm_ray.json")
        assert order == expected
        assert storage.list_files(target, ("s", "n")) == sorted(
            storage.join(target, name) for name in expected
        )
    with pytest.raises(AssertionError, match=r"holds no model\.json"):
        storage.upload_folder(str(local), remote, last="model.json")


def test_local_copy_of_a_local_folder_is_itself(tmp_path):
    assert storage.local_copy(str(tmp_path)) == str(tmp_path)
    assert storage.local_copy(f"file://{tmp_path}/") == str(tmp_path)
    assert storage.bytes_to_fetch(str(tmp_path)) == 0
    with pytest.raises(StorageError, match="none: no such folder"):
        storage.bytes_to_fetch(f"{tmp_path}/none")


def test_local_copy_fetches_a_version_once(tmp_path, remote, monkeypatch):
    monkeypatch.setenv("WSDM_RAY_CACHE", str(tmp_path / "cache"))
    model = storage.join(remote, "model")
    for name in ("a.bin", "b.json", "_checkpoints/a.bin"):
        storage.write_json(storage.join(model, name), name)
    sizes = [storage.file_version(storage.join(model, name)).size for name in ("a.bin", "b.json")]
    assert storage.bytes_to_fetch(model) == sum(sizes) > 0
    with ThreadPoolExecutor(8) as pool:
        copies = set(pool.map(storage.local_copy, [model] * 16))
    assert storage.bytes_to_fetch(model) == 0
    (copy,) = copies
    assert names(Path(copy)) == ["a.bin", "b.json"]
    assert names(tmp_path / "cache") == [os.path.basename(copy)], "nothing half done is left"
    time.sleep(0.01)
    storage.write_json(storage.join(model, "a.bin"), "new")
    again = storage.local_copy(model)
    assert again != copy
    assert storage.read_json(os.path.join(again, "a.bin")) == "new"
    for ask in (storage.local_copy, storage.bytes_to_fetch):
        with pytest.raises(StorageError, match="none: not found; check the path and the bucket"):
            ask(storage.join(remote, "none"))


def test_local_copy_says_when_the_cache_is_of_no_use(tmp_path, remote, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("WSDM_RAY_CACHE", str(tmp_path / "cache"))
    storage.write_json(storage.join(remote, "f"), 1)
    with pytest.raises(StorageError, match="/cache: FileExistsError"):
        storage.local_copy(remote)


def test_digest_depends_on_names_and_bytes(tmp_path):
    def digest(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return storage.sha256_of_files([str(tmp_path / name)])

    assert len({digest("a", "1"), digest("a", "2"), digest("b", "1")}) == 3
    assert digest("a", "1") == digest("a", "1")


def test_a_damaged_parquet_file_is_not_taken_for_another_format(tmp_path):
    path = tmp_path / "part-000000.PARQUET"
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"; it is damaged or another kind of file: copy or make it anew$"):
        storage.open_parquet(str(path)).__enter__()


def test_a_key_with_an_empty_segment_is_another_file():
    """As a slip in joining paths makes it: `folder//x.parquet` beside `folder/x.parquet`."""
    infos = {name: {"size": 1, "ETag": name} for name in ("b/in/x.parquet", "b/in//x.parquet", "b/in/empty/")}
    fs: Any = SimpleNamespace(find=lambda folder, detail: infos)
    names = listing.below(fs, "b/in")
    assert list(names) == ["x.parquet", "/x.parquet"]
    found = storage.Found(root="s3://b/in", names=tuple(names))
    assert [found.path_of(name) for name in names] == ["s3://b/in/x.parquet", "s3://b/in//x.parquet"]


def test_a_file_of_the_epoch_has_the_version_that_its_folder_lists(tmp_path):
    path = tmp_path / "x.parquet"
    path.touch()
    os.utime(path, (0, 0))
    listed = storage.find_files(str(tmp_path)).versions["x.parquet"]
    assert storage.file_version(str(path)) == listed
