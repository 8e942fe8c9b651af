"""Adapters as factors of a base's layers, by hand; 8 and 4 bits there and back; adapters that are refused."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from wsdm_ray.errors import ModelError
from wsdm_ray.modeling.checkpoint_writer import write_checkpoint
from wsdm_ray.modeling.classifier import peft_warnings
from wsdm_ray.modeling.lora import read_adapter
from wsdm_ray.modeling.merging import Merged, read_base, split_name
from wsdm_ray.modeling.quantization import merge
from wsdm_ray.modeling.stored_weights import dequantized, quantized

PREFIX = "base_model.model.model."
WIDTH = 32


def write_adapter(folder: Path, tensors: dict[str, torch.Tensor], **options: Any) -> str:
    """A plain PEFT folder, written by hand."""
    folder.mkdir(exist_ok=True)
    settings = {
        "peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": "somebody/some-model",
        "r": 2, "lora_alpha": 4, "bias": "none", "fan_in_fan_out": False, "target_modules": ["q_proj"],
        "modules_to_save": ["classifier", "score"], "init_lora_weights": True, "lora_dropout": 0.05,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings | options))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return str(folder)


def factors(*layers: str, rank: int = 2, prefix: str = PREFIX) -> dict[str, torch.Tensor]:
    """Factors of square layers whose product is `rank` everywhere."""
    found = {}
    for layer in layers:
        found[f"{prefix}{layer}.lora_A.weight"] = torch.ones(rank, WIDTH)
        found[f"{prefix}{layer}.lora_B.weight"] = torch.ones(WIDTH, rank)
    return found


Q = ("layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj")


@pytest.fixture(scope="module")
def base(family_model: Callable[[str], Path]) -> Path:
    return family_model("llama")


def added(base: Path, adapter: str, layer: str) -> float:
    """What an adapter of `factors` adds to each number of a layer's weight."""
    before, after = (
        Merged(base=read_base(str(base)), adapters=adapters).parameter(f"{layer}.weight")
        for adapters in ((), (read_adapter(adapter, read_base(str(base)).config),))
    )
    difference = after - before
    assert torch.allclose(difference, difference[0, 0], rtol=0, atol=1e-5)
    return float(difference[0, 0])


# Scales by hand: alpha / r (or alpha / sqrt(r)) times the r of a product of ones


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({}, 4 / 2),
        ({"use_rslora": True}, 4 / math.sqrt(2)),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 10}}, 10 / 2),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 10}}, 4 / 2),
        ({"lora_alpha": 1, "r": 8, "rank_pattern": {"q_proj": 2}}, 1 / 2),
        ({"target_modules": r".*\.self_attn\.q_proj"}, 4 / 2),
        ({"modules_to_save": None, "task_type": "CAUSAL_LM", "inference_mode": True}, 4 / 2),
    ],
)
def test_the_scale(base, tmp_path, options, scale):
    adapter = write_adapter(tmp_path / "adapter", factors(*Q), **options)
    assert added(base, adapter, Q[0]) == pytest.approx(2 * scale, abs=1e-5)
    assert added(base, adapter, "layers.0.self_attn.o_proj") == 0


def test_some_layers_only(base, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", factors(Q[1]), layers_to_transform=[1])
    assert (added(base, adapter, Q[0]), added(base, adapter, Q[1])) == (0, pytest.approx(4, abs=1e-5))


def test_an_adapter_of_a_backbone_alone(base, tmp_path):
    tensors = factors(*Q, prefix="base_model.model.")
    adapter = write_adapter(tmp_path / "adapter", tensors, task_type="FEATURE_EXTRACTION")
    assert added(base, adapter, Q[1]) == pytest.approx(4, abs=1e-5)


def test_an_adapter_whose_head_has_factors(base, tmp_path):
    """All linear layers of a language model, its head among them, which goes."""
    head = {
        "base_model.model.lm_head.lora_A.weight": torch.ones(2, WIDTH),
        "base_model.model.lm_head.lora_B.weight": torch.ones(400, 2),
    }
    options = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "lm_head"]}
    adapter = write_adapter(tmp_path / "adapter", factors(*Q) | head, **options)
    assert read_adapter(adapter, read_base(str(base)).config).heads == tuple(sorted(head))
    assert added(base, adapter, Q[0]) == pytest.approx(4, abs=1e-5)


