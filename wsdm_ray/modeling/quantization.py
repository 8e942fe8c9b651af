"""One quantized checkpoint from a base model, with adapters merged in first where there are any.

The weights stream from the base's files to the checkpoint's, tensor by tensor: merged in float32, quantized,
written. In int8 and nf4 that is done by bitsandbytes' own functions, and what comes out is, byte for byte,
what transformers saves after it quantized the same weights on loading; fp8 is written as compressed-tensors
does it, int8 rows in a way of our own. Then both are run on a few pairs: the checkpoint as it is loaded for
use, and the unquantized merge, whose layers are made one at a time.
"""

import copy
import dataclasses
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from wsdm_ray.config import HeadConfig, QuantizeConfig, TextConfig, to_dict
from wsdm_ray.errors import ModelError, StorageError
from wsdm_ray.modeling.attention import dense_masks, scoring_backend
from wsdm_ray.modeling.checkpoint import (
    CALIBRATED_ROWS,
    IN_ROWS,
    INDEX,
    INT8_ROWS,
    LEAST_CAPABILITY,
    MANIFEST,
    WEIGHTS,
    Manifest,
    complete_folder,
    folder_digest,
    load_head,
    read_manifest,
    stored_head,
)
from wsdm_ray.modeling.classifier import (
    bitsandbytes_config,
    check_widths,
    device_and_dtype,
    load_network,
)
from wsdm_ray.modeling.gptq import calibrate, sample_texts
from wsdm_ray.modeling.loading import make_fused_decoder
from wsdm_ray.modeling.merging import (
    Adapter,
    Base,
    Merged,
    meta_model,
    quantized,
    read_adapter,
    read_base,
    stored_rows,
)
from wsdm_ray.modeling.quantized_linear import QuantizedTensor
from wsdm_ray.packing.layouts import Layout, lay_out
from wsdm_ray.runs import check_no_overlap, file_versions, finish_run, open_run
from wsdm_ray.storage import list_files, local_copy, reason, upload_folder
from wsdm_ray.telemetry import logger
from wsdm_ray.text.encoding import EncodedPairs, PairEncoder, read_settings

__all__ = ["FP8_ROWS", "SHARD_BYTES", "merge", "quantize"]

SHARD_BYTES = 4_000_000_000
"""The most bytes of one file of weights, and of what waits in memory to be written."""

FP8_ROWS: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "quantization_status": "compressed",
    "kv_cache_scheme": None,
    "ignore": ["lm_head", "score", r"re:score\..*"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False,
            },
            "input_activations": {
                "num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True,
            },
            "output_activations": None,
        }
    },
}  # fmt: skip
"""What config.json says of fp8: llm-compressor's FP8_DYNAMIC, in the names of compressed-tensors."""

PROBES = (
    (
        "Which is larger, 9.11 or 9.9?",
        "9.9, as 90 hundredths are more than 11.",
        "9.11, as 11 is more than 9.",
    ),
    (
        "Write fib(n) in Python.",
        "def fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)",
        "Sorry, no.",
    ),
    ("Sag die Einladung höflich ab.", "Vielen Dank! Leider bin ich verhindert.", "Nein."),
    ("请用一句话解释光合作用。", "植物用阳光把水和二氧化碳变成糖和氧气。", "It has many steps."),
)
"""Pairs on which a checkpoint is compared with the unquantized merge."""


def quantize(config: QuantizeConfig) -> dict[str, Any]:
    """Write the checkpoint that `config` asks for; returns what run.json holds.

    Raises:
        ModelError: the base or an adapter is not usable.
        RunMismatchError: the output folder belongs to another run.
    """
    check_no_overlap(config.output, [config.base, *config.adapter, *config.calibrate])
    base = local_copy(config.base)
    adapters = [local_copy(adapter) for adapter in config.adapter]
    fingerprint = {
        "base": folder_digest(base),
        "adapter": [folder_digest(adapter) for adapter in adapters],
        "precision": config.precision,
    }
    files = list_files(config.calibrate) if config.calibrate else []
    if files:
        fingerprint |= {"calibrate": file_versions(files), "calibration_pairs": config.calibration_pairs}
    merged = merge(base, adapters, fingerprint["base"])
    if config.precision == "nf4" and device_and_dtype("auto")[0] == "cpu":  # where it will be compared
        check_widths(base, merged.base.config)
    earlier = open_run(config.output, "quantize", fingerprint, config.restart)
    if earlier:
        logger.info("quantize: %s is complete already", config.output)
        return earlier
    for folder, heads in left_out(merged):
        logger.info("quantize: %s: its head is left out: %s", folder, ", ".join(heads))
    pairs = calibration_pairs(merged, files, config.calibration_pairs) if files else None
    with tempfile.TemporaryDirectory() as work:
        manifest = write_checkpoint(merged, config.precision, work, pairs)
        check = compare(merged, work, manifest)
        upload_folder(work, config.output, last=MANIFEST)
    content = {"config": to_dict(config), "kind": manifest.kind, "check": check}
    run = finish_run(config.output, "quantize", fingerprint, content)
    logger.info("quantize: %s is %s (%s)", config.output, config.precision, manifest.kind)
    return run


