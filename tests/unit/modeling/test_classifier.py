"""The classifier: every layout gives what the stock model gives for one sequence; head, adapter, refusals."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from wsdm_ray.config import HeadConfig, LoraConfig, QuantizeConfig
from wsdm_ray.errors import ConfigError, ModelError
from wsdm_ray.modeling.classifier import (
    add_lora,
    compile_layers,
    load_network,
    ordering_logits,
    preference_log_odds,
    trainable_parameters,
    unwrap_peft,
)
from wsdm_ray.modeling.families import FAMILIES
from wsdm_ray.modeling.head import make_head
from wsdm_ray.modeling.precision import device_and_dtype
from wsdm_ray.modeling.quantization import quantize
from wsdm_ray.packing.layouts import lay_out
from wsdm_ray.packing.plan import pair_tokens
from wsdm_ray.packing.ragged import Ragged

LAYOUTS = ("padded", "packed", "shared")
WINDOW = 16
TOLERANCE = 1e-5
"""float32: sums over keys are taken in another order where a row holds other tokens as well."""


@pytest.fixture(scope="module")
def network_of(family_model: Callable[[str], Path]) -> Callable[[str], Any]:
    @functools.cache
    def load(family: str) -> Any:
        network = load_network(
            str(family_model(family)),
            HeadConfig(),
            seed=0,
            device="cpu",
            dtype=torch.float32,
            quantization="none",
        )
        return sharpened(network)

    return load


def sharpened(network: Any) -> Any:
    """With larger projections, so that attention is uneven and a token that must not be seen is felt."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")):
                parameter.mul_(10)
    return network


def random_pairs(sizes: list[tuple[int, int]], seed: int) -> tuple[Ragged, list[Ragged]]:
    """Prefixes and both orderings' suffixes of these lengths, of ids that are not special."""
    random = np.random.default_rng(seed)
    prefix, ab, ba = (
        Ragged.from_lists([random.integers(4, 400, size[column], np.int32) for size in sizes])
        for column in (0, 1, 1)
    )
    return prefix, [ab, ba]


@torch.no_grad()
def one_at_a_time(network: Any, prefix: Ragged, suffixes: list[Ragged]) -> torch.Tensor:
    """Logits of each ordering by the stock forward on one sequence: float32 [pairs * orderings, 2]."""
    logits = []
    for pair in range(len(prefix)):
        for suffix in suffixes:
            ids = torch.from_numpy(np.concatenate([prefix[pair], suffix[pair]]).astype(np.int64))
            logits.append(network(input_ids=ids[None], use_cache=False).logits[0])
    return torch.stack(logits)


@torch.no_grad()
def assert_layouts_agree(network: Any, sizes: list[tuple[int, int]], seed: int) -> None:
    prefix, suffixes = random_pairs(sizes, seed)
    expected = one_at_a_time(network, prefix, suffixes)
    for kind in LAYOUTS:
        found = ordering_logits(network, lay_out(kind, prefix, suffixes, np.arange(len(sizes))))
        torch.testing.assert_close(
            found, expected, rtol=0, atol=TOLERANCE, msg=lambda text, kind=kind: f"{kind}: {text}"
        )


@pytest.mark.parametrize("family", FAMILIES)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_lengths(network_of, family, sizes, seed):
    assert_layouts_agree(network_of(family), sizes, seed)


@pytest.mark.parametrize("family", FAMILIES)
def test_lengths_that_matter(network_of, family):
    network = network_of(family)
    for sizes in (
        [
            (3 * WINDOW, 4 * WINDOW),
            (2, 5 * WINDOW),
            (5 * WINDOW, 1),
        ],  # beyond the sliding window on either side
        [(0, 20), (1, 1), (0, 1), (30, 3)],  # no prompt
        [(WINDOW, WINDOW), (WINDOW - 1, 1), (WINDOW, 1), (1, WINDOW)],  # at the window's edge
        [(200, 700)],  # one pair alone, as where it fills the budget
    ):
        assert_layouts_agree(network, sizes, seed=1)