def test_adapters_add_up(base, tmp_path):
    adapters = [
        write_adapter(tmp_path / "first", factors(*Q)),
        write_adapter(tmp_path / "second", factors(*Q), lora_alpha=1),
    ]
    before, after = (merge(str(base), folders, "").parameter(f"{Q[0]}.weight") for folders in ([], adapters))
    torch.testing.assert_close(after - before, torch.full((WIDTH, WIDTH), 4.0 + 1.0), rtol=0, atol=1e-5)


# 8 and 4 bits


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
    size=st.floats(1e-3, 10),
)
def test_8_bits_there_and_back(rows, columns, seed, size):
    weight = size * torch.randn(rows, 16 * columns, generator=torch.Generator().manual_seed(seed))
    stored = quantized(weight, "bnb-int8", torch.float32)
    assert (stored["weight"].dtype, stored["SCB"].shape) == (torch.int8, (rows,))
    step = weight.abs().max(dim=1, keepdim=True).values / 127
    # half a step, and float16's half of the last of 11 bits
    assert ((dequantized(stored) - weight).abs() <= 0.505 * step + weight.abs() * 2**-11 + 1e-7).all()


@given(rows=st.integers(1, 5), columns=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_4_bits_there_and_back(rows, columns, seed):
    weight = torch.randn(rows, 64 * columns, generator=torch.Generator().manual_seed(seed))
    stored = quantized(weight, "nf4", torch.float32)
    assert (stored["weight"].dtype, stored["weight"].numel()) == (torch.uint8, weight.numel() // 2)
    found = dequantized(stored)
    assert (found.shape, found.dtype) == (weight.shape, torch.float32)
    largest = weight.reshape(-1, 64).abs().max(dim=1).values
    # The widest gap of nf4 is 0.304 of a block's largest weight; that is stored in 8 bits, less their mean.
    allowed = 0.304 / 2 * largest + 0.02 * largest.max()
    assert ((found - weight).reshape(-1, 64).abs() <= allowed[:, None]).all()


def test_values_of_8_bits():
    """bitsandbytes has the largest value of a row as 127, by rows of weights a scale is the step itself."""
    values = torch.tensor([[127, -127, 0], [127, -64, 1]], dtype=torch.int8)
    largest, exact = torch.tensor([0.5, 254.0]), torch.tensor([[0.5, -0.5, 0.0], [254.0, -128.0, 2.0]])
    torch.testing.assert_close(dequantized({"weight": values, "SCB": largest}), exact)  # float32
    step = largest[:, None] / 127
    float8 = values.float().to(torch.float8_e4m3fn)
    expected = float8.float() * step
    assert torch.equal(dequantized({"weight": float8, "weight_scale": step}), expected)


def test_an_unquantized_weight():
    weight = torch.tensor([[1.5, -2]], dtype=torch.bfloat16)
    assert torch.equal(dequantized({"weight": weight}), torch.tensor([[1.5, -2.0]]))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.q.weight", ("a.q.weight", "weight")),
        ("a.q.bias", ("a.q.bias", "weight")),
        ("a.q.SCB", ("a.q.weight", "SCB")),
        ("a.q.weight_format", ("a.q.weight", "weight_format")),
        ("a.q.weight.absmax", ("a.q.weight", "weight.absmax")),
        (
            "a.q.weight.quant_state.bitsandbytes__nf4",
            ("a.q.weight", "weight.quant_state.bitsandbytes__nf4"),
        ),
        ("norm.SCB", ("norm.SCB", "weight")),
        ("norm.weight.absmax", ("norm.weight.absmax", "weight")),
    ],
)
def test_which_parameter_a_tensor_belongs_to(name, expected):
    assert split_name(name, frozenset({"a.q"})) == expected


