"""What every process of a run knows of a model: readers, which encode, do not import torch for it."""

from dataclasses import dataclass
from typing import Any

from wsdm_ray.modeling.manifest import Manifest

__all__ = ["ModelSpec"]


@dataclass(frozen=True)
class ModelSpec:
    """A model as every process of a run needs to know it.

    digest: of the files of `folder`. identity: what they are known by without being read.
    """

    folder: str
    base: str | None
    manifest: Manifest
    precision: str
    digest: str = ""
    identity: str = ""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """All of the model that decides its output."""
        return {
            "digest": self.digest,
            "base_digest": self.manifest.base_digest,
            "precision": self.precision,
        }
