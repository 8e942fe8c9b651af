"""The best checkpoint of a run as the classifier in its output folder. No Ray."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from wsdm_ray.errors import ModelError
from wsdm_ray.modeling.adapter_io import ADAPTER_WEIGHTS
from wsdm_ray.modeling.manifest import MANIFEST
from wsdm_ray.runs import names_in
from wsdm_ray.storage import file_identity, is_leftover, join, upload_folder
from wsdm_ray.training.metrics import METRICS_FILE
from wsdm_ray.training.model_card import CARD_FILE
from wsdm_ray.training.optimizer_state import STATE_FILE, STATE_TENSORS_FILE

__all__ = ["PublishedFiles", "best_checkpoint", "check_published", "publish", "published_files"]

Checkpoint = TypeVar("Checkpoint")
PublishedFiles = dict[str, int | None]
"""Names of the classifier's files, each with its bytes if it holds weights; people may edit other files."""

FOR_RESUMING = (STATE_FILE, STATE_TENSORS_FILE, METRICS_FILE)
"""Files of a checkpoint that are no part of the classifier."""


def best_checkpoint(
    checkpoints: Sequence[tuple[Checkpoint, dict[str, Any]]], has_valid: bool
) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint with the lowest valid log loss, or without a valid set the last; with its metrics."""
    if has_valid:
        return min(checkpoints, key=lambda pair: pair[1]["valid_log_loss"])
    return max(checkpoints, key=lambda pair: pair[1]["step"])


def publish(checkpoint: str, output: str, card: str = "") -> PublishedFiles:
    """Copy the classifier of a checkpoint folder into the output folder, its manifest last.

    Args:
        card: text of its model card, if there is one. It is no part of what a finished run must keep.
    """
    published: PublishedFiles = {}
    with tempfile.TemporaryDirectory() as staging:
        for path in Path(checkpoint).iterdir():
            if path.name not in FOR_RESUMING and not is_leftover(path.name):
                os.symlink(path, Path(staging) / path.name)
                published[path.name] = path.stat().st_size if path.suffix == ".safetensors" else None
        if card:
            Path(staging, CARD_FILE).write_text(card, "utf-8")
        upload_folder(staging, output, last=MANIFEST)
    return published


def published_files(run: dict[str, Any]) -> PublishedFiles:
    """What a finished run published, by its run.json; earlier versions did not write it down."""
    return run.get("published", dict.fromkeys((MANIFEST, ADAPTER_WEIGHTS)))


def check_published(output: str, published: PublishedFiles) -> None:
    """Raise `ModelError` where a finished run's folder no longer has what `publish` put there."""
    names = names_in(output)
    for name, size in published.items():
        fault = "" if name in names else "gone"
        if size is not None and not fault:
            size_now = file_identity(join(output, name))["bytes"]
            fault = f"of {size_now} bytes instead of {size}" if size_now != size else ""
        if fault:
            raise ModelError(
                f"{output}: is of a finished run, but {name} is {fault}; copy it back, or train anew with "
                "--restart"
            )
