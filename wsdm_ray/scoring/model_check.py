"""The models of a scoring run: every part is there, fits the others, and runs on the cluster."""

import dataclasses
from collections.abc import Sequence

from wsdm_ray.config import ScoreConfig
from wsdm_ray.errors import ConfigError, ModelError, StorageError
from wsdm_ray.modeling.folder_check import check_classifier_folder, check_model_folder
from wsdm_ray.modeling.folder_names import about, as_given
from wsdm_ray.modeling.loading import local_base
from wsdm_ray.modeling.manifest import Manifest, folder_digest, read_manifest
from wsdm_ray.modeling.precision import BNB, resolve_precision, scoring_layout, uses_fused_decoder
from wsdm_ray.scoring.model_spec import ModelSpec
from wsdm_ray.storage import folder_identity, hub_name, local_copy, model_location

__all__ = ["check_folders", "check_models", "fastest_layout", "numeric_libraries", "with_precision"]


def check_models(
    config: ScoreConfig, on_gpu: bool, capability: tuple[int, int] | None
) -> tuple[ModelSpec, ...]:
    """The models, with digests of their files. Every part is checked to be there, to fit, to be supported.

    Args:
        on_gpu: the models run on GPUs.
        capability: the least compute capability of the GPUs; None where the precision does not depend on it.

    Raises:
        ModelError, StorageError: a folder or its base is missing, damaged or of another kind.
        ConfigError: the token budget or the precision does not fit a model.
    """
    return with_precision(check_folders(config), config.precision, on_gpu, capability)


def check_folders(config: ScoreConfig) -> tuple[ModelSpec, ...]:
    """The models, with `precision` as the option has it. Every part is checked to be there and to fit.

    Raises:
        As `check_models`, but for the precision.
    """
    models = []
    bases = config.base if len(config.base) > 1 else (config.base or (None,)) * len(config.model)
    for folder, base in zip(config.model, bases, strict=True):
        identity = folder_identity(folder)
        location, local, manifest = find_model(folder, base)
        if config.max_tokens:
            text = dataclasses.replace(manifest.text, max_tokens=config.max_tokens)
            manifest = dataclasses.replace(manifest, text=text)
        check_token_budget(config.token_budget, manifest, folder)
        models.append(
            ModelSpec(
                folder=location,
                base=model_location(base) if base else None,
                manifest=manifest,
                precision=config.precision,
                digest=folder_digest(local),
                identity=identity,
            )
        )
    return tuple(models)


def find_model(folder: str, base: str | None) -> tuple[str, str, Manifest]:
    """Where a model is for every process, its local folder and its manifest. All parts are there and fit.

    Args:
        base: where the base is, if not where the manifest says.
    """
    check_classifier_folder(folder, "--model")
    location = model_location(folder)
    local = local_copy(location)
    with as_given((folder, local)):
        with about("--model", folder):
            manifest = read_manifest(local)
        if manifest.kind == "adapter":
            check_base(folder, local, manifest, base)
            local_base(local, manifest, base, verify=True)  # reads all weights
    return location, local, manifest


def check_base(folder: str, local: str, manifest: Manifest, base: str | None) -> None:
    """Raise unless the base of an adapter is there and fits its tokenizer; no weights are read.

    Args:
        folder: of the adapter, as it was given. local: where its files are.
    """
    where = base or manifest.base
    assert where is not None
    if base is None and hub_name(where):  # nobody asked to fetch it
        where = local_base(local, manifest, None, verify=False)
    try:
        check_model_folder(where, "--base" if base else f"--model {folder}: its base", tokenizer=local)
    except StorageError as error:
        if base:
            raise
        raise ModelError(
            f"--model {folder}: its base {where} cannot be had ({error}); use --base FOLDER"
        ) from error


def check_token_budget(token_budget: int | None, manifest: Manifest, folder: str) -> None:
    """Raise `ConfigError` where two orderings of a pair may not fit a micro-batch."""
    if token_budget is not None and token_budget < 2 * manifest.text.max_tokens:
        raise ConfigError(
            f"--token-budget {token_budget}: must be at least twice the {manifest.text.max_tokens} tokens "
            f"that one ordering may have in {folder}"
        )


def with_precision(
    models: Sequence[ModelSpec], precision: str, on_gpu: bool, capability: tuple[int, int] | None
) -> tuple[ModelSpec, ...]:
    """The models in the precision that the option means on the cluster. Raises where it has none."""
    device = "cuda" if on_gpu else "cpu"
    return tuple(
        dataclasses.replace(model, precision=resolve_precision(precision, device, model.manifest, capability))
        for model in models
    )


def fastest_layout(models: Sequence[ModelSpec], on_gpu: bool) -> str:
    """The layout that all models of a run share."""
    device = "cuda" if on_gpu else "cpu"
    fused = [uses_fused_decoder(model.precision, device, model.manifest) for model in models]
    return scoring_layout(fused, device)


def numeric_libraries(models: Sequence[ModelSpec], on_gpu: bool) -> tuple[str, ...]:
    """Libraries that change the numbers of these models, beside those of every model (`numeric_versions`).

    bitsandbytes multiplies by weights in its precisions, or dequantizes them. PEFT runs or merges an adapter,
    except for the fused decoder, whose merging is this package's own.
    """
    device, found = "cuda" if on_gpu else "cpu", set()
    for model in models:
        if {model.precision, model.manifest.quantization} & {*BNB}:
            found.add("bitsandbytes")
        fused = uses_fused_decoder(model.precision, device, model.manifest)
        if model.manifest.kind == "adapter" and not fused:
            found.add("peft")
    return tuple(sorted(found))
