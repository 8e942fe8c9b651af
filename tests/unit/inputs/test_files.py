"""Which files an input is: links, partitions, globs, saved data sets; and none is skipped in silence."""

import logging
import os
import time
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from wsdm_ray import storage
from wsdm_ray.errors import DataError, StorageError
from wsdm_ray.inputs.files import InputFile, list_inputs, with_partitions

NULL = "__HIVE_DEFAULT_PARTITION__"


@pytest.fixture(params=["local", "file", "memory"])
def folder(request, tmp_path):
    """An empty folder of each kind of path; `memory://` goes the way of the object stores."""
    if request.param == "memory":
        name = f"bucket-{time.monotonic_ns()}"
        yield f"memory://{name}"
        if fsspec.filesystem("memory").exists(name):
            fsspec.filesystem("memory").rm(name, recursive=True)
    else:
        yield str(tmp_path) if request.param == "local" else f"file://{tmp_path}"


def fill(folder: str, *names: str) -> None:
    for name in names:
        storage.write_json(storage.join(folder, name), 1)


def listed(*paths: str | Path) -> list[str]:
    return [file.name for file in list_inputs([str(path) for path in paths])]


def endings(*paths: str) -> list[str]:
    return [posix_name(file.path) for file in list_inputs(paths)]


def posix_name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


READ = (
    "a.parquet", "b.pq", "c.jsonl", "d.ndjson", "e.csv", "f.tsv", "g.arrow", "h.feather", "i.ipc",
    "j.csv.gz", "k.jsonl.bz2", "l.tsv.xz", "m.ndjson.zst", "n.PARQUET", "o.CSV.GZ",
)  # fmt: skip


def test_every_ending_that_is_read(folder, caplog):
    fill(folder, *READ, "in/p.csv", "notes.txt", "README", "LICENSE.md")
    expected = sorted([*READ, "p.csv"])
    assert sorted(endings(folder)) == sorted(endings(f"{folder}/*")) == expected
    assert sorted(endings(f"{folder}/**")) == expected
    assert listed(f"{folder}/j*", f"{folder}/in/p.csv") == ["j", "p"]
    assert warnings_of(caplog) == []


def test_markers_and_logs_of_tools_hold_no_rows(folder, caplog):
    own = (
        "_SUCCESS", "_metadata", "_common_metadata", ".a.parquet.crc", ".DS_Store", "._a.parquet", "run.json",
        "_committed_12", "_started_12", "_delta_log/00000000000000000000.json", "_run.json", "wsdm_ray.json",
        "_delta_log/00000000000000000010.checkpoint.parquet", "__MACOSX/._a.csv", ".git/index",
        ".ipynb_checkpoints/a-checkpoint.csv", "dataset_infos.json", ".cache/huggingface/a.parquet",
    )  # fmt: skip
    fill(folder, "a.parquet", *own)
    assert endings(folder) == endings(f"{folder}/*") == ["a.parquet"]
    assert warnings_of(caplog) == []


def test_what_a_shell_makes_of_a_star(tmp_path):
    fill(str(tmp_path), "a.parquet", "_SUCCESS", "_metadata")
    assert listed(*sorted(tmp_path.iterdir())) == ["a"]
    with pytest.raises(StorageError, match=r"_SUCCESS: holds no file that ends with \.parquet"):
        listed(tmp_path / "_SUCCESS")


LEFT_OUT = (
    "b.parquet.gz", "c.zip", "d.xlsx", "e.orc", "f.avro", "stats.json", "part-00001", "g.tar.gz", "h.csv.zip",
    "_temporary/0/i.parquet", ".j.csv", "_old/year=1/k.jsonl.gz",
)  # fmt: skip


def test_data_that_is_not_read_is_named_once(folder, caplog):
    fill(folder, "a.parquet", *LEFT_OUT)
    assert endings(folder) == ["a.parquet"]
    assert endings(folder) == ["a.parquet"]
    (told,) = warnings_of(caplog)
    assert (
        "left out, though it looks like data: .j.csv, _old/year=1/k.jsonl.gz, _temporary/0/i.parquet, "
        in told
    )
    assert told.endswith(" and 2 more; to read it, name the file itself, or convert it")


@pytest.mark.parametrize("name", ["b.json", "b.json.gz", "part-00000", "20240101_000000_ab"])
def test_json_and_names_without_ending_are_read_where_nothing_else_can_be(folder, caplog, name):
    fill(folder, "1/run.json", f"1/{name}", "README", "Makefile")
    assert endings(folder) == [name]
    assert warnings_of(caplog) == []
    fill(folder, "2/a.csv")
    assert endings(folder) == endings(f"{folder}/*/*") == ["a.csv"]
    assert [f"1/{name}" in told for told in warnings_of(caplog)] == [True]
    assert endings(f"{folder}/1/{name}", f"{folder}/2") == [name, "a.csv"]


