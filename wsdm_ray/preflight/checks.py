"""What follows from the answers of the nodes: a check each of versions, access, memory and disks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wsdm_ray.preflight.node import NodeFacts
from wsdm_ray.preflight.table import Check, Outcome
from wsdm_ray.storage import is_remote

__all__ = ["CUDA_REMEDY", "GpuNeed", "gpu_name", "node_checks"]

SHOWN_NODES = 3
FULL_SHARE = 0.95
"""Ray starts no task that spills where its disk is fuller than this (`local_fs_capacity_threshold`)."""
GB = 1e9
CUDA_REMEDY = (
    "install its build with CUDA, or start Ray without GPUs (`ray start --num-gpus 0`; on one machine, "
    "CUDA_VISIBLE_DEVICES= before the job)"
)


@dataclass(frozen=True, kw_only=True)
class GpuNeed:
    """What one process takes of its GPU's memory.

    fixed_bytes: weights and all else that is there between micro-batches.
    batch_bytes: of the smallest micro-batch that the job would go on with.
    what: what that is, in words. remedy: what to do where it does not fit.
    """

    fixed_bytes: int
    batch_bytes: int
    what: str
    remedy: str


def node_checks(
    facts: Sequence[NodeFacts],
    silent: Mapping[str, str],
    *,
    output: str,
    own_versions: Mapping[str, str],
    need: GpuNeed | None,
) -> list[Check]:
    """The checks of all nodes.

    Args:
        silent: why nodes did not answer, by address.
        own_versions: of this process.
        need: of a GPU; None on CPUs.
    """
    return [
        check_answers(facts, silent),
        check_versions(facts, own_versions),
        check_reads(facts),
        *([check_output(facts, output)] if len(facts) > 1 else []),
        check_shm(facts),
        check_disk(facts),
        *([check_cuda(facts), check_gpu(facts, need)] if need else []),
    ]


def check_answers(facts: Sequence[NodeFacts], silent: Mapping[str, str]) -> Check:
    """Whether every node ran a task. A late one may recover; one without the package does not."""
    if not silent:
        return Check(name="nodes", outcome=Outcome.PASS, found=f"{len(facts)} answered")
    late = all(reason.startswith("no answer") for reason in silent.values())
    remedy = (
        "look whether they are overloaded"
        if late
        else "install this package there, or give the job an image or a runtime environment with it"
    )
    found = f"{grouped(silent)}; {remedy}"
    return Check(name="nodes", outcome=Outcome.WARN if late else Outcome.FAIL, found=found)


def check_versions(facts: Sequence[NodeFacts], own: Mapping[str, str]) -> Check:
    """Whether every node has the driver's versions."""
    faults = {}
    for each in facts:
        others = [
            f"{name} {each.versions.get(name, 'none')} instead of {version}"
            for name, version in own.items()
            if each.versions.get(name) != version
        ]
        if others:
            faults[each.node] = ", ".join(others)
    shown = ", ".join(f"{name} {version}" for name, version in own.items())
    return settled(
        "versions", faults, f"{shown}, on every node", "install the same versions on all nodes, or one image"
    )


def check_reads(facts: Sequence[NodeFacts]) -> Check:
    """Whether every node reads inputs and models."""
    faults = {each.node: ". ".join(each.unreadable) for each in facts if each.unreadable}
    passed = "inputs and models, on every node" if len(facts) > 1 else "inputs and models"
    remedy = "put them where every node reaches them, such as a store or a shared file system"
    return settled("read access", faults, passed, remedy)


def check_output(facts: Sequence[NodeFacts], output: str) -> Check:
    """Whether the output is one folder for all nodes."""
    faults = {each.node: f"does not see {output}" for each in facts if not each.sees_output}
    remedy = "it is on a disk of this machine alone: give a folder in a store or on a shared file system"
    passed = "a store" if is_remote(output) else "every node sees it"
    return settled("output", faults, passed, remedy)


def check_shm(facts: Sequence[NodeFacts]) -> Check:
    """Whether the shared memory holds Ray's object store: Ray takes a disk instead, which is slow."""
    known = [each for each in facts if each.shm_bytes is not None]
    if not known:
        return Check(name="/dev/shm", outcome=Outcome.NOT_CHECKED, found="there is none")
    sizes = {each.node: each.shm_bytes or 0 for each in known}
    faults = {
        each.node: f"{gb(sizes[each.node])}, and Ray's object store has {gb(each.object_store_bytes)}"
        for each in known
        if sizes[each.node] < each.object_store_bytes
    }
    passed = f"at least {gb(min(sizes.values()))}"
    remedy = "Ray uses a disk instead, and NCCL may fail: give containers a larger --shm-size or emptyDir"
    return settled("/dev/shm", faults, passed, remedy, Outcome.WARN)


