"""Models of the Hub, from a hub on 127.0.0.1 and from caches that are laid out by hand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from tests.unit.hub_server import TOKEN, FakeHub
from wsdm_ray import storage
from wsdm_ray.errors import StorageError
from wsdm_ray.storage import hub as module

ROOT = Path(__file__).parents[2]

FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "README.md": b"# Tiny",
    "pytorch_model.bin": b"pickle",
    "consolidated.safetensors": b"the same again",
    "onnx/model.safetensors": b"another form",
}


def asked(hub: FakeHub) -> list[str]:
    """Paths of the requests for repositories so far."""
    return [path for _, path, _ in hub.requests if path != "api/agent-harnesses"]


def line(name: str) -> str:
    with pytest.raises(StorageError) as caught:
        storage.local_copy(storage.model_location(name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["acme/tiny", "hf://acme/tiny", "hf://models/acme/tiny", "acme/tiny@main"])
def test_a_model_is_fetched_once_at_a_commit(hub, name):
    commit = hub.push("models/acme/tiny", FILES)
    location = storage.model_location(name)
    assert location == f"hf://acme/tiny@{commit}"
    copy = storage.local_copy(location)
    assert copy == f"{constants.HF_HUB_CACHE}/models--acme--tiny/snapshots/{commit}"
    assert sorted(os.listdir(copy)) == ["config.json", "model.safetensors", "tokenizer.json"]
    before = len(hub.requests)
    assert storage.local_copy(location) == copy
    assert storage.local_copy(name) == copy
    assert len(hub.requests) == before, "nothing is asked twice"
    assert storage.read_json(f"{location}/config.json") == {}
    assert "pytorch_model.bin" in storage.names_in_folder(location)


def test_another_node_fetches_the_same_though_the_branch_moved(hub, tmp_path, monkeypatch):
    commit = hub.push("models/acme/tiny", FILES)
    location = storage.model_location("acme/tiny")
    hub.push("models/acme/tiny", FILES | {"model.safetensors": b"newer"})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "of another node"))
    copy = Path(storage.local_copy(location))
    assert copy.name == commit
    assert (copy / "model.safetensors").read_bytes() == b"weights"


def test_revisions(hub):
    first = hub.push("models/acme/tiny", FILES, revision="v1")
    pull = hub.push("models/acme/tiny", FILES | {"a.json": b"{}"}, revision="refs/pr/3")
    assert storage.model_location("acme/tiny@v1").endswith(f"@{first}")
    assert storage.model_location("hf://acme/tiny@refs/pr/3").endswith(f"@{pull}")
    assert storage.model_location(f"acme/tiny@{first}").endswith(f"@{first}")
    assert line("acme/tiny@v2") == (
        "acme/tiny@v2: the model has no revision v2; give a branch, a tag or a commit"
    )


def test_a_local_folder_of_the_name_is_the_local_folder(hub, tmp_path):
    hub.push("models/acme/tiny", FILES)
    (tmp_path / "acme" / "tiny").mkdir(parents=True)
    assert storage.model_location("acme/tiny") == str(tmp_path / "acme" / "tiny")
    assert storage.local_copy("acme/tiny") == str(tmp_path / "acme" / "tiny")
    with pytest.raises(StorageError, match=r"^acme/other: no such folder; check the path$"):
        storage.local_copy("acme/other")  # a slip in a path of one's own is no name on the Hub
    for path in ("a/b/c", "./a/b", "/a/b", "a", "a/", "-a/b"):
        assert storage.hub_name(path) is None, path
    assert asked(hub) == []
    assert storage.model_location("hf://acme/tiny").startswith("hf://acme/tiny@")


def test_the_token_is_sent_and_never_shown(hub, monkeypatch, caplog, capsys):
    hub.push("models/acme/private", FILES, access="private")
    hub.push("models/acme/gated", FILES, access="gated")
    asks = "set HF_TOKEN or run `hf auth login`"
    assert line("acme/private") == (
        "acme/private: no such folder here; no such model on the Hub for this user; check the name, or "
        + asks
    )
    assert line("hf://acme/gated").endswith(
        f": access to the model is gated; accept its terms at {hub.address}/acme/gated and {asks}"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    assert line("acme/gated").endswith("and check your token's rights")
    assert line("acme/missing").endswith("for this user; check the name, or check your token's rights")
    monkeypatch.delenv("HF_TOKEN")
    Path(constants.HF_TOKEN_PATH).write_text(TOKEN)  # as `hf auth login` leaves it
    hub.requests.clear()
    for name in ("acme/private", "acme/gated"):
        assert storage.local_copy(storage.model_location(name))
    assert {token for _, path, token in hub.requests if "acme" in path} == {f"Bearer {TOKEN}"}
    assert line("acme/missing").endswith("or a private one; check the name, or check your token's rights")
    out = capsys.readouterr()
    assert TOKEN not in caplog.text + out.out + out.err


def test_a_hub_that_is_broken(hub):
    hub.push("models/acme/tiny", FILES, access="broken")
    said = f"hf://acme/tiny: the Hub at {hub.address} answers 500; try again later, or check HF_ENDPOINT"
    assert line("hf://acme/tiny") == said


def test_without_a_network_one_line_says_what_to_download(hub, monkeypatch):
    hub.close()
    close_session()
    cache, rest = constants.HF_HUB_CACHE, "where there is a network run `hf download acme/tiny"
    why = (
        f"the Hub at {hub.address} cannot be reached, and the model is not whole in the cache {cache}; {rest}"
    )
    end = "--local-dir DIR`, and give DIR instead"
    assert line("acme/tiny") == f"acme/tiny: no such folder here; {why} {end}"
    assert line("hf://acme/tiny@v1") == f"hf://acme/tiny@v1: {why} --revision v1 {end}"
    assert line(f"hf://acme/tiny@{'a' * 40}").endswith(f"{why} --revision {'a' * 40} {end}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert line("hf://acme/tiny").startswith(
        "hf://acme/tiny: HF_HUB_OFFLINE is set, and the model is not whole"
    )


def test_packets_that_are_lost_are_waited_for_seconds(hub, monkeypatch):
    waited = []

    def repo_info(self, *rest, timeout, **options):
        waited.append(timeout)
        raise module_timeout()

    def module_timeout():
        import httpx2

        return httpx2.ConnectTimeout("timed out")

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", repo_info)
    assert "cannot be reached" in line("hf://acme/tiny")
    assert waited == [module.CONNECT_SECONDS]
    assert module.CONNECT_SECONDS <= 5


@pytest.mark.parametrize("how", ["the variable", "no network"])
def test_what_was_fetched_is_enough_offline(hub, monkeypatch, how):
    hub.push("models/acme/tiny", FILES)
    location = storage.model_location("acme/tiny")
    copy = storage.local_copy(location)
    module.commit_of.cache_clear()
    if how == "the variable":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    else:
        hub.close()
        close_session()
    hub.requests.clear()
    assert storage.model_location("acme/tiny") == location, "the branch is where it was"
    assert storage.local_copy("hf://acme/tiny") == copy
    assert hub.requests == []
    os.remove(f"{copy}/model.safetensors")
    assert "is not whole in the cache" in line("acme/tiny")


def test_a_cache_that_others_laid_out_is_enough_offline(hub, tmp_path, monkeypatch):
    """Blobs, links and a branch, as every version of the library writes them; no list of all files."""
    commit, repository = "b" * 40, tmp_path / "hub" / "models--acme--tiny"
    snapshot = repository / "snapshots" / commit
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True)
    for number, (name, data) in enumerate(list(FILES.items())[:3]):
        (repository / "blobs" / str(number)).write_bytes(data)
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert storage.model_location("acme/tiny") == f"hf://acme/tiny@{commit}"
    assert storage.local_copy("acme/tiny") == str(snapshot)
    assert storage.names_in_folder("acme/tiny") == {"config.json", "model.safetensors", "tokenizer.json"}


def test_only_the_cache_is_asked_where_no_user_named_the_hub(hub):
    commit = hub.push("models/acme/tiny", FILES)
    with pytest.raises(StorageError) as caught:
        storage.local_copy(f"hf://acme/tiny@{commit}", only_cached=True)
    assert str(caught.value).endswith(f"nobody asked to fetch it; use --base hf://acme/tiny@{commit}")
    assert asked(hub) == []
    copy = storage.local_copy(f"hf://acme/tiny@{commit}")
    hub.requests.clear()
    assert storage.local_copy(f"hf://acme/tiny@{commit}", only_cached=True) == copy
    assert hub.requests == []


def test_what_is_no_model(hub):
    for name in ("hf://datasets/acme/votes", "hf://acme/tiny/config.json"):
        assert line(name) == f"{name}: is no model; write hf://OWNER/NAME or hf://OWNER/NAME@REVISION"
    assert line("hf://spaces/acme/x").startswith("hf://spaces/acme/x: is a space; write ")
    assert line("hf://acme").startswith("hf://acme: Invalid HF URI")
    with pytest.raises(
        StorageError, match=r"^hf://acme/out/f\.json: hf:// is for reading, by --input, --base"
    ):
        storage.write_json("hf://acme/out/f.json", 1)
    assert asked(hub) == []


OFFLINE = """
import os, sys
import wsdm_ray.modeling
from huggingface_hub import constants
from wsdm_ray.storage import local_copy
print(constants.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"], os.listdir(local_copy("acme/tiny")) != [])
print(constants.HF_HUB_OFFLINE)
"""


def test_the_package_is_offline_but_for_what_a_user_names(hub, tmp_path):
    """Also in a process that inherits the environment of one that imported the package."""
    hub.push("models/acme/tiny", FILES)
    child = f"subprocess.run([sys.executable, '-c', {OFFLINE!r}], check=True)"
    code = f"import subprocess, sys, wsdm_ray.modeling\n{child}"
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.stdout.split() == ["True", "1", "True", "True"], run.stderr
    refused = subprocess.run(
        [sys.executable, "-c", OFFLINE.replace("tiny", "other")],
        env=environment | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert "StorageError: acme/other: no such folder here; HF_HUB_OFFLINE is set" in refused.stderr
