"""Checkpoint folders of every kind for tests, and what they are to give."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from wsdm_ray.config import HeadConfig, LoraConfig, TextConfig
from wsdm_ray.errors import WsdmRayError
from wsdm_ray.modeling.classifier import add_lora, load_network, ordering_logits, trainable_parameters
from wsdm_ray.modeling.manifest import MANIFEST, Manifest, folder_digest
from wsdm_ray.modeling.quantization_config import stored_quantization
from wsdm_ray.packing.layouts import lay_out
from wsdm_ray.text.encoding import PairEncoder

TEXT = TextConfig(max_tokens=200)


LORA = LoraConfig(r=4, alpha=8)


PAIR = (
    "What is the sum of <eos> 12 and 30?",
    "The answer is 42, of course.",
    "Das weiß ich nicht, <bos> 对不起。",
)


def logits_of(network: Any, folder: str | Path) -> torch.Tensor:
    """Logits of both orderings of `PAIR`, with the folder's tokenizer: float32 [2, 2]."""
    pairs = PairEncoder(str(folder), TEXT).encode(*([text] for text in PAIR))
    with torch.no_grad():
        return ordering_logits(
            network.eval(), lay_out("shared", pairs.prefix, [pairs.suffix_ab, pairs.suffix_ba], np.array([0]))
        )


def trained(base: Path, quantization: str) -> Any:
    """A network with an adapter and a head that do something, as training leaves it."""
    network = load_network(
        str(base), HeadConfig(), seed=0, device="cpu", dtype=torch.float32, quantization=quantization
    )
    network = add_lora(network, LORA, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_parameters(network).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def manifest_of(base: Path, asked: str) -> Manifest:
    return Manifest(
        kind="adapter",
        base=str(base),
        base_digest=folder_digest(str(base)),
        quantization=stored_quantization(str(base), asked),
        head=HeadConfig(),
        text=TEXT,
        temperature=1.5,
        metrics={"step": 3},
    )


ADAPTERS = ("adapter_int8", "adapter_as_int8", "adapter_nf4", "adapter_plain")


FULL = ("full_bnb-int8", "full_nf4", "full_bf16")


AS_TRAINED = {"bnb-int8": "bnb-int8", "nf4": "nf4", "none": "fp32"}


def before(folders: dict[str, Path], name: str) -> np.ndarray:
    return np.load(folders[name].parent / f"{name}.npy")


def refusal(kind: type[WsdmRayError], act: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message
    return message


def rewrite(folder: Path, **values: Any) -> None:
    """Change fields of the manifest."""
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
