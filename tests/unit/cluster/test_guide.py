"""docs/deploy.md: its commands exist, and fill in what is to be filled in."""

import ast
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.unit.cluster.files import CLUSTER, GUIDE, KUBERAY, RAY, README, ROOT, values_to_fill_in

FENCE = re.compile(r"^```bash\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = FENCE.findall(GUIDE.read_text("utf-8"))


def ray_commands() -> list[list[str]]:
    """Every `ray ...` of the guide, as words."""
    found = []
    for block in BLOCKS:
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"\s+#.*", "", line)
            found += re.findall(r"(?:^|[(;] ?)(ray .+?)(?=$|;|\)| &| >)", line)
    return [shlex.split(words) for words in found]


def options_of(path: Path) -> dict[str, set[str]]:
    """The options of Ray's commands, by the functions' names: as click's decorators in the source say.

    Importing the command line takes seconds.
    """
    functions = ast.walk(ast.parse(path.read_text("utf-8")))
    return {
        node.name.replace("_", "-"): {
            str(each.value)
            for decorator in node.decorator_list
            for each in ast.walk(decorator)
            if isinstance(each, ast.Constant) and str(each.value).startswith("-")
        }
        for node in functions
        if isinstance(node, ast.FunctionDef) and node.decorator_list
    }


@pytest.fixture(scope="module")
def ray_options() -> dict[str, dict[str, set[str]]]:
    """Of `ray` and of `ray job`."""
    sources = {"ray": "scripts/scripts.py", "ray job": "dashboard/modules/job/cli.py"}
    return {name: options_of(RAY / path) for name, path in sources.items()}


@pytest.mark.parametrize("words", ray_commands(), ids=" ".join)
def test_ray_has_the_command_and_its_options(ray_options, words):
    group, rest = ("ray job", words[2:]) if words[1] == "job" else ("ray", words[1:])
    known = ray_options[group][rest[0]]
    own = rest[: rest.index("--")] if "--" in rest else rest
    assert {word.partition("=")[0] for word in own if word.startswith("-")} <= known


def test_the_guide_shows_every_command_that_it_takes():
    shown = {" ".join(words[:3] if words[1] == "job" else words[:2]) for words in ray_commands()}
    assert {"ray get-auth-token", "ray start", "ray job submit", "ray job stop"} < shown
    assert {"ray up", "ray dashboard", "ray down"} < shown


FILLING = re.compile(r"^perl -pi -e '[^']+' (?:\\\n\s*)?(\S+)$", re.MULTILINE)
VALUES = {
    "IMAGE": "registry.example.com/wsdm-ray:1", "BUCKET": "s3://bucket/prefix", "PROJECT": "p",
    "REGION": "us-central1", "ZONE": "us-central1-a", "IMAGE_ID": "ami-1", "GCP_IMAGE": "family/common",
    "OPERATOR": "kuberay", "PROMETHEUS": "monitoring", "ROLE_ARN": "arn:aws:iam::1:role/a",
    "SERVICE_ACCOUNT": "a@b.iam.gserviceaccount.com",
    "HEAD_PROFILE": "arn:aws:iam::1:instance-profile/h",
    "WORKER_PROFILE": "arn:aws:iam::1:instance-profile/w",
}  # fmt: skip


def test_the_guide_fills_in_every_value(tmp_path):
    shutil.copytree(CLUSTER, tmp_path / "cluster")
    found = [match for block in BLOCKS for match in FILLING.finditer(block)]
    assert [match.group(1) for match in found] == [
        "cluster/kuberay/*.yaml", "cluster/launcher/aws.yaml", "cluster/launcher/gcp.yaml",
    ]  # fmt: skip
    for match in found:
        subprocess.run(["bash", "-c", match.group()], cwd=tmp_path, env=os.environ | VALUES, check=True)
    for path in [*tmp_path.rglob("kuberay/*.yaml"), *tmp_path.rglob("launcher/*.yaml")]:
        assert not values_to_fill_in(path)
        assert all(yaml.load_all(path.read_text("utf-8"), yaml.CSafeLoader))
    set_before = set(re.findall(r"(?:^export | )([A-Z_]+)=", "\n".join(BLOCKS), re.MULTILINE))
    assert set(re.findall(r"\$ENV\{(\w+)\}", "\n".join(BLOCKS))) <= set_before


def test_links_of_the_list_of_files_resolve():
    text = README.read_text("utf-8")
    for target in re.findall(r"\]\((\S+?)\)", text):
        assert (CLUSTER / target).is_file(), target
    for path in re.findall(r"`([\w.-]+(?:/[\w.-]+)?\.\w+|[\w/]+/Dockerfile)`", text):
        assert (CLUSTER / path).is_file(), path


def test_the_guide_applies_every_manifest():
    applied = set(re.findall(r"kubectl apply -f (\S+)", "\n".join(BLOCKS)))
    assert all((ROOT / path).is_file() for path in applied)
    names = {path.split("/")[-1] for path in applied} | {"service-account.gcp.yaml"}
    assert names == {path.name for path in KUBERAY.glob("*.yaml")}


def test_what_is_sent_is_the_working_folder_alone():
    """No secrets, and nothing that Ray would install on the nodes."""
    assert yaml.safe_load((CLUSTER / "runtime-env.yaml").read_text("utf-8")) == {"working_dir": "."}
    assert any("--runtime-env cluster/runtime-env.yaml" in block for block in BLOCKS)
