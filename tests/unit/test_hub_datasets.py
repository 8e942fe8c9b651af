"""Data sets of the Hub: which files a configuration, a split or a path is, and that jobs can read them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from tests.unit.hub_server import FakeHub
from wsdm_ray import storage
from wsdm_ray.config import PrepareConfig
from wsdm_ray.data.prepare import prepare
from wsdm_ray.errors import StorageError
from wsdm_ray.inputs.files import list_inputs
from wsdm_ray.runs import file_versions
from wsdm_ray.storage import hub as module

VOTES = "hf://datasets/acme/votes"
NAMED = b"""---
configs:
- config_name: en
  default: true
  data_files:
  - split: train
    path: en/train-*.csv
  - split: test
    path: en/test.csv
- config_name: de
  data_files: de/*.csv
---
# Votes
"""


@pytest.fixture
def votes(hub: FakeHub) -> str:
    """A data set of two configurations, the first with two splits; returns its commit."""
    names = ("en/train-0.csv", "en/train-1.csv", "en/test.csv", "de/x.csv", "notes/readme.txt")
    return hub.push("datasets/acme/votes", {"README.md": NAMED} | dict.fromkeys(names, b"id\n1\n"))


def files(uri: str) -> list[str]:
    """Paths in the repository of what a URI names."""
    found = storage.resolve_dataset(uri)
    assert len({path.split("@")[0] for path in found}) == 1
    return [path.split("@")[1].partition("/")[2] for path in found]


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        (":train", ["en/train-0.csv", "en/train-1.csv"]),
        ("/en:train", ["en/train-0.csv", "en/train-1.csv"]),
        ("@main/en:test", ["en/test.csv"]),
        ("/en:test+train", ["en/test.csv", "en/train-0.csv", "en/train-1.csv"]),
        ("/de", ["de/x.csv"]),
        ("/en/test.csv", ["en/test.csv"]),
        ("/notes/readme.txt", ["notes/readme.txt"]),
        ("/en/train-*.csv", ["en/train-0.csv", "en/train-1.csv"]),
        ("/*.csv", ["de/x.csv", "en/test.csv", "en/train-0.csv", "en/train-1.csv"]),
    ],
)
def test_configurations_splits_and_paths(votes, rest, expected):
    assert files(VOTES + rest) == expected


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("", ": has the splits train, test; add one, such as :train, or all, :train+test"),
        ("/en", ": has the splits train, test; add one, such as :train, or all, :train+test"),
        (":dev", ": no split dev; there are train, test"),
        ("/fr", ": no configuration and no data file fr; its configurations are en, de"),
        ("/notes", ": no configuration and no data file notes; its configurations are en, de"),
        (":", ": (empty) is no split; write :train or :train+validation"),
        (":train[:10%]", ": slices of splits are not read; name whole splits"),
        (
            "/en/test.csv:test",
            ": en/test.csv is a path, which has no splits; leave :test out, or name a config",
        ),
        ("@v9:train", ": the data set has no revision v9; give a branch, a tag or a commit"),
    ],
)
def test_what_is_not_there_is_one_line(votes, rest, said):
    with pytest.raises(StorageError) as caught:
        storage.resolve_dataset(VOTES + rest)
    assert str(caught.value).startswith(VOTES + rest + said)
    assert "\n" not in str(caught.value)


def test_a_glob_at_a_commit(votes):
    assert files(f"{VOTES}@{votes}/en/train-*.csv") == ["en/train-0.csv", "en/train-1.csv"]


def test_a_folder_is_read_as_one_on_a_disk_is(hub):
    """What describes data, hidden files and archives are left out, unless there is `.json` alone."""
    names = ("data/x.parquet", "data/stats.json", "data/_old.parquet", "data/more.csv.zip", "json/x.json")
    hub.push("datasets/acme/mixed", dict.fromkeys(names, b"PAR1"))
    assert files("hf://datasets/acme/mixed/data") == ["data/x.parquet"]
    assert files("hf://datasets/acme/mixed/data/*") == ["data/x.parquet"]
    assert files("hf://datasets/acme/mixed/json") == ["json/x.json"]


def test_without_metadata_the_names_of_the_files_decide(hub):
    names = [f"data/{split}-0000{n}-of-00002.parquet" for split in ("test", "train") for n in (0, 1)]
    hub.push("datasets/acme/plain", dict.fromkeys(names, b"PAR1"))
    hub.push("datasets/acme/one", {"votes.jsonl": b"{}\n", "README.md": b"no metadata"})
    hub.push("datasets/acme/none", {"votes.py": b"", "README.md": b""})
    assert files("hf://datasets/acme/plain:train") == names[2:]
    assert files("hf://datasets/acme/one") == ["votes.jsonl"]
    with pytest.raises(StorageError, match=r"^hf://datasets/acme/none: holds no data files that can be read"):
        storage.resolve_dataset("hf://datasets/acme/none")
    with pytest.raises(StorageError, match=r"^hf://acme/plain: is a model; write hf://datasets/acme/plain$"):
        storage.resolve_dataset("hf://acme/plain")


def test_only_what_is_asked_for_is_fetched(votes, hub):
    files(VOTES + "/de")
    fetched = {
        path.rsplit("/", 1)[-1] for method, path, _ in hub.requests if method == "GET" and "resolve" in path
    }
    assert fetched == {"README.md", "x.csv"}


def test_several_configurations_without_a_default(hub):
    metadata = NAMED.replace(b"  default: true\n", b"")
    hub.push(
        "datasets/acme/votes",
        {"README.md": metadata, "en/test.csv": b"", "en/train-0.csv": b"", "de/x.csv": b""},
    )
    with pytest.raises(
        StorageError, match=r": has the configurations en, de; add one: hf://datasets/acme/votes/en$"
    ):
        storage.resolve_dataset(VOTES)


def test_a_path_of_the_server_cannot_leave_the_cache(hub):
    hub.push("datasets/acme/votes", {"a.csv": b"id\n", "../../../evil.csv": b"id\n"})
    assert files(VOTES) == ["a.csv"]


def test_offline_what_was_fetched_is_enough(votes, hub, monkeypatch):
    found = storage.resolve_dataset(VOTES + ":train")
    module.commit_of.cache_clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.requests.clear()
    assert storage.resolve_dataset(VOTES + ":train") == found
    with pytest.raises(StorageError) as caught:
        storage.resolve_dataset(VOTES + ":test")
    assert str(caught.value) == (
        f"{VOTES}:test: HF_HUB_OFFLINE is set, and the data set is not whole in the cache "
        f"{constants.HF_HUB_CACHE}; where there is a network run `hf download acme/votes --repo-type dataset "
        f"--revision {votes} --local-dir DIR`, and give DIR instead"
    )
    assert hub.requests == []


def test_a_cache_that_others_laid_out(hub, tmp_path, monkeypatch):
    commit, repository = "c" * 40, tmp_path / "hub" / "datasets--acme--old"
    (repository / "snapshots" / commit / "data").mkdir(parents=True)
    (repository / "snapshots" / commit / "data" / "train.jsonl").write_text("{}\n")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    uri = f"hf://datasets/acme/old@{commit}/data/train.jsonl"
    assert storage.resolve_dataset("hf://datasets/acme/old") == [uri]
    with storage.open_read(uri) as file:
        assert file.read() == b"{}\n"


def test_files_are_listed_like_named_ones_and_known_by_their_commit(votes, hub, tmp_path, monkeypatch):
    found = storage.list_files([VOTES + ":train", VOTES + "/de"])
    assert found == [f"{VOTES}@{votes}/{name}" for name in ("en/train-0.csv", "en/train-1.csv", "de/x.csv")]
    assert [file.path for file in list_inputs([VOTES + ":train"])] == found[:2]
    hub.requests.clear()
    assert storage.list_files(found) == found
    assert hub.requests == [], "what came from here needs no look at the Hub"
    before = file_versions(found)
    assert before[found[0]] == {"bytes": 5, "version": votes, "place": 0}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "of another node"))
    hub.push("datasets/acme/votes", {"en/train-0.csv": b"another"})
    assert file_versions(found) == before, "another node fetches the same, though the branch moved"
    with storage.open_read(found[2]) as file:
        assert file.read() == b"id\n1\n"


def test_prepare_reads_a_data_set_of_the_hub(hub, tmp_path):
    rows = {
        name: [f"{name} {n} of these" for n in range(40)] for name in ("prompt", "response_a", "response_b")
    } | {"id": list(range(40)), "winner": ["model_a", "model_b"] * 20}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    data = Path(tmp_path / "t.parquet").read_bytes()
    commit = hub.push("datasets/acme/arena", {"data/train-00000-of-00001.parquet": data})
    config = PrepareConfig(input=("hf://datasets/acme/arena:train",), output=str(tmp_path / "out"))
    run = prepare(config)
    assert run["fingerprint"]["inputs"].keys() == {
        f"hf://datasets/acme/arena@{commit}/data/train-00000-of-00001.parquet"
    }
    kept = sum(pq.read_metadata(path).num_rows for path in storage.list_files(f"{tmp_path}/out/train"))
    assert kept >= 30
    module.commit_of.cache_clear()
    hub.close()
    close_session()
    assert prepare(config) == run, "finished, without a network"
