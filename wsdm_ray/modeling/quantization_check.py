"""How far a quantized checkpoint is from the unquantized merge, on a few pairs.

The checkpoint is loaded as for use. The unquantized merge runs in float32, with the weights of one layer at a
time.
"""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from wsdm_ray.config import HeadConfig
from wsdm_ray.errors import ModelError
from wsdm_ray.modeling.attention import dense_masks, scoring_backend
from wsdm_ray.modeling.classifier import load_network, meta_model
from wsdm_ray.modeling.head import load_head, stored_head
from wsdm_ray.modeling.loading import make_fused_decoder
from wsdm_ray.modeling.manifest import Manifest
from wsdm_ray.modeling.merging import Merged, read_base
from wsdm_ray.modeling.precision import W8A8, default_device, device_and_dtype, supports_capability
from wsdm_ray.packing.layouts import Layout, lay_out
from wsdm_ray.telemetry import logger
from wsdm_ray.text.encoding import PairEncoder, read_settings

__all__ = ["PROBES", "compare"]

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


@torch.no_grad()
def compare(merged: Merged, folder: str, manifest: Manifest) -> dict[str, Any]:
    """How far a checkpoint is from the unquantized merge on `PROBES`: logits, else hidden states.

    Raises:
        ModelError: one of the two gives values that are not numbers.
    """
    layout = probe_layout(folder, manifest)
    device = default_device()
    expected = merged_states(merged, layout, device)
    read = fused_states if manifest.quantization in W8A8 else checkpoint_states
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
    """One micro-batch with both orderings of `PROBES`."""
    prompts, responses_a, responses_b = zip(*PROBES, strict=True)
    pairs = PairEncoder(folder, manifest.text).encode(prompts, responses_a, responses_b)
    return lay_out("shared", pairs.prefix, [pairs.suffix_ab, pairs.suffix_ba], np.arange(len(pairs)))


@torch.no_grad()
def states(backbone: Any, config: Any, layout: Layout, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Last hidden states of all tokens of a micro-batch: float32 [B * T, D], on the CPU."""
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
    """What `checkpoint_states` gives, of a checkpoint in w8a8: by the fused decoder, on a GPU that has it."""
    precision = manifest.quantization
    if device == "cuda" and not supports_capability(precision, torch.cuda.get_device_capability()):
        device = "cpu"
    dtype = device_and_dtype("auto", device)[1]
    decoder = make_fused_decoder(Merged(base=read_base(folder)), precision, device, dtype)
    tokens_T, positions_T = (
        torch.from_numpy(each.reshape(-1)).to(device) for each in (layout.tokens_BT, layout.positions_BT)
    )
    attention = scoring_backend(decoder.shape, device, decoder.tiling).update(layout)
    found_TD = (
        decoder(tokens_T, positions_T, attention, torch.arange(len(tokens_T), device=device)).float().cpu()
    )
    if manifest.head is None:
        return found_TD, None
    return found_TD, stored_head(folder, manifest.head, decoder.shape.hidden_size).float()


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
