"""The part of a job's checks that asks the nodes: the same for scoring and training."""

import dataclasses
import os
import sys

from wsdm_ray.preflight.checks import GpuNeed, gpu_name, node_checks
from wsdm_ray.preflight.node import (
    NodeFacts,
    Probe,
    facts_here,
    output_probe,
    versions_here,
    visible_gpus,
)
from wsdm_ray.preflight.table import Checks
from wsdm_ray.storage import check_writable

__all__ = ["check_nodes", "cluster_at_hand"]


def cluster_at_hand() -> bool:
    """Whether there is a cluster that need not be started: of `RAY_ADDRESS`, or this process is in one."""
    ray = sys.modules.get("ray")  # without an import, which takes seconds
    return "RAY_ADDRESS" in os.environ or (ray is not None and ray.is_initialized())


def check_nodes(
    checks: Checks,
    output: str,
    probe: Probe,
    need: GpuNeed | None,
    *,
    assumed: bool,
    folders: tuple[str, ...],
) -> str | None:
    """Ask every node, add what follows to the checks and settle them; returns the name that all GPUs share.

    Args:
        output: where the job writes. folders: its folders, of which a store must take an object each.
        probe: what is asked, without `seen`.
        need: of a GPU; None on CPUs.
        assumed: there is no cluster to ask: this machine answers alone.

    Raises:
        StorageError: the output cannot be written. ClusterError: another check failed.
    """
    with checks.stage("write access") as found, output_probe(output) as seen:
        for folder in folders:
            check_writable(folder)
        facts, silent = answers(dataclasses.replace(probe, seen=seen), assumed)
        found.append("a probe was written and deleted")
    rows = node_checks(facts, silent, own_versions=versions_here(), need=need, output=output)
    checks.settle(rows)
    return gpu_name(facts)


def answers(probe: Probe, assumed: bool) -> tuple[tuple[NodeFacts, ...], dict[str, str]]:
    """What the nodes answer, or this machine alone."""
    if assumed:
        facts = facts_here(dataclasses.replace(probe, files=(), folders=()))
        return (dataclasses.replace(facts, gpus=visible_gpus(facts.gpus)),), {}
    from wsdm_ray.preflight.nodes import facts_of_nodes

    return facts_of_nodes(probe)