# Refusals


def refused(base: Path, adapter: str) -> str:
    with pytest.raises(ModelError) as caught:
        merge(str(base), [adapter], "")
    message = str(caught.value)
    assert "\n" not in message
    return message


REMEDY = "merge it with PEFT (merge_and_unload) and give the result as --base"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type IA3"),
        ({"peft_type": None}, "peft_type None"),
        ({"use_dora": True}, "use_dora true"),
        ({"bias": "lora_only"}, 'bias "lora_only"'),
        ({"lora_bias": True}, "lora_bias true"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out true"),
        ({"modules_to_save": ["score", "embed_tokens"]}, 'modules_to_save ["score", "embed_tokens"]'),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights "pissa"'),
        ({"layer_replication": [[0, 2]]}, "layer_replication [[0, 2]]"),
        ({"an_option_of_tomorrow": 3}, "an_option_of_tomorrow 3"),
    ],
)
def test_what_cannot_be_merged(base, tmp_path, options, words):
    adapter = write_adapter(tmp_path / "adapter", factors(*Q), **options)
    assert refused(base, adapter) == f"{adapter}: {words} cannot be merged here; {REMEDY}"


def test_every_option_that_peft_writes_is_known(base, tmp_path):
    """A folder that PEFT saves with its defaults is not refused for an option that is off."""
    network: Any = transformers.AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32)
    with peft_warnings():
        options = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])
        peft.get_peft_model(network, options).save_pretrained(tmp_path, save_embedding_layers=False)
    assert set(read_adapter(str(tmp_path), read_base(str(base)).config).scales) == set(Q)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin"])
def test_an_adapter_that_is_a_pickle(base, tmp_path, name):
    adapter = write_adapter(tmp_path / "adapter", factors(*Q))
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / name)
    assert refused(base, adapter) == (
        f"{adapter}: no adapter_model.safetensors; save the adapter as safetensors"
    )


def test_no_adapter(base, tmp_path):
    (tmp_path / "adapter").mkdir()
    assert refused(base, str(tmp_path / "adapter")) == (
        f"{tmp_path / 'adapter'}: no adapter_config.json; this is no adapter of `train` or PEFT"
    )


def test_factors_of_another_width(base, tmp_path):
    tensors = factors(*Q) | {f"{PREFIX}{Q[1]}.lora_B.weight": torch.ones(48, 2)}
    adapter = write_adapter(tmp_path / "adapter", tensors)
    assert refused(base, adapter) == (
        f"{adapter}/adapter_model.safetensors: {PREFIX}{Q[1]}.lora_B.weight has the shape [48, 2], "
        "but the base and adapter_config.json need [32, 2]; give the base that it was trained on"
    )


def test_factors_of_another_rank(base, tmp_path):
    message = refused(base, write_adapter(tmp_path / "adapter", factors(*Q), r=4))
    assert "q_proj.lora_A.weight has the shape [2, 32], but" in message
    assert "need [4, 32]" in message


def test_factors_that_are_not_there(base, tmp_path):
    tensors = factors(*Q)
    del tensors[f"{PREFIX}{Q[1]}.lora_A.weight"]
    adapter = write_adapter(tmp_path / "adapter", tensors)
    assert refused(base, adapter) == (
        f"{adapter}/adapter_model.safetensors: lacks {PREFIX}{Q[1]}.lora_A.weight and 0 other tensors; "
        "copy it anew"
    )


