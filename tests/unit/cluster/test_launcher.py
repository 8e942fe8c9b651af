"""The files for `ray up`: Ray's own schema, and our rules."""

import json
import re

import jsonschema
import pytest

from tests.unit.cluster.files import LAUNCHER, RAY, constraint, documents

FILES = {name.partition(".")[0]: document for name, document in documents(LAUNCHER).items()}


def requirements() -> dict[str, str]:
    lines = (LAUNCHER / "requirements.txt").read_text("utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("cloud", FILES)
def test_ray_takes_the_file(cloud):
    schema = json.loads((RAY / "autoscaler/ray-schema.json").read_text("utf-8"))
    jsonschema.validate(FILES[cloud], schema)
    assert FILES[cloud]["provider"]["type"] == cloud


@pytest.mark.parametrize("cloud", FILES)
def test_the_head_is_on_demand_and_gpu_workers_are_spot(cloud):
    document = FILES[cloud]
    types = document["available_node_types"]
    assert document["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0}
    spot = {
        name: "spot" in json.dumps(each["node_config"]).lower()
        for name, each in types.items()
        if name != "cpu"
    }
    assert spot == {"head": False, "gpu": True}
    if cloud == "gcp":  # EC2's own figures are used there
        assert types["gpu"]["resources"]["GPU"] == 1
    workers = [each for name, each in types.items() if name != "head"]
    assert sum(each["max_workers"] for each in workers) <= document["max_workers"]
    assert types["gpu"]["min_workers"] >= 1, "a job counts the GPUs at its start"


def test_gpu_machines_of_google_have_a_disk_that_they_take_and_their_driver():
    for each in FILES["gcp"]["available_node_types"].values():
        [disk] = each["node_config"]["disks"]
        assert disk["initializeParams"]["diskType"].endswith("/diskTypes/pd-balanced")
    assert "nvidia-smi" in FILES["gcp"]["initialization_commands"][0]


@pytest.mark.parametrize("cloud", FILES)
def test_every_node_asks_for_the_token_and_has_it(cloud):
    document = FILES[cloud]
    assert document["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    assert "--env RAY_AUTH_MODE=token" in document["docker"]["run_options"]
    starts = [document["head_start_ray_commands"][-1], document["worker_start_ray_commands"][-1]]
    assert all("RAY_AUTH_MODE=token ray start " in start for start in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0], "reached through SSH alone"


@pytest.mark.parametrize("cloud", FILES)
def test_nothing_is_installed_on_the_nodes(cloud):
    """Where one of these is left out, Ray's default for it is taken, which installs a Ray of its own."""
    for commands in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert FILES[cloud][commands] == []
    assert FILES[cloud]["docker"]["image"] == "FILL_IN_IMAGE"


@pytest.mark.parametrize("cloud", FILES)
def test_there_are_no_keys_and_no_fixed_addresses(cloud):
    text = (LAUNCHER / f"{cloud}.yaml").read_text("utf-8")
    assert not re.search(r"access_key|private_key|credentials|KeyName|node:", text)
    assert set(re.findall(r"\d+\.\d+\.\d+\.\d+", text)) == {"127.0.0.1"}
    for name, each in FILES[cloud]["available_node_types"].items():
        identity = {"IamInstanceProfile", "serviceAccounts"} & each["node_config"].keys()
        assert identity or (cloud, name) == ("gcp", "head")  # Ray makes one there


def test_what_the_launcher_needs_fits_the_constraints():
    """boto3 goes with botocore of the same version."""
    assert requirements()["boto3"] == constraint("botocore")
    assert all(re.fullmatch(r"[\d.]+", version) for version in requirements().values())
