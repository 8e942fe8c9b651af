"""Quantizing: byte for byte what transformers and PEFT make of the same weights; figures; refusals."""

import functools
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from bitsandbytes import functional
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tests.unit.modeling import plain_loading
from wsdm_ray.config import HeadConfig, LoraConfig, QuantizeConfig, TextConfig
from wsdm_ray.errors import ModelError, RunMismatchError, StorageError, WsdmRayError
from wsdm_ray.modeling import quantization
from wsdm_ray.modeling.checkpoint import save_classifier
from wsdm_ray.modeling.classifier import (
    add_lora,
    load_network,
    ordering_logits,
    peft_warnings,
    trainable_parameters,
)
from wsdm_ray.modeling.families import FAMILIES
from wsdm_ray.modeling.loading import load_classifier
from wsdm_ray.modeling.manifest import Manifest, folder_digest, read_manifest
from wsdm_ray.modeling.merging import read_base
from wsdm_ray.modeling.quantization import merge, quantize
from wsdm_ray.modeling.quantization_config import (
    bitsandbytes_config,
    folder_quantization,
    stored_quantization,
)
from wsdm_ray.modeling.quantized_linear import hadamard
from wsdm_ray.packing.layouts import lay_out
from wsdm_ray.text.encoding import PairEncoder

TEXT = TextConfig(max_tokens=200)
EARLIER = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
LATER: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 16,
    "use_rslora": True,
    "rank_pattern": {"layers.0.self_attn.v_proj": 2},
    "alpha_pattern": {"up_proj": 3},
    "target_modules": ["q_proj", "v_proj", "up_proj"],
    "lora_dropout": 0.3,
}


def stirred(network: Any, seed: int, size: float = 0.1) -> Any:
    """With noise on all that trains, so that an adapter does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable_parameters(network).values():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def sequence_classifier(base: Path, labels: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=labels, dtype=torch.float32
        )


def peft_adapter(base: Path, folder: Path, seed: int, labels: int = 3, **options: Any) -> str:
    """A plain PEFT folder of a classifier with another number of labels."""
    with peft_warnings():
        network = peft.get_peft_model(
            sequence_classifier(base, labels), peft.LoraConfig(task_type="SEQ_CLS", **options)
        )
        stirred(network, seed).save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()
    return str(folder)


def our_adapter(base: Path, folder: Path, asked: str, seed: int = 3, digest: str | None = None) -> str:
    """A folder as `train` leaves it."""
    quantization = stored_quantization(str(base), asked)
    network = load_network(
        str(base), HeadConfig(), seed=0, device="cpu", dtype=torch.float32, quantization=quantization
    )
    manifest = Manifest(
        kind="adapter",
        base=str(base),
        base_digest=digest or folder_digest(str(base)),
        quantization=quantization,
        head=HeadConfig(),
        text=TEXT,
    )
    network = stirred(add_lora(network, LoraConfig(r=4, alpha=8), seed=0), seed)
    save_classifier(network, str(base), str(folder), manifest)
    return str(folder)


def made(output: Path, base: Path | str, *adapters: str, precision: Any = "bnb-int8") -> dict[str, Any]:
    return quantize(QuantizeConfig(base=str(base), adapter=adapters, precision=precision, output=str(output)))


def written(output: Path, base: Path | str, *adapters: str, precision: str = "bnb-int8") -> Manifest:
    """The same checkpoint without the run around it, and without the comparison."""
    output.mkdir()
    merged = merge(str(base), list(adapters), folder_digest(str(base)))
    return quantization.write_checkpoint(merged, precision, str(output))


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for path in sorted(Path(folder).glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def assert_same_bytes(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def by_transformers(source: Path, target: Path, precision: str, dtype: torch.dtype) -> None:
    """What from_pretrained and save_pretrained make of a backbone."""
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": "cpu"}}
    if precision != "bf16":
        options["quantization_config"] = bitsandbytes_config(precision, torch.bfloat16)
    transformers.AutoModel.from_pretrained(source, **options).save_pretrained(target)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The package's log lines so far."""
    monkeypatch.setattr(logging.getLogger("wsdm_ray"), "propagate", True)
    caplog.set_level(logging.INFO, "wsdm_ray")
    return lambda: [record.getMessage() for record in caplog.records]


# The bytes that transformers would write


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


# Bases


