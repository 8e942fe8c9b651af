"""The models of one process, and what they and their micro-batches take of its device's memory.

Adapters that are not merged and have the same quantized base share it. Not covered: what is done when memory
runs out in a micro-batch all the same (`recovery`).
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from wsdm_ray.errors import ClusterError, ModelError
from wsdm_ray.modeling.adapter_io import add_adapter
from wsdm_ray.modeling.attention import BLOCK
from wsdm_ray.modeling.gpu_memory import free_gpu_bytes
from wsdm_ray.modeling.loading import load_scorer, local_base
from wsdm_ray.modeling.manifest import Manifest
from wsdm_ray.modeling.memory_errors import is_oom
from wsdm_ray.modeling.precision import BNB, default_device, resolve_precision, uses_fused_decoder
from wsdm_ray.modeling.scorers import BatchMemory, Scorer, TransformersScorer
from wsdm_ray.modeling.weight_bytes import streamed_bytes, weight_bytes
from wsdm_ray.modeling.weight_files import weight_files
from wsdm_ray.scoring.model_spec import ModelSpec
from wsdm_ray.storage import local_copy, reason

__all__ = ["Load", "Models", "budget_within", "bytes_of_models", "remedy"]

MAX_GPU_TOKENS = 132 * 128
"""The highest token budget of `auto` on a GPU. Tiles of GEMMs have 128 rows and an H100 or H200 has 132 SMs,
so that none is idle. With it a w8a8-fp8 replica of a 9B model takes 12 GiB."""
CPU_TOKENS = 2_048
"""The token budget that `auto` takes on a CPU: small micro-batches fit its caches and have little padding."""
USABLE_SHARE = 0.8
"""The share of the free memory that a micro-batch may be planned to fill."""

Load = Callable[..., tuple[Scorer, Manifest]]
"""Loads a scorer; its options are those of `load_scorer`."""


class Models:
    """The scorers of a process, in the order of their specs.

    Args:
        load: makes a scorer of a folder, with the options of `load_scorer`.
        device: `cuda` or `cpu`; by default the GPU if there is one.

    Raises:
        ClusterError: the device's memory does not hold them.
        ModelError, ConfigError: one cannot be loaded.
    """

    def __init__(self, specs: Sequence[ModelSpec], load: Load = load_scorer, device: str | None = None):
        self.specs = tuple(specs)
        self.scorers: list[Scorer] = []
        self.on_gpu = device != "cpu"  # or there is none, and its memory is infinite
        device = device or default_device()
        keys = [shared_base(spec, device) for spec in self.specs]
        for number, (spec, key) in enumerate(zip(self.specs, keys, strict=True)):
            first = keys.index(key) if key is not None else number
            if self.on_gpu:
                check_memory(self.specs, number, device, whole=first == number)
            with within_memory(spec, remedy(self.specs)):
                if first < number:
                    self.scorers.append(beside(self.scorers[first], spec.folder, f"model_{number}"))
                else:
                    scorer, _ = load(
                        spec.folder, precision=spec.precision, device=device, base=spec.base, verify=False
                    )
                    self.scorers.append(scorer)

    def warm_up(self, token_budget: int) -> float:
        """Compile what micro-batches of `token_budget` tokens need; returns the seconds it took."""
        started = time.monotonic()
        compiled = [
            (scorer, spec)
            for scorer, spec in zip(self.scorers, self.specs, strict=True)
            if scorer.static_shapes
        ]
        for scorer, spec in compiled:
            try:
                scorer.warm_up(token_budget)
            except RuntimeError as error:
                if not is_oom(error):  # then the engine goes on with a lower budget
                    raise ModelError(
                        f"{spec.folder}: a first micro-batch of {token_budget} tokens fails "
                        f"({reason(error)}); try --precision bnb-int8"
                    ) from error
        return time.monotonic() - started if compiled else 0.0

    def token_budget(self, layout: str) -> int:
        """The token budget of micro-batches that each model can run in the memory that is free."""
        free = free_gpu_bytes() if self.on_gpu else math.inf
        return min(
            budget_within(free, scorer.memory(layout), layout, spec.manifest.text.max_tokens)
            for scorer, spec in zip(self.scorers, self.specs, strict=True)
        )


def beside(scorer: Scorer, folder: str, name: str) -> TransformersScorer:
    """A scorer of the adapter in `folder`, on the base that `scorer` holds already."""
    assert isinstance(scorer, TransformersScorer), "unmerged precisions are run by transformers"
    add_adapter(scorer.network, folder, name)
    return TransformersScorer(scorer.network, name)


def shared_base(spec: ModelSpec, device: str) -> tuple[Any, ...] | None:
    """A key that is equal for models that can share a base; None for a model with a base of its own."""
    return base_key(spec.manifest, resolve_precision(spec.precision, device, spec.manifest))


def base_key(manifest: Manifest, precision: str) -> tuple[Any, ...] | None:
    """`shared_base`, with the precision resolved."""
    if manifest.kind != "adapter" or precision not in BNB:
        return None
    head = manifest.head
    shape = (head.kind, head.precision) if head else None
    return manifest.base_digest, manifest.quantization, precision, shape


def check_memory(specs: Sequence[ModelSpec], number: int, device: str, *, whole: bool) -> None:
    """Raise `ClusterError` where model `number` does not fit beside those that are loaded.

    Args:
        whole: the model takes a base of its own.
    """
    free = free_gpu_bytes()
    if math.isinf(free):
        return
    spec = specs[number]
    precision = resolve_precision(spec.precision, device, spec.manifest)
    needed = bytes_of_model(spec, precision, device, whole=whole)
    if needed > free:
        raise ClusterError(
            f"{spec.folder}: model {number + 1} of {len(specs)} needs {needed / 1e9:.1f} GB of GPU memory "
            f"as {precision}, and {free / 1e9:.1f} GB are free; {remedy(specs)}"
        )


def bytes_of_model(spec: ModelSpec, precision: str, device: str, *, whole: bool) -> int:
    """Memory of a GPU that a model takes while it is loaded.

    Args:
        precision: resolved. whole: the model takes a base of its own.
    """
    folder = local_copy(spec.folder)
    streamed = uses_fused_decoder(precision, device, spec.manifest)
    needed = 0
    if spec.manifest.kind == "adapter":
        if not streamed:
            needed += weight_bytes([f"{folder}/adapter_model.safetensors"], "fp32")
        folder = local_base(folder, spec.manifest, spec.base, verify=False)
    if whole:
        files = [str(path) for path in weight_files(folder)]
        needed += streamed_bytes(files, precision) if streamed else weight_bytes(files, precision)
    return needed


def bytes_of_models(specs: Sequence[ModelSpec], device: str) -> int:
    """Memory of a GPU that models take together. Args: specs: with their precisions resolved."""
    keys = [base_key(spec.manifest, spec.precision) for spec in specs]
    return sum(
        bytes_of_model(spec, spec.precision, device, whole=key is None or keys.index(key) == number)
        for number, (spec, key) in enumerate(zip(specs, keys, strict=True))
    )


def remedy(specs: Sequence[ModelSpec]) -> str:
    """What to do where the models do not fit a GPU."""
    if len(specs) > 1:
        return (
            "give fewer models, a --precision that takes less, or score each by itself and use jobs.ensemble"
        )
    return "choose a --precision that takes less, or a larger GPU"


@contextlib.contextmanager
def within_memory(spec: ModelSpec, remedy: str) -> Iterator[None]:
    """Turn memory that runs out while a model is loaded into a `ClusterError`."""
    try:
        yield
    except (MemoryError, RuntimeError, ModelError) as error:
        cause = error.__cause__ or error
        if not isinstance(cause, MemoryError | torch.OutOfMemoryError):
            raise
        raise ClusterError(f"{spec.folder}: memory ran out while it was loaded; {remedy}") from error


def budget_within(free: float, memory: BatchMemory, layout: str, max_tokens: int) -> int:
    """The tokens of a micro-batch that fits `free` bytes: 16,896, or its half, and so on, in whole blocks; at
    least 2 * max_tokens.

    Without a GPU (`free` is infinite) it is 2,048. In the layouts that pack, a row is as long as the
    micro-batch.
    """
    least = 2 * max_tokens
    if math.isinf(free):
        return max(least, CPU_TOKENS)
    budget = MAX_GPU_TOKENS
    while budget > least:
        keys = max_tokens if layout == "padded" else budget
        if budget * (memory.token + memory.key * keys) <= USABLE_SHARE * free:
            return budget
        budget = budget // 2 // BLOCK * BLOCK
    return least