def merge(base: str, adapters: list[str], base_digest: str) -> Merged:
    """The weights of a base with adapters merged in, in order; nothing is computed yet.

    Raises:
        ModelError: a part is not usable, or does not fit.
    """
    found = read_base(base)
    if found.quantization != "none" and not adapters:
        raise ModelError(f"{base}: is quantized already; give the model as it was before")
    if adapters and getattr(found.config, "quantization_config", None) == CALIBRATED_ROWS:
        raise ModelError(
            f"{base}: is calibrated, so adapters cannot be added to it; give the model as it was before"
        )
    merged = Merged(base=found, adapters=tuple(read_adapter(folder, found.config) for folder in adapters))
    for number, adapter in enumerate(merged.adapters):
        check_trained_on(adapter, base, base_digest, first=number == 0)
    return merged


def left_out(merged: Merged) -> list[tuple[str, tuple[str, ...]]]:
    """Folders whose heads the checkpoint does not have, each with the names of the tensors."""
    head = head_of(merged)
    parts = (part for part in (merged.base, *merged.adapters) if not head or part.folder != head.folder)
    return [(part.folder, part.heads) for part in parts if part.heads]


def check_trained_on(adapter: Adapter, base: str, base_digest: str, *, first: bool) -> None:
    """Raise `ModelError` where an adapter of `train` stands first and was trained on another base."""
    if adapter.manifest is None or adapter.manifest.base_digest == base_digest:
        return
    if first:
        raise ModelError(
            f"{adapter.folder}: was trained on a base with digest {str(adapter.manifest.base_digest)[:12]}, "
            f"but {base} has {base_digest[:12]}; use --base with the base it was trained on"
        )
    logger.info(
        "quantize: %s: is merged into %s with the adapters before it, on whose sum it should have been "
        "trained; this cannot be checked",
        adapter.folder,
        base,
    )


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
    if merged.adapters:
        return merged.adapters[-1].head()
    assert head.manifest.head is not None
    return stored_head(head.folder, head.manifest.head, merged.base.config.hidden_size).state_dict()


def calibration_pairs(merged: Merged, files: list[str], number: int) -> EncodedPairs:
    """Some pairs of the files, as the checkpoint's texts are encoded."""
    head = head_of(merged)
    text = head.manifest.text if head else TextConfig()
    pairs = PairEncoder(merged.base.folder, text).encode(*sample_texts(files, number))
    logger.info("quantize: calibrates on %d pairs of %d tokens", len(pairs), pairs.tokens_N.sum())
    return pairs


# Writing


def write_checkpoint(
    merged: Merged, precision: str, folder: str, pairs: EncodedPairs | None = None
) -> Manifest:
    """Write the weights in a precision of `QuantizeConfig` with all that belongs to them.

    Args:
        pairs: that `int8-rows` are to be calibrated on.
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
    """What `stored_tensors` gives of int8 rows, calibrated; norms and biases that change are float32."""
    kept = set(merged.base.shapes)
    for changed in calibrate(merged, pairs, device_and_dtype("auto")[0]):
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
    if precision == "fp8":
        config.quantization_config = copy.deepcopy(FP8_ROWS)
    elif precision == "int8-rows":
        config.quantization_config = dict(CALIBRATED_ROWS if calibrated else INT8_ROWS)
    elif precision != "bf16":
        config.quantization_config = bitsandbytes_config(precision, torch.bfloat16)
    config.save_pretrained(folder)


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


# Checking


@torch.no_grad()
def compare(merged: Merged, folder: str, manifest: Manifest) -> dict[str, Any]:
    """How far a checkpoint is from the unquantized merge on `PROBES`: logits, else hidden states.

    Raises:
        ModelError: one of the two gives values that are not numbers.
    """
    layout = probe_layout(folder, manifest)
    device = device_and_dtype("auto")[0]
    expected = merged_states(merged, layout, device)
    read = fused_states if manifest.quantization in IN_ROWS else checkpoint_states
    found, head = read(folder, manifest, layout, device)
    if head is None:
        what, real = "hidden states", torch.from_numpy(layout.groups_BT.reshape(-1) >= 0)
        expected, found = expected[real], found[real]
    else:
        what, last = "logits", torch.from_numpy(layout.last_S)
        expected, found = head(expected[last]), head(found[last])
    for name, values in (("the unquantized merge", expected), ("the checkpoint", found)):
        if not bool(values.isfinite().all()):
            raise ModelError(
                f"{merged.base.folder}: {name} gives {what} that are not numbers; check its weights"
            )
    difference = (found - expected).abs()
    check = {
        "compared": what,
        "sequences": len(layout.last_S),
        "tokens": layout.num_tokens,
        "spread": float(expected.std()),
        "max_abs": float(difference.max()),
        "mean_abs": float(difference.mean()),
        "mean_abs_relative": float(difference.mean() / expected.std()),
    }
    line = (
        "{compared}: off by {mean_abs:.3g} on average, {max_abs:.3g} at most, where they spread {spread:.3g}"
    )
    if manifest.head is not None:
        moved = (found.softmax(-1) - expected.softmax(-1))[:, 0].abs()
        check |= {"mean_abs_prob": float(moved.mean()), "max_abs_prob": float(moved.max())}
        line += "; probabilities by {mean_abs_prob:.3g}"
    logger.info("quantize: against the unquantized weights, " + line.format(**check))
    return check


def probe_layout(folder: str, manifest: Manifest) -> Layout:
    """One pass with both orderings of `PROBES`."""
    prompts, responses_a, responses_b = zip(*PROBES, strict=True)
    pairs = PairEncoder(folder, manifest.text).encode(prompts, responses_a, responses_b)
    return lay_out("shared", pairs.prefix, [pairs.suffix_ab, pairs.suffix_ba], np.arange(len(pairs)))


@torch.no_grad()
def states(backbone: Any, config: Any, layout: Layout, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Last hidden states of all tokens of a pass: float32 [B * T, D], on the CPU."""
    found = backbone(
        input_ids=torch.from_numpy(layout.tokens_BT).to(device),
        position_ids=torch.from_numpy(layout.positions_BT).to(device),
        attention_mask=dense_masks(layout, config, dtype, device),
        use_cache=False,
    )
    return found.last_hidden_state.flatten(0, 1).float().cpu()


