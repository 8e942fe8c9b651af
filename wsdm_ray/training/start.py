"""What a run starts with besides its base: the adapter and the head of an earlier run. No torch, no Ray."""

import dataclasses
from pathlib import Path
from typing import Any

from wsdm_ray.config import TrainConfig
from wsdm_ray.errors import ConfigError
from wsdm_ray.modeling.folder_names import about
from wsdm_ray.modeling.manifest import Manifest, folder_digest, read_manifest
from wsdm_ray.storage import local_copy, model_location
from wsdm_ray.text.encoding import read_settings

__all__ = ["check_start"]


def check_start(config: TrainConfig, manifest: Manifest) -> Manifest:
    """`manifest` of the run to be, with what it starts with, where `--start-from` names that.

    Raises:
        ModelError: the folder is none of `train`, or not whole.
        ConfigError: its adapter or head is not one that this run has.
    """
    if config.start_from is None:
        return manifest
    location = model_location(config.start_from)
    folder = local_copy(location)
    with about("--start-from", config.start_from):
        earlier, digest = read_manifest(folder), folder_digest(folder)
    check_fit(config, manifest, earlier, folder)
    return dataclasses.replace(manifest, started_from=location, started_from_digest=digest)


def check_fit(config: TrainConfig, manifest: Manifest, earlier: Manifest, folder: str) -> None:
    """Raise `ConfigError` where the weights of an earlier run would mean something else in this one."""
    option = f"--start-from {config.start_from}"
    if earlier.kind != "adapter":
        raise ConfigError(f"{option}: is a model ({earlier.kind}), not an adapter; give it as --base")
    if earlier.base_digest != manifest.base_digest:
        raise ConfigError(
            f"{option}: was trained on another base ({earlier.base}); give that as --base, or quantize "
            "--base with --adapter and train on the result"
        )
    settings = read_settings(Path(folder) / "adapter_config.json")
    assert earlier.head is not None
    differences: list[tuple[str, Any, Any]] = [
        ("lora.r", settings.get("r"), config.lora.r),
        ("lora.alpha", settings.get("lora_alpha"), config.lora.alpha),
        ("lora.targets", sorted(settings.get("target_modules") or ()), sorted(config.lora.targets)),
        ("head.kind", earlier.head.kind, config.head.kind),
        ("head.precision", earlier.head.precision, config.head.precision),
    ]
    for name, theirs, ours in differences:
        if theirs != ours:
            given = " ".join(theirs) if isinstance(theirs, list) else theirs
            raise ConfigError(f"{option}: has another {name} than this run; give --{name} {given}")
