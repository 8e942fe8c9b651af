"""Writes the files of a checkpoint from merged weights, tensor by tensor, in the precision that is asked for.

bitsandbytes' own functions make bnb-int8 and nf4: the files are, byte for byte, what transformers saves after
it quantized the same weights on loading. w8a8-fp8 is written as compressed-tensors does it, w8a8-int8 in a
format of our own.
"""

import copy
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from wsdm_ray.errors import StorageError
from wsdm_ray.modeling.checkpoint import complete_folder
from wsdm_ray.modeling.classifier import meta_model
from wsdm_ray.modeling.gptq import calibrate
from wsdm_ray.modeling.head import stored_head
from wsdm_ray.modeling.manifest import MANIFEST, Manifest, read_manifest
from wsdm_ray.modeling.merging import Base, Merged
from wsdm_ray.modeling.precision import default_device
from wsdm_ray.modeling.quantization_config import quantization_config
from wsdm_ray.modeling.quantized_linear import QuantizedTensor
from wsdm_ray.modeling.stored_weights import quantized, stored_rows
from wsdm_ray.modeling.weight_files import INDEX, WEIGHTS
from wsdm_ray.storage import reason
from wsdm_ray.telemetry import logger
from wsdm_ray.text.encoding import EncodedPairs

__all__ = ["SHARD_BYTES", "head_of", "write_checkpoint"]

SHARD_BYTES = 4_000_000_000
"""The most bytes of one file of weights, and of what waits in memory to be written."""


def write_checkpoint(
    merged: Merged, precision: str, folder: str, pairs: EncodedPairs | None = None
) -> Manifest:
    """Write the weights in a precision of `QuantizeConfig` with all that belongs to them.

    Args:
        pairs: on which w8a8-int8 is to be calibrated.
    """
    base, head = merged.base, head_of(merged)
    stored = "none" if precision == "bf16" else precision
    dtype = torch.bfloat16 if precision == "bf16" else base.dtype
    writer = ShardWriter(folder, SHARD_BYTES)
    prefix = "model." if head else ""
    for name, tensor in (
        calibrated_tensors(merged, dtype, pairs)
        if pairs is not None
        else stored_tensors(merged, stored, dtype)
    ):
        writer.add(prefix + name, tensor)
    if head:
        for name, tensor in head_tensors(merged, head).items():
            writer.add(f"score.{name}", tensor)
    writer.close()
    write_config(base, precision, dtype, folder, with_head=head is not None, calibrated=pairs is not None)
    about: dict[str, Any] = {"kind": "base", "quantization": stored}
    if head:
        about |= {"kind": "full"} | {
            name: getattr(head.manifest, name)
            for name in ("head", "text", "orders", "temperature", "metrics")
        }
    if merged.average:
        about["metrics"] = {}  # nobody has measured the mean
    manifest = Manifest(**about)
    complete_folder(head.folder if head else base.folder, folder, manifest)
    return manifest


