"""What follows from the answers of nodes of all kinds."""

from typing import Any

import pytest

from wsdm_ray.preflight.checks import GpuNeed, gpu_name, node_checks
from wsdm_ray.preflight.node import Gpu, NodeFacts
from wsdm_ray.preflight.table import Check, Outcome

GB = 10**9
OWN = {"wsdm_ray": "0.2.0", "torch": "2.13.0"}
NEED = GpuNeed(fixed_bytes=20 * GB, batch_bytes=3 * GB, what="weights as bf16", remedy="take a larger GPU")


def node(name: str, **facts: Any) -> NodeFacts:
    given: dict[str, Any] = {"versions": OWN, "shm_bytes": 8 * GB, "object_store_bytes": 8 * GB}
    return NodeFacts(node=name, **given | facts)


def gpu(total: int, free: int | None = None, name: str = "NVIDIA H200") -> Gpu:
    return Gpu(name=name, total_bytes=total * GB, free_bytes=(total if free is None else free) * GB)


def checked(
    *facts: NodeFacts, silent: dict[str, str] | None = None, need: GpuNeed | None = None
) -> list[Check]:
    return node_checks(facts, silent or {}, own_versions=OWN, need=need, output="/out")


def not_passed(*facts: NodeFacts, **options: Any) -> list[tuple[str, Outcome, str]]:
    made = checked(*facts, **options)
    return [(each.name, each.outcome, each.found) for each in made if each.outcome is not Outcome.PASS]


def test_all_is_well():
    made = checked(node("a", gpus=(gpu(140),)), node("b", gpus=(gpu(80),)), need=NEED)
    assert {check.outcome for check in made} == {Outcome.PASS}
    found = {check.name: check.found for check in made}
    names = ["nodes", "versions", "read access", "output", "/dev/shm", "disk", "PyTorch", "GPU memory"]
    assert list(found) == names
    assert found["versions"] == "wsdm_ray 0.2.0, torch 2.13.0, on every node"
    assert found["GPU memory"] == (
        "20.0 GB (weights as bf16) and 3.0 GB for a micro-batch, of 80.0 GB on NVIDIA H200"
    )
    assert "output" not in {check.name for check in checked(node("a"))}, "one node sees what it wrote"


@pytest.mark.parametrize(
    ("facts", "name", "outcome", "found"),
    [
        ({"versions": OWN | {"torch": "2.12.0"}}, "versions", "fail",
         "b: torch 2.12.0 instead of 2.13.0; install the same versions"),
        ({"versions": {"wsdm_ray": "0.2.0"}}, "versions", "fail", "b: torch none instead of 2.13.0"),
        ({"unreadable": ("/in/a.parquet: not found; check the path",)}, "read access", "fail",
         "b: /in/a.parquet: not found; check the path; put them where every node reaches them"),
        ({"sees_output": False}, "output", "fail", "b: does not see /out; it is on a disk of this"),
        ({"shm_bytes": 64 << 20}, "/dev/shm", "warn", "b: 0.1 GB, and Ray's object store has 8.0 GB; Ray"),
        ({"fetch_bytes": 20 * GB, "cache_free_bytes": 19 * GB}, "disk", "fail",
         "b: 19.0 GB free for 20.0 GB of models; set WSDM_RAY_CACHE"),
        ({"used_share": 0.97}, "disk", "warn", "b: the disk of temporary files is 97% full; Ray starts"),
    ],
)  # fmt: skip
def test_a_node_at_fault_is_named_with_the_remedy(facts, name, outcome, found):
    [(at_fault, result, said)] = not_passed(node("a"), node("b", **facts))
    assert (at_fault, result) == (name, outcome)
    assert said.startswith(found)


def test_many_nodes_with_one_fault_are_one_line():
    others = [node(f"n{number}", versions=OWN | {"torch": "2.12.0"}) for number in range(5)]
    [(_, _, said)] = not_passed(node("a"), *others)
    assert said.startswith("n0, n1, n2 and 2 more: torch 2.12.0 instead of 2.13.0;")


def test_nodes_that_do_not_answer():
    assert not_passed(node("a"), silent={"b": "no answer within 30 s"}) == [
        ("nodes", Outcome.WARN, "b: no answer within 30 s; look whether they are overloaded")
    ]
    [(_, outcome, said)] = not_passed(node("a"), silent={"b": "No module named 'wsdm_ray'"})
    assert outcome is Outcome.FAIL
    assert "No module named 'wsdm_ray'; install this package there" in said


@pytest.mark.parametrize(
    ("gpus", "outcome", "found"),
    [
        ((gpu(80), gpu(16)), "fail", "a: 16.0 GB on NVIDIA H200; take a larger GPU"),
        ((gpu(22),), "warn", "a: 22.0 GB on NVIDIA H200; take a larger GPU"),
        ((gpu(80), gpu(80, free=22)), "warn", "a: of 2 GPUs 1 have less than 23.0 GB free; it takes 20.0 GB"),
        ((), "not checked", "nvidia-smi gives no figures; weights as bf16"),
    ],
)
def test_what_does_not_fit_a_gpu(gpus, outcome, found):
    [(name, result, said)] = not_passed(node("a", gpus=gpus), need=NEED)
    assert (name, result) == ("GPU memory", outcome)
    assert found in said


def test_a_build_of_torch_without_cuda_uses_no_gpu():
    head = node("head", cuda=False)
    [(name, result, said)] = not_passed(head, node("a", cuda=False, gpus=(gpu(80),)), need=NEED)
    assert (name, result) == ("PyTorch", "fail")
    assert said.startswith("a: it is a build without CUDA; install")
    assert not not_passed(head, need=None), "a job on CPUs"


def test_there_may_be_no_shared_memory_and_a_model_to_fetch():
    made = {
        check.name: check for check in checked(node("a", shm_bytes=None, fetch_bytes=GB, cache_free_bytes=GB))
    }
    assert made["/dev/shm"].outcome is Outcome.NOT_CHECKED
    assert made["disk"].found == "1.0 GB of models are fetched, and fit"


def test_the_name_of_the_gpus():
    assert gpu_name([node("a", gpus=(gpu(80), gpu(80))), node("b")]) == "NVIDIA H200"
    assert gpu_name([node("a", gpus=(gpu(80), gpu(80, name="NVIDIA L4")))]) is None
    assert gpu_name([node("a")]) is None
