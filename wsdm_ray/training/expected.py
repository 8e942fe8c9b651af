"""What a training run will take, before it runs: memory of a GPU, tokens, time and cost."""

from pathlib import Path
from typing import Any

import numpy as np

from wsdm_ray.config import TrainConfig
from wsdm_ray.data.mixing import apply_mixture
from wsdm_ray.data.votes import read_votes
from wsdm_ray.modeling.classifier import model_config
from wsdm_ray.modeling.families import shape_of
from wsdm_ray.modeling.manifest import Manifest
from wsdm_ray.modeling.precision import BNB
from wsdm_ray.modeling.weight_bytes import streamed_bytes, weight_bytes
from wsdm_ray.modeling.weight_files import weight_files
from wsdm_ray.preflight.checks import GpuNeed
from wsdm_ray.preflight.estimate import Estimate, estimate, speed_of
from wsdm_ray.preflight.model_size import parameters_of, trained_parameters
from wsdm_ray.storage import local_copy
from wsdm_ray.text.encoding import PairEncoder, read_settings
from wsdm_ray.training.batches import pairs_in_steps
from wsdm_ray.training.check import CheckedTraining
from wsdm_ray.training.encode import encode_rows
from wsdm_ray.training.policy import (
    compile_pays_off,
    least_activation_bytes,
    least_token_budget,
    num_shards,
    optimizer_bytes,
    runs_decoder_on_gpu,
)

__all__ = ["describe", "gpu_need"]

SAMPLED_ROWS = 200

LINEAR_BYTES = {"fp32": 4, "bf16": 2, "w8a8-int8": 1, "w8a8-fp8": 1, "bnb-int8": 1, "nf4": 0.5}
"""Of a number of a linear layer, without scales."""


def gpu_need(config: TrainConfig, manifest: Manifest, steps: int) -> GpuNeed:
    """What a worker takes of its GPU: the base, all that trains, and the smallest micro-batch, recomputed.

    Args:
        manifest: what the checkpoints will say of themselves. steps: of the run.
    """
    folder, quantization = local_copy(manifest.base or config.base), manifest.quantization
    files = [str(path) for path in weight_files(folder)]
    whole = "fp32" if config.precision == "fp32" else "bf16"
    if quantization in BNB:
        weights = weight_bytes(files, quantization)
    else:
        weights = streamed_bytes(files, whole if quantization == "none" else quantization)
    settings = read_settings(Path(folder, "config.json"))
    trained = trained_parameters(settings, config.lora.r, config.lora.targets)
    parts = num_shards(config, config.min_workers or config.num_workers)
    bytes_each = 4 + optimizer_bytes(config.optimizer.kind, parts)
    network: Any = model_config(folder)
    decoder = runs_decoder_on_gpu(config, quantization, network)
    compiled = config.compile == "yes" or (
        config.compile == "auto" and compile_pays_off(decoder, "cuda", steps)
    )
    tokens = least_token_budget(config)
    batch = least_activation_bytes(
        tokens, shape_of(network), network.intermediate_size, config.lora.r, compiled=compiled
    )
    held = whole if quantization == "none" else quantization
    parameters = parameters_of(settings)
    layer_bytes = parameters.linear * LINEAR_BYTES[held]
    embedding_bytes = parameters.embedding * LINEAR_BYTES[whole]
    others = bytes_of_others(parts, layer_bytes, embedding_bytes, network)
    return GpuNeed(
        fixed_bytes=int(weights + bytes_each * trained) - others,
        batch_bytes=max(batch, others),  # a base is whole while it is loaded
        what=f"weights as {held}, adapter and AdamW's state",
        remedy="choose a --quantization that takes less, a lower --text.max-tokens, or a larger GPU",
    )


def bytes_of_others(shards: int, layer_bytes: float, embedding_bytes: float, network: Any) -> int:
    """What a GPU need not hold of a sharded base in a step: it gathers two layers at a time, and gets the
    rows of embeddings that it looks up.
    """
    if shards == 1:
        return 0
    own = 1 / shards + 2 / len(shape_of(network).layer_types)
    return int(layer_bytes * max(1 - own, 0) + embedding_bytes)


def describe(checked: CheckedTraining, gpu: str | None) -> dict[str, Any]:
    """The run in figures, which are printed too; tokens by a sample of rows, time by measured speeds.

    Args:
        gpu: the name of the workers' GPUs; None on CPUs, and where it is not known.
    """
    config, counts = checked.config, checked.counts
    tokens = tokens_of_rows(checked.worker_config)
    orderings = 2 if config.orders == "both" else 1
    pairs = pairs_in_steps(counts.steps, counts.epoch_rows, config.pairs_per_step)
    figures = {
        "rows": counts.epoch_rows,
        "valid_rows": counts.valid or 0,
        "steps": counts.steps,
        "pairs": pairs,
        "workers": config.num_workers,
        "orderings": orderings,
        "sampled_rows": len(tokens),
        "tokens_per_ordering": round(float(tokens.mean()), 1),
        "tokens": int(tokens.mean() * pairs * orderings),
    }
    time_taken = expected_time(checked, figures["tokens"], gpu)
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):>20}  {value:,}")
    for name, value in time_taken.lines():
        print(f"{name:>20}  {value}")
    if counts.valid and time_taken.hours is not None:
        print(f"{'':>20}  of steps alone: validation at each checkpoint comes on top")
    return figures | time_taken.figures()


def expected_time(checked: CheckedTraining, tokens: float, gpu: str | None) -> Estimate:
    """How long the steps of a run take."""
    config, quantization = checked.config, checked.manifest.quantization
    folder = local_copy(checked.worker_config.base)
    parameters = parameters_of(read_settings(Path(folder, "config.json")))
    speed = speed_of("train", gpu if checked.on_gpu else None, quantization, parameters)
    return estimate([(tokens, speed)], config.num_workers, config.gpu_hour_price)


def tokens_of_rows(config: TrainConfig) -> np.ndarray:
    """Tokens of one ordering of some rows of an epoch, chosen at random by the seed: int64 [n].

    Args:
        config: of the workers.
    """
    epoch = apply_mixture(read_votes(config.train), config.mix, config.seed)
    rows = np.random.default_rng(config.seed).permutation(len(epoch))[:SAMPLED_ROWS]
    return encode_rows(PairEncoder(local_copy(config.base), config.text), epoch, np.sort(rows)).tokens_N
