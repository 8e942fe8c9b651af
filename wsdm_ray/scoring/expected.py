"""What a scoring run will take, before it runs: memory of a GPU, time and cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsdm_ray.modeling.loading import local_base
from wsdm_ray.modeling.scorers import token_bytes
from wsdm_ray.preflight.checks import GpuNeed
from wsdm_ray.preflight.estimate import Estimate, Speed, estimate, speed_of
from wsdm_ray.preflight.model_size import parameters_of
from wsdm_ray.scoring.model_spec import ModelSpec
from wsdm_ray.scoring.models import bytes_of_models, remedy
from wsdm_ray.storage import local_copy
from wsdm_ray.text.encoding import read_settings

__all__ = ["expected_time", "gpu_need"]


def gpu_need(models: Sequence[ModelSpec]) -> GpuNeed:
    """What a replica takes of its GPU. Args: models: with their precisions resolved."""
    from wsdm_ray.modeling.classifier import model_config

    batches = []
    for spec in models:
        config: Any = model_config(full_folder(spec)).get_text_config()
        itemsize = 4 if spec.precision == "fp32" else 2
        batches.append(2 * spec.manifest.text.max_tokens * token_bytes(config, itemsize))
    precisions = ", ".join(dict.fromkeys(spec.precision for spec in models))
    count = f"{len(models)} models" if len(models) > 1 else "weights"
    return GpuNeed(
        fixed_bytes=bytes_of_models(models, "cuda"),
        batch_bytes=max(batches),
        what=f"{count} as {precisions}",
        remedy=remedy(models),
    )


def expected_time(
    models: Sequence[ModelSpec], tokens: float, gpu: str | None, replicas: int, gpu_hour_price: float | None
) -> Estimate:
    """How long a run takes.

    Args:
        tokens: that each model reads, of whole orderings.
        gpu: the name of the GPUs; None on CPUs, and where it is not known.
    """
    work: list[tuple[float, Speed]] = []
    for spec in models:
        settings = read_settings(Path(full_folder(spec), "config.json"))
        work.append((tokens, speed_of("score", gpu, spec.precision, parameters_of(settings))))
    return estimate(work, replicas, gpu_hour_price)


def full_folder(spec: ModelSpec) -> str:
    """The local folder of the whole model: the base, of an adapter."""
    folder = local_copy(spec.folder)
    if spec.manifest.kind == "adapter":
        return local_base(folder, spec.manifest, spec.base, verify=False)
    return folder
