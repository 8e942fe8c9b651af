"""One quantized checkpoint from a base model, with an adapter merged in first where there is one."""

import tempfile
from typing import Any

import transformers

from wsdm_ray.config import QuantizeConfig, to_dict
from wsdm_ray.errors import ModelError
from wsdm_ray.modeling.checkpoint import MANIFEST, Manifest, folder_digest, load_classifier, save_classifier
from wsdm_ray.modeling.classifier import (
    bitsandbytes_config,
    check_complete,
    device_and_dtype,
    load_network,
    loading,
    model_config,
)
from wsdm_ray.runs import check_outside, finish_run, open_run
from wsdm_ray.storage import local_copy, upload_folder
from wsdm_ray.telemetry import logger

__all__ = ["quantize"]


def quantize(config: QuantizeConfig) -> dict[str, Any]:
    """Write the checkpoint that `config` asks for; returns what run.json holds.

    Raises:
        ModelError: the base or the adapter is not usable.
        RunMismatchError: the output folder belongs to another run.
    """
    check_outside(config.output, [config.base, *([config.adapter] if config.adapter else [])])
    base = local_copy(config.base)
    adapter = local_copy(config.adapter) if config.adapter else None
    fingerprint = {
        "base": folder_digest(base),
        "adapter": folder_digest(adapter) if adapter else None,
        "precision": config.precision,
    }
    earlier = open_run(config.output, "quantize", fingerprint, config.restart)
    if earlier:
        logger.info("quantize: %s is complete already", config.output)
        return earlier
    with tempfile.TemporaryDirectory() as work:
        if adapter:
            manifest = quantize_classifier(base, adapter, config.precision, work)
        else:
            manifest = quantize_backbone(base, config.precision, work)
        upload_folder(work, config.output, last=MANIFEST)
    run = finish_run(
        config.output, "quantize", fingerprint, {"config": to_dict(config), "kind": manifest.kind}
    )
    logger.info("quantize: %s is %s (%s)", config.output, config.precision, manifest.kind)
    return run


def quantize_backbone(base: str, precision: str, target: str) -> Manifest:
    """A base that was not trained yet: the backbone alone, without a head."""
    if getattr(model_config(base), "quantization_config", None) is not None:
        raise ModelError(f"{base}: is quantized already; give the model as it was before")
    device, dtype = device_and_dtype("bf16" if precision == "bf16" else "auto")
    options = {} if precision == "bf16" else {"quantization_config": bitsandbytes_config(precision, dtype)}
    with loading(base):
        network, found = transformers.AutoModel.from_pretrained(
            base, dtype=dtype, device_map={"": device}, local_files_only=True, trust_remote_code=False,
            use_safetensors=True, output_loading_info=True, **options,
        )  # fmt: skip
    check_complete(base, found)
    manifest = Manifest(kind="base", quantization="none" if precision == "bf16" else precision)  # pyright: ignore[reportArgumentType]
    save_classifier(network, base, target, manifest)
    return manifest


def quantize_classifier(base: str, adapter: str, precision: str, target: str) -> Manifest:
    """A trained classifier: its adapter merged in float32, then quantized, head included."""
    network, manifest = load_classifier(adapter, precision="fp32", base=base)
    assert manifest.head is not None
    device, dtype = device_and_dtype("bf16" if precision == "bf16" else "auto")
    stored = "none" if precision == "bf16" else precision
    head = network.score
    with tempfile.TemporaryDirectory() as work:
        network.save_pretrained(work)  # pyright: ignore[reportCallIssue]
        del network
        quantized: Any = load_network(
            work, manifest.head, seed=0, device=device, dtype=dtype, quantization=stored
        )  # fmt: skip
    quantized.score = head
    full = Manifest(
        kind="full", quantization=stored, head=manifest.head, text=manifest.text, orders=manifest.orders,  # pyright: ignore[reportArgumentType]
        temperature=manifest.temperature, metrics=manifest.metrics,
    )  # fmt: skip
    save_classifier(quantized, adapter, target, full)
    return full
