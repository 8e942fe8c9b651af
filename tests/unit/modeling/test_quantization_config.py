"""How folders say that their weights are quantized, and which of them a job refuses."""

import dataclasses
import json

import pytest

from tests.unit.modeling.checkpoints import (
    edit_tensors,
    refusal,
)
from wsdm_ray.config import QuantizeConfig
from wsdm_ray.errors import ConfigError, ModelError, StorageError
from wsdm_ray.modeling.loading import load_classifier
from wsdm_ray.modeling.manifest import read_manifest
from wsdm_ray.modeling.precision import W8A8, resolve_precision
from wsdm_ray.modeling.quantization import quantize
from wsdm_ray.modeling.quantization_config import (
    CALIBRATED_INT8_CONFIG,
    folder_quantization,
    stored_quantization,
)


def test_no_folder():
    assert refusal(StorageError, lambda: load_classifier("/nowhere")) == (
        "/nowhere: no such folder; check the path"
    )
    config = QuantizeConfig(base="/nowhere", output="unused")
    assert (
        refusal(StorageError, lambda: quantize(config)) == "--base /nowhere: no such folder; check the path"
    )


@pytest.mark.parametrize("content", ["{", "[]", "null"])
def test_an_unreadable_config(copy_of, content):
    folder = copy_of("plain")
    (folder / "config.json").write_text(content)
    assert refusal(ModelError, lambda: stored_quantization(str(folder), "auto")) == (
        f"{folder / 'config.json'}: not a JSON object; restore the model's own file"
    )


def test_no_config(tmp_path):
    assert refusal(ModelError, lambda: stored_quantization(str(tmp_path), "auto")) == (
        f"{tmp_path}: no config.json; this is no model folder"
    )


@pytest.mark.parametrize("precision", ["bnb-int8", "bf16"])
@pytest.mark.parametrize("content", [b"{", b"{}", b'{"model_type": "bert"}'])
def test_a_base_that_quantize_cannot_use(copy_of, tmp_path, precision, content):
    folder = copy_of("plain")
    (folder / "config.json").write_bytes(content)
    config = QuantizeConfig(base=str(folder), output=str(tmp_path / "out"), precision=precision)
    assert refusal(ModelError, lambda: quantize(config)).startswith(f"--base {folder}: ")


def test_a_base_that_lacks_weights(copy_of, tmp_path):
    folder = copy_of("plain")
    edit_tensors(
        folder / "model.safetensors",
        lambda tensors: {name: tensor for name, tensor in tensors.items() if ".layers.1.mlp.up" not in name},
    )
    config = QuantizeConfig(base=str(folder), output=str(tmp_path / "out"), precision="bf16")
    assert "its weights lack layers.1.mlp.up_proj.weight" in refusal(ModelError, lambda: quantize(config))


def test_nothing_trains_beside_calibrated_weights(copy_of):
    folder = copy_of("plain")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(settings | {"quantization_config": CALIBRATED_INT8_CONFIG})
    )
    assert refusal(ModelError, lambda: stored_quantization(str(folder), "auto")) == (
        f"{folder}: is calibrated w8a8-int8, which is for scoring alone; train on the unquantized model, or "
        "on one that `quantize` made without --calibrate"
    )


def test_how_a_base_is_held(folders):
    plain, int8 = str(folders["plain"]), str(folders["bnb-int8"])
    assert [stored_quantization(plain, asked) for asked in ("auto", "bnb-int8", "nf4", "none")] == [
        "bnb-int8", "bnb-int8", "nf4", "none",
    ]  # fmt: skip
    assert stored_quantization(int8, "auto") == stored_quantization(int8, "bnb-int8") == "bnb-int8"
    assert stored_quantization(str(folders["nf4"]), "auto") == "nf4"
    assert refusal(ConfigError, lambda: stored_quantization(int8, "nf4")) == (
        f"--quantization nf4: {int8} is stored as bnb-int8; use auto, or an unquantized base"
    )


