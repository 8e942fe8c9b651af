"""Checkpoint folders of every kind, made once for all tests of this folder."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.unit.modeling.checkpoints import (
    logits_of,
    manifest_of,
    trained,
)
from wsdm_ray.config import QuantizeConfig
from wsdm_ray.modeling.checkpoint import save_classifier
from wsdm_ray.modeling.quantization import quantize


@pytest.fixture(scope="session")
def folders(family_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoint folders of every kind, and bases; beside adapters NAME.npy, their logits before saving."""
    root = tmp_path_factory.mktemp("checkpoints")
    plain = family_model("gemma2", 64)
    found = {"plain": plain, "bnb-int8": root / "bnb-int8", "nf4": root / "nf4"}
    for precision in ("bnb-int8", "nf4"):
        quantize(QuantizeConfig(base=str(plain), output=str(found[precision]), precision=precision))
    for name, base, asked in (
        ("adapter_int8", found["bnb-int8"], "auto"),
        ("adapter_as_int8", plain, "auto"),
        ("adapter_nf4", found["nf4"], "auto"),
        ("adapter_plain", plain, "none"),
    ):
        found[name] = root / name
        manifest = manifest_of(base, asked)
        network = trained(base, manifest.quantization)
        save_classifier(network, str(base), str(found[name]), manifest)
        np.save(root / f"{name}.npy", logits_of(network, plain).numpy())
    for precision in ("bnb-int8", "nf4", "bf16"):
        found[f"full_{precision}"] = root / f"full_{precision}"
        quantize(
            QuantizeConfig(
                base=str(plain), adapter=(str(found["adapter_plain"]),),
                output=str(found[f"full_{precision}"]), precision=precision,
            )
        )  # fmt: skip
    return found


@pytest.fixture
def copy_of(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a folder, to break."""
    return lambda name: shutil.copytree(folders[name], tmp_path / name)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The package's log lines so far."""
    caplog.set_level(logging.INFO, "wsdm_ray")
    return lambda: [record.getMessage() for record in caplog.records]