def test_a_file_that_is_named_is_read_whatever_its_name(folder):
    fill(folder, "x.txt", "_x.csv", "run.json", "state.json")
    names = ["x.txt", "_x.csv", "run.json", "state.json"]
    assert endings(*[f"{folder}/{name}" for name in names]) == names
    assert endings(f"{folder}/_*.csv") == ["_x.csv"], "the glob spells that it is hidden"


def test_nothing_to_read(folder):
    fill(folder, "in/notes.txt")
    for path in (folder, f"{folder}/*", f"{folder}/*.parquet"):
        with pytest.raises(StorageError, match=r"holds no file that ends with \.parquet, \.arrow, \.csv or"):
            list_inputs([path])
    with pytest.raises(StorageError, match="none: not found; check the path"):
        list_inputs([f"{folder}/none"])


def test_partitions_of_any_key(folder):
    fill(
        folder,
        "_split=test/.x=1/day=01/a.parquet",
        f"_split=train/.x={NULL}/day=02/a%2Fb=c%20d/a.parquet",
        "_hidden/x=3/a.parquet",
    )
    expected = [
        (("_split", "test"), (".x", "1"), ("day", "01")),
        (("_split", "train"), (".x", None), ("day", "02"), ("a/b", "c d")),
    ]
    for path in (folder, f"{folder}/*", f"{folder}/*/*/*/*", f"{folder}/_split*", f"{folder}/**/*.parquet"):
        files = list_inputs([path])
        assert [file.partitions for file in files] == expected, path
        assert [file.integers for file in files] == [{".x"}, {".x"}], "01 is not how 1 is spelled"
    assert files[1].name == f"_split=train/.x={NULL}/day=02/a%2Fb=c%20d/a"
    assert storage.list_files(folder) == [file.path for file in files]


def test_partitions_that_are_named_themselves(folder):
    fill(folder, "lr=0.1/data/winner=model_a/n=2/x.csv", "lr=0.1/data/winner=tie/n=x/x.csv")
    a, tie = (("winner", "model_a"), ("n", "2")), (("winner", "tie"), ("n", "x"))
    data = f"{folder}/lr=0.1/data"
    for paths in ([f"{data}/winner=model_a", f"{data}/winner=tie/n=x/x.csv"], [f"{data}/w*/*"], [data]):
        files = list_inputs(paths)
        assert [file.partitions for file in files] == [a, tie]
        assert [file.integers for file in files] == [set(), set()]
        assert len({file.name for file in files}) == 2


def test_columns_of_partitions():
    file = InputFile("x", "x", (("n", "7"), ("s", "7"), ("z", None), ("id", "9")), frozenset({"n", "z"}))
    table = with_partitions(pa.table({"id": [1, 2]}), file)
    assert table.to_pylist() == [{"id": row, "n": 7, "s": "7", "z": None} for row in (1, 2)]
    assert [str(kind) for kind in table.schema.types] == ["int64", "int64", "string", "int64"]
    assert with_partitions(pa.table({"id": [1]}), InputFile("x", "x")).column_names == ["id"]


def test_links_are_followed_and_every_file_is_read_once(tmp_path, caplog):
    inside, outside = tmp_path / "in", tmp_path / "out"
    fill(str(inside), "z/a.parquet", "year=1/b.parquet")
    fill(str(outside), "deep/c.parquet", "d.csv", "deep/e.zip")
    (inside / "more").symlink_to(outside)
    (inside / "again").symlink_to(outside / "deep")
    (inside / "a=1").symlink_to(inside / "year=1")
    (inside / "one.csv").symlink_to(outside / "d.csv")
    for place in ("up", "z/up", "z/up2"):  # two in one folder would take for ever
        (inside / place).symlink_to(inside)
    (outside / "back").symlink_to(tmp_path)
    expected = ["again/c", "more/d", "year=1/b", "z/a"]
    assert sorted(listed(inside)) == sorted(listed(f"file://{inside}")) == expected
    assert sorted(listed(f"{inside}/**")) == expected
    (tmp_path / "link").symlink_to(inside)
    assert sorted(listed(tmp_path / "link")) == expected
    assert len(listed(inside, tmp_path / "link", outside)) == 4
    assert len(storage.list_files(str(inside))) == 3
    assert "again/e.zip" in warnings_of(caplog)[0]


def test_globs_go_through_links(tmp_path):
    fill(str(tmp_path / "out"), "a.parquet", "b.parquet")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "day=1").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "one.parquet").symlink_to(tmp_path / "out" / "b.parquet")
    assert listed(f"{tmp_path}/in/*/a.parquet") == listed(f"{tmp_path}/in/**/a.parquet") == ["day=1/a"]
    assert listed(f"{tmp_path}/in/d*") == ["day=1/a", "day=1/b"]
    assert listed(f"{tmp_path}/in/*.parquet") == ["one"]
    assert listed(f"{tmp_path}/in/one.parquet", f"{tmp_path}/out") == ["a", "b"], "no link instead"
    assert listed(f"{tmp_path}/in/*") == ["day=1/a", "day=1/b"]


