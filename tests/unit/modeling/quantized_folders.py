"""Adapters and checkpoints that `quantize` takes and makes, for tests."""

from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file

from wsdm_ray.config import HeadConfig, LoraConfig, QuantizeConfig, TextConfig
from wsdm_ray.modeling.checkpoint import save_classifier
from wsdm_ray.modeling.checkpoint_writer import write_checkpoint
from wsdm_ray.modeling.classifier import (
    add_lora,
    load_network,
    peft_warnings,
    trainable_parameters,
)
from wsdm_ray.modeling.manifest import Manifest, folder_digest
from wsdm_ray.modeling.quantization import merge, quantize
from wsdm_ray.modeling.quantization_config import (
    stored_quantization,
)

TEXT = TextConfig(max_tokens=200)


EARLIER = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}


LATER: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 16,
    "use_rslora": True,
    "rank_pattern": {"layers.0.self_attn.v_proj": 2},
    "alpha_pattern": {"up_proj": 3},
    "target_modules": ["q_proj", "v_proj", "up_proj"],
    "lora_dropout": 0.3,
}


def stirred(network: Any, seed: int, size: float = 0.1) -> Any:
    """With noise on all that trains, so that an adapter does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable_parameters(network).values():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def sequence_classifier(base: Path, labels: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=labels, dtype=torch.float32
        )


def peft_adapter(base: Path, folder: Path, seed: int, labels: int = 3, **options: Any) -> str:
    """A plain PEFT folder of a classifier with another number of labels."""
    with peft_warnings():
        network = peft.get_peft_model(
            sequence_classifier(base, labels), peft.LoraConfig(task_type="SEQ_CLS", **options)
        )
        stirred(network, seed).save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()
    return str(folder)


def our_adapter(base: Path, folder: Path, asked: str, seed: int = 3, digest: str | None = None) -> str:
    """A folder as `train` leaves it."""
    quantization = stored_quantization(str(base), asked)
    network = load_network(
        str(base), HeadConfig(), seed=0, device="cpu", dtype=torch.float32, quantization=quantization
    )
    manifest = Manifest(
        kind="adapter",
        base=str(base),
        base_digest=digest or folder_digest(str(base)),
        quantization=quantization,
        head=HeadConfig(),
        text=TEXT,
    )
    network = stirred(add_lora(network, LoraConfig(r=4, alpha=8), seed=0), seed)
    save_classifier(network, str(base), str(folder), manifest)
    return str(folder)


def made(output: Path, base: Path | str, *adapters: str, precision: Any = "bnb-int8") -> dict[str, Any]:
    return quantize(QuantizeConfig(base=str(base), adapter=adapters, precision=precision, output=str(output)))


def written(output: Path, base: Path | str, *adapters: str, precision: str = "bnb-int8") -> Manifest:
    """The same checkpoint without the run around it, and without the comparison."""
    output.mkdir()
    merged = merge(str(base), list(adapters), folder_digest(str(base)))
    return write_checkpoint(merged, precision, str(output))


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for path in sorted(Path(folder).glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def assert_same_bytes(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
