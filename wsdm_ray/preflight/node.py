"""What one machine says of itself before a job begins: versions, files it can read, memory, disks, GPUs.

It runs on every node of a cluster, so it imports neither Ray nor torch.
"""

import contextlib
import math
import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsdm_ray import __version__
from wsdm_ray.errors import StorageError
from wsdm_ray.runs import numeric_versions, versions
from wsdm_ray.storage import absolute, bytes_to_fetch, cache_folder, errors_for, is_remote, open_read

__all__ = [
    "Gpu",
    "NodeFacts",
    "Probe",
    "facts_here",
    "largest_gpus",
    "output_probe",
    "versions_here",
    "visible_gpus",
]

COMPARED = ("ray", "torch", "transformers", "tokenizers", "peft", "bitsandbytes", "ftfy")
"""Libraries whose versions must be the same on all nodes, besides this package itself."""

SHM = "/dev/shm"
QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits")
QUERY_SECONDS = 10.0
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What every node is asked.

    files, folders: inputs and models, as every node would read them.
    seen: a file beside the output that every node must see; None where the output is in a store.
    gpus: whether to ask for GPUs.
    """

    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    seen: str | None = None
    gpus: bool = False


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU, as nvidia-smi has it."""

    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """What a node answers.

    unreadable: why files and folders cannot be read, one line each.
    shm_bytes: of /dev/shm; None where there is none.
    object_store_bytes: what Ray would keep there; 0 without Ray.
    fetch_bytes: what will be copied to this machine's cache. cache_free_bytes: on the disk of the cache.
    used_share: of the disk of temporary files, where Ray spills what its store cannot hold.
    cuda: whether PyTorch is a build that may use GPUs.
    """

    node: str
    versions: Mapping[str, str]
    unreadable: tuple[str, ...] = ()
    sees_output: bool = True
    shm_bytes: int | None = None
    object_store_bytes: int = 0
    fetch_bytes: int = 0
    cache_free_bytes: int = 0
    used_share: float = 0.0
    gpus: tuple[Gpu, ...] = ()
    cuda: bool = True


def facts_here(probe: Probe) -> NodeFacts:
    """What this machine answers."""
    unreadable = [*filter(None, map(why_unreadable, probe.files))]
    fetch_bytes = 0
    for folder in probe.folders:
        try:
            fetch_bytes += bytes_to_fetch(folder)
        except StorageError as error:
            unreadable.append(str(error))
    disk = shutil.disk_usage(tempfile.gettempdir())
    return NodeFacts(
        node=socket.gethostname(),
        versions=versions_here(),
        unreadable=tuple(unreadable),
        sees_output=probe.seen is None or os.path.exists(probe.seen),
        shm_bytes=size_of(SHM),
        fetch_bytes=fetch_bytes,
        cache_free_bytes=shutil.disk_usage(cache_folder()).free if fetch_bytes else 0,
        used_share=disk.used / disk.total if disk.total else 0.0,
        gpus=gpus_here() if probe.gpus else (),
        cuda=not versions().get("torch", "").endswith("+cpu"),
    )


def versions_here() -> dict[str, str]:
    """Versions that must be equal on all nodes. Builds of one version (`2.13.0+cpu`) count as the same."""
    found = versions() | numeric_versions()
    return {"wsdm_ray": __version__} | {
        name: found[name].partition("+")[0] for name in COMPARED if name in found
    }


def why_unreadable(path: str) -> str | None:
    """Why the first byte of a file cannot be read; None where it can."""
    try:
        with open_read(path) as file:
            file.read(1)
    except StorageError as error:
        return str(error)
    return None


def size_of(path: str) -> int | None:
    """Bytes of the file system at a path; None where there is none."""
    try:
        return shutil.disk_usage(path).total
    except OSError:
        return None


def gpus_here(query: Sequence[str] = QUERY) -> tuple[Gpu, ...]:
    """The GPUs of this machine; none where nvidia-smi gives no figures."""
    try:
        run = subprocess.run(query, capture_output=True, text=True, check=True, timeout=QUERY_SECONDS)
        rows = [line.rsplit(",", 2) for line in run.stdout.splitlines() if line.strip()]
        return tuple(
            Gpu(name=name.strip(), total_bytes=int(total) * MIB, free_bytes=int(free) * MIB)
            for name, total, free in rows
        )
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


def largest_gpus(gpus: Sequence[Gpu], number: float) -> tuple[Gpu, ...]:
    """So many of a machine's GPUs: a job gets some of them, and nobody says which.

    A small one beside them, for a display, is no reason to refuse it.
    """
    ordered = sorted(gpus, key=lambda gpu: (gpu.total_bytes, gpu.free_bytes), reverse=True)
    return tuple(ordered[: math.ceil(number)])


def visible_gpus(gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """As many of this machine's GPUs as CUDA_VISIBLE_DEVICES names."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(gpus) if named is None else largest_gpus(gpus, len([*filter(None, named.split(","))]))


@contextlib.contextmanager
def output_probe(output: str) -> Iterator[str | None]:
    """A file in the output folder, or in the nearest one above it that is there. Every node must see it.

    Yields:
        Its path; None where the output is in a store, whose probe is `storage.check_writable`.

    Raises:
        StorageError: the folder cannot be written.
    """
    if is_remote(output):
        yield None
        return
    folder = Path(absolute(output))
    with errors_for(output):
        while not folder.exists():
            folder = folder.parent
        probe = folder / f".probe.{uuid.uuid4().hex}.tmp"  # a leftover (`is_leftover`), if we are killed
        probe.touch()
    try:
        yield str(probe)
    finally:
        probe.unlink(missing_ok=True)
