"""The checks of a scoring run in their order: what needs no cluster, what the cluster has, every node."""

import dataclasses
from collections.abc import Callable

from wsdm_ray.config import ScoreConfig
from wsdm_ray.preflight.job import check_nodes
from wsdm_ray.preflight.node import Probe
from wsdm_ray.preflight.table import Checks
from wsdm_ray.runs import run_folder
from wsdm_ray.scoring.check import Cluster, ScoreRun, assumption, check_inputs, check_run
from wsdm_ray.telemetry import counted

__all__ = ["checked"]


def checked(config: ScoreConfig, cluster_of: Callable[[ScoreConfig], Cluster]) -> ScoreRun:
    """The run that `config` asks for, on nodes that can run it. No folder is touched yet.

    Args:
        cluster_of: what the run takes of the cluster, asked when all that needs none has been checked.

    Raises:
        DataError, ModelError, ConfigError, StorageError: what was asked for cannot be done.
        ClusterError: the cluster cannot run it.
    """
    checks = Checks("score", shown=config.dry_run)
    with checks.stage("inputs and models") as found:
        inputs = check_inputs(config)
        files, models = len(inputs.files), len(inputs.models)
        found.append(f"{counted(inputs.plan.rows, 'row')} in {counted(files, 'file')}")
        found.append(counted(models, "model"))
    with checks.stage("resources") as found:
        cluster = cluster_of(config)
        found.append(resources(cluster))
    with checks.stage("precision") as found:
        run = check_run(config, cluster, inputs)
        found.append(assumption(run))
    need = None
    if cluster.on_gpu:
        from wsdm_ray.scoring.expected import gpu_need

        need = gpu_need(run.replica.models)
    probe = Probe(files=run.files[:1], folders=model_folders(run), gpus=cluster.on_gpu)
    written = (config.output, run_folder(config.output)) if config.dry_run else ()  # else they are checked
    gpu = check_nodes(checks, config.output, probe, need, assumed=cluster.assumed, folders=written)
    return dataclasses.replace(run, cluster=dataclasses.replace(cluster, gpu=gpu))


def resources(cluster: Cluster) -> str:
    """What the run takes of the cluster, in words."""
    kind = "1 CPU and 1 GPU" if cluster.on_gpu else "1 CPU"
    asked = "no cluster was asked (RAY_ADDRESS names one)" if cluster.assumed else "they fit beside a reader"
    return f"{cluster.replicas} x {kind}; {asked}"


def model_folders(run: ScoreRun) -> tuple[str, ...]:
    """Where every node reads the models from."""
    folders = [
        folder
        for model in run.replica.models
        for folder in (model.folder, model.base or model.manifest.base)
        if folder and (folder == model.folder or model.manifest.kind == "adapter")
    ]
    return tuple(dict.fromkeys(folders))