def test_quantizing_what_is_quantized(folders, tmp_path):
    config = QuantizeConfig(base=str(folders["bnb-int8"]), output=str(tmp_path / "out"), precision="nf4")
    message = refusal(ModelError, lambda: quantize(config))
    assert message == f"{folders['bnb-int8']}: is quantized already; give the model as it was before"


def test_precisions(folders):
    manifest = read_manifest(str(folders["full_bnb-int8"]))
    assert resolve_precision("auto", "cpu", manifest) == "fp32"
    for stored, found in {
        "bnb-int8": ["w8a8-fp8", "w8a8-int8", "w8a8-fp8", "w8a8-int8", "bnb-int8"],
        "nf4": ["w8a8-fp8", "w8a8-int8", "w8a8-fp8", "w8a8-int8", "nf4"],
        "none": ["w8a8-fp8", "w8a8-int8", "w8a8-fp8", "w8a8-int8", "bnb-int8"],
        "w8a8-fp8": ["w8a8-fp8", "w8a8-fp8", "w8a8-fp8", "w8a8-int8"],
        "w8a8-int8": ["w8a8-int8", "w8a8-int8", "w8a8-int8", "w8a8-int8"],
    }.items():
        kept = dataclasses.replace(manifest, quantization=stored)  # pyright: ignore[reportArgumentType]
        capabilities = [(10, 0), (9, 0), (8, 9), (8, 6), (7, 5)][: len(found)]
        assert [resolve_precision("auto", "cuda", kept, each) for each in capabilities] == found
        assert resolve_precision("auto", "cpu", kept) == "fp32"
        assert resolve_precision("w8a8-fp8", "cpu", kept) == "w8a8-fp8"
    assert refusal(ConfigError, lambda: resolve_precision("w8a8-fp8", "cuda", manifest, (8, 0))) == (
        "--precision w8a8-fp8: takes a GPU of compute capability 8.9 or later, and there is one of 8.0; use "
        "--precision w8a8-int8"
    )
    for stored in W8A8:
        rows = dataclasses.replace(manifest, quantization=stored)  # pyright: ignore[reportArgumentType]
        message = refusal(ConfigError, lambda rows=rows: resolve_precision("auto", "cuda", rows, (7, 5)))
        assert message == (
            "--precision w8a8-int8: takes a GPU of compute capability 8.0 or later, and there is one of 7.5; "
            f"use --precision bnb-int8, with the model before it was made {stored}"
        )
    trained = "the adapter was trained on a base in bnb-int8"
    for name, held in (
        ("full_bnb-int8", "the weights are stored as bnb-int8"),
        ("adapter_int8", trained),
        ("adapter_as_int8", trained),
    ):
        message = refusal(ConfigError, lambda name=name: load_classifier(str(folders[name]), precision="nf4"))
        assert message == f"--precision nf4: {held}; use it, fp32, bf16, w8a8-int8 or w8a8-fp8"
    plain = dataclasses.replace(manifest, quantization="none")
    assert resolve_precision("nf4", "cpu", plain) == "nf4"
    assert resolve_precision("bnb-int8", "cpu", plain) == "bnb-int8"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bnb_4bit_quant_type": "fp4"}, "fp4 in uint8"),
        ({}, "fp4 in uint8"),
        ({"bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": "bfloat16"}, "nf4 in bfloat16"),
        ({"bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": "uint8"}, None),
    ],
)
def test_4_bits_of_another_kind_are_refused(tmp_path, settings, said):
    stored = {"quant_method": "bitsandbytes", "load_in_4bit": True, **settings}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": stored}))
    if said is None:
        assert folder_quantization(str(tmp_path)) == "nf4"
    else:
        with pytest.raises(ModelError, match=f"is stored by bitsandbytes as {said}; give one as nf4"):
            folder_quantization(str(tmp_path))
