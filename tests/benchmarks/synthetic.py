"""Random models of known shapes, and random pairs of the lengths that real votes have.

What a model learned and what its pairs say do not change its speed, so benchmarks of speed need neither
weights nor texts of anyone.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from wsdm_ray.config import HeadConfig, TextConfig
from wsdm_ray.modeling.checkpoint import complete_folder
from wsdm_ray.modeling.classifier import meta_model
from wsdm_ray.modeling.families import FAMILIES
from wsdm_ray.modeling.head import make_head
from wsdm_ray.modeling.manifest import Manifest
from wsdm_ray.modeling.quantization_config import FP8_CONFIG
from wsdm_ray.modeling.quantized_linear import quantize_weight
from wsdm_ray.modeling.tiny import make_tokenizer
from wsdm_ray.modeling.weight_files import INDEX
from wsdm_ray.packing.ragged import Ragged
from wsdm_ray.text.encoding import EncodedPairs
from wsdm_ray.text.truncation import balanced_budgets

__all__ = [
    "HEAD",
    "SHAPES",
    "config_of",
    "random_parameter",
    "random_parquet",
    "synthetic_pairs",
    "write_base",
    "write_checkpoint",
]

HEAD = HeadConfig(kind="mlp", precision="bf16")

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2-9b": (
        "gemma2",
        {
            "vocab_size": 256_000, "hidden_size": 3_584, "intermediate_size": 14_336, "num_hidden_layers": 42,
            "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
            "query_pre_attn_scalar": 256, "sliding_window": 4_096,
        },
    ),
    "qwen25-14b": (
        "qwen2",
        {
            "vocab_size": 152_064, "hidden_size": 5_120, "intermediate_size": 13_824, "num_hidden_layers": 48,
            "num_attention_heads": 40, "num_key_value_heads": 8,
        },
    ),
    "llama3-8b": (
        "llama",
        {
            "vocab_size": 128_256, "hidden_size": 4_096, "intermediate_size": 14_336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8,
        },
    ),
    "small": (
        "gemma2",
        {
            "vocab_size": 2_048, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "query_pre_attn_scalar": 32,
            "sliding_window": 256,
        },
    ),
}  # fmt: skip
"""Model type and sizes, by name; `small` is for a CPU."""

TAGS = (5, 5, 5, 1)
"""Tokens before the prompt, before each response, and after the last."""


def config_of(shape: str) -> Any:
    """A transformers config of two labels."""
    family, sizes = SHAPES[shape]
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "max_position_embeddings": 8_192}
    return transformers.AutoConfig.for_model(family, **tokens, **sizes, num_labels=2)


def random_parameter(config: Any, device: str, dtype: torch.dtype) -> Callable[[str], Tensor]:
    """A backbone's weight by its name, made on the device when asked for: normal with deviation 0.02."""
    shapes = {name: each.shape for name, each in meta_model(config).get_submodule("model").named_parameters()}
    offset = FAMILIES[config.model_type].norm_offset

    def parameter(name: str) -> Tensor:
        if "norm" in name:
            return torch.full(shapes[name], 1 - offset, device=device, dtype=dtype)
        if name.endswith(".bias"):
            return torch.zeros(shapes[name], device=device, dtype=dtype)
        return torch.empty(shapes[name], device=device, dtype=dtype).normal_(std=0.02)

    return parameter


