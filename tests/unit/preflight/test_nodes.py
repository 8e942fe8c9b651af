"""Every node is asked once, in bounded time, on a Ray that is none."""

import dataclasses
from typing import Any

import pytest
from ray.exceptions import RayError

from wsdm_ray.preflight import nodes
from wsdm_ray.preflight.node import Gpu, NodeFacts, Probe

GB = 10**9


def hexadecimal(name: str) -> str:
    """The id of a node, which Ray's strategies look at."""
    return name.encode().hex().ljust(56, "0")


class FakeRay:
    """A Ray of nodes `own`, `b`, ...; what each answers: facts, an error to raise, or None for never."""

    def __init__(self, **answers: NodeFacts | RayError | None):
        self.answers = answers
        self.asked: list[tuple[str, Probe]] = []
        self.cancelled: list[str] = []
        self.waited: list[float] = []
        self.resources: dict[str, Any] = {}

    def nodes(self) -> list[dict[str, Any]]:
        names = ["own", *self.answers]
        room = {"CPU": 2.0, "object_store_memory": 8.0 * GB}
        alive = [(name, True, self.resources.get(name, room)) for name in names]
        return [
            {
                "NodeID": hexadecimal(name),
                "NodeManagerAddress": f"at {name}",
                "Alive": there,
                "Resources": has,
            }
            for name, there, has in [*alive, ("dead", False, room)]
        ]

    def get_runtime_context(self) -> "FakeRay":
        return self

    def get_node_id(self) -> str:
        return hexadecimal("own")

    def remote(self, **options: Any) -> Any:
        assert options["num_cpus"] == 0, "it runs beside whatever runs"
        return lambda function: self

    def options(self, scheduling_strategy: Any) -> Any:
        ray = self
        [name] = [name for name in self.answers if hexadecimal(name) == scheduling_strategy.node_id]

        class Task:
            def remote(self, probe: Probe) -> str:
                ray.asked.append((name, probe))
                return name

        return Task()

    def wait(self, references: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        assert num_returns == len(references)
        self.waited.append(timeout)
        done = [name for name in references if self.answers[name] is not None]
        return done, [name for name in references if name not in done]

    def get(self, reference: str) -> NodeFacts:
        answer = self.answers[reference]
        if isinstance(answer, RayError):
            raise answer
        assert answer is not None
        return answer

    def cancel(self, reference: str, force: bool) -> None:
        self.cancelled.append(reference)


@pytest.fixture
def ask(monkeypatch):
    def made(probe: Probe, b_gpus: int = 0, **answers: NodeFacts | RayError | None) -> tuple[FakeRay, Any]:
        fake = FakeRay(**answers)
        fake.resources["b"] = {"CPU": 2.0, "GPU": b_gpus, "object_store_memory": 8.0 * GB}
        fake.resources["head"] = {"memory": 1.0}
        monkeypatch.setattr(nodes, "ray", fake)
        here = []
        monkeypatch.setattr(
            nodes, "facts_here", lambda it: (here.append(it), NodeFacts(node="", versions={}))[1]
        )
        found = nodes.facts_of_nodes(probe, seconds=3.0)
        assert here == [dataclasses.replace(probe, files=(), folders=())], "the driver has read them"
        return fake, found

    return made


def test_other_nodes_run_a_task_and_this_one_does_not(ask):
    probe = Probe(files=("a",), folders=("m",))
    fake, (facts, silent) = ask(probe, b=NodeFacts(node="?", versions={"torch": "1"}), head=None)
    assert fake.asked == [("b", probe)], "the head has no CPU and no GPU for the job"
    assert [(each.node, each.object_store_bytes) for each in facts] == [("at own", 8 * GB), ("at b", 8 * GB)]
    assert facts[1].versions == {"torch": "1"}
    assert not silent


def test_gpus_that_ray_does_not_use_are_left_out(ask):
    """As on a head with `--num-gpus 0`, and beside the card of a display."""
    small, large = (Gpu(name="any", total_bytes=size, free_bytes=size) for size in (2, 24))
    both = NodeFacts(node="?", versions={}, gpus=(small, large))
    _, (facts, _) = ask(Probe(gpus=True), b=both, c=both, b_gpus=1)
    assert {each.node: each.gpus for each in facts} == {"at own": (), "at b": (large,), "at c": ()}


def test_alone_nothing_is_waited_for(ask):
    fake, (facts, silent) = ask(Probe(files=("a",)))
    assert (len(facts), silent, fake.asked, fake.waited) == (1, {}, [], [])


def test_nodes_of_one_machine_are_told_apart():
    there = [
        {"NodeID": f"{number}" * 12, "NodeManagerAddress": address} for number, address in enumerate("aab")
    ]
    assert list(nodes.names_of(there).values()) == ["a (00000000)", "a (11111111)", "b"]


def test_what_fails_or_is_late_is_named(ask):
    error = RayError("a traceback\n  of many lines\nModuleNotFoundError: No module named 'wsdm_ray'")
    fake, (facts, silent) = ask(Probe(), b=error, c=None)
    assert len(facts) == 1
    assert silent == {
        "at b": "ModuleNotFoundError: No module named 'wsdm_ray'",
        "at c": "no answer within 3 s",
    }
    assert (fake.waited, fake.cancelled) == ([3.0], ["c"])
