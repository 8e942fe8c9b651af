"""Models of one process: adapters that share a base give what each gives alone; memory is checked first."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.unit.scoring.fakes import FakeScorer
from wsdm_ray.config import HeadConfig, LoraConfig, TextConfig
from wsdm_ray.errors import ClusterError, ModelError
from wsdm_ray.modeling.attention import BLOCK
from wsdm_ray.modeling.checkpoint import save_classifier
from wsdm_ray.modeling.classifier import add_lora, load_network, trainable_parameters
from wsdm_ray.modeling.loading import load_fused_classifier, load_scorer
from wsdm_ray.modeling.manifest import Manifest, folder_digest
from wsdm_ray.modeling.scorers import BatchMemory, Scorer
from wsdm_ray.modeling.weight_bytes import streamed_bytes, weight_bytes
from wsdm_ray.packing.layouts import lay_out
from wsdm_ray.scoring import models
from wsdm_ray.scoring.model_spec import ModelSpec
from wsdm_ray.scoring.models import Models, budget_within
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


def logits_of(scorer: Scorer, spec: ModelSpec) -> torch.Tensor:
    """Of both orderings of three pairs: float32 [6, 2]."""
    texts = ["What is the sum?", "天气", ""], ["42, of course.", "sorry", "a b c"], ["Nein.", "дела", "x"]
    pairs = PairEncoder(spec.folder, TEXT).encode(*texts)
    with torch.inference_mode():
        return scorer(lay_out("padded", pairs.prefix, [pairs.suffix_ab, pairs.suffix_ba], np.arange(3)))


def test_adapters_beside_one_base_say_what_each_says_alone(specs):
    several = [specs[name] for name in ("first", "second", "linear", "first")]
    scorers = Models(several).scorers
    networks = [scorer.network for scorer in scorers]
    assert networks[0] is networks[1] is networks[3]
    assert networks[2] is not networks[0], "its head has another shape"
    alone = [logits_of(load_scorer(spec.folder, precision="bnb-int8")[0], spec) for spec in several]
    assert (alone[0] - alone[1]).abs().max() > 0.1
    for number in (0, 1, 0, 3, 2, 1):
        found = logits_of(scorers[number], several[number])
        torch.testing.assert_close(found, alone[number], rtol=0, atol=0)


def test_merged_models_share_nothing(specs):
    held = Models([ModelSpec(specs[name].folder, None, specs[name].manifest, "fp32") for name in HEADS])
    assert len({id(scorer.network) for scorer in held.scorers}) == 3
    assert {scorer.adapter for scorer in held.scorers} == {None}


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
    names = ("fp32", "bf16", "w8a8-int8", "w8a8-fp8")
    found = {name: streamed_bytes([f"{tmp_path}/plain"], name) for name in names}
    # 40 of the embedding, 4 of the norm, 24 + 8 in 8 rows; 24 in float32, three times.
    assert found == {
        "fp32": 4 * 76 + 32 + 288, "bf16": 2 * 72 + 16 + 32 + 288, "w8a8-int8": 80 + 16 + 32 + 32 + 288,
        "w8a8-fp8": 80 + 16 + 32 + 32 + 288,
    }  # fmt: skip
    packed = {
        name: torch.zeros(tensor.numel() // 2, 1, dtype=torch.uint8) if "_proj" in name else tensor
        for name, tensor in tensors.items()
    }
    scales = {f"{name}.absmax": torch.zeros(1_000, dtype=torch.uint8) for name in packed if "_proj" in name}
    save_file(packed | scales, tmp_path / "nf4")
    assert streamed_bytes([f"{tmp_path}/nf4"], "w8a8-fp8") == found["w8a8-fp8"] - 4 * 8, (
        "its rows are unknown"
    )
    save_file(tensors | {"lm_head.weight": torch.zeros(1_000, 4)}, tmp_path / "headed")
    assert weight_bytes([f"{tmp_path}/headed"], "fp32") == weight_bytes([f"{tmp_path}/plain"], "fp32")
    assert streamed_bytes([f"{tmp_path}/headed"], "w8a8-fp8") == found["w8a8-fp8"]
    save_file(tensors | {"model.embed_tokens.weight": torch.zeros(1_000, 4)}, tmp_path / "wide")
    assert streamed_bytes([f"{tmp_path}/wide"], "w8a8-fp8") == 2 * 4 * 4_000


def test_a_model_that_does_not_fit_the_gpu_is_refused_before_it_is_loaded(specs, monkeypatch):
    pair = [specs["first"], specs["linear"]]
    loaded = []

    def load(folder, **options):
        loaded.append(folder)
        return load_scorer(folder, **options)

    monkeypatch.setattr(models, "free_gpu_bytes", lambda: 10e9 if not loaded else 1_000.0)
    with pytest.raises(ClusterError) as caught:
        Models(pair, load)
    assert loaded == [pair[0].folder]
    assert str(caught.value) == (
        f"{pair[1].folder}: model 2 of 2 needs 0.0 GB of GPU memory as bnb-int8, and 0.0 GB are free; give "
        "fewer models, a --precision that takes less, or score each by itself and use jobs.ensemble"
    )
    monkeypatch.setattr(models, "free_gpu_bytes", lambda: 1_000.0)
    with pytest.raises(ClusterError, match=r"model 1 of 1 .*; choose a --precision .*, or a larger GPU$"):
        Models(pair[:1])


def test_memory_that_runs_out_while_a_model_is_loaded(specs):
    def load(error):
        def fail(folder, **options):
            try:
                raise error
            except RuntimeError as inner:
                raise ModelError(f"{folder}: cannot be loaded") from inner

        return Models([specs["first"]], fail)

    for error in (torch.OutOfMemoryError("CUDA out of memory."), MemoryError()):
        with pytest.raises(ClusterError, match=r"first: memory ran out while it was loaded; choose a --prec"):
            load(error)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(RuntimeError("a tensor is missing"))


def test_an_adapter_beside_a_base_needs_no_second_base(specs, monkeypatch):
    whole = weight_bytes([f"{specs['first'].manifest.base}/model.safetensors"], "bnb-int8")
    monkeypatch.setattr(models, "free_gpu_bytes", lambda: float(whole - 1))
    models.check_memory([specs["first"], specs["second"]], 1, "cpu", whole=False)
    with pytest.raises(ClusterError):
        models.check_memory([specs["first"], specs["second"]], 1, "cpu", whole=True)


def test_what_a_batch_takes(specs):
    held = Models([specs["first"]])
    # Width 32, two heads of 16, 64 within the MLP, float32; eager attention, layers of two kinds.
    expected = BatchMemory(token=4 * 4 * (32 + 32 + 64) + 8 * 32, key=2 * 4 + 6 + 2 * (2 * 4 + 4))
    assert held.scorers[0].memory("packed") == expected


@pytest.mark.parametrize(("precision", "sums"), [("fp32", 0), ("w8a8-fp8", 0), ("w8a8-int8", 4)])
def test_what_a_batch_of_the_fused_decoder_takes(specs, precision, sums):
    spec = specs["first"]
    network, _ = load_fused_classifier(spec.folder, precision=precision)
    # Width 32, two heads of 16 and one key head, 64 within the MLP, float32: the MLP is the widest.
    copies = 64 if precision != "fp32" else 0
    assert network.memory("shared") == BatchMemory(
        token=(2 * 4 + 4) * 32 + 4 * (32 + 128 + 64) + copies + sums * 128, key=0
    )


def test_kernels_write_out_less(specs):
    network, _ = load_fused_classifier(specs["first"].folder, precision="w8a8-int8")
    first = network.stack.layers[0]
    first.qkv.fused = first.gate_up.fused = True
    # Neither sums in int32 nor gate and up: attention, whose product has 64 rows, is the widest.
    assert network.memory("shared").token == (2 * 4 + 4) * 32 + 4 * (32 + 2 * 64 + 32) + 32


@dataclass
class Compiled(FakeScorer):
    """A scorer whose first micro-batch fails, if at all, with `error`."""

    error: Exception | None = None
    warmed_up: list[int] = field(default_factory=list)

    def warm_up(self, token_budget: int) -> None:
        self.warmed_up.append(token_budget)
        if self.error:
            raise self.error


def test_only_static_shapes_are_compiled_when_a_model_is_loaded(specs):
    def models_of(scorer: Scorer) -> Models:
        return Models([specs["first"]], lambda folder, **options: (scorer, specs["first"].manifest))

    plain, static = Compiled(), Compiled(static_shapes=True)
    assert models_of(plain).warm_up(1_000) == 0.0
    assert not plain.warmed_up
    assert models_of(static).warm_up(1_000) > 0
    assert static.warmed_up == [1_000]
    oom = torch.OutOfMemoryError("CUDA out of memory.")
    assert models_of(Compiled(static_shapes=True, error=oom)).warm_up(1_000) > 0
    broken = models_of(Compiled(static_shapes=True, error=RuntimeError("No valid triton configs.\nmore")))
    with pytest.raises(
        ModelError,
        match=r"a first micro-batch of 1000 tokens fails \(RuntimeError: No valid .*--precision bnb",
    ):
        broken.warm_up(1_000)


def test_the_fused_decoder_is_warmed_up_in_whole_blocks(specs):
    network, _ = load_fused_classifier(specs["first"].folder, precision="w8a8-int8")
    sizes: list[int] = []
    network.register_forward_pre_hook(lambda _, layouts: sizes.append(layouts[0].tokens_BT.size))
    network.warm_up(1_000)
    assert sizes == [1_024]


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
