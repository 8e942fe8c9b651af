"""Everything about a training run that can be wrong is found here, before anything runs. No Ray.

What needs no cluster comes first (`check_inputs`), and of that what needs no torch, whose import takes
seconds: a wrong path is found at once. So modules with torch are imported where they are used.
"""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsdm_ray.config import TrainConfig
from wsdm_ray.data.mixing import apply_mixture, check_leakage, read_teachers, sample_weights
from wsdm_ray.data.votes import read_votes
from wsdm_ray.errors import ClusterError, ConfigError
from wsdm_ray.inputs.files import input_paths
from wsdm_ray.modeling.manifest import Manifest, Quantization, folder_digest
from wsdm_ray.runs import check_no_overlap, file_versions, find_run, options
from wsdm_ray.storage import absolute, list_files, local_copy, model_location
from wsdm_ray.telemetry import logger
from wsdm_ray.training.batches import num_steps
from wsdm_ray.training.sinks import check_sinks
from wsdm_ray.training.start import check_start

__all__ = [
    "CheckedInputs",
    "CheckedTraining",
    "ClusterResources",
    "TrainingCounts",
    "TrainingFiles",
    "check",
    "check_inputs",
]

UNKNOWN_GPU = "unknown"

NOT_IN_FINGERPRINT = (
    "output", "restart", "max_failures", "loss_spike", "allow_leakage", "tensorboard", "wandb",
    "dry_run", "gpu_hour_price",
    "base", "start_from", "train", "valid",  # by their content
    "num_workers", "min_workers", "micro_batches",  # as `passes`
    "wait_for_resources_seconds",
    "gradient_checkpointing", "shard_base",  # change memory and time alone
)  # fmt: skip
"""Options that may change between a run and its resumption, or that the fingerprint has in another form."""


@dataclass(frozen=True, kw_only=True)
class ClusterResources:
    """What the cluster has in all."""

    cpus: float
    gpus: int
    gpu_types: frozenset[str] = frozenset()
    """Ray's names of the GPUs, such as H100; `UNKNOWN_GPU` for those without one."""


@dataclass(frozen=True, kw_only=True)
class TrainingFiles:
    """The files of the train and the valid set."""

    train: list[str]
    valid: list[str]


