"""The checks of a training run in their order: what needs no cluster, what the cluster has, every node."""

import dataclasses
import os

from wsdm_ray.config import TrainConfig
from wsdm_ray.preflight.job import check_nodes, cluster_at_hand
from wsdm_ray.preflight.node import Probe
from wsdm_ray.preflight.table import Checks
from wsdm_ray.storage import list_files
from wsdm_ray.training.check import CheckedTraining, ClusterResources, check, check_inputs

__all__ = ["checked"]


def checked(config: TrainConfig) -> tuple[CheckedTraining, str | None]:
    """The run that `config` asks for, on nodes that can run it, and the name that all their GPUs share.

    No folder is touched yet. A dry run starts no cluster: without one it takes this machine for one.

    Raises:
        DataError, ModelError, ConfigError, StorageError: what was asked for cannot be done.
        ClusterError: the cluster cannot run it.
    """
    checks = Checks("train", shown=config.dry_run)
    with checks.stage("inputs and base") as found:
        inputs = check_inputs(config)
        found.append(f"{inputs.counts.train:,} votes, {inputs.counts.steps:,} steps")
    assumed = config.dry_run and not cluster_at_hand()
    with checks.stage("resources") as found:
        cluster = this_machine() if assumed else resources_of_cluster(config)
        run = check(config, cluster, inputs)
        asked = "no cluster was asked (RAY_ADDRESS names one)" if assumed else "they fit"
        found.append(f"{config.num_workers} x 1 {'GPU' if run.on_gpu else 'CPU'}; {asked}")
        found.append(f"the base is held as {run.manifest.quantization}")
    need = None
    if run.on_gpu:
        from wsdm_ray.training.expected import gpu_need

        need = gpu_need(config, run.manifest, run.counts.steps)
    gpu = check_nodes(checks, config.output, probe_of(run), need, assumed=assumed, folders=(config.output,))
    return run, gpu


def probe_of(run: CheckedTraining) -> Probe:
    """What every node is asked: a file of each set that workers read, and the folders of models."""
    worker = run.worker_config
    teachers = (list_files(folder)[0] for folder in worker.objective.teachers)
    return Probe(
        files=(*worker.train[:1], *worker.valid[:1], *teachers),
        folders=(worker.base, *filter(None, [worker.start_from])),
        gpus=run.on_gpu,
    )


def resources_of_cluster(config: TrainConfig) -> ClusterResources:
    """What the cluster has, to which this process is connected from here on. A dry run waits for no nodes."""
    from wsdm_ray.training.ray_train import cluster_resources

    return cluster_resources(
        dataclasses.replace(config, wait_for_resources_seconds=0) if config.dry_run else config
    )


def this_machine() -> ClusterResources:
    """This machine as a cluster."""
    import torch

    gpus = range(torch.cuda.device_count())
    names = (torch.cuda.get_device_name(gpu).removeprefix("NVIDIA ") for gpu in gpus)
    types = frozenset(name.split(" ")[0] for name in names)
    return ClusterResources(cpus=os.cpu_count() or 1, gpus=len(gpus), gpu_types=types)
