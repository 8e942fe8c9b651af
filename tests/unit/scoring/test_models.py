"""Models of one process: adapters beside one base say what each says alone; memory is asked for first."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from wsdm_ray.config import HeadConfig, LoraConfig, TextConfig
from wsdm_ray.errors import ClusterError, ModelError
from wsdm_ray.modeling.attention import BLOCK
from wsdm_ray.modeling.checkpoint import save_classifier
from wsdm_ray.modeling.classifier import add_lora, load_network, ordering_logits, trainable_parameters
from wsdm_ray.modeling.loading import load_classifier, load_fused_classifier
from wsdm_ray.modeling.manifest import Manifest, folder_digest
from wsdm_ray.modeling.scorers import FusedClassifier
from wsdm_ray.packing.layouts import lay_out
from wsdm_ray.scoring import models
from wsdm_ray.scoring.models import (
    BatchMemory,
    Models,
    ModelSpec,
    budget_within,
    streamed_bytes,
    weight_bytes,
)
from wsdm_ray.text.encoding import PairEncoder

TEXT = TextConfig(max_tokens=64)
HEADS = {"first": HeadConfig(), "second": HeadConfig(), "linear": HeadConfig(kind="linear")}
RANKS = {"first": 4, "second": 2, "linear": 4}


@pytest.fixture(scope="module")
def specs(
    family_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, ModelSpec]:
    """Adapters of two ranks, and one with another head, trained beside the same base in 8 bit."""
    base = str(family_model("gemma2"))
    found = {}
    for seed, (name, head) in enumerate(HEADS.items()):
        network = load_network(
            base, head, seed=seed, device="cpu", dtype=torch.float32, quantization="bnb-int8"
        )
        network = add_lora(network, LoraConfig(r=RANKS[name], alpha=8), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in trainable_parameters(network).values():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        folder = str(tmp_path_factory.mktemp("adapters") / name)
        digest = folder_digest(base)
        manifest = Manifest(
            kind="adapter", base=base, base_digest=digest, quantization="bnb-int8", head=head, text=TEXT
        )
        save_classifier(network, base, folder, manifest)
        found[name] = ModelSpec(folder, None, manifest, "bnb-int8")
    return found


def logits_of(network: torch.nn.Module, spec: ModelSpec) -> torch.Tensor:
    """Of both orderings of three pairs: float32 [6, 2]."""
    texts = ["What is the sum?", "天气", ""], ["42, of course.", "sorry", "a b c"], ["Nein.", "дела", "x"]
    pairs = PairEncoder(spec.folder, TEXT).encode(*texts)
    with torch.inference_mode():
        return ordering_logits(
            network, lay_out("padded", pairs.prefix, [pairs.suffix_ab, pairs.suffix_ba], np.arange(3))
        )


def test_adapters_beside_one_base_say_what_each_says_alone(specs):
    several = [specs[name] for name in ("first", "second", "linear", "first")]
    held = Models(several)
    networks = [network for network, _ in held.held]
    assert networks[0] is networks[1] is networks[3]
    assert networks[2] is not networks[0], "its head has another shape"
    alone = [logits_of(load_classifier(spec.folder, precision="bnb-int8")[0], spec) for spec in several]
    assert (alone[0] - alone[1]).abs().max() > 0.1
    for number in (0, 1, 0, 3, 2, 1):
        found = logits_of(held.select(number), several[number])
        torch.testing.assert_close(found, alone[number], rtol=0, atol=0)


def test_merged_models_stand_each_for_itself(specs):
    held = Models([ModelSpec(specs[name].folder, None, specs[name].manifest, "fp32") for name in HEADS])
    assert len({id(network) for network, _ in held.held}) == 3
    assert {name for _, name in held.held} == {None}


def test_an_adapter_that_does_not_fit_beside_another(specs, tmp_path):
    folder = Path(specs["second"].folder)
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "adapter_model.safetensors").unlink()
    save_file({"base_model.model.score.1.weight": torch.zeros(3, 3)}, tmp_path / "adapter_model.safetensors")
    broken = ModelSpec(str(tmp_path), None, specs["second"].manifest, "bnb-int8")
    with pytest.raises(ModelError, match=r"its head .* does not fit this base"):
        Models([specs["first"], broken])


def test_bytes_of_weights(tmp_path):
    tensors = {
        "model.embed_tokens.weight": torch.zeros(10, 4, dtype=torch.bfloat16),
        "model.norm.weight": torch.zeros(4, dtype=torch.bfloat16),
        "model.layers.0.q_proj.weight": torch.zeros(6, 4, dtype=torch.bfloat16),
    }
    save_file(tensors, tmp_path / "plain")
    save_file(
        tensors | {"model.layers.0.q_proj.weight": torch.zeros(6, 4, dtype=torch.int8)}, tmp_path / "int8"
    )
    save_file(
        tensors | {"model.layers.0.q_proj.weight": torch.zeros(12, 1, dtype=torch.uint8)}, tmp_path / "nf4"
    )
    found = {
        (name, precision): weight_bytes([str(tmp_path / name)], precision)
        for name, precision in (
            *(("plain", precision) for precision in ("fp32", "bf16", "bnb-int8", "nf4")),
            *(("int8", precision) for precision in ("bf16", "bnb-int8")),
            *(("nf4", precision) for precision in ("bf16", "nf4")),
        )
    }
    # 40 of the embedding, 4 of the norm, 24 of the layer; merging is done in float32.
    assert found == {
        ("plain", "fp32"): 4 * 68, ("plain", "bf16"): 4 * 68, ("plain", "bnb-int8"): 2 * 44 + 24,
        ("plain", "nf4"): 2 * 44 + 12, ("int8", "bf16"): 4 * 68, ("int8", "bnb-int8"): 2 * 44 + 24,
        ("nf4", "bf16"): 4 * 68, ("nf4", "nf4"): 2 * 44 + 12,
    }  # fmt: skip


def test_bytes_of_weights_that_stream_into_a_stack(tmp_path):
    tensors = {
        "model.embed_tokens.weight": torch.zeros(10, 4, dtype=torch.bfloat16),
        "model.norm.weight": torch.zeros(4, dtype=torch.bfloat16),
        "model.layers.0.q_proj.weight": torch.zeros(6, 4, dtype=torch.bfloat16),
        "model.layers.0.k_proj.weight": torch.zeros(2, 4, dtype=torch.bfloat16),
    }
    save_file(tensors, tmp_path / "plain")
    found = {
        name: streamed_bytes([f"{tmp_path}/plain"], name)
        for name in ("fp32", "bf16", "w8a8-int8", "w8a8-fp8")
    }
    # 40 of the embedding, 4 of the norm, 24 + 8 in 8 rows; 24 in float32, three times.
    assert found == {
        "fp32": 4 * 76 + 32 + 288, "bf16": 2 * 72 + 16 + 32 + 288, "w8a8-int8": 80 + 16 + 32 + 32 + 288,
        "w8a8-fp8": 80 + 16 + 32 + 32 + 288,
    }  # fmt: skip
    save_file(tensors | {"lm_head.weight": torch.zeros(1_000, 4)}, tmp_path / "headed")
    assert streamed_bytes([f"{tmp_path}/headed"], "w8a8-fp8") == found["w8a8-fp8"]
    save_file(tensors | {"model.embed_tokens.weight": torch.zeros(1_000, 4)}, tmp_path / "wide")
    assert streamed_bytes([f"{tmp_path}/wide"], "w8a8-fp8") == 2 * 4 * 4_000


def test_a_model_that_does_not_fit_the_gpu_is_refused_before_it_is_loaded(specs, monkeypatch):
    pair = [specs["first"], specs["linear"]]
    loaded = []
    real = models.load_scorer

    def load(folder, **options):
        loaded.append(folder)
        return real(folder, **options)

    monkeypatch.setattr(models, "load_scorer", load)
    monkeypatch.setattr(models, "free_bytes", lambda: 10e9 if not loaded else 1_000.0)
    with pytest.raises(ClusterError) as caught:
        Models(pair)
    assert loaded == [pair[0].folder]
    assert str(caught.value) == (
        f"{pair[1].folder}: model 2 of 2 needs 0.0 GB of GPU memory as bnb-int8, and 0.0 GB are free; give "
        "fewer models, a --precision that takes less, or score each by itself and use jobs.ensemble"
    )
    monkeypatch.setattr(models, "free_bytes", lambda: 1_000.0)
    with pytest.raises(ClusterError, match=r"model 1 of 1 .*; choose a --precision .*, or a larger GPU$"):
        Models(pair[:1])


def test_memory_that_runs_out_while_a_model_is_loaded(specs, monkeypatch):
    def load(error):
        def fail(folder, **options):
            try:
                raise error
            except RuntimeError as inner:
                raise ModelError(f"{folder}: cannot be loaded") from inner

        monkeypatch.setattr(models, "load_scorer", fail)
        return Models([specs["first"]])

    for error in (torch.OutOfMemoryError("CUDA out of memory."), MemoryError()):
        with pytest.raises(ClusterError, match=r"first: memory ran out while it was loaded; choose a --prec"):
            load(error)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(RuntimeError("a tensor is missing"))


def test_an_adapter_beside_a_base_needs_no_second_base(specs, monkeypatch):
    whole = weight_bytes([f"{specs['first'].manifest.base}/model.safetensors"], "bnb-int8")
    monkeypatch.setattr(models, "free_bytes", lambda: float(whole - 1))
    models.check_memory([specs["first"], specs["second"]], 1, "cpu", whole=False)
    with pytest.raises(ClusterError):
        models.check_memory([specs["first"], specs["second"]], 1, "cpu", whole=True)


def test_what_a_pass_takes(specs):
    held = Models([specs["first"]])
    # Width 32, two heads of 16, 64 within the MLP, float32; eager attention, layers of two kinds.
    expected = BatchMemory(token=4 * 4 * (32 + 32 + 64) + 8 * 32, key=2 * 4 + 6 + 2 * (2 * 4 + 4))
    assert BatchMemory.of(held.select(0), "packed") == expected


@pytest.mark.parametrize(("precision", "sums"), [("fp32", 0), ("w8a8-fp8", 0), ("w8a8-int8", 4)])
def test_what_a_pass_of_a_stack_takes(specs, precision, sums):
    spec = specs["first"]
    network, _ = load_fused_classifier(spec.folder, precision=precision)
    # Width 32, two heads of 16 and one key head, 64 within the MLP, float32: the MLP is the widest.
    copies = 64 if precision != "fp32" else 0
    assert BatchMemory.of(network, "shared") == BatchMemory(
        token=(2 * 4 + 4) * 32 + 4 * (32 + 128 + 64) + copies + sums * 128, key=0
    )


def test_kernels_write_out_less(specs):
    network, _ = load_fused_classifier(specs["first"].folder, precision="w8a8-int8")
    first = network.stack.layers[0]
    first.qkv.fused = first.gate_up.fused = True
    # Neither sums in int32 nor gate and up: attention, whose product has 64 rows, is the widest.
    assert BatchMemory.of(network, "shared").token == (2 * 4 + 4) * 32 + 4 * (32 + 2 * 64 + 32) + 32


def test_stacks_are_compiled_when_they_are_loaded_if_at_all(specs, monkeypatch):
    spec = specs["first"]
    held = Models([ModelSpec(spec.folder, None, spec.manifest, "w8a8-int8")])
    network = held.select(0)
    assert isinstance(network, FusedClassifier)
    passes: list[int] = []
    monkeypatch.setattr(network, "warm_up", passes.append)
    assert held.warm_up(1_000) == 0.0
    assert not passes
    network.static_shapes = True
    assert held.warm_up(1_000) > 0
    assert passes == [1_024]

    def fail(tokens):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(network, "warm_up", fail)
    assert held.warm_up(1_000) > 0

    def break_down(tokens):
        raise RuntimeError("No valid triton configs.\nmore")

    monkeypatch.setattr(network, "warm_up", break_down)
    with pytest.raises(
        ModelError, match=r"a first pass of 1000 tokens fails \(RuntimeError: No valid .*--precision bnb"
    ):
        held.warm_up(1_000)


def test_the_budget_of_free_memory_by_hand():
    memory = BatchMemory(token=1_000, key=10)
    # A token of a padded row of up to 100: 2,000 bytes. 80 % of 20 MB hold 8,000 of them.
    assert budget_within(20e6, memory, "padded", 100) == 4_224
    # Packed, 1,024 tokens take 1,024 * (1,000 + 10,240) = 11.5 MB; 2,048 take 44 MB.
    assert budget_within(20e6, memory, "packed", 100) == 1_024
    assert budget_within(1e12, memory, "padded", 100) == 16_896
    assert budget_within(0, memory, "padded", 100) == 200
    assert budget_within(math.inf, memory, "padded", 100) == 2_048
    assert budget_within(math.inf, memory, "padded", 2_048) == 4_096


@given(
    st.floats(0, 1e12),
    st.builds(BatchMemory, st.integers(1, 10**6), st.integers(1, 10**3)),
    st.sampled_from(["padded", "packed", "shared"]),
    st.integers(32, 8_192),
)
def test_the_budget_holds_the_longest_pair_and_grows_with_memory(free, memory, layout, max_tokens):
    budget = budget_within(free, memory, layout, max_tokens)
    assert 2 * max_tokens <= budget <= max(65_536, 2 * max_tokens)
    assert budget == 2 * max_tokens or budget % BLOCK == 0
    assert budget <= budget_within(2 * free, memory, layout, max_tokens)
    if budget > 2 * max_tokens:
        keys = max_tokens if layout == "padded" else budget
        assert budget * (memory.token + memory.key * keys) <= free


def test_auto_on_a_cpu(specs):
    assert Models([specs["first"]]).token_budget("padded") == 2_048