def checkpoint_states(
    folder: str, manifest: Manifest, layout: Layout, device: str
) -> tuple[torch.Tensor, nn.Module | None]:
    """The hidden states of a checkpoint that is loaded as for use, in the type it stores, and its head."""
    stored = read_settings(Path(folder) / "config.json").get("dtype")
    lacking = device != "cpu" and device_and_dtype("auto", device)[1] != torch.bfloat16
    dtype = torch.bfloat16 if stored == "bfloat16" and not lacking else torch.float32
    head = manifest.head or HeadConfig(kind="linear")
    network = load_network(folder, head, seed=0, device=device, dtype=dtype, quantization="none")
    found_ND = states(network.get_submodule("model"), network.config, layout, dtype, device)
    if manifest.head is None:
        return found_ND, None
    load_head(network, folder)
    return found_ND, network.get_submodule("score").float().cpu()


def fused_states(
    folder: str, manifest: Manifest, layout: Layout, device: str
) -> tuple[torch.Tensor, nn.Module | None]:
    """What `checkpoint_states` gives, of a checkpoint in rows, which a stack runs; on a GPU that has them."""
    precision = IN_ROWS[manifest.quantization]
    if device == "cuda" and torch.cuda.get_device_capability() < LEAST_CAPABILITY[precision]:
        device = "cpu"
    stack = make_fused_decoder(
        Merged(base=read_base(folder)), precision, device, device_and_dtype("auto", device)[1]
    )
    tokens_T, positions_T = (
        torch.from_numpy(each.reshape(-1)).to(device) for each in (layout.tokens_BT, layout.positions_BT)
    )
    attention = scoring_backend(stack.shape, device, stack.tiling).update(layout)
    found_TD = (
        stack(tokens_T, positions_T, attention, torch.arange(len(tokens_T), device=device)).float().cpu()
    )
    if manifest.head is None:
        return found_TD, None
    return found_TD, stored_head(folder, manifest.head, stack.shape.hidden_size).float()


def merged_states(merged: Merged, layout: Layout, device: str) -> torch.Tensor:
    """The hidden states of the unquantized merge in float32, with the weights of one layer at a time."""
    used, tokens = np.unique(layout.tokens_BT, return_inverse=True)
    config = copy.deepcopy(merged.base.config)
    config.vocab_size, config.pad_token_id = len(used), None  # only the embeddings that are looked up
    backbone: Any = meta_model(config).get_submodule("model")
    for name, buffer in list(backbone.named_buffers()):
        path, _, leaf = name.rpartition(".")
        backbone.get_submodule(path).register_buffer(leaf, buffer.to(device), persistent=False)
    rows = merged.base.stored("embed_tokens.weight")["weight"][torch.from_numpy(used)]
    fill(backbone.embed_tokens, {"weight": rows.float().to(device)})
    fill(backbone.norm, {"weight": merged.parameter("norm.weight").to(device)})
    for number, layer in enumerate(backbone.layers):
        names = [name for name, _ in layer.named_parameters()]

        def make(layer: nn.Module, _: Any, number: int = number, names: list[str] = names) -> None:
            fill(layer, {name: merged.parameter(f"layers.{number}.{name}").to(device) for name in names})

        def drop(layer: nn.Module, *_: Any, names: list[str] = names) -> None:
            fill(layer, {name: layer.get_parameter(name).to("meta") for name in names})

        layer.register_forward_pre_hook(make)
        layer.register_forward_hook(drop)
    renumbered = dataclasses.replace(layout, tokens_BT=tokens.reshape(layout.tokens_BT.shape))
    return states(backbone, config, renumbered, torch.float32, device)


def fill(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Replace parameters of a module, of any device, by tensors."""
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(path), leaf, nn.Parameter(tensor, requires_grad=False))