def random_lengths(number: int, max_tokens: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens of prompts and of both responses before any is cut: int64 [N] each.

    Prompts are log-normal with median 70 and sigma 1.4, clipped to 4..6000, responses with median 330 and
    sigma 0.85, clipped to 4..4000; all are scaled with `max_tokens`, which is 2,048 for real votes.
    """
    random, scale = np.random.default_rng(seed), max_tokens / 2_048

    def draw(median: float, sigma: float, most: int) -> np.ndarray:
        lengths = median * np.exp(sigma * random.standard_normal(number))
        return np.maximum(np.clip(lengths, 4, most) * scale, 1).astype(np.int64)

    return draw(70, 1.4, 6_000), draw(330, 0.85, 4_000), draw(330, 0.85, 4_000)


def synthetic_pairs(number: int, vocabulary: int, *, max_tokens: int = 2_048, seed: int = 0) -> EncodedPairs:
    """Pairs of random token ids with the lengths of `random_lengths`, cut as texts are."""
    lengths = random_lengths(number, max_tokens, seed)
    text = TextConfig(max_tokens=max_tokens)
    budgets = balanced_budgets(*lengths, max_tokens - sum(TAGS), text.prompt_share)
    random = np.random.default_rng(seed + 1)

    def ids(length: int) -> np.ndarray:
        return random.integers(3, vocabulary, length, dtype=np.int32)

    prefixes, suffixes_ab, suffixes_ba = [], [], []
    before, first, second, after = (ids(length) for length in TAGS)
    for prompt, a, b in zip(*(budget.tolist() for budget in budgets), strict=True):
        answer_a, answer_b = ids(a), ids(b)
        prefixes.append(np.concatenate([before, ids(prompt)]))
        suffixes_ab.append(np.concatenate([first, answer_a, second, answer_b, after]))
        suffixes_ba.append(np.concatenate([first, answer_b, second, answer_a, after]))
    cut = np.sum(lengths, axis=0) - np.sum(budgets, axis=0)
    made = (Ragged.from_lists(each) for each in (prefixes, suffixes_ab, suffixes_ba))
    return EncodedPairs(*made, cut.astype(np.int32), random.random(number) < 0.5)


WORDS = tuple(first + second for first in ("ba", "ko", "mi", "tu") for second in ("lor", "nem", "sip", "dax"))


def random_parquet(path: Path, number: int, *, max_tokens: int, seed: int = 0, votes: bool = False) -> None:
    """Canonical rows whose texts have about as many tokens as `random_lengths` says.

    Args:
        votes: with winners, at random.
    """
    lengths = random_lengths(number, max_tokens, seed)
    random = np.random.default_rng(seed + 1)
    texts = [[" ".join(random.choice(WORDS, length)) for length in each] for each in lengths]
    columns = dict(zip(("prompt", "response_a", "response_b"), texts, strict=True))
    if votes:
        columns["winner"] = [("model_a", "model_b")[each] for each in random.integers(0, 2, number)]
    pq.write_table(pa.table({"id": pa.array(range(number), pa.int64()), **columns}), path)


SHARD_BYTES = 4_000_000_000


def write_checkpoint(folder: Path, config: Any, stored: str, device: str, max_tokens: int) -> None:
    """A classifier's folder of random weights, as `quantize` leaves it, in files of 4 GB.

    Args:
        stored: `bf16` or `w8a8-fp8`.
        device: where weights are made.
        max_tokens: of one ordering, for the manifest.
    """
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    manifest = Manifest(kind="full", head=HEAD, text=TextConfig(max_tokens=max_tokens))
    if stored == "w8a8-fp8":
        settings = json.loads((folder / "config.json").read_text()) | {"quantization_config": FP8_CONFIG}
        (folder / "config.json").write_text(json.dumps(settings))
        manifest = dataclasses.replace(manifest, quantization="w8a8-fp8")
    head = make_head(HEAD, config.hidden_size, seed=0).state_dict()
    write_shards(folder, config, stored, device, {f"score.{name}": tensor for name, tensor in head.items()})
    with tempfile.TemporaryDirectory() as tokenizer:
        make_tokenizer(tokenizer, [" ".join(WORDS)], 512)
        complete_folder(tokenizer, str(folder), manifest)


def write_base(folder: Path, config: Any, device: str) -> None:
    """The folder of a language model with random weights in bf16, as a model hub has it."""
    make_tokenizer(str(folder), [" ".join(WORDS)], 512)
    config.save_pretrained(folder)
    write_shards(folder, config, "bf16", device, {})


def write_shards(folder: Path, config: Any, stored: str, device: str, head: dict[str, Tensor]) -> None:
    """The weight files of a random backbone with some tensors more, and their index."""
    places: dict[str, str] = {}
    for number, tensors in enumerate(shards(config, stored, device, head)):
        name = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def shards(config: Any, stored: str, device: str, head: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors of `head` and of a random backbone, on the CPU, in portions of about `SHARD_BYTES`."""
    parameter = random_parameter(config, device, torch.bfloat16)
    held = dict(head)
    for name, _ in meta_model(config).get_submodule("model").named_parameters():
        value = parameter(name)
        if stored == "w8a8-fp8" and name.endswith("_proj.weight"):
            rows = quantize_weight(value, torch.float8_e4m3fn)
            held[f"model.{name}"] = rows.values.cpu()
            held[f"model.{name}_scale"] = rows.scale[:, None].cpu()
        else:
            held[f"model.{name}"] = value.cpu()
        if sum(tensor.nbytes for tensor in held.values()) > SHARD_BYTES:
            yield held
            held = {}
    if held:
        yield held
