"""Quantizing: bases and adapters of every kind, what a checkpoint keeps of them, refusals."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from bitsandbytes import functional
from safetensors.torch import load_file, save_file

from tests.unit.modeling import plain_loading
from tests.unit.modeling.checkpoints import refusal
from tests.unit.modeling.quantized_folders import (
    EARLIER,
    LATER,
    TEXT,
    assert_same_bytes,
    made,
    our_adapter,
    peft_adapter,
    sequence_classifier,
    weights,
    written,
)
from wsdm_ray.config import HeadConfig
from wsdm_ray.errors import ModelError, RunMismatchError
from wsdm_ray.modeling.classifier import (
    load_network,
    ordering_logits,
)
from wsdm_ray.modeling.families import FAMILIES
from wsdm_ray.modeling.loading import load_classifier
from wsdm_ray.modeling.manifest import folder_digest, read_manifest
from wsdm_ray.modeling.quantization import left_out, merge
from wsdm_ray.packing.layouts import lay_out
from wsdm_ray.text.encoding import PairEncoder

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
    assert left_out(merge(str(base), [], "")) == [(str(base), ("score.weight",))]


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