@pytest.mark.parametrize(
    "name", [f"{PREFIX}layers.2.self_attn.q_proj.lora_A.weight", f"{PREFIX}embed_tokens.weight"]
)
def test_a_tensor_that_has_no_place(base, tmp_path, name):
    adapter = write_adapter(tmp_path / "adapter", factors(*Q) | {name: torch.ones(2, 2)})
    assert refused(base, adapter) == (
        f"{adapter}/adapter_model.safetensors: has {name}, for which the base has no place; "
        "check adapter_config.json"
    )


def test_targets_that_the_base_lacks(base, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", factors(*Q), target_modules=["qkv_proj"])
    message = refused(base, adapter)
    assert message.startswith(f"{adapter}: its adapter does not fit the base (")
    assert "{'qkv_proj'} not found" in message


def test_embeddings_with_factors(base, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", factors(*Q), target_modules=["q_proj", "embed_tokens"])
    assert refused(base, adapter) == (f"{adapter}: changes embed_tokens, which is no linear layer; {REMEDY}")


def test_a_model_in_an_adapters_place(base, tmp_path):
    model = str(tmp_path / "bf16")
    Path(model).mkdir()
    write_checkpoint(merge(str(base), [], ""), "bf16", model)
    assert refused(base, model) == f"{model}: is a model (base), not an adapter; give it as --base"


def test_factors_stored_in_half_precision_are_multiplied_in_float32(base, tmp_path):
    random = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(tensor.shape, generator=random).bfloat16() for name, tensor in factors(*Q).items()
    }
    adapter = read_adapter(write_adapter(tmp_path / "adapter", tensors), read_base(str(base)).config)
    A, B = (tensors[f"{PREFIX}{Q[0]}.lora_{side}.weight"].float() for side in "AB")
    stored = load_file(base / "model.safetensors")[f"model.{Q[0]}.weight"]
    found = Merged(base=read_base(str(base)), adapters=(adapter,)).parameter(f"{Q[0]}.weight")
    assert torch.equal(found, stored + (B @ A) * 2.0)


# An adapter is added to the weights beside which it was trained


@pytest.mark.parametrize("precision", ["bnb-int8", "w8a8-fp8"])
def test_an_adapter_is_added_to_the_rounded_weights(base, tmp_path, precision):
    """Also where the base itself is not quantized; a later adapter rounds the sum again."""
    name, weights = f"{Q[0]}.weight", read_base(str(base))
    adapter = read_adapter(write_adapter(tmp_path / "adapter", factors(*Q)), weights.config)
    beside = dataclasses.replace(adapter, quantization=precision)
    exact = weights.parameter(name)

    def rounded(weight: torch.Tensor) -> torch.Tensor:
        return dequantized(quantized(weight, precision, torch.float32))

    assert not torch.equal(rounded(exact), exact)
    once = Merged(base=weights, adapters=(beside,)).parameter(name)
    assert torch.equal(once, rounded(exact) + adapter.update(Q[0]))
    twice = Merged(base=weights, adapters=(beside, beside)).parameter(name)
    assert torch.equal(twice, rounded(once) + adapter.update(Q[0]))
    assert torch.equal(
        Merged(base=weights, adapters=(adapter,)).parameter(name), exact + adapter.update(Q[0])
    )


def test_an_adapter_beside_a_stored_quantized_base_is_added_to_what_is_stored(base, tmp_path):
    (tmp_path / "int8").mkdir()
    write_checkpoint(merge(str(base), [], ""), "bnb-int8", str(tmp_path / "int8"))
    weights = read_base(str(tmp_path / "int8"))
    adapter = read_adapter(write_adapter(tmp_path / "adapter", factors(*Q)), weights.config)
    beside = dataclasses.replace(adapter, quantization="bnb-int8")
    name = f"{Q[0]}.weight"
    stored = load_file(tmp_path / "int8" / "model.safetensors")
    values, largest = stored[name], stored[f"{Q[0]}.SCB"]
    found = Merged(base=weights, adapters=(beside,)).parameter(name)
    # float32; values / 127 are rounded in another order
    expected = values.float() * largest[:, None] / 127 + adapter.update(Q[0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