@pytest.mark.parametrize(("family", "labels"), list(zip(FAMILIES, (1, 3, 1, 3, 1), strict=True)))
def test_a_base_with_a_head_of_its_own(family_model, tmp_path, family, labels):
    """A scalar reward model, or a classifier of three labels: as the language model, without the head."""
    plain = family_model(family)
    base = shutil.copytree(plain, tmp_path / "base")
    sequence_classifier(plain, labels).save_pretrained(base)
    assert load_file(base / "model.safetensors")["score.weight"].shape == (labels, 32)
    written(tmp_path / "out", base)
    written(tmp_path / "plain", plain)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert quantization.left_out(merge(str(base), [], "")) == [(str(base), ("score.weight",))]


def test_a_base_in_several_files(family_model, tmp_path):
    base = shutil.copytree(family_model("gemma2"), tmp_path / "base")
    network = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    (base / "model.safetensors").unlink()
    network.save_pretrained(base, max_shard_size="40KB")
    assert len(list(base.glob("model-*.safetensors"))) > 2
    # Some repositories hold the weights once more, in their makers' own format.
    save_file({"layers.0.attention.wq.weight": torch.zeros(1)}, base / "consolidated.safetensors")
    written(tmp_path / "out", base)
    written(tmp_path / "plain", family_model("gemma2"))
    assert_same_bytes(weights(tmp_path / "out"), weights(tmp_path / "plain"))

    files = sorted(base.glob("model-*.safetensors"))
    files[1].unlink()
    assert refusal(ModelError, lambda: written(tmp_path / "other", base)) == (
        f"{base}: no {files[1].name}, which model.safetensors.index.json names; fetch or save the model anew"
    )


@pytest.mark.parametrize("precision", ["bnb-int8", "nf4"])
def test_an_adapter_onto_a_quantized_base(family_model, tmp_path, precision):
    """The base is what its 8 or 4 bits stand for; the sum is quantized again."""
    base = family_model("llama", 64)
    adapter = peft_adapter(base, tmp_path / "adapter", 1, **EARLIER)
    written(tmp_path / "base", base, precision=precision)
    written(tmp_path / "out", tmp_path / "base", adapter)

    stored = weights(tmp_path / "base")
    factors = load_file(Path(adapter) / "adapter_model.safetensors")
    for layer in ("layers.1.self_attn.q_proj", "layers.0.mlp.gate_proj"):
        if precision == "bnb-int8":
            weight = stored[f"{layer}.weight"] * stored[f"{layer}.SCB"][:, None] / 127
        else:
            parts = {
                name.removeprefix(f"{layer}.weight."): tensor
                for name, tensor in stored.items()
                if name.startswith(f"{layer}.weight.")
            }
            state = functional.QuantState.from_dict(parts, device="cpu")
            weight = functional.dequantize_4bit(stored[f"{layer}.weight"], state)
        if "q_proj" in layer:
            A, B = (factors[f"base_model.model.model.{layer}.lora_{side}.weight"] for side in "AB")
            weight = weight + 8 / 4 * (B @ A)
        scale = weight.half().abs().max(dim=1).values.float()
        found = weights(tmp_path / "out")
        torch.testing.assert_close(found[f"{layer}.SCB"], scale, rtol=1e-3, atol=0)  # a last bit of float16
        back = found[f"{layer}.weight"] * scale[:, None] / 127
        # Half a step of 8 bits, and what float16 rounds.
        assert ((back - weight).abs() <= 0.51 * scale[:, None] / 127 + 1e-3 * weight.abs()).all()


def test_an_adapter_onto_int8_rows(family_model, tmp_path):
    base = family_model("llama", 64)
    adapter = peft_adapter(base, tmp_path / "adapter", 1, **EARLIER)
    written(tmp_path / "rows", base, precision="w8a8-int8")
    exact, found = (merge(str(folder), [adapter], "") for folder in (base, tmp_path / "rows"))
    for layer in ("layers.1.self_attn.q_proj.weight", "layers.0.mlp.gate_proj.weight"):
        assert found.rows(layer, "w8a8-int8") is None or "gate" in layer  # the sum is not what is stored
        weight = exact.parameter(layer)
        apart = (found.parameter(layer) - weight).norm() / weight.norm()
        assert 0 < apart < 0.01


# The same token, whatever the padding