def stored_tensors(
    merged: Merged, stored: str, dtype: torch.dtype, names: Iterable[str] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a checkpoint's backbone and their names; of the parameters named, by default all.

    Args:
        stored: the precision of linear layers' weights, or `none`. dtype: of all else.
    """
    base = merged.base
    for name in base.shapes if names is None else names:
        layer = base.layer_of(name)
        if layer is not None and stored != "none":
            for part, tensor in quantized(merged.parameter(name), stored, dtype).items():
                yield f"{layer}.{part}", tensor
        elif layer is not None and merged.adapters:
            yield name, merged.parameter(name).to(dtype)
        else:
            yield name, base.stored(name)["weight"].to(dtype)


def calibrated_tensors(
    merged: Merged, dtype: torch.dtype, pairs: EncodedPairs
) -> Iterator[tuple[str, torch.Tensor]]:
    """What `stored_tensors` gives of w8a8-int8, calibrated; norms and biases that change are float32."""
    kept = set(merged.base.shapes)
    for changed in calibrate(merged, pairs, default_device()):
        kept -= set(changed)
        for name, found in changed.items():
            if isinstance(found, QuantizedTensor):
                for part, tensor in stored_rows(found).items():
                    yield f"{merged.base.layer_of(name)}.{part}", tensor
            else:
                yield name, found
    yield from stored_tensors(merged, "none", dtype, sorted(kept))


def write_config(
    base: Base, precision: str, dtype: torch.dtype, folder: str, *, with_head: bool, calibrated: bool
) -> None:
    """Write config.json as transformers does for the model that is stored."""
    config = copy.deepcopy(base.config)
    network = meta_model(config)
    config.architectures = [type(network if with_head else network.get_submodule("model")).__name__]
    config.dtype = str(dtype).removeprefix("torch.")
    config.num_labels = 2
    config.problem_type = None
    if with_head:
        config.use_cache = False
    eos = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if config.pad_token_id is not None and config.pad_token_id in eos:
        # transformers takes the last token that is not padding: it would skip the eos that ends each text.
        logger.info("quantize: pad_token_id %d is an eos token; config.json has none", config.pad_token_id)
        config.pad_token_id = None
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    settings = quantization_config(precision, calibrated=calibrated)
    if settings is not None:
        config.quantization_config = settings
    config.save_pretrained(folder)


class Head(NamedTuple):
    """A head that a checkpoint takes over: where it is from, and what that folder says."""

    folder: str
    manifest: Manifest


def head_of(merged: Merged) -> Head | None:
    """The last adapter's, if that is of `train`; of a classifier that nothing is merged into, its own."""
    if merged.adapters:
        last = merged.adapters[-1]
        return Head(last.folder, last.manifest) if last.manifest else None
    folder = merged.base.folder
    manifest = read_manifest(folder, need_head=False) if (Path(folder) / MANIFEST).is_file() else None
    return Head(folder, manifest) if manifest and manifest.head else None


def head_tensors(merged: Merged, head: Head) -> dict[str, torch.Tensor]:
    """By their names without `score.`."""
    if merged.average:
        heads = [adapter.head() for adapter in merged.adapters]
        stacked = {name: torch.stack([each[name] for each in heads]) for name in heads[0]}
        return {name: values.float().mean(0).to(values.dtype) for name, values in stacked.items()}
    if merged.adapters:
        return merged.adapters[-1].head()
    assert head.manifest.head is not None
    return stored_head(head.folder, head.manifest.head, merged.base.config.hidden_size).state_dict()


class ShardWriter:
    """Writes tensors into model.safetensors, or into several files and their index where they are many."""

    def __init__(self, folder: str, shard_bytes: int):
        self.folder, self.shard_bytes = Path(folder), shard_bytes
        self.waiting: dict[str, torch.Tensor] = {}
        self.waiting_bytes = self.total_bytes = 0
        self.shards: list[list[str]] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        if self.waiting and self.waiting_bytes + tensor.nbytes > self.shard_bytes:
            self.flush()
        # A copy of what may lie in a file's pages, so that these can go.
        self.waiting[name] = tensor.clone(memory_format=torch.contiguous_format)
        self.waiting_bytes += tensor.nbytes
        self.total_bytes += tensor.nbytes

    def flush(self) -> None:
        try:
            save_file(self.waiting, self.folder / f"{len(self.shards)}.part", metadata={"format": "pt"})
        except SafetensorError as error:
            raise StorageError(
                f"{self.folder}: {reason(error)}; free space there, or set TMPDIR to a folder with more"
            ) from error
        self.shards.append(list(self.waiting))
        self.waiting, self.waiting_bytes = {}, 0

    def close(self) -> None:
        """Write what waits, and give the files their names, which say how many there are."""
        self.flush()
        number = len(self.shards)
        names = [f"model-{place + 1:05}-of-{number:05}.safetensors" for place in range(number)]
        if number == 1:
            names = [WEIGHTS]
        else:
            places = {name: file for file, shard in zip(names, self.shards, strict=True) for name in shard}
            index = {"metadata": {"total_size": self.total_bytes}, "weight_map": places}
            (self.folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        for place, name in enumerate(names):
            (self.folder / f"{place}.part").rename(self.folder / name)
