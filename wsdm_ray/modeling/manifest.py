"""`wsdm_ray.json`, the manifest of a checkpoint folder, and the digests by which folders are known.

Folders of earlier versions have old names of precisions in it; they are mapped as it is read. A digest covers
the file as it is on disk.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from wsdm_ray.config import HeadConfig, TextConfig
from wsdm_ray.errors import ModelError
from wsdm_ray.legacy import modernize_manifest
from wsdm_ray.storage import sha256_of_files

__all__ = [
    "MANIFEST",
    "Manifest",
    "Quantization",
    "folder_digest",
    "read_manifest",
    "tokenizer_digest",
]

MANIFEST = "wsdm_ray.json"
Quantization = Literal["bnb-int8", "nf4", "w8a8-int8", "w8a8-fp8", "none"]
"""The precision in which the weights of linear layers are stored; `none` is not quantized."""
LABEL_ORDER = ("first response wins", "second response wins")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `wsdm_ray.json`."""

    kind: Literal["adapter", "full", "base"]
    base: str | None = None
    """Where the base was in training (kind adapter)."""
    base_digest: str | None = None
    started_from: str | None = None
    """Where the folder of an earlier run was whose adapter and head this one started with."""
    started_from_digest: str | None = None
    quantization: Quantization = "none"
    """Of the base as it was trained on, or of the folder's own weights."""
    head: HeadConfig | None = None
    text: TextConfig = field(default_factory=TextConfig)
    orders: str = "both"
    """Orderings trained on."""
    label_order: tuple[str, str] = LABEL_ORDER
    temperature: float = 1.0
    tokenizer_digest: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def folder_digest(folder: str) -> str:
    """SHA-256 of a model folder's weights and the files that say how to use them.

    Raises:
        ModelError: there are no safetensors in the folder.
    """
    root = Path(folder)
    weights = sorted(root.glob("*.safetensors"))
    if not weights:
        others = ", ".join(sorted(path.name for path in root.glob("*.bin"))) or "none"
        raise ModelError(
            f"{folder}: no .safetensors weights (other weights: {others}); save the model as safetensors"
        )
    files = [
        root / name
        for name in (
            "config.json",
            "adapter_config.json",
            MANIFEST,
            "tokenizer.json",
            "tokenizer_config.json",
        )
    ]
    return sha256_of_files([str(path) for path in [*files, *weights] if path.is_file()])


def tokenizer_digest(folder: str | Path) -> str:
    return sha256_of_files([str(Path(folder) / "tokenizer.json")])


def read_manifest(folder: str, *, need_head: bool = True) -> Manifest:
    """The checked manifest of a local checkpoint folder.

    Raises:
        ModelError: the folder has no manifest or no tokenizer, or (where `need_head`) no head.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ModelError(
            f"{folder}: no {MANIFEST}; this is no folder of `train` or `quantize`, or it is not complete"
        )
    try:
        values = modernize_manifest(json.loads(path.read_text()))
        head = values.pop("head")
        manifest = Manifest(
            head=HeadConfig(**head) if head else None, text=TextConfig(**values.pop("text")), **values
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{path}: not readable by this version ({error}); copy or make the folder anew"
        ) from error
    for name, value, known in (
        ("kind", manifest.kind, ("adapter", "full", "base")),
        ("quantization", manifest.quantization, get_args(Quantization)),
        ("label_order", tuple(manifest.label_order), (LABEL_ORDER,)),
    ):
        if value not in known:
            raise ModelError(f"{path}: not readable by this version ({name} is {value!r})")
    if not (Path(folder) / "tokenizer.json").is_file():
        raise ModelError(f"{folder}: no tokenizer.json; copy the tokenizer files it was trained with")
    if tokenizer_digest(folder) != manifest.tokenizer_digest:
        raise ModelError(
            f"{folder}: tokenizer.json is not the one it was trained with; restore the original file"
        )
    if need_head and manifest.head is None:
        raise ModelError(f"{folder}: a base without a head; train it first")
    return manifest