def test_a_base_whose_padding_is_its_eos(family_model, tmp_path, lines):
    """As the Qwens distilled from R1: a padded batch, one at a time, and plain transformers agree."""
    base = shutil.copytree(family_model("qwen2", 64), tmp_path / "base")
    for name, values in (
        ("config.json", {"pad_token_id": 1}),
        ("tokenizer_config.json", {"pad_token": "<eos>"}),
    ):
        path = base / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1
    adapter = our_adapter(base, tmp_path / "adapter", "none")
    written(tmp_path / "full", base, adapter, precision="bf16")
    network, manifest = load_classifier(str(tmp_path / "full"))

    texts = ("Hi", "What is the sum of 12 and 30?", "Как дела? " * 5)
    pairs = PairEncoder(str(tmp_path / "full"), manifest.text).encode(
        texts, ("42", "It is 42.", ""), ("", "x", "y" * 60)
    )
    both = [pairs.suffix_ab, pairs.suffix_ba]
    assert len(set(pairs.tokens_N.tolist())) == 3
    with torch.no_grad():
        together = ordering_logits(network, lay_out("padded", pairs.prefix, both, np.arange(3), pad_id=1))
        alone = torch.cat(
            [ordering_logits(network, lay_out("padded", pairs.prefix, both, np.array([i]))) for i in range(3)]
        )
        # float32, where a row's sums are taken with padding and without
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
        plain, _, _ = plain_loading.load(str(tmp_path / "full"))
        for number in range(3):
            ids = torch.tensor([[*pairs.prefix[number], *pairs.suffix_ab[number]]])
            torch.testing.assert_close(plain(input_ids=ids).logits[0], alone[2 * number], rtol=0, atol=1e-5)
        with pytest.raises(ValueError, match="no padding token"):
            plain(input_ids=ids.repeat(2, 1))
    assert "quantize: pad_token_id 1 is an eos token; config.json has none" in lines()
    assert json.loads((tmp_path / "full" / "config.json").read_text())["pad_token_id"] is None


# Adapters of `train`


@pytest.mark.parametrize("precision", ["bnb-int8", "nf4", "w8a8-fp8", "w8a8-int8"])
def test_a_classifier_keeps_its_head(family_model, tmp_path, lines, precision):
    base = family_model("llama", 64)
    ours = our_adapter(base, tmp_path / "ours", "none")
    written(tmp_path / "full", base, ours, precision="bf16")
    kept = read_manifest(str(tmp_path / "full"))
    assert made(tmp_path / "again", tmp_path / "full", precision=precision)["kind"] == "full"
    manifest = read_manifest(str(tmp_path / "again"))
    assert (manifest.head, manifest.text, manifest.metrics) == (kept.head, kept.text, kept.metrics)
    found, stored = weights(tmp_path / "again"), weights(tmp_path / "full")
    assert {name for name in found if name.startswith("score.")} == {
        name for name in stored if name.startswith("score.")
    }
    assert torch.equal(found["score.1.weight"], stored["score.1.weight"])
    assert "its head is left out" not in "\n".join(lines())


def test_the_head_of_the_last_adapter(family_model, tmp_path, lines):
    base = family_model("gemma2", 64)
    earlier = peft_adapter(base, tmp_path / "earlier", 1, **EARLIER)
    ours = our_adapter(base, tmp_path / "ours", "none")
    run = made(tmp_path / "full", base, earlier, ours, precision="bf16")
    assert run["kind"] == "full"
    manifest = read_manifest(str(tmp_path / "full"))
    assert (manifest.kind, manifest.head, manifest.text) == ("full", HeadConfig(), TEXT)
    found, stored = weights(tmp_path / "full"), weights(ours)
    for name in ("score.1.weight", "score.4.bias"):
        assert torch.equal(found[name], stored[f"base_model.model.{name}"])
    said = "\n".join(lines())
    assert f"{earlier}: its head is left out: base_model.model.score.weight" in said
    assert f"{ours}: its head is left out" not in said

    # The other way round, the last head has three labels: it goes, and so does ours before it.
    assert made(tmp_path / "base", base, ours, earlier, precision="bf16")["kind"] == "base"
    assert f"{ours}: its head is left out: base_model.model.score.1.bias, " in "\n".join(lines())
    assert not [name for name in weights(tmp_path / "base") if "score" in name]


