"""What every node of the cluster says of itself: one small Ray task each, bounded in time."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wsdm_ray.preflight.node import NodeFacts, Probe, facts_here, largest_gpus

__all__ = ["facts_of_nodes"]

ANSWER_SECONDS = 30.0
"""A node that does not answer for so long is warned of; a node that was just added starts a process first."""


def facts_of_nodes(
    probe: Probe, seconds: float = ANSWER_SECONDS
) -> tuple[tuple[NodeFacts, ...], dict[str, str]]:
    """What the nodes answer that can run anything, and of those that do not answer the reason, by address.

    The node of this process answers at once, in this process, and is not asked what it has read already.
    """
    own = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    here = [node for node in nodes if node["NodeID"] == own]
    others = [node for node in nodes if node["NodeID"] != own and has_room(node)]
    task: Any = ray.remote(num_cpus=0, max_retries=0)(facts_here)
    asked = {}
    for node in others:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
        asked[task.options(scheduling_strategy=there).remote(probe)] = node
    names = names_of(nodes)
    driver = dataclasses.replace(probe, files=(), folders=())
    facts = [of_node(facts_here(driver), node, names) for node in here]
    silent = {}
    answered, late = ray.wait(list(asked), num_returns=len(asked), timeout=seconds) if asked else ([], [])
    for reference in answered:
        node = asked[reference]
        try:
            facts.append(of_node(ray.get(reference), node, names))
        except RayError as error:
            silent[names[node["NodeID"]]] = last_line(error)
    for reference in late:
        ray.cancel(reference, force=True)
        silent[names[asked[reference]["NodeID"]]] = f"no answer within {seconds:g} s"
    return tuple(facts), silent


def has_room(node: Mapping[str, Any]) -> bool:
    """Whether a node can run a worker, a replica or a reader."""
    return bool(node["Resources"].get("CPU") or node["Resources"].get("GPU"))


def names_of(nodes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """By id the address of each node, and where several are on one machine the start of the id."""
    count = Counter(node["NodeManagerAddress"] for node in nodes)
    return {
        node["NodeID"]: node["NodeManagerAddress"]
        + (f" ({node['NodeID'][:8]})" if count[node["NodeManagerAddress"]] > 1 else "")
        for node in nodes
    }


def of_node(facts: NodeFacts, node: Mapping[str, Any], names: Mapping[str, str]) -> NodeFacts:
    """The answer with what Ray knows of the node: its address, the size of its object store, its GPUs."""
    return dataclasses.replace(
        facts,
        node=names[node["NodeID"]],
        object_store_bytes=int(node["Resources"].get("object_store_memory", 0)),
        gpus=largest_gpus(facts.gpus, node["Resources"].get("GPU", 0)),
    )


def last_line(error: BaseException) -> str:
    """What an error of a task says of itself, without the traceback that Ray puts before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
