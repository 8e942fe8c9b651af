"""What config.json says of quantized weights, in the words that other readers know, and what it means here.

    bnb-int8, nf4   bitsandbytes' options, as transformers writes them
    w8a8-fp8        compressed-tensors' FP8_DYNAMIC, as llm-compressor writes it
    w8a8-int8       a method of our own, `int8_rows`: a scale for each row, after the Hadamard rotation of
                    blocks of so many columns. No other reader takes the weights, whose shape is by blocks.

These are formats on disk: they stay as they are, whatever the options that make them are called.
"""

import copy
from pathlib import Path
from typing import Any

import torch
import transformers

from wsdm_ray.errors import ModelError
from wsdm_ray.modeling.manifest import Quantization
from wsdm_ray.modeling.precision import training_quantization
from wsdm_ray.modeling.quantized_linear import HADAMARD_BLOCK
from wsdm_ray.text.encoding import read_settings

__all__ = [
    "CALIBRATED_INT8_CONFIG",
    "FP8_CONFIG",
    "INT8_CONFIG",
    "NF4_BLOCK",
    "bitsandbytes_config",
    "folder_quantization",
    "quantization_config",
    "stored_quantization",
]

NF4_BLOCK = 64
"""Weights of 4 bits that share a scale, on CPUs none of two rows."""

INT8_CONFIG = {"quant_method": "int8_rows", "hadamard": HADAMARD_BLOCK}
"""The quantization_config of w8a8-int8."""
CALIBRATED_INT8_CONFIG = INT8_CONFIG | {"calibrated": True}
"""The same of calibrated weights, whose columns are scaled against norms: nothing can be added to them."""

FP8_CONFIG: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "quantization_status": "compressed",
    "kv_cache_scheme": None,
    "ignore": ["lm_head", "score", r"re:score\..*"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False,
            },
            "input_activations": {
                "num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True,
            },
            "output_activations": None,
        }
    },
}  # fmt: skip
"""The quantization_config of w8a8-fp8."""


def quantization_config(precision: str, *, calibrated: bool = False) -> Any:
    """The quantization_config of a checkpoint in a precision of `QuantizeConfig`; None for bf16."""
    if precision == "bf16":
        return None
    if precision == "w8a8-fp8":
        return copy.deepcopy(FP8_CONFIG)
    if precision == "w8a8-int8":
        return dict(CALIBRATED_INT8_CONFIG if calibrated else INT8_CONFIG)
    return bitsandbytes_config(precision, torch.bfloat16)


def bitsandbytes_config(quantization: str, dtype: torch.dtype) -> transformers.BitsAndBytesConfig:
    """The bitsandbytes options of `bnb-int8` or `nf4`; `dtype` is that of GEMMs beside 4-bit weights."""
    if quantization == "bnb-int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True, bnb_4bit_compute_dtype=dtype)
    assert quantization == "nf4", quantization
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def folder_quantization(folder: str) -> Quantization:
    """How a model folder stores the weights of its linear layers.

    Raises:
        ModelError: in another way than these.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ModelError(
            f"{folder}: no config.json; this is no model folder"
            + (", but an adapter: give its base, or merge it with `quantize --adapter`"
               if (path.parent / "adapter_config.json").is_file() else "")
        )  # fmt: skip
    settings = read_settings(path).get("quantization_config")
    if settings is None:
        return "none"
    method = settings.get("quant_method", "bitsandbytes") if isinstance(settings, dict) else settings
    if method == "bitsandbytes":
        if settings.get("load_in_8bit"):
            return "bnb-int8"
        check_nf4(folder, settings)
        return "nf4"
    if method == "compressed-tensors" and is_w8a8_fp8(settings):
        return "w8a8-fp8"
    if settings in (INT8_CONFIG, CALIBRATED_INT8_CONFIG):
        return "w8a8-int8"
    raise ModelError(
        f"{folder}: is quantized by {method}, neither by bitsandbytes nor in rows of 8 bit; give an "
        "unquantized base"
    )


def check_nf4(folder: str, settings: dict[str, Any]) -> None:
    """Raise `ModelError` for 4-bit weights of bitsandbytes that are not nf4 in bytes."""
    kind = settings.get("bnb_4bit_quant_type", "fp4")
    stored = settings.get("bnb_4bit_quant_storage", "uint8")
    if (kind, stored) != ("nf4", "uint8"):
        raise ModelError(
            f"{folder}: is stored by bitsandbytes as {kind} in {stored}; give one as nf4 in uint8, or the "
            "unquantized model"
        )


def is_w8a8_fp8(settings: dict[str, Any]) -> bool:
    """Whether compressed-tensors' settings mean 8-bit floats with one scale a row in every linear layer."""
    try:
        [group] = settings["config_groups"].values()
        weights = group["weights"]
        found = (*(weights[name] for name in ("type", "num_bits", "strategy", "symmetric")), group["targets"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
    return found == ("float", 8, "channel", True, ["Linear"])


def stored_quantization(folder: str, asked: str) -> Quantization:
    """How the base in a folder is held in training: see `training_quantization`.

    Raises:
        ModelError: it is calibrated, so that no adapter can be merged into it.
    """
    stored = folder_quantization(folder)
    if read_settings(Path(folder) / "config.json").get("quantization_config") == CALIBRATED_INT8_CONFIG:
        raise ModelError(
            f"{folder}: is calibrated w8a8-int8, which is for scoring alone; train on the unquantized model, "
            "or on one that `quantize` made without --calibrate"
        )
    return training_quantization(folder, stored, asked)
