"""The checkpoint folder: plain Hugging Face or PEFT files, and `wsdm_ray.json`, which says how they fit.

    adapter   adapter_config.json, adapter_model.safetensors (adapter and head), tokenizer; needs its base
    full      config.json, model.safetensors (with the head), tokenizer; larger weights are in
              model-NNNNN-of-NNNNN.safetensors, and model.safetensors.index.json names the file of each
    base      the same without a head: what `quantize` makes of a model that was not trained yet

`wsdm_ray.json` is written last, so a folder that has one is complete. Safetensors only; no code from a folder
is run. Here a folder is written; `manifest` reads its manifest, `loading` what is to be run.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wsdm_ray.config import to_dict
from wsdm_ray.modeling.manifest import MANIFEST, Manifest, tokenizer_digest
from wsdm_ray.runs import versions
from wsdm_ray.storage import HUB

__all__ = ["complete_folder", "save_classifier"]

TOKENIZER_FILES = re.compile(
    r"(tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab\..*|merges\.txt)"
)


def save_classifier(
    network: nn.Module, tokenizer_folder: str, folder: str, manifest: Manifest,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> None:  # fmt: skip
    """Write a checkpoint folder; `complete_folder` says what is filled in.

    Args:
        weights: of the adapter and the head by their names in `network`, instead of the network's own.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    # PEFT would ask the hub for the base's vocabulary where it may save embeddings.
    options: dict[str, Any] = {"save_embedding_layers": False} if manifest.kind == "adapter" else {}
    if weights is not None:
        options["state_dict"] = dict(weights)
    network.save_pretrained(root, safe_serialization=True, **options)  # pyright: ignore[reportCallIssue]
    (root / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    if manifest.kind == "adapter":
        path = root / "adapter_config.json"
        settings = json.loads(path.read_text()) | plain_base(manifest.base or "")
        settings["target_modules"] = sorted(settings["target_modules"])  # PEFT's order is that of a set
        path.write_text(json.dumps(settings, indent=2, sort_keys=True))
    complete_folder(tokenizer_folder, folder, manifest)


def plain_base(base: str) -> dict[str, str]:
    """How PEFT names a base: its folder, or the name and the commit of a model of the Hub."""
    if not base.startswith(HUB):
        return {"base_model_name_or_path": base}
    name, _, commit = base.removeprefix(HUB).partition("@")
    return {"base_model_name_or_path": name, "revision": commit}


def complete_folder(tokenizer_folder: str, folder: str, manifest: Manifest) -> None:
    """Put the tokenizer and, last, the manifest beside the weights of a checkpoint folder.

    The manifest's tokenizer digest and versions are filled in here.
    """
    root = Path(folder)
    for path in Path(tokenizer_folder).iterdir():
        if TOKENIZER_FILES.fullmatch(path.name) and path.is_file():
            shutil.copyfile(path, root / path.name)
    filled = dataclasses.replace(manifest, tokenizer_digest=tokenizer_digest(root), versions=versions())
    (root / MANIFEST).write_text(json.dumps(to_dict(filled), indent=2, ensure_ascii=False) + "\n")
