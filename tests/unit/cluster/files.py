"""What the tests of cluster/ read: YAML documents, values to fill in, the pods of a Ray cluster."""

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"
KUBERAY = CLUSTER / "kuberay"
LAUNCHER = CLUSTER / "launcher"
DOCKERFILE = CLUSTER / "image" / "Dockerfile"
README = CLUSTER / "README.md"
GUIDE = ROOT / "docs" / "deploy.md"

RAY = Path(str(importlib.util.find_spec("ray").origin)).parent  # pyright: ignore[reportOptionalMemberAccess]
"""Where Ray is installed. Finding it does not import it."""

PLACEHOLDER = re.compile(r"FILL_IN_\w+")

UNITS = {"": 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def documents(folder: Path) -> dict[str, dict[str, Any]]:
    """The YAML documents of a folder, by file name and number."""
    return {
        f"{path.name}[{number}]": document
        for path in sorted(folder.glob("*.yaml"))
        for number, document in enumerate(yaml.load_all(path.read_text("utf-8"), yaml.CSafeLoader))
    }


def values_to_fill_in(path: Path) -> set[str]:
    return set(PLACEHOLDER.findall(path.read_text("utf-8")))


def quantity(text: str) -> float:
    """A Kubernetes quantity as a number."""
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", str(text)).groups()  # pyright: ignore[reportOptionalMemberAccess]
    return float(number) * UNITS[unit]


def constraint(name: str) -> str:
    """The version that cluster/constraints.txt has of a package."""
    (version,) = re.findall(
        rf"^{name}==(.+)$", (CLUSTER / "constraints.txt").read_text("utf-8"), re.MULTILINE
    )
    return version


@dataclass(frozen=True, kw_only=True)
class RayPod:
    """A pod template of a manifest: the head's, or that of a group of workers."""

    group: str
    start: dict[str, str]
    """Parameters of `ray start`."""
    labels: dict[str, str]
    spec: dict[str, Any]
    container: dict[str, Any]


def cluster_spec(document: dict[str, Any]) -> dict[str, Any]:
    """The Ray cluster of a RayCluster or of a RayJob."""
    return document["spec"]["rayClusterSpec"] if document["kind"] == "RayJob" else document["spec"]


def ray_pods(document: dict[str, Any]) -> Iterator[RayPod]:
    """The head, then the groups of workers."""
    spec = cluster_spec(document)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        yield RayPod(
            group=group.get("groupName", "head"),
            start=group["rayStartParams"],
            labels=group["template"]["metadata"]["labels"],
            spec=group["template"]["spec"],
            container=container,
        )
