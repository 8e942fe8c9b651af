"""Written checkpoints: byte for byte what transformers and PEFT make of the same weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tests.unit.modeling import plain_loading
from tests.unit.modeling.checkpoints import refusal
from tests.unit.modeling.quantized_folders import (
    EARLIER,
    LATER,
    assert_same_bytes,
    our_adapter,
    peft_adapter,
    sequence_classifier,
    weights,
    written,
)
from wsdm_ray.errors import ModelError, StorageError
from wsdm_ray.modeling import checkpoint_writer
from wsdm_ray.modeling.classifier import (
    peft_warnings,
)
from wsdm_ray.modeling.families import FAMILIES
from wsdm_ray.modeling.loading import load_classifier
from wsdm_ray.modeling.manifest import folder_digest
from wsdm_ray.modeling.merging import read_base
from wsdm_ray.modeling.quantization import merge
from wsdm_ray.modeling.quantization_config import (
    bitsandbytes_config,
    folder_quantization,
)
from wsdm_ray.modeling.quantized_linear import hadamard


def by_transformers(source: Path, target: Path, precision: str, dtype: torch.dtype) -> None:
    """What from_pretrained and save_pretrained make of a backbone."""
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": "cpu"}}
    if precision != "bf16":
        options["quantization_config"] = bitsandbytes_config(precision, torch.bfloat16)
    transformers.AutoModel.from_pretrained(source, **options).save_pretrained(target)


@pytest.mark.parametrize("precision", ["bnb-int8", "nf4", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_peft_adapters_merged_in_order(family_model, tmp_path, family, precision):
    base = family_model(family, 64)
    adapters = [
        peft_adapter(base, tmp_path / "earlier", 1, **EARLIER),
        peft_adapter(base, tmp_path / "later", 2, **LATER),
    ]
    manifest = written(tmp_path / "out", base, *adapters, precision=precision)

    network = sequence_classifier(base, 3)
    with peft_warnings():
        for adapter in adapters:
            network = peft.PeftModel.from_pretrained(network, adapter).merge_and_unload()  # pyright: ignore
    network.model.save_pretrained(tmp_path / "merged")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    by_transformers(tmp_path / "merged", tmp_path / "expected", precision, dtype)

    assert_same_bytes(weights(tmp_path / "out"), weights(tmp_path / "expected"))
    assert manifest.kind == "base"
    theirs, ours = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("expected", "out"))
    labels = {"id2label", "label2id"}  # three in theirs, which has no head either
    assert ours == {name: value for name, value in theirs.items() if name not in labels}


@pytest.mark.parametrize("precision", ["bnb-int8", "nf4"])
def test_what_is_not_quantized_stays_as_the_base_stores_it(family_model, tmp_path, precision):
    base = shutil.copytree(family_model("qwen2", 64), tmp_path / "base")
    transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    written(tmp_path / "out", tmp_path / "base", precision=precision)
    by_transformers(tmp_path / "base", tmp_path / "expected", precision, torch.bfloat16)
    found = weights(tmp_path / "out")
    assert_same_bytes(found, weights(tmp_path / "expected"))
    plain = {name.rsplit(".", 2)[-2] for name, tensor in found.items() if tensor.dtype == torch.bfloat16}
    assert plain == {
        "embed_tokens", "norm", "input_layernorm", "post_attention_layernorm",
        "q_proj", "k_proj", "v_proj",  # their biases
    }  # fmt: skip
    assert not [name for name in found if "lm_head" in name]


@pytest.mark.parametrize("family", FAMILIES)
def test_fp8_as_other_tools_read_it(family_model, tmp_path, family):
    base = family_model(family, 64)
    manifest = written(
        tmp_path / "out", base, our_adapter(base, tmp_path / "ours", "none"), precision="w8a8-fp8"
    )
    assert (manifest.kind, manifest.quantization) == ("full", "w8a8-fp8")
    merged = merge(str(base), [str(tmp_path / "ours")], folder_digest(str(base)))
    found = weights(tmp_path / "out")
    layers = {name.removesuffix("_scale") for name in found if name.endswith(".weight_scale")}
    assert layers == {f"model.{name}.weight" for name in merged.base.linears}
    for name in layers:
        values, scale = found[name], found[f"{name}_scale"]
        assert (values.dtype, scale.dtype) == (torch.float8_e4m3fn, torch.float32)
        assert scale.shape == (len(values), 1)
        exact = merged.parameter(name.removeprefix("model."))
        assert values.float().abs().amax(1).eq(448).all()
        # Three bits of mantissa; what is smaller than the smallest normal number, 2**-6, has fewer.
        assert ((values.float() * scale - exact).abs() <= exact.abs() / 16 + scale * 2**-10).all()
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    [group] = settings["config_groups"].values()
    assert (settings["quant_method"], settings["format"]) == ("compressed-tensors", "float-quantized")
    assert (group["weights"]["strategy"], group["input_activations"]["strategy"]) == ("channel", "token")
    assert "score.1.weight" in found
    assert folder_quantization(str(tmp_path / "out")) == "w8a8-fp8"
    settings["config_groups"]["group_0"]["weights"]["strategy"] = "tensor"
    (tmp_path / "out" / "config.json").write_text(json.dumps({"quantization_config": settings}))
    with pytest.raises(
        ModelError, match="is quantized by compressed-tensors, neither by bitsandbytes nor in"
    ):
        folder_quantization(str(tmp_path / "out"))


def test_int8_rows_are_spread(family_model, tmp_path):
    base = family_model("qwen2", 64)
    manifest = written(tmp_path / "out", base, precision="w8a8-int8")
    assert (manifest.kind, manifest.quantization) == ("base", "w8a8-int8")
    assert folder_quantization(str(tmp_path / "out")) == "w8a8-int8"
    read, found = read_base(str(tmp_path / "out")), weights(tmp_path / "out")
    for name, exact in ((name, read_base(str(base)).parameter(f"{name}.weight")) for name in read.linears):
        values, scale = found[f"{name}.weight"], found[f"{name}.weight_scale"]
        block = len(hadamard(exact))
        assert (values.dtype, values.shape[2], scale.shape) == (torch.int8, block, (len(values), 1))
        assert values.abs().amax((1, 2)).eq(127).all()
        # Half a step at most in each number; spreading keeps a sum of squares, but for a factor.
        apart = (read.parameter(f"{name}.weight") - exact).reshape(len(exact), -1, block)
        assert (apart.square().sum(-1) <= 1.001 * (scale * block / 2).square()).all()
    config = tmp_path / "out" / "config.json"
    settings = json.loads(config.read_text())
    assert settings["quantization_config"] == {"quant_method": "int8_rows", "hadamard": 128}
    settings["quantization_config"]["hadamard"] = 64
    config.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="is quantized by int8_rows, neither by bitsandbytes nor in rows"):
        folder_quantization(str(tmp_path / "out"))
    with pytest.raises(RuntimeError, match="mismatched"):  # and not a model that says nothing
        transformers.AutoModel.from_pretrained(tmp_path / "out")


def test_the_int8_options_of_the_recipe(family_model, tmp_path):
    written(tmp_path / "out", family_model("gemma2"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    settings = config["quantization_config"]
    assert {name: value for name, value in settings.items() if not name.startswith("_")} == {
        "quant_method": "bitsandbytes",
        "load_in_8bit": True,
        "load_in_4bit": False,
        "llm_int8_threshold": 6.0,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_skip_modules": None,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_use_double_quant": False,
    }


def test_an_int8_weight_by_hand(family_model, tmp_path):
    base = shutil.copytree(family_model("llama"), tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    row = torch.zeros(32)
    row[:4] = torch.tensor([0.5, -0.25, 0.126, 0.002])
    tensors["model.layers.0.self_attn.q_proj.weight"][0] = row
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    written(tmp_path / "out", base)
    found = weights(tmp_path / "out")
    # 127 / 0.5 = 254 a unit: 127, -63.5 (to the even 64), 32.004 and 0.508
    assert found["layers.0.self_attn.q_proj.weight"][0, :5].tolist() == [127, -64, 32, 1, 0]
    assert found["layers.0.self_attn.q_proj.SCB"][0] == 0.5


# Several files


@pytest.mark.parametrize("precision", ["bnb-int8", "nf4", "bf16"])
def test_several_files_of_weights(family_model, tmp_path, monkeypatch, precision):
    base = family_model("gemma2", 64)
    ours = our_adapter(base, tmp_path / "ours", "none")
    written(tmp_path / "one", base, ours, precision=precision)
    monkeypatch.setattr(checkpoint_writer, "SHARD_BYTES", 60_000)
    written(tmp_path / "many", base, ours, precision=precision)
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(files) >= 3
    assert files == [f"model-{number + 1:05}-of-{len(files):05}.safetensors" for number in range(len(files))]
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    for file in files:
        stored = load_file(tmp_path / "many" / file)
        assert {name for name, place in index["weight_map"].items() if place == file} == set(stored)
        assert len(stored) == 1 or sum(tensor.nbytes for tensor in stored.values()) <= 60_000
    assert_same_bytes(weights(tmp_path / "many"), weights(tmp_path / "one"))

    one, many = (load_classifier(str(tmp_path / name))[0].state_dict() for name in ("one", "many"))
    assert_same_bytes(many, one)
    plain, _, _ = plain_loading.load(str(tmp_path / "many"))
    assert torch.equal(plain.score[1].weight, one["score.1.weight"])

    (tmp_path / "many" / files[-1]).unlink()
    message = refusal(ModelError, lambda: load_classifier(str(tmp_path / "many")))
    assert message.startswith(f"{tmp_path / 'many'}: cannot be loaded (FileNotFoundError: ")


def test_no_space_for_the_weights(family_model, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint_writer, "save_file", full)
    message = refusal(StorageError, lambda: written(tmp_path / "out", family_model("llama")))
    assert message == (
        f"{tmp_path / 'out'}: SafetensorError: I/O error: No space left on device (os error 28); free space "
        "there, or set TMPDIR to a folder with more"
    )
