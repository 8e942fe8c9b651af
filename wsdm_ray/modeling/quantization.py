"""The job `quantize`: one quantized checkpoint from a base model, adapters merged in first if there are any.

The weights stream from the base's files to the checkpoint's, tensor by tensor: merged in float32, quantized,
written (`checkpoint_writer`). Then the checkpoint, loaded as for use, is compared with the unquantized merge
on a few pairs (`quantization_check`).
"""

import tempfile
from collections.abc import Sequence
from itertools import product
from typing import Any

from wsdm_ray.config import QuantizeConfig, TextConfig, to_dict
from wsdm_ray.errors import ModelError
from wsdm_ray.inputs.files import InputFile, list_inputs
from wsdm_ray.modeling.checkpoint_writer import head_of, write_checkpoint
from wsdm_ray.modeling.classifier import check_widths
from wsdm_ray.modeling.folder_check import check_adapter_folder, check_model_folder
from wsdm_ray.modeling.folder_names import as_given
from wsdm_ray.modeling.gptq import sample_texts
from wsdm_ray.modeling.lora import Adapter, read_adapter
from wsdm_ray.modeling.manifest import MANIFEST, folder_digest
from wsdm_ray.modeling.merging import Merged, read_base
from wsdm_ray.modeling.precision import default_device
from wsdm_ray.modeling.quantization_check import compare
from wsdm_ray.modeling.quantization_config import CALIBRATED_INT8_CONFIG
from wsdm_ray.runs import check_no_overlap, file_versions, hold_run
from wsdm_ray.storage import local_copy, upload_folder
from wsdm_ray.telemetry import logger
from wsdm_ray.text.encoding import EncodedPairs, PairEncoder

__all__ = ["merge", "quantize"]


def quantize(config: QuantizeConfig) -> dict[str, Any]:
    """Write the checkpoint that `config` asks for; returns what run.json holds.

    Raises:
        ModelError: the base or an adapter is not usable.
        RunMismatchError: the output folder belongs to another run.
    """
    check_no_overlap(config.output, [config.base, *config.adapter, *config.calibrate])
    check_model_folder(config.base, "--base")
    for adapter in config.adapter:
        check_adapter_folder(adapter, "--adapter")
    files = list_inputs(config.calibrate) if config.calibrate else []
    base = local_copy(config.base)
    adapters = [local_copy(adapter) for adapter in config.adapter]
    with as_given((config.base, base), *zip(config.adapter, adapters, strict=True)):
        fingerprint = {
            "base": folder_digest(base),
            "adapter": [folder_digest(adapter) for adapter in adapters],
            "precision": config.precision,
        }
        if config.average:
            fingerprint["average"] = True
        if files:
            versions = file_versions([file.path for file in files])
            fingerprint |= {"calibrate": versions, "calibration_pairs": config.calibration_pairs}
        merged = merge(base, adapters, fingerprint["base"], average=config.average)
        if config.precision == "nf4" and default_device() == "cpu":  # where it will be compared
            check_widths(base, merged.base.config)
    with hold_run(config.output, "quantize", fingerprint, config.restart) as run:
        if run.finished:
            logger.info("quantize: %s is complete already", config.output)
            return run.finished
        for folder, heads in left_out(merged):
            logger.info("quantize: %s: its head is left out: %s", folder, ", ".join(heads))
        pairs = calibration_pairs(merged, files, config.calibration_pairs) if files else None
        with tempfile.TemporaryDirectory() as work:
            manifest = write_checkpoint(merged, config.precision, work, pairs)
            check = compare(merged, work, manifest)
            run.check()
            upload_folder(work, config.output, last=MANIFEST)
        written = run.finish({"config": to_dict(config), "kind": manifest.kind, "check": check})
    logger.info("quantize: %s is %s (%s)", config.output, config.precision, manifest.kind)
    return written


def merge(base: str, adapters: list[str], base_digest: str, *, average: bool = False) -> Merged:
    """The weights of a base with adapters merged in, in order, or their mean; nothing is computed yet.

    Raises:
        ModelError: a part is not usable, or does not fit.
    """
    found = read_base(base)
    if found.quantization != "none" and not adapters:
        raise ModelError(f"{base}: is quantized already; give the model as it was before")
    if adapters and getattr(found.config, "quantization_config", None) == CALIBRATED_INT8_CONFIG:
        raise ModelError(
            f"{base}: is calibrated, so adapters cannot be added to it; give the model as it was before"
        )
    merged = Merged(
        base=found,
        adapters=tuple(read_adapter(folder, found.config) for folder in adapters),
        average=average,
    )
    for number, adapter in enumerate(merged.adapters):
        check_trained_on(adapter, base, base_digest, first=average or number == 0)
    if average:
        check_alike(merged.adapters)
    return merged


def check_alike(adapters: Sequence[Adapter]) -> None:
    """Raise `ModelError` where the mean of adapters and heads would mean nothing."""
    first, *others = adapters
    for adapter in adapters:
        if adapter.manifest is None:
            raise ModelError(f"{adapter.folder}: is no folder of `train`; leave it or --average out")
    for adapter, name in product(others, ("quantization", "head", "text", "orders", "temperature")):
        ours, theirs = getattr(first.manifest, name), getattr(adapter.manifest, name)
        if ours != theirs:
            raise ModelError(
                f"{adapter.folder}: its {name} is not that of {first.folder}; --average takes runs with the "
                "same options" + (f" (--{name} {ours} and {theirs})" if name == "quantization" else "")
            )


def left_out(merged: Merged) -> list[tuple[str, tuple[str, ...]]]:
    """Folders whose heads the checkpoint does not have, each with the names of the tensors."""
    head = head_of(merged)
    every = (merged.base,) if merged.average else (merged.base, *merged.adapters)
    parts = (part for part in every if not head or part.folder != head.folder)
    return [(part.folder, part.heads) for part in parts if part.heads]


def check_trained_on(adapter: Adapter, base: str, base_digest: str, *, first: bool) -> None:
    """Raise `ModelError` where an adapter of `train` stands first and was trained on another base."""
    if adapter.manifest is None or adapter.manifest.base_digest == base_digest:
        return
    if first:
        raise ModelError(
            f"{adapter.folder}: was trained on a base with digest {str(adapter.manifest.base_digest)[:12]}, "
            f"but {base} has {base_digest[:12]}; use --base with the base it was trained on"
        )
    logger.info(
        "quantize: %s: is merged into %s with the adapters before it, on whose sum it should have been "
        "trained; this cannot be checked",
        adapter.folder,
        base,
    )


def calibration_pairs(merged: Merged, files: list[InputFile], number: int) -> EncodedPairs:
    """Some pairs of the files, as the checkpoint's texts are encoded."""
    head = head_of(merged)
    text = head.manifest.text if head else TextConfig()
    pairs = PairEncoder(merged.base.folder, text).encode(*sample_texts(files, number))
    logger.info("quantize: calibrates on %d pairs of %d tokens", len(pairs), pairs.tokens_N.sum())
    return pairs
