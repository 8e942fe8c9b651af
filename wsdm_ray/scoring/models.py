"""The models of one process, and what they and their passes take of its device's memory.

Where several adapters stand unmerged beside the same quantized base, the base is held once. Not covered: what
is done when memory runs out in a pass all the same (`engine`).
"""

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from wsdm_ray.errors import ClusterError, ModelError
from wsdm_ray.modeling.adapter_io import add_adapter
from wsdm_ray.modeling.attention import BLOCK, supports_varlen
from wsdm_ray.modeling.classifier import unwrap_peft
from wsdm_ray.modeling.families import head_width
from wsdm_ray.modeling.fused_decoder import FusedDecoder
from wsdm_ray.modeling.head import HEADS
from wsdm_ray.modeling.loading import load_scorer, local_base
from wsdm_ray.modeling.manifest import Manifest
from wsdm_ray.modeling.precision import BNB, device_and_dtype, resolve_precision, uses_fused_decoder
from wsdm_ray.modeling.quantized_linear import LinearWeight
from wsdm_ray.modeling.scorers import FusedClassifier, round_up_to_block
from wsdm_ray.modeling.weight_files import weight_files
from wsdm_ray.scoring.engine import is_oom
from wsdm_ray.storage import local_copy, reason

__all__ = ["BatchMemory", "ModelSpec", "Models", "budget_within", "streamed_bytes", "weight_bytes"]

MOST_TOKENS = 132 * 128
"""Of a pass that nobody asked for: tiles of products have 128 rows, and an H100 or H200 has 132 processors,
none of which then waits for others. With it a w8a8-fp8 replica of 9B takes 12 GiB."""
CPU_TOKENS = 2_048
"""Of a pass on a CPU, where small passes are the fastest: they stay in its caches and have little padding."""
USABLE = 0.8
"""Share of the free memory that a pass may be planned to fill."""


@dataclass(frozen=True)
class ModelSpec:
    """A model as every process of a run needs to know it."""

    folder: str
    base: str | None
    manifest: Manifest
    precision: str


class Models:
    """Networks ready to score, in the order of their specs.

    Raises:
        ClusterError: the device's memory does not hold them.
        ModelError, ConfigError: one cannot be loaded.
    """

    def __init__(self, specs: Sequence[ModelSpec]):
        self.specs = tuple(specs)
        self.held: list[tuple[Any, str | None]] = []  # network and, where it has several, the adapter's name
        device = device_and_dtype("auto")[0]
        keys = [shared_base(spec, device) for spec in self.specs]
        for number, (spec, key) in enumerate(zip(self.specs, keys, strict=True)):
            same = keys.index(key) if key is not None else number
            check_memory(self.specs, number, device, whole=same == number)
            with within_memory(spec, remedy(self.specs)):
                if same < number:
                    network, name = self.held[same][0], f"model_{number}"
                    add_adapter(network, spec.folder, name)
                else:
                    network, _ = load_scorer(
                        spec.folder, precision=spec.precision, base=spec.base, verify=False
                    )
                    name = "default" if key is not None and keys.count(key) > 1 else None
            self.held.append((network, name))

    def select(self, number: int) -> nn.Module:
        """Network `number`, with its own adapter and head in place, until the next call."""
        network, name = self.held[number]
        if name is not None:
            network.set_adapter(name, inference_mode=True)
        return network

    def warm_up(self, token_budget: int) -> float:
        """Compile, for passes of so many tokens, what has to be compiled; returns the seconds it took."""
        started = time.monotonic()
        compiled = [
            (network, spec)
            for (network, _), spec in zip(self.held, self.specs, strict=True)
            if isinstance(network, FusedClassifier) and network.static_shapes
        ]
        for network, spec in compiled:
            try:
                network.warm_up(round_up_to_block(token_budget))
            except RuntimeError as error:
                if not is_oom(error):  # then the engine goes on with shorter passes
                    raise ModelError(
                        f"{spec.folder}: a first pass of {token_budget} tokens fails ({reason(error)}); try "
                        "--precision bnb-int8"
                    ) from error
        return time.monotonic() - started if compiled else 0.0

    def token_budget(self, layout: str) -> int:
        """The token budget of passes that any of the models can run in the memory that is free."""
        return min(
            budget_within(
                free_bytes(), BatchMemory.of(network, layout), layout, spec.manifest.text.max_tokens
            )
            for (network, _), spec in zip(self.held, self.specs, strict=True)
        )


