"""The manifest and the digests: what they hold, and folders that they do not fit."""

import json

import pytest

from tests.unit.modeling.checkpoints import (
    TEXT,
    refusal,
    rewrite,
)
from wsdm_ray.config import HeadConfig, QuantizeConfig
from wsdm_ray.errors import ModelError
from wsdm_ray.modeling.loading import load_classifier
from wsdm_ray.modeling.manifest import MANIFEST, folder_digest, read_manifest
from wsdm_ray.modeling.quantization import quantize


def test_the_manifest_of_an_adapter(folders):
    manifest = read_manifest(str(folders["adapter_int8"]))
    assert manifest.base == str(folders["bnb-int8"])
    assert manifest.base_digest == folder_digest(str(folders["bnb-int8"]))
    assert (manifest.kind, manifest.quantization, manifest.temperature) == ("adapter", "bnb-int8", 1.5)
    assert (manifest.head, manifest.text, manifest.metrics) == (HeadConfig(), TEXT, {"step": 3})
    assert {"python", "torch", "transformers", "peft"} <= set(manifest.versions)
    settings = json.loads((folders["adapter_int8"] / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(folders["bnb-int8"])


def test_another_tokenizer(copy_of):
    folder = copy_of("full_bnb-int8")
    values = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(values | {"normalizer": None}))
    assert refusal(ModelError, lambda: read_manifest(str(folder))) == (
        f"{folder}: tokenizer.json is not the one it was trained with; restore the original file"
    )


def test_without_its_tokenizer(copy_of):
    folder = copy_of("full_bnb-int8")
    (folder / "tokenizer.json").unlink()
    assert refusal(ModelError, lambda: read_manifest(str(folder))) == (
        f"{folder}: no tokenizer.json; copy the tokenizer files it was trained with"
    )


@pytest.mark.parametrize("name", ["full_bnb-int8", "adapter_int8", "bnb-int8"])
def test_without_a_manifest(copy_of, name):
    folder = copy_of(name)
    (folder / MANIFEST).unlink()
    assert refusal(ModelError, lambda: load_classifier(str(folder))) == (
        f"{folder}: no wsdm_ray.json; this is no folder of `train` or `quantize`, or it is not complete"
    )


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", "null", "{}", '{"kind": "full", "head": null, "text": {}, "more": 1}']
)
def test_a_manifest_of_no_use(copy_of, content):
    folder = copy_of("full_bnb-int8")
    (folder / MANIFEST).write_text(content)
    message = refusal(ModelError, lambda: read_manifest(str(folder)))
    assert message.startswith(f"{folder / MANIFEST}: not readable by this version (")


@pytest.mark.parametrize(
    ("name", "value"), [("kind", "diff"), ("quantization", "int3"), ("label_order", ["b wins", "a wins"])]
)
def test_a_manifest_of_a_later_version(copy_of, name, value):
    folder = copy_of("full_bnb-int8")
    rewrite(folder, **{name: value})
    message = refusal(ModelError, lambda: read_manifest(str(folder)))
    assert message.startswith(f"{folder / MANIFEST}: not readable by this version ({name} is ")


def test_a_base_is_no_classifier(folders):
    message = refusal(ModelError, lambda: load_classifier(str(folders["bnb-int8"])))
    assert message == f"{folders['bnb-int8']}: a base without a head; train it first"
    assert read_manifest(str(folders["bnb-int8"]), need_head=False).kind == "base"


def test_weights_that_are_pickles(copy_of, tmp_path):
    folder = copy_of("plain")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert refusal(ModelError, lambda: folder_digest(str(folder))) == (
        f"{folder}: no .safetensors weights (other weights: pytorch_model.bin); save the model as safetensors"
    )
    config = QuantizeConfig(base=str(folder), output=str(tmp_path / "out"))
    assert refusal(ModelError, lambda: quantize(config)) == (
        f"--base {folder}: no model.safetensors and no model.safetensors.index.json (it has "
        "pytorch_model.bin); save the model as safetensors"
    )


@pytest.mark.parametrize(
    "name",
    ["config.json", MANIFEST, "tokenizer.json", "tokenizer_config.json", "model.safetensors"],
)
def test_a_digest_covers_every_file_that_decides_the_output(copy_of, name):
    folder = copy_of("full_bf16")
    digest = folder_digest(str(folder))
    (folder / "run.json").write_text("{}")
    assert folder_digest(str(folder)) == digest, "the record of a run decides nothing"
    path = folder / name
    path.write_bytes(path.read_bytes() + b" ")
    assert folder_digest(str(folder)) != digest


def test_a_digest_covers_the_adapter(copy_of):
    folder = copy_of("adapter_int8")
    digest = folder_digest(str(folder))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b" ")
        assert folder_digest(str(folder)) != digest
        (folder / name).write_bytes(content)
