"""docs/deploy.md: its commands exist, and fill in what is to be filled in."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests.unit.cluster.files import CLUSTER, GUIDE, KUBERAY, LAUNCHER, RAY, ROOT, placeholders

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
            each.value
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


@pytest.mark.parametrize(
    "files", [list(KUBERAY.glob("*.yaml")), [LAUNCHER / "aws.yaml"], [LAUNCHER / "gcp.yaml"]], ids=str
)
def test_the_guide_fills_in_every_value(files):
    name = files[0].relative_to(ROOT) if len(files) == 1 else "cluster/kuberay/*.yaml"
    (block,) = (
        block for block in BLOCKS if re.search(rf"sed [^|]+.*{re.escape(str(name))}", block, re.DOTALL)
    )
    filled = set(re.findall(r"s\|(FILL_IN_\w+)\|", block))
    assert filled == set().union(*map(placeholders, files))


def test_the_guide_applies_every_manifest():
    applied = set(re.findall(r"kubectl apply -f (\S+)", "\n".join(BLOCKS)))
    assert all((ROOT / path).is_file() for path in applied)
    names = {path.split("/")[-1] for path in applied} | {"service-account.gcp.yaml"}
    assert names == {path.name for path in KUBERAY.glob("*.yaml")}


def test_what_is_sent_is_the_working_folder_alone():
    """No secrets, and nothing that Ray would install on the nodes."""
    assert yaml.safe_load((CLUSTER / "runtime-env.yaml").read_text("utf-8")) == {"working_dir": "."}
    assert any("--runtime-env cluster/runtime-env.yaml" in block for block in BLOCKS)