def shared_base(spec: ModelSpec, device: str) -> tuple[Any, ...] | None:
    """Equal for models that can stand beside one base; None for one that takes a base of its own."""
    manifest = spec.manifest
    precision = resolve_precision(spec.precision, device, manifest)
    if manifest.kind != "adapter" or precision not in BNB:
        return None
    head = manifest.head
    shape = (head.kind, head.precision) if head else None
    return manifest.base_digest, manifest.quantization, precision, shape


def free_bytes() -> float:
    """Free memory of this process's GPU, with what PyTorch keeps for later; infinite without one."""
    if not torch.cuda.is_available():
        return math.inf
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def check_memory(specs: Sequence[ModelSpec], number: int, device: str, *, whole: bool) -> None:
    """Raise `ClusterError` where model `number` does not fit beside those that are loaded.

    Args:
        whole: it takes a base of its own.
    """
    free = free_bytes()
    if math.isinf(free):
        return
    spec = specs[number]
    folder = local_copy(spec.folder)
    precision = resolve_precision(spec.precision, device, spec.manifest)
    streamed = uses_fused_decoder(precision, device, spec.manifest)
    needed = 0
    if spec.manifest.kind == "adapter":
        if not streamed:
            needed += weight_bytes([f"{folder}/adapter_model.safetensors"], "fp32")
        folder = local_base(folder, spec.manifest, spec.base, verify=False)
    if whole:
        files = [str(path) for path in weight_files(folder)]
        needed += streamed_bytes(files, precision) if streamed else weight_bytes(files, precision)
    if needed > free:
        raise ClusterError(
            f"{spec.folder}: model {number + 1} of {len(specs)} needs {needed / 1e9:.1f} GB of GPU memory "
            f"as {precision}, and {free / 1e9:.1f} GB are free; {remedy(specs)}"
        )


def remedy(specs: Sequence[ModelSpec]) -> str:
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


def weight_bytes(files: Sequence[str], precision: str) -> int:
    """Memory that the weights in safetensors files take while a network of transformers loads them.

    Merging an adapter is done in float32, whatever the result. In bitsandbytes' precisions, embeddings and
    norms have 2 bytes.
    """
    total = 0.0
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a dict)
                part = file.get_slice(name)
                elements, kind = math.prod(part.get_shape()), part.get_dtype()
                if precision not in BNB:
                    packed = 2 if kind == "U8" else 1  # two weights of 4 bits in a byte
                    total += 4 * packed * elements
                elif kind in ("I8", "U8"):
                    total += elements
                elif len(part.get_shape()) < 2 or "embed" in name:
                    total += 2 * elements
                else:
                    total += elements * (1 if precision == "bnb-int8" else 0.5)
    return int(total)


def streamed_bytes(files: Sequence[str], precision: str) -> int:
    """Memory that the weights in safetensors files take while a stack is made of them.

    A linear layer's weight has the bytes of its precision and 4 a row, a norm 4 a number. One weight at a
    time stands beside them in float32, three times while it is merged; the embedding, when nothing else is
    there yet. Heads are left out.
    """
    total = largest = embedding = 0
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a dict)
                if name.split(".")[0] in HEADS:
                    continue
                part = file.get_slice(name)
                shape, kind = part.get_shape(), part.get_dtype()
                elements = math.prod(shape) * (2 if kind == "U8" else 1)  # two weights of 4 bits in a byte
                if len(shape) < 2:
                    total += 4 * elements
                elif "embed" in name:
                    total += STREAMED[precision][1] * elements
                    embedding = 4 * elements
                else:
                    total += STREAMED[precision][0] * elements + 4 * shape[0]
                    largest = max(largest, elements)
    return max(total + 3 * 4 * largest, 2 * embedding)