def test_a_pair_that_fills_the_budget(network_of):
    network = network_of("gemma2")
    budget = 256
    prefix, suffixes = random_pairs([(56, 100)], 3)
    assert pair_tokens("shared", prefix.lengths, suffixes[0].lengths, 2).tolist() == [budget]
    layout = lay_out("shared", prefix, suffixes, np.array([0]), row_tokens=budget)
    assert layout.num_tokens == layout.tokens_BT.size == budget
    with torch.no_grad():
        found = ordering_logits(network, layout)
    torch.testing.assert_close(found, one_at_a_time(network, prefix, suffixes), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_to_a_fixed_width_changes_nothing(network_of, family):
    network = network_of(family)
    prefix, suffixes = random_pairs([(20, 10), (3, 30)], 4)
    expected = one_at_a_time(network, prefix, suffixes)
    for kind in LAYOUTS:
        layout = lay_out(kind, prefix, suffixes, np.arange(2), row_tokens=150)
        with torch.no_grad():
            torch.testing.assert_close(ordering_logits(network, layout), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_these_models_feel_a_wrong_mask(network_of, family):
    """Without which the tests above would say little."""
    network = network_of(family)
    prefix, suffixes = random_pairs([(20, 10), (3, 30)], 4)
    expected = one_at_a_time(network, prefix, suffixes)
    layout = lay_out("shared", prefix, suffixes, np.arange(2))
    for name, wrong in (
        ("branches_BT", np.zeros_like(layout.branches_BT)),
        ("groups_BT", np.zeros_like(layout.groups_BT)),
        ("positions_BT", np.arange(layout.tokens_BT.size)[None]),
    ):
        with torch.no_grad():
            found = ordering_logits(network, type(layout)(**{**vars(layout), name: wrong}))
        assert (found - expected).abs().max() > 100 * TOLERANCE, name


@pytest.mark.parametrize("window", ["gemma2", "gemma3_text"])
def test_the_window_is_narrower_than_these_sequences(network_of, window):
    network = network_of(window)
    prefix, suffixes = random_pairs([(40, 20)], 5)
    expected = one_at_a_time(network, prefix, suffixes)
    old = network.config.sliding_window
    assert old == WINDOW
    network.config.sliding_window = 1_000
    try:
        with torch.no_grad():
            found = ordering_logits(network, lay_out("shared", prefix, suffixes, np.array([0])))
    finally:
        network.config.sliding_window = old
    assert (found - expected).abs().max() > 100 * TOLERANCE


def test_a_qwen2_whose_upper_layers_have_a_window(family_model, tmp_path):
    folder = shutil.copytree(family_model("qwen2"), tmp_path / "model")
    values = json.loads((folder / "config.json").read_text())
    values |= {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
    values["layer_types"] = ["full_attention", "sliding_attention"]
    (folder / "config.json").write_text(json.dumps(values))
    network = load_network(
        str(folder), HeadConfig(), seed=0, device="cpu", dtype=torch.float32, quantization="none"
    )
    assert_layouts_agree(sharpened(network), [(40, 30), (3, 50), (0, 1)], seed=2)


# Head


def test_the_heads():
    mlp = make_head(HeadConfig(dropout=0.3), 8, seed=1)
    assert [type(layer) for layer in mlp] == [nn.Dropout, nn.Linear, nn.Dropout, nn.GELU, nn.Linear]
    assert mlp[0].p == mlp[2].p == 0.3
    assert {name: tuple(tensor.shape) for name, tensor in mlp.state_dict().items()} == {
        "1.weight": (4, 8), "1.bias": (4,), "4.weight": (2, 4), "4.bias": (2,),
    }  # fmt: skip
    linear = make_head(HeadConfig(kind="linear"), 8, seed=1)
    assert {name: tuple(tensor.shape) for name, tensor in linear.state_dict().items()} == {"weight": (2, 8)}
    assert {tensor.dtype for tensor in mlp.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_a_head_is_a_function_of_its_seed(kind):
    torch.manual_seed(5)
    first = make_head(HeadConfig(kind=kind), 8, seed=1).state_dict()
    state = torch.get_rng_state()
    second, other = (make_head(HeadConfig(kind=kind), 8, seed=seed).state_dict() for seed in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(next(iter(first.values())), next(iter(other.values())))
    assert torch.equal(state, torch.get_rng_state()), "others' random numbers are left alone"


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_only_the_last_token_reaches_the_head(family_model, kind):
    network: Any = load_network(
        str(family_model("llama")), HeadConfig(kind=kind), seed=0, device="cpu", dtype=torch.float32,
        quantization="none",
    )  # fmt: skip
    shapes = []
    network.score.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    prefix, suffixes = random_pairs([(5, 4), (2, 9)], 0)
    with torch.no_grad():
        logits = ordering_logits(network, lay_out("shared", prefix, suffixes, np.arange(2)))
    assert shapes == [(4, 32)]
    assert logits.shape == (4, 2)
    assert logits.dtype == torch.float32


def test_first_wins():
    assert preference_log_odds(torch.tensor([[2.0, 0.5], [0.0, 1.0]])).tolist() == [1.5, -1.0]


# Adapter


@pytest.mark.parametrize("quantization", ["none", "bnb-int8", "nf4"])
def test_an_adapter_on_exactly_the_named_layers(family_model, quantization):
    import peft

    network = load_network(
        str(family_model("gemma2", 64)),
        HeadConfig(),
        seed=0,
        device="cpu",
        dtype=torch.float32,
        quantization=quantization,
    )
    wrapped = add_lora(network, LoraConfig(r=2, targets=("q_proj", "down_proj")), seed=0)
    adapted = {
        name.removeprefix("base_model.model.model.")
        for name, module in wrapped.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    assert adapted == {
        f"layers.{layer}.{name}" for layer in range(2) for name in ("self_attn.q_proj", "mlp.down_proj")
    }
    names = trainable_parameters(wrapped)
    assert len([name for name in names if "lora_A" in name]) == len(adapted)
    assert len([name for name in names if "lora_B" in name]) == len(adapted)
    head = [name for name in names if "lora_" not in name]
    assert sorted(name.split("modules_to_save.default.")[1] for name in head) == [
        "1.bias", "1.weight", "4.bias", "4.weight",
    ]  # fmt: skip
    assert {parameter.dtype for parameter in names.values()} == {torch.float32}

    prefix, suffixes = random_pairs([(5, 4)], 0)
    wrapped.train()
    ordering_logits(wrapped, lay_out("padded", prefix, suffixes, np.array([0]))).sum().backward()
    for name, parameter in names.items():
        assert parameter.grad is not None, name
        # B starts as zeros, so that at first nothing flows back to A.
        assert ("lora_A" in name) == (not parameter.grad.any()), name


def test_what_is_not_quantized_is_of_the_type_asked_for(family_model, tmp_path):
    base, quantized = tmp_path / "bf16", str(tmp_path / "bnb-int8")
    shutil.copytree(family_model("gemma2"), base)
    network = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    network.save_pretrained(base)
    quantize(QuantizeConfig(base=str(base), output=quantized))
    network = load_network(
        quantized, HeadConfig(), seed=0, device="cpu", dtype=torch.float32, quantization="bnb-int8"
    )
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32, torch.int8}
    prefix, suffixes = random_pairs([(5, 4), (2, 9)], 0)
    with torch.no_grad():
        packed, padded = (
            ordering_logits(network, lay_out(layout, prefix, suffixes, np.arange(2)))
            for layout in ("packed", "padded")
        )
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-5)


def test_a_new_adapter_changes_nothing(family_model):
    def load():
        return load_network(
            str(family_model("qwen3")),
            HeadConfig(),
            seed=0,
            device="cpu",
            dtype=torch.float32,
            quantization="none",
        )

    prefix, suffixes = random_pairs([(5, 4)], 0)
    layout = lay_out("shared", prefix, suffixes, np.array([0]))
    with torch.no_grad():
        plain = ordering_logits(load(), layout)
        wrapped = add_lora(load(), LoraConfig(), seed=0).eval()
        assert torch.equal(ordering_logits(wrapped, layout), plain)
    assert type(unwrap_peft(wrapped)).__name__ == "Qwen3ForSequenceClassification"


def test_an_adapter_is_a_function_of_its_seed(family_model):
    def parameters(seed: int):
        network = load_network(
            str(family_model("llama")),
            HeadConfig(),
            seed=0,
            device="cpu",
            dtype=torch.float32,
            quantization="none",
        )
        return trainable_parameters(add_lora(network, LoraConfig(r=2), seed))

    torch.manual_seed(0)
    first = parameters(1)
    torch.manual_seed(9)
    second, other = parameters(1), parameters(2)
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("targets", [("q_proj", "qkv_proj"), ("score",), ("all-linear",)])
def test_a_target_that_no_layer_has(family_model, targets):
    network = load_network(
        str(family_model("llama")),
        HeadConfig(),
        seed=0,
        device="cpu",
        dtype=torch.float32,
        quantization="none",
    )
    with pytest.raises(ConfigError) as caught:
        add_lora(network, LoraConfig(targets=targets), seed=0)
    assert str(caught.value) == (
        f"--lora.targets {targets[-1]}: no such layer; there are "
        "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    )


# Precision and refusals


def test_precision_of_activations():
    assert device_and_dtype("auto", "cpu") == ("cpu", torch.float32)
    assert device_and_dtype("fp32", "cpu") == ("cpu", torch.float32)
    assert device_and_dtype("bf16", "cpu") == ("cpu", torch.bfloat16)


def test_a_gpu_without_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert device_and_dtype("auto", "cuda") == ("cuda", torch.float32)
    with pytest.raises(ConfigError, match="--precision bf16: Tesla T4 has no bfloat16; use --precision fp32"):
        device_and_dtype("bf16", "cuda")


def test_bfloat16_is_close(family_model):
    """8 bits of mantissa: a relative rounding of 0.4 % an operation, on logits of about 0.1."""
    layout_of = functools.partial(lay_out, "shared", *random_pairs([(20, 30)], 0), np.array([0]))
    with torch.no_grad():
        exact, rough = (
            ordering_logits(
                load_network(
                    str(family_model("gemma2")),
                    HeadConfig(),
                    seed=0,
                    device="cpu",
                    dtype=dtype,
                    quantization="none",
                ),
                layout_of(),
            )
            for dtype in (torch.float32, torch.bfloat16)
        )
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "no usable config.json"),
        (b"\xff\xfe", "no usable config.json"),
        (b"[]", "no usable config.json"),
        (b"{}", "no usable config.json"),
        (b'{"model_type": "no_such_model"}', "no usable config.json"),
        (b'{"model_type": "bert"}', "model type bert is not one of gemma2, gemma3_text, llama, qwen2, qwen3"),
    ],
)
def test_a_config_that_is_of_no_use(family_model, tmp_path, content, message):
    folder = shutil.copytree(family_model("llama"), tmp_path / "model")
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_network(
            str(folder), HeadConfig(), seed=0, device="cpu", dtype=torch.float32, quantization="none"
        )
    assert str(caught.value).startswith(f"{folder}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", ["google/gemma-2-9b-it", "no_such_folder"])
def test_a_hub_id(folder):
    with pytest.raises(ModelError, match=f"{folder}: no usable config.json"):
        load_network(folder, HeadConfig(), seed=0, device="cpu", dtype=torch.float32, quantization="none")


def test_weights_that_are_not_safetensors(family_model, tmp_path):
    folder = shutil.copytree(family_model("llama"), tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_network(
            str(folder), HeadConfig(), seed=0, device="cpu", dtype=torch.float32, quantization="none"
        )


def test_weights_that_are_cut_off(family_model, tmp_path):
    folder = shutil.copytree(family_model("llama"), tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1_000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_network(
            str(folder), HeadConfig(), seed=0, device="cpu", dtype=torch.float32, quantization="none"
        )


def test_weights_that_are_not_all_there(family_model, tmp_path):
    """transformers fills what is missing with random numbers and only says so."""
    folder = shutil.copytree(family_model("llama"), tmp_path / "model")
    path = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if ".layers.1.mlp." not in name}
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(ModelError) as caught:
        load_network(
            str(folder), HeadConfig(), seed=0, device="cpu", dtype=torch.float32, quantization="none"
        )
    assert str(caught.value) == (
        f"{folder}: its weights lack model.layers.1.mlp.down_proj.weight and 2 other tensors, "
        "or have them in another shape; fetch or save the model anew"
    )


def test_a_head_of_another_number_of_labels_gives_way(family_model, tmp_path):
    plain = family_model("llama")
    reward = transformers.AutoModelForSequenceClassification.from_pretrained(plain, num_labels=1)
    reward.save_pretrained(tmp_path)
    options: dict[str, Any] = {"seed": 0, "device": "cpu", "dtype": torch.float32, "quantization": "none"}
    found, expected = (load_network(str(each), HeadConfig(), **options) for each in (tmp_path, plain))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_one_compilation_serves_all_layers_and_passes_of_training(family_model, family):
    from torch._dynamo.testing import CompileCounter

    network = load_network(
        str(family_model(family)), HeadConfig(dropout=0.0), seed=0, device="cpu", dtype=torch.float32,
        quantization="none",
    )  # fmt: skip
    network = add_lora(network, LoraConfig(r=4, alpha=8, dropout=0.0), 0).train()
    layouts = [
        lay_out("padded", *random_pairs(sizes, 3), np.arange(len(sizes)))
        for sizes in ([(5, 9), (3, 20)], [(1, 4), (7, 30), (2, 2)], [(4, 4), (4, 5)])
    ]

    def gradients() -> list[torch.Tensor]:
        for parameter in trainable_parameters(network).values():
            parameter.grad = None
        for layout in layouts:
            preference_log_odds(ordering_logits(network, layout)).square().sum().backward()
        return [parameter.grad for parameter in trainable_parameters(network).values()]

    expected = gradients()
    counter = CompileCounter()
    compile_layers(network, counter)
    ordering_logits(network, layouts[0])
    compiled = counter.frame_count
    assert compiled > 0
    found = gradients()
    assert counter.frame_count == compiled
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, expected, strict=True))
    with torch.no_grad():
        ordering_logits(network.eval(), layouts[0])
    assert counter.frame_count == compiled