@dataclass(frozen=True, kw_only=True)
class TrainingCounts:
    """Rows and steps of a run, as run.json has them."""

    train: int
    """Rows of the train set."""
    epoch_rows: int
    """Rows of one epoch, after `--mix`."""
    steps: int
    epoch_rows_by_source: dict[str, int] | None = None
    """None where there is one source and no `--mix`."""
    taught_rows: int | None = None
    """Rows of an epoch that the teachers have; None without teachers."""
    valid: int | None = None
    """Rows of the valid set; None without one."""

    def to_dict(self) -> dict[str, Any]:
        """The counts by name, without those that are None."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class CheckedTraining:
    """A training run in which no fault was found."""

    config: TrainConfig
    worker_config: TrainConfig
    """`config` with absolute paths: workers run in other folders, maybe on other machines."""
    manifest: Manifest
    """What the checkpoints say of themselves, without metrics."""
    counts: TrainingCounts
    on_gpu: bool
    fingerprint: dict[str, Any]
    """Everything that decides the classifier, JSON-like."""


@dataclass(frozen=True, kw_only=True)
class CheckedInputs:
    """All of a training run that no cluster was needed to check; as `CheckedTraining` has it."""

    files: TrainingFiles
    counts: TrainingCounts
    manifest: Manifest


def check_inputs(config: TrainConfig) -> CheckedInputs:
    """What of `config` needs no cluster: paths, votes, the base and options.

    Raises:
        DataError, ModelError, ConfigError, StorageError: what was asked for cannot be done.
    """
    files = TrainingFiles(
        train=input_paths(config.train), valid=input_paths(config.valid) if config.valid else []
    )
    starts = [config.start_from] if config.start_from else []
    sources = (*config.train, *config.valid, config.base, *starts, *config.objective.teachers)
    check_no_overlap(config.output, [*sources, *files.train, *files.valid])
    check_sinks(config)
    local_copy(model_location(config.base))
    counts = check_data(config, files)
    return CheckedInputs(files=files, counts=counts, manifest=check_start(config, check_base(config)))


def check(
    config: TrainConfig, cluster: ClusterResources, inputs: CheckedInputs | None = None
) -> CheckedTraining:
    """What is to be run.

    Args:
        inputs: of `check_inputs`, which is asked where they are not given.

    Raises:
        DataError, ModelError, ConfigError, StorageError: what was asked for cannot be done.
        ClusterError: the workers do not fit the cluster.
    """
    inputs = inputs or check_inputs(config)
    on_gpu = fit_cluster(config, cluster)
    chosen = choose_quantization(config, inputs.manifest, cluster)
    manifest = dataclasses.replace(inputs.manifest, quantization=chosen or inputs.manifest.quantization)
    if config.shard_base:
        check_decoder(config, manifest, on_gpu)
    # Only where it is another than it would be elsewhere: runs of earlier versions do not name it.
    named = {"quantization": chosen} if manifest != inputs.manifest else {}
    return CheckedTraining(
        config=config,
        worker_config=with_absolute_paths(config, inputs.files, manifest),
        manifest=manifest,
        counts=inputs.counts,
        on_gpu=on_gpu,
        fingerprint=named | fingerprint_of(config, inputs.files, manifest, on_gpu),
    )


def choose_quantization(
    config: TrainConfig, manifest: Manifest, cluster: ClusterResources
) -> Quantization | None:
    """What `--quantization auto` makes of an unquantized base; None where there is nothing to choose.

    The run that is in the output already keeps what it has, whatever GPUs there are now.
    """
    from wsdm_ray.modeling.classifier import model_config
    from wsdm_ray.modeling.quantization_config import folder_quantization
    from wsdm_ray.training.policy import fastest_quantization

    base = local_copy(manifest.base or config.base)
    if config.quantization != "auto" or folder_quantization(base) != "none":
        return None
    earlier = None if config.restart else find_run(config.output)
    if earlier and earlier.record["job"] == "train":
        return earlier.record["fingerprint"].get("quantization", manifest.quantization)
    return fastest_quantization(config, model_config(base), cluster.gpu_types)


def check_decoder(config: TrainConfig, manifest: Manifest, on_gpu: bool) -> None:
    """Raise `ConfigError` where the network that trains cannot share its base."""
    from wsdm_ray.modeling.classifier import model_config
    from wsdm_ray.modeling.families import drops_attention
    from wsdm_ray.training.policy import check_shard_base, runs_decoder, runs_decoder_on_gpu

    network = model_config(local_copy(manifest.base or config.base))
    if on_gpu:
        decoder = runs_decoder_on_gpu(config, manifest.quantization, network)
    else:
        decoder = runs_decoder(config, manifest.quantization, "cpu", "fp32", drops_attention(network))
    check_shard_base(config, decoder)


def check_base(config: TrainConfig) -> Manifest:
    """What the checkpoints will say of themselves, but metrics."""
    from wsdm_ray.modeling.classifier import check_targets, meta_model, model_config
    from wsdm_ray.modeling.folder_check import check_model_folder
    from wsdm_ray.modeling.folder_names import as_given
    from wsdm_ray.modeling.quantization_config import stored_quantization

    check_model_folder(config.base, "--base")
    location = model_location(config.base)
    base = local_copy(location)
    with as_given((config.base, base)):
        check_targets(meta_model(model_config(base)), config.lora)
        quantization = stored_quantization(base, config.quantization)
        manifest = Manifest(
            kind="adapter",
            base=location,
            base_digest=folder_digest(base),
            quantization=quantization,
            head=config.head,
            text=config.text,
            orders=config.orders,
        )
    if config.int8_activations and manifest.quantization != "bnb-int8":
        raise ConfigError(
            f"--int8-activations: the base is held as {manifest.quantization}; leave it out, or give "
            "--quantization bnb-int8 and a base that is bnb-int8 or unquantized"
        )
    return manifest


def check_data(config: TrainConfig, files: TrainingFiles) -> TrainingCounts:
    """Counts of the votes. Raises where the sets do not fit each other or the options."""
    votes = read_votes(files.train)
    epoch = apply_mixture(votes, config.mix, config.seed)
    sample_weights(epoch.sources_N, config.objective.source_weights)
    by_source = Counter(epoch.sources_N.tolist())
    shows_sources = len(by_source) > 1 or bool(config.mix)
    if shows_sources:
        logger.info("train: rows of an epoch: %s", ", ".join(f"{k} {v:,}" for k, v in by_source.items()))
    taught_rows = num_valid = None
    if config.objective.teachers:
        teacher_N = read_teachers(config.objective.teachers, epoch.table["id"])
        taught_rows = int(np.count_nonzero(~np.isnan(teacher_N)))
        logger.info("train: teachers have %d of %d rows of an epoch", taught_rows, len(epoch))
    if files.valid:
        valid = read_votes(files.valid)
        num_valid = len(valid)
        if not config.allow_leakage:
            check_leakage(epoch, valid)
    return TrainingCounts(
        train=len(votes),
        epoch_rows=len(epoch),
        steps=num_steps(len(epoch), config.pairs_per_step, config.epochs, config.max_steps),
        epoch_rows_by_source=dict(sorted(by_source.items())) if shows_sources else None,
        taught_rows=taught_rows,
        valid=num_valid,
    )


def fit_cluster(config: TrainConfig, cluster: ClusterResources) -> bool:
    """Whether workers run on GPUs. Raises `ClusterError` where the fewest allowed do not fit the cluster."""
    num_workers = config.min_workers or config.num_workers
    if num_workers > (cluster.gpus or cluster.cpus):
        raise ClusterError(
            f"the cluster has {cluster.cpus:g} CPUs and {cluster.gpus} GPUs: too small for {num_workers} "
            f"workers of 1 {'GPU' if cluster.gpus else 'CPU'} each; add nodes or lower "
            f"{'--min-workers' if config.min_workers else '--num-workers'}"
        )
    return cluster.gpus > 0


def with_absolute_paths(config: TrainConfig, files: TrainingFiles, manifest: Manifest) -> TrainConfig:
    """`config` as it means the same in any folder and on any machine that has the files."""
    teachers = tuple(map(absolute, config.objective.teachers))
    assert manifest.base is not None
    return dataclasses.replace(
        config,
        base=manifest.base,
        start_from=manifest.started_from,
        train=tuple(files.train),
        valid=tuple(files.valid),
        output=absolute(config.output),
        objective=dataclasses.replace(config.objective, teachers=teachers),
    )


def passes_of(workers: int) -> int | str:
    """How micro-batches are cut for so many workers, as they decide dropout: evenly, if there are several."""
    return workers if workers == 1 else f"{workers}, even"


def fingerprint_of(
    config: TrainConfig, files: TrainingFiles, manifest: Manifest, on_gpu: bool
) -> dict[str, Any]:
    """Everything that decides the classifier, JSON-like."""
    objective = dataclasses.replace(config.objective, teachers=())  # they are here by their files
    start = {"start_from": manifest.started_from_digest} if config.start_from else {}
    decisive = options(dataclasses.replace(config, objective=objective), leave_out=NOT_IN_FINGERPRINT)
    if not config.objective.length_balance:  # runs of earlier versions do not name it
        del decisive["objective"]["length_balance"]
    return start | {
        "options": decisive,
        "base": manifest.base_digest,
        "passes": passes_of(config.micro_batches or config.num_workers),
        "gpu": on_gpu,
        "inputs": {name: file_versions(paths) for name, paths in vars(files).items()},
        "teachers": [file_versions(list_files(folder)) for folder in config.objective.teachers],
    }