def check_disk(facts: Sequence[NodeFacts]) -> Check:
    """Whether models that are fetched fit the disks, and Ray's own disk is not full."""
    faults = {
        each.node: f"{gb(each.cache_free_bytes)} free for {gb(each.fetch_bytes)} of models"
        for each in facts
        if each.fetch_bytes > each.cache_free_bytes
    }
    if faults:
        remedy = "set WSDM_RAY_CACHE to a larger disk, or `wsdm-ray cache clear`"
        return settled("disk", faults, "", remedy)
    full = {
        each.node: f"the disk of temporary files is {each.used_share:.0%} full"
        for each in facts
        if each.used_share > FULL_SHARE
    }
    fetched = max((each.fetch_bytes for each in facts), default=0)
    passed = f"{gb(fetched)} of models are fetched, and fit" if fetched else "no model is to be fetched"
    remedy = "Ray starts nothing that spills there: free some, or start Ray with another --temp-dir"
    return settled("disk", full, passed, remedy, Outcome.WARN)


def check_cuda(facts: Sequence[NodeFacts]) -> Check:
    """Whether PyTorch can use the GPUs that Ray found."""
    faults = {each.node: "it is a build without CUDA" for each in facts if each.gpus and not each.cuda}
    return settled("PyTorch", faults, "a build with CUDA", CUDA_REMEDY)


def check_gpu(facts: Sequence[NodeFacts], need: GpuNeed) -> Check:
    """Whether the model fits every GPU, and the smallest micro-batch beside it."""
    name = "GPU memory"
    gpus = {each.node: min(each.gpus, key=lambda gpu: gpu.total_bytes) for each in facts if each.gpus}
    if not gpus:
        return Check(
            name=name,
            outcome=Outcome.NOT_CHECKED,
            found=f"nvidia-smi gives no figures; {need.what} is needed",
        )
    asked = f"{gb(need.fixed_bytes)} ({need.what}) and {gb(need.batch_bytes)} for a micro-batch"
    whole = need.fixed_bytes + need.batch_bytes
    for outcome, least in ((Outcome.FAIL, need.fixed_bytes), (Outcome.WARN, whole)):
        small = {
            node: f"{gb(gpu.total_bytes)} on {gpu.name}"
            for node, gpu in gpus.items()
            if gpu.total_bytes < least
        }
        if small:
            return Check(name=name, outcome=outcome, found=f"takes {asked}; {grouped(small)}; {need.remedy}")
    taken = {
        each.node: f"of {len(each.gpus)} GPUs {count} have less than {gb(whole)} free"
        for each in facts
        if (count := sum(gpu.free_bytes < whole for gpu in each.gpus))
    }
    least_gpu = min(gpus.values(), key=lambda gpu: gpu.total_bytes)
    passed = f"{asked}, of {gb(least_gpu.total_bytes)} on {least_gpu.name}"
    remedy = f"it takes {asked}: end the other processes, unless they are this job's earlier ones"
    return settled(name, taken, passed, remedy, Outcome.WARN)


def gpu_name(facts: Sequence[NodeFacts]) -> str | None:
    """The name that all GPUs share; None where there is none, or there are several."""
    names = {gpu.name for each in facts for gpu in each.gpus}
    return names.pop() if len(names) == 1 else None


def settled(
    name: str, faults: Mapping[str, str], passed: str, remedy: str, outcome: Outcome = Outcome.FAIL
) -> Check:
    """A check that passes where no node has a fault."""
    if not faults:
        return Check(name=name, outcome=Outcome.PASS, found=passed)
    return Check(name=name, outcome=outcome, found=f"{grouped(faults)}; {remedy}")


def grouped(faults: Mapping[str, str]) -> str:
    """Faults by node as text, each fault once: `10.0.0.2, 10.0.0.3 and 7 more: peft 0.20 instead of 0.21`."""
    nodes: dict[str, list[str]] = {}
    for node, fault in faults.items():
        nodes.setdefault(fault, []).append(node)
    parts = []
    for fault, named in nodes.items():
        more = len(named) - SHOWN_NODES
        shown = ", ".join(named[:SHOWN_NODES]) + (f" and {more} more" if more > 0 else "")
        parts.append(f"{shown}: {fault}")
    return "; ".join(parts)


def gb(number: float) -> str:
    return f"{number / GB:.1f} GB"