STREAMED = {"fp32": (4, 4), "bf16": (2, 2), "w8a8-int8": (1, 2), "w8a8-fp8": (1, 2)}
"""Bytes of a number of a linear layer's weight, and of an embedding, in a stack on a GPU."""


@dataclass(frozen=True)
class BatchMemory:
    """Bytes that a pass takes at its peak, of which one layer at a time is alive: no gradients are kept.

    token: bytes of a token. key: bytes of a token for each token of its row, of masks and attention scores.
    """

    token: int
    key: int

    @classmethod
    def of(cls, network: nn.Module, layout: str) -> "BatchMemory":
        """Four copies of each width (of the model, all heads, within the MLP), and two in float32.

        Masks are made but for packed rows of a family whose attention goes by bounds.
        """
        if isinstance(network, FusedClassifier):
            return cls.of_stack(network.stack)
        model = unwrap_peft(network)
        config = model.config.get_text_config()
        itemsize = model.get_input_embeddings().weight.element_size()
        heads = config.num_attention_heads
        wide = heads * head_width(config)
        token = 4 * itemsize * (config.hidden_size + wide + config.intermediate_size) + 8 * config.hidden_size
        masks = len(set(getattr(config, "layer_types", None) or ["full_attention"]))
        key = masks * itemsize + 6  # positions' distance and who sees whom, while a mask is made
        if model.config._attn_implementation == "eager":
            key += heads * (2 * itemsize + 4)  # scores, their softmax in float32, and that in their type
        return cls(token, 0 if layout == "packed" and supports_varlen(model.config) else key)

    @classmethod
    def of_stack(cls, stack: FusedDecoder) -> "BatchMemory":
        """Of a stack on a GPU, where attention writes out neither masks nor scores.

        At its widest a layer holds its input and its sum beside either what attention works on or what the
        MLP does; an 8-bit product, a copy of its input in 8 bit; one in int8, its sums in int32. Kernels keep
        sums to themselves, and gate and up beside each other.
        """

        def sums(weight: LinearWeight) -> int:
            written = weight.values.dtype == torch.int8 and not weight.fused
            return 4 * len(weight.values) if written else 0

        shape, layer = stack.shape, stack.fused_layers()[0]
        itemsize = stack.embedding_VD.element_size()
        in_8_bit = layer.qkv.scale is not None
        qkv, heads = len(layer.qkv.values), shape.num_heads * shape.head_dim
        gate_up = 0 if layer.gate_up.fused else len(layer.gate_up.values)
        inside = layer.down.values.shape[1]
        attention = itemsize * (shape.hidden_size + 2 * qkv + heads) + in_8_bit * max(
            shape.hidden_size, heads
        )
        mlp = itemsize * (shape.hidden_size + gate_up + inside) + in_8_bit * inside
        attention, mlp = attention + sums(layer.qkv), mlp + sums(layer.gate_up)
        return cls(token=(2 * itemsize + 4) * shape.hidden_size + max(attention, mlp), key=0)


def budget_within(free: float, memory: BatchMemory, layout: str, max_tokens: int) -> int:
    """The tokens of a pass that fits `free` bytes: 16,896, or its half, and so on, in whole blocks; at least
    2 * max_tokens.

    Without a GPU (`free` is infinite) it is 2,048. A row of the layouts that pack is as long as the pass.
    """
    least = 2 * max_tokens
    if math.isinf(free):
        return max(least, CPU_TOKENS)
    budget = MOST_TOKENS
    while budget > least:
        keys = max_tokens if layout == "padded" else budget
        if budget * (memory.token + memory.key * keys) <= USABLE * free:
            return budget
        budget = budget // 2 // BLOCK * BLOCK
    return least
