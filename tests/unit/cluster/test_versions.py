"""The image, and one version of Ray, Python and torch wherever one is named."""

import re
import tomllib
from fnmatch import fnmatch

import pytest

from tests.unit.cluster.files import (
    CLUSTER,
    DOCKERFILE,
    GUIDE,
    KUBERAY,
    LAUNCHER,
    ROOT,
    constraint,
    documents,
)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
INSTRUCTIONS = "ARG FROM RUN WORKDIR ENV COPY USER"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with what follows them, continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text("utf-8").splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def every(word: str) -> list[str]:
    return [rest for found, rest in instructions() if found == word]


def arguments() -> dict[str, str]:
    return dict(each.split("=") for each in every("ARG") if "=" in each)


def pinned(name: str) -> str:
    """The version that pyproject.toml has of a package."""
    found = (re.fullmatch(rf"{name}(?:\[.*\])?==(.+)", each) for each in PROJECT["dependencies"])
    (match,) = filter(None, found)
    return match.group(1)


def test_ray_has_one_version():
    assert pinned("ray") == constraint("ray") == arguments()["RAY"]
    text = "\n".join(path.read_text("utf-8") for path in (GUIDE, *CLUSTER.rglob("*.yaml"), DOCKERFILE))
    assert set(re.findall(r"(?:\bRay |rayVersion: \"|RAY=)(\d+\.\d+\.\d+)", text)) == {constraint("ray")}
    # Launchers and operators start what the image holds.
    started = [*documents(LAUNCHER).values(), *documents(KUBERAY).values()]
    images = set(re.findall(r"'image': '(.+?)'", str(started)))
    assert images == {"FILL_IN_IMAGE"}


def test_python_has_one_version():
    least, most = re.findall(r"3\.(\d+)", PROJECT["requires-python"])
    python = arguments()["PYTHON"]
    assert int(least) <= int(python.removeprefix("3.")) < int(most)
    assert set(re.findall(r"Python (3\.\d+)", GUIDE.read_text("utf-8"))) == {python}
    assert every("FROM")[0].endswith("ubuntu24.04") == (python == "3.12"), "Ubuntu's own Python"


def test_torch_is_pinned_in_pyproject_alone():
    assert re.fullmatch(r"\d+\.\d+\.\d+", pinned("torch"))
    assert not re.search(r"^torch==", (CLUSTER / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert not re.search(r"torch[=>]=|torch \d", DOCKERFILE.read_text("utf-8") + GUIDE.read_text("utf-8"))
    cuda = arguments()["CUDA"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", cuda)
    text = GUIDE.read_text("utf-8") + (CLUSTER / "README.md").read_text("utf-8")
    assert set(re.findall(r"CUDA (\d+)", text)) == {cuda.split(".")[0]}


def test_the_image_is_pinned_and_installs_what_is_pinned():
    assert every("FROM") == ["nvidia/cuda:${CUDA}-base-ubuntu24.04"]
    installs = [run for run in every("RUN") if "pip install" in run]
    assert len(installs) == 2
    assert "-c constraints.txt -r requirements.txt '.[s3,gcs,wandb]'" in installs[0]
    assert "--no-deps" in installs[1]
    assert {"s3", "gcs", "wandb"} < PROJECT["optional-dependencies"].keys()


def test_the_image_has_no_entrypoint_and_no_root():
    assert {word for word, _ in instructions()} == set(INSTRUCTIONS.split())
    assert every("USER") == ["1000:1000"], "a number: Kubernetes cannot tell who a name is"
    assert any("RAY_AUTH_MODE=token" in each and "HOME=/home/ray" in each for each in every("ENV"))
    words = [word for word, _ in instructions()]
    assert "RUN" not in words[words.index("USER") :]


def ignored(path: str) -> bool:
    """Whether .dockerignore leaves out a path: the last pattern that matches it or a folder of it decides."""
    parts = path.split("/")
    names = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    out = False
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        if line and not line.startswith("#") and any(fnmatch(name, pattern) for name in names):
            out = not line.startswith("!")
    return out


def test_the_build_gets_what_it_copies():
    sources = [source for copy in every("COPY") for source in copy.split()[:-1]]
    assert "cluster/constraints.txt" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source


@pytest.mark.parametrize("path", [".git/config", "quickstart/model", ".venv/bin", "tests/runs.py"])
def test_the_build_gets_nothing_else(path):
    assert ignored(path)