def test_a_link_that_leads_nowhere_is_not_passed_over(tmp_path):
    fill(str(tmp_path), "a.parquet")
    (tmp_path / "b.parquet").symlink_to(tmp_path / "gone")
    assert listed(tmp_path) == ["a", "b"]
    with pytest.raises(StorageError, match=r"b.parquet: not found"):
        storage.file_identity(list_inputs([str(tmp_path)])[1].path)


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    fill(str(tmp_path), "a.parquet", "in/b.parquet")

    def scandir(path, scandir=os.scandir):
        if "/in" in str(path):
            raise PermissionError(13, "denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(StorageError, match="permission denied; check the file's owner and mode"):
        list_inputs([str(tmp_path)])


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="pipe: neither a file nor a folder"):
        list_inputs([str(tmp_path / "pipe")])


def test_names_differ_where_files_do(folder):
    fill(folder, "x/a.csv", "y/a.csv", "y/a.jsonl.gz", "y/b.2024.csv", "p/z/a.csv", "q/z/a.csv")
    assert listed(f"{folder}/y/b.2024.csv") == ["b.2024"]
    assert listed(f"{folder}/x", f"{folder}/p") == ["a", "z/a"]
    assert listed(f"{folder}/x", f"{folder}/y/a.csv") == ["x/a", "y/a"]
    assert listed(f"{folder}/y") == ["a.csv", "a.jsonl.gz", "b.2024"]
    assert listed(f"{folder}/p/z/a.csv", f"{folder}/q/z") == ["p/z/a", "q/z/a"]
    assert listed(folder)[:2] == ["p/z/a", "q/z/a"]


def save_dataset(folder: str, *names: str) -> None:
    """What `datasets` leaves of `save_to_disk`, but for the rows."""
    fill(folder, "dataset_info.json", *names, "cache-0123456789abcdef.arrow")
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "f", "_split": "train"}
    storage.write_json(f"{folder}/state.json", state)


def test_a_saved_dataset_is_its_files_in_its_own_order(folder, caplog):
    names = [f"data-{place:05d}-of-00002.arrow" for place in (1, 0)]
    save_dataset(f"{folder}/set", *names)
    for path in (folder, f"{folder}/set", f"{folder}/s*", f"{folder}/set/*"):
        assert endings(path) == names
    assert warnings_of(caplog) == []
    fill(folder, "set/older.arrow")
    assert endings(folder) == names
    assert "it looks like data: set/older.arrow;" in warnings_of(caplog)[0]
    storage.delete_file(f"{folder}/set/{names[1]}")
    with pytest.raises(DataError, match=r"/set: state\.json lists data-00000-of-00002\.arrow, which is not"):
        list_inputs([folder])


def test_a_dataset_dict_needs_its_split_named(folder):
    save_dataset(f"{folder}/test", "data-00000-of-00001.arrow")
    storage.write_json(f"{folder}/dataset_dict.json", {"splits": ["test"]})
    assert listed(folder) == ["test/data-00000-of-00001"]
    save_dataset(f"{folder}/train", "data-00000-of-00001.arrow")
    storage.write_json(f"{folder}/dataset_dict.json", {"splits": ["train", "test"]})
    with pytest.raises(DataError, match=r"has the splits train, test; name one, such as .*/train$"):
        list_inputs([folder])
    assert listed(f"{folder}/train") == ["data-00000-of-00001"]


def test_a_changed_delta_table_is_named(folder, caplog):
    fill(folder, "a.parquet", "_delta_log/00000000000000000000.json")
    assert listed(folder) == ["a"]
    assert warnings_of(caplog) == []
    fill(folder, "_delta_log/00000000000000000001.json")
    assert listed(folder) == ["a"]
    assert "a Delta table of several versions" in warnings_of(caplog)[0]


def test_outputs_of_prepare_are_inputs(folder, caplog):
    fill(folder, "train/shard-000000.parquet", "valid/shard-000000.parquet", "run.json")
    assert listed(folder) == ["train/shard-000000", "valid/shard-000000"]
    assert warnings_of(caplog) == []


def test_other_splits_file_is_not_taken_for_state(folder):
    storage.write_json(f"{folder}/state.json", [1])
    assert endings(folder) == ["state.json"]
    assert storage.read_json(list_inputs([folder])[0].path) == [1]


def test_a_file_whose_name_is_not_utf8_is_named(tmp_path):
    (tmp_path / "straße.parquet").write_text("")
    assert [file.name for file in list_inputs([str(tmp_path)])] == ["straße"]
    (tmp_path / os.fsdecode(b"stra\xdfe.parquet")).write_bytes(b"")  # as Latin-1 has it
    with pytest.raises(DataError, match=r"stra\\udcdfe\.parquet': the name is not UTF-8") as caught:
        list_inputs([str(tmp_path)])
    assert str(caught.value).isascii()