def test_an_adapter_beside_8_bits_is_merged_into_what_they_stand_for(family_model, tmp_path):
    """Trained on the int8 checkpoint of base and earlier adapter: from the parts, the same comes out."""
    base = family_model("llama", 64)
    earlier = peft_adapter(base, tmp_path / "earlier", 1, **EARLIER)
    written(tmp_path / "bnb-int8", base, earlier)
    ours = our_adapter(tmp_path / "bnb-int8", tmp_path / "ours", "auto")
    written(tmp_path / "whole", tmp_path / "bnb-int8", ours, precision="bf16")
    written(tmp_path / "parts", base, earlier, ours, precision="bf16")
    assert_same_bytes(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


def test_an_adapter_of_another_base(family_model, tmp_path, lines):
    base = family_model("llama", 64)
    ours = our_adapter(base, tmp_path / "ours", "none", digest="0" * 64)
    assert refusal(ModelError, lambda: made(tmp_path / "out", base, ours)) == (
        f"{ours}: was trained on a base with digest 000000000000, but {base} has "
        f"{folder_digest(str(base))[:12]}; use --base with the base it was trained on"
    )
    earlier = peft_adapter(base, tmp_path / "earlier", 1, **EARLIER)
    made(tmp_path / "out", base, earlier, ours)
    assert [line for line in lines() if ours in line and line.endswith("this cannot be checked")]


# Several files


@pytest.mark.parametrize("precision", ["bnb-int8", "nf4", "bf16"])
def test_several_files_of_weights(family_model, tmp_path, monkeypatch, precision):
    base = family_model("gemma2", 64)
    ours = our_adapter(base, tmp_path / "ours", "none")
    written(tmp_path / "one", base, ours, precision=precision)
    monkeypatch.setattr(quantization, "SHARD_BYTES", 60_000)
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

    monkeypatch.setattr(quantization, "save_file", full)
    message = refusal(StorageError, lambda: written(tmp_path / "out", family_model("llama")))
    assert message == (
        f"{tmp_path / 'out'}: SafetensorError: I/O error: No space left on device (os error 28); free space "
        "there, or set TMPDIR to a folder with more"
    )


# The comparison with the unquantized merge


@pytest.mark.parametrize("family", FAMILIES)
def test_the_merge_layer_by_layer_is_the_whole_merge(family_model, tmp_path, monkeypatch, family):
    base = family_model(family)
    adapter = peft_adapter(base, tmp_path / "adapter", 1, **EARLIER)
    written(tmp_path / "out", base, adapter, precision="bf16")
    layout = quantization.probe_layout(str(tmp_path / "out"), Manifest(kind="base"))

    alive: list[int] = []
    fill = quantization.fill

    def counted(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
        fill(module, tensors)
        held = [not parameter.is_meta for parameter in module.parameters()]
        if len(held) > 1:  # a layer
            assert all(held) or not any(held)
            alive.append(1 if all(held) else -1)

    monkeypatch.setattr(quantization, "fill", counted)
    found = quantization.merged_states(merge(str(base), [adapter], ""), layout, "cpu")
    assert alive == [1, -1, 1, -1], "a layer goes before the next comes"

    with peft_warnings():
        network: Any = peft.PeftModel.from_pretrained(sequence_classifier(base, 3), adapter)  # pyright: ignore
        backbone = network.merge_and_unload().model
    expected = quantization.states(backbone, backbone.config, layout, torch.float32, "cpu")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_check_of_a_backbone(family_model, tmp_path, lines):
    base = family_model("gemma2", 64)
    checks = {
        precision: made(tmp_path / precision, base, precision=precision)["check"]
        for precision in ("bf16", "bnb-int8", "w8a8-int8", "w8a8-fp8", "nf4")
    }
    stored = json.loads((tmp_path / "nf4" / "run.json").read_text())
    assert stored["check"] == checks["nf4"]
    for check in checks.values():
        assert check["compared"] == "hidden states"
        assert check["sequences"] == 2 * len(quantization.PROBES)
        assert 0 < check["mean_abs"] < check["max_abs"]
        assert check["mean_abs_relative"] == pytest.approx(check["mean_abs"] / check["spread"])
        assert "mean_abs_prob" not in check
    # 8 bits of mantissa, of each row's largest weight, 4 bits of mantissa (activations too), and 4 bits
    order = [checks[precision]["mean_abs"] for precision in ("bf16", "bnb-int8", "w8a8-fp8", "nf4")]
    assert order == sorted(order)
    assert order[0] < checks["w8a8-int8"]["mean_abs"] < order[2]
    assert order[-1] < 1
    (line,) = [line for line in lines() if "against" in line][-1:]
    assert line.startswith("quantize: against the unquantized weights, hidden states: off by ")


def test_the_check_of_a_classifier(family_model, tmp_path):
    base = family_model("qwen3", 64)
    ours = our_adapter(base, tmp_path / "ours", "none")
    check = made(tmp_path / "full", base, ours)["check"]

    pairs = PairEncoder(ours, TEXT).encode(*zip(*quantization.PROBES, strict=True))
    layout = lay_out("shared", pairs.prefix, [pairs.suffix_ab, pairs.suffix_ba], np.arange(len(pairs)))
    with torch.no_grad():
        found, expected = (
            ordering_logits(load_classifier(folder, precision=precision)[0], layout)
            for folder, precision in ((str(tmp_path / "full"), "bnb-int8"), (ours, "fp32"))
        )
    assert check["compared"] == "logits"
    assert check["tokens"] == layout.num_tokens
    # The same two networks but for the order of float32 sums.
    assert check["max_abs"] == pytest.approx(float((found - expected).abs().max()), abs=1e-5)
    assert check["mean_abs"] == pytest.approx(float((found - expected).abs().mean()), abs=1e-5)
    moved = (found.softmax(-1) - expected.softmax(-1))[:, 0].abs()
    assert check["mean_abs_prob"] == pytest.approx(float(moved.mean()), abs=1e-5)
    assert 0 < check["mean_abs_prob"] < 0.05


def test_weights_that_are_not_numbers(family_model, tmp_path):
    base = shutil.copytree(family_model("llama"), tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    message = refusal(ModelError, lambda: made(tmp_path / "out", base))
    assert message == (
        f"{base}: the unquantized merge gives hidden states that are not numbers; check its weights"
    )
    assert not (tmp_path / "out" / "model.safetensors").exists()


# Runs


def test_a_run_is_known_by_its_base_and_its_adapters_in_order(family_model, tmp_path):
    base = family_model("llama")
    first = peft_adapter(base, tmp_path / "first", 1, **EARLIER)
    second = peft_adapter(base, tmp_path / "second", 2, **LATER)
    run = made(tmp_path / "out", base, first, second)
    assert run["fingerprint"] == {
        "base": folder_digest(str(base)),
        "adapter": [folder_digest(first), folder_digest(second)],
        "precision": "bnb-int8",
    }
    stamp = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    assert made(tmp_path / "out", base, first, second) == run
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == stamp
    for adapters in ((second, first), (first,), ()):
        with pytest.raises(RunMismatchError, match="adapter"):
            made(tmp_path / "out", base, *adapters)


# Bad input


def refusal(kind: type[WsdmRayError], act: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_tensor_of_another_shape(family_model, tmp_path):
    base = shutil.copytree(family_model("llama"), tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(64, 16)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    assert refusal(ModelError, lambda: made(tmp_path / "out", base)) == (
        f"{base}: model.layers.1.mlp.up_proj.weight has the shape [64, 16], but its config needs [64, 32]; "
        "fetch or save the model anew"
    )


def test_a_tensor_without_a_place(family_model, tmp_path):
    base = shutil.copytree(family_model("llama"), tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(16)}  # as files of 2023 have it
    save_file(tensors | old, base / "model.safetensors", metadata={"format": "pt"})
    written(tmp_path / "out", base)
    extra = {"model.layers.2.mlp.up_proj.weight": torch.zeros(64, 32)}
    save_file(tensors | extra, base / "model.safetensors", metadata={"format": "pt"})
    assert refusal(ModelError, lambda: made(tmp_path / "other", base)) == (
        f"{base}: has model.layers.2.mlp.up_proj.weight, for which its config has no place; check config.json"
    )


def test_a_base_that_others_quantized(family_model, tmp_path):
    base = shutil.copytree(family_model("llama"), tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    settings = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (base / "config.json").write_text(json.dumps(config | settings))
    assert refusal(ModelError, lambda: made(tmp_path / "out", base)) == (
        f"{base}: is quantized by gptq, neither by bitsandbytes nor in rows of 8 bit; give an "
        "unquantized base"
    )


def test_nf4_of_a_narrow_model_is_refused(family_model, tmp_path):
    base = str(family_model("llama", 32))
    message = f"{base}: has layers of 32 columns, and on a CPU nf4 takes multiples of 64; use bnb-int8"
    assert refusal(ModelError, lambda: made(tmp_path / "out", base, precision="nf4")) == message
    load = functools.partial(load_network, base, HeadConfig(), seed=0, device="cpu", dtype=torch.float32)
    assert refusal(ModelError, lambda: load(quantization="nf4")) == message
