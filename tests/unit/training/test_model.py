"""The network of a run: gradient checkpointing saves memory; int8 weights meet activations as they are."""

import dataclasses
import functools
import itertools
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.nn.modules import Linear8bitLt

from tests.unit.training.conftest import groups_of_threads, learnable_votes
from wsdm_ray.errors import ConfigError
from wsdm_ray.modeling import sharded_weights
from wsdm_ray.modeling.classifier import unwrap_peft
from wsdm_ray.modeling.families import shape_of
from wsdm_ray.modeling.loading import load_scorer
from wsdm_ray.modeling.memory_errors import is_oom
from wsdm_ray.packing.layouts import Layout
from wsdm_ray.schema import Ordering
from wsdm_ray.scoring.engine import log_odds
from wsdm_ray.training import model
from wsdm_ray.training.distributed import WorkerGroup
from wsdm_ray.training.loop import Trainer
from wsdm_ray.training.model import ActivationMemory, check_alike, check_gpu
from wsdm_ray.training.optimizer_state import by_path
from wsdm_ray.training.policy import ResolvedOptions, least_activation_bytes
from wsdm_ray.training.sharded_optimizer import ShardedOptimizer

ALONE = WorkerGroup()


def test_gradient_checkpointing_changes_nothing(trainer_of):
    plain, frugal = (
        list(trainer_of(max_steps=2, gradient_checkpointing=enabled).steps()) for enabled in ("no", "yes")
    )
    assert [row.loss for row in frugal] == pytest.approx([row.loss for row in plain], abs=1e-5)
    assert frugal[0].grad_norm == pytest.approx(plain[0].grad_norm, rel=1e-4)


@pytest.mark.parametrize("quantization", ["none", "bnb-int8"])
def test_gradient_checkpointing_keeps_fewer_activations(trainer_of, quantization):
    plain, frugal = (
        kept_bytes(trainer_of(gradient_checkpointing=enabled, quantization=quantization))
        for enabled in ("no", "yes")
    )
    assert frugal < 0.3 * plain


def kept_bytes(trainer: Trainer) -> int:
    """The most bytes that autograd keeps between the layers' forward and their backward in one step."""
    rows, batches = trainer.prepare_step(0)
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trainer.forward_backward(rows, batches)
    return sum(kept)


def test_gradient_checkpointing_lets_go_of_the_inputs_of_llm_int8(trainer_of):
    """bitsandbytes keeps them for the backward pass where hooks of autograd do not see them."""
    alive = {}
    for enabled in ("no", "yes"):
        trainer = trainer_of(
            quantization="bnb-int8", int8_activations=True, layout="padded", gradient_checkpointing=enabled
        )
        trainer.network.train()
        inputs: list[weakref.ref[torch.Tensor]] = []
        for layer in trainer.network.modules():
            if isinstance(layer, Linear8bitLt):
                layer.register_forward_pre_hook(lambda _, given, to=inputs: to.append(weakref.ref(given[0])))
        _, batches = trainer.prepare_step(0)
        layout = trainer.lay_out(batches.pairs, batches.micro_batches[0], batches.costs[0])
        logits = trainer.model.logits(layout)
        alive[enabled] = sum(reference() is not None for reference in inputs)
        logits.sum().backward()
    assert alive["no"] > 5
    assert alive["yes"] <= 1


def test_the_token_budget_is_what_the_gpus_of_all_workers_allow(trainer_of, monkeypatch, caplog):
    caplog.set_level("INFO", logger="wsdm_ray")
    trainer = trainer_of()
    network, config = trainer.network, trainer.config

    def budget(free: float, group: Any = ALONE, **options: Any) -> int:
        monkeypatch.setattr(model, "free_gpu_bytes", lambda: free)
        asked = dataclasses.replace(config, **options)
        return ActivationMemory(network, asked, compiled=True).token_budget(group)

    assert budget(0.0) == 400, "on a CPU, whose memory is not asked"
    network.to("meta")  # as little a CPU as a GPU is; embeddings may be on one
    unwrap_peft(network).get_input_embeddings().to_empty(device="cpu")
    trained = sum(parameter.numel() for parameter in trainer.parameters.values())
    sizes = shape_of(unwrap_peft(network).config), unwrap_peft(network).config.intermediate_size, 4
    needed = {
        tokens: (least_activation_bytes(tokens, *sizes, compiled=True) + 16 * trained + 1) / 0.95
        for tokens in (192, 200, 400)
    }
    assert budget(needed[400]) == 400
    assert not caplog.messages
    assert budget(needed[200]) == 200
    assert caplog.messages == ["train: --token-budget is 200, which is what memory has room for"]
    assert budget(needed[192]) == budget(0.0) == 192, "two texts of --text.max-tokens"
    assert budget(needed[400], gradient_checkpointing="no") == 400, "if memory runs out, layers recompute"
    other: Any = SimpleNamespace(largest=lambda number, device: max(number, 200))
    assert budget(needed[400], other) == 200
    monkeypatch.setattr(model, "free_gpu_bytes", lambda: 0)
    assert ActivationMemory(network, config, compiled=True, shards=4).free_bytes == -10 * trained


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_run_keeps_within_what_the_gpus_allow(trainer_of, monkeypatch, tmp_path, layout):
    quantization = {"padded": "none", "packed": "w8a8-int8"}[
        layout
    ]  # the decoder runs the second on CPUs, too
    whole = trainer_of(layout=layout, quantization=quantization)
    list(itertools.islice(whole.steps(), 1))
    whole.save(str(tmp_path))
    monkeypatch.setattr(ActivationMemory, "token_budget", lambda *given: 200)
    trainer = trainer_of(layout=layout, quantization=quantization)
    batches = trainer.prepare_step(0)[1]
    assert (batches.token_budget, max(batches.costs) <= 200) == (200, True)
    assert trainer.model.row_tokens(1) <= 200
    trainer.restore(str(tmp_path))
    again = trainer.prepare_step(1)[1], whole.prepare_step(1)[1]
    assert [each.token_budget for each in again] == [400, 400], "the steps of a run are the same everywhere"
    assert again[0].costs == again[1].costs


def test_less_memory_can_be_taken_once(trainer_of):
    trainer = trainer_of(layout="padded", gradient_checkpointing="no")
    kept = kept_bytes(trainer)
    assert trainer.model.save_memory()
    assert kept_bytes(trainer) < 0.3 * kept
    assert not trainer.model.save_memory()


def test_int8_weights_meet_activations_as_they_are(trainer_of):
    """The log-odds are those of the dequantized weights, and LLM.int8() has others.

    Of the valid set: in training, bitsandbytes does not round activations on a CPU.
    """
    votes = learnable_votes(12, 3)
    weight_only, llm_int8, unquantized = (
        trainer_of(quantization=quantization, int8_activations=int8_activations)
        for quantization, int8_activations in (("bnb-int8", False), ("bnb-int8", True), ("none", False))
    )
    found, rounded, exact = (
        trainer.valid_log_odds(votes) for trainer in (weight_only, llm_int8, unquantized)
    )
    with torch.no_grad():
        for name, layer in unwrap_peft(weight_only.network).named_modules():
            if isinstance(layer, Linear8bitLt):
                state: Any = layer.state
                plain = unwrap_peft(unquantized.network).get_submodule(name)
                plain.weight.copy_(state.CB.float() * (state.SCB / 127)[:, None])
    expected = unquantized.valid_log_odds(votes)
    # Float32 products of the same weights, dequantized in two ways
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    for other in (rounded, exact):
        assert float((other - expected).abs().max()) > 1e-4


@pytest.mark.parametrize("quantization", ["w8a8-int8", "w8a8-fp8"])
def test_an_adapter_trained_beside_8_bit_gemms_is_merged_into_the_same_weights(
    quantization, trainer_of, tmp_path
):
    valid = learnable_votes(24, 1)
    trainer = trainer_of(valid=valid, quantization=quantization, max_steps=3)
    assert (trainer.resolved.layout, trainer.resolved.decoder) == ("packed", True)
    list(trainer.steps())
    own = trainer.valid_log_odds(valid).numpy()
    trainer.save(str(tmp_path))
    scorer, manifest = load_scorer(str(tmp_path), precision="fp32")
    assert manifest.quantization == quantization
    pairs = trainer.encoder.encode(*valid.texts(np.arange(len(valid))))
    both = (Ordering.AB, Ordering.BA)
    scored = log_odds(scorer, pairs, both, layout="shared", token_budget=4_000).log_odds_NO
    exact, _ = load_scorer(str(tmp_path), precision=quantization)
    rounded = log_odds(exact, pairs, both, layout="shared", token_budget=4_000).log_odds_NO
    # Training rounds activations, `fp32` does not; merging rounds the sum of base and adapter anew.
    limit = {"w8a8-int8": 0.05, "w8a8-fp8": 0.15}[quantization] * np.abs(scored).max()
    assert np.abs(own - scored).max() < limit
    assert np.abs(own - rounded).max() < limit


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")],
)
def test_running_out_of_memory_recomputes_then_halves_the_budget(trainer_of, monkeypatch, error):
    plain = list(trainer_of(quantization="w8a8-int8", max_steps=2).steps())
    trainer = trainer_of(quantization="w8a8-int8", max_steps=2)
    decoder = trainer.model.decoder
    logits, most = decoder.logits, 200

    def short_of_memory(layout: Layout) -> torch.Tensor:
        if layout.num_tokens > most or decoder.recomputed == 0:
            raise error
        return logits(layout)

    monkeypatch.setattr(decoder, "logits", short_of_memory)
    frugal = list(trainer.steps())
    assert (trainer.model.token_budget, decoder.recomputed) == (200, len(decoder.layers))
    # Each token's activations are rounded by themselves, so only sums change their order.
    assert [row.loss for row in frugal] == pytest.approx([row.loss for row in plain], rel=1e-4)
    assert [row.grad_norm for row in frugal] == pytest.approx([row.grad_norm for row in plain], rel=1e-3)
    most = 10
    with pytest.raises(ConfigError, match="lower --token-budget"):
        trainer.train_step(*trainer.prepare_step(0))


@pytest.mark.parametrize("shard_base", [False, True])
@pytest.mark.parametrize("short_at", ["forward", "backward"])
def test_all_workers_take_less_memory_where_it_runs_out_on_one(trainer_of, monkeypatch, short_at, shard_base):
    monkeypatch.setattr(sharded_weights, "LEAST_BYTES", 1)
    options = {
        "max_steps": 2, "micro_batches": 2, "quantization": "w8a8-int8", "shard_base": shard_base,
    }  # fmt: skip
    plain = list(trainer_of(**options).steps())
    workers = [trainer_of(**options, group=group) for group in groups_of_threads(2)]
    decoder = workers[1].model.decoder
    logits = decoder.logits

    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def short_of_memory(layout: Layout) -> torch.Tensor:
        if layout.num_tokens <= 200 and decoder.recomputed:
            return logits(layout)
        if short_at == "forward":
            run_out()
        found = logits(layout)
        found.register_hook(run_out)
        return found

    monkeypatch.setattr(decoder, "logits", short_of_memory)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda worker: list(worker.steps()), workers))
    assert [worker.model.token_budget for worker in workers] == [200, 200]
    assert workers[0].memory_ran_out == 0 < workers[1].memory_ran_out
    assert [worker.model.decoder.recomputed for worker in workers] == [len(decoder.layers)] * 2
    for steps in found:
        assert [row.loss for row in steps] == pytest.approx([row.loss for row in plain], rel=1e-4)
        assert [row.grad_norm for row in steps] == pytest.approx([row.grad_norm for row in plain], rel=1e-3)


def test_workers_that_share_the_base_take_the_steps_of_others(trainer_of, monkeypatch, tmp_path):
    """Three micro-batches on two workers, so that one gathers along; of the valid set, one has more."""
    monkeypatch.setattr(sharded_weights, "LEAST_BYTES", 1)
    valid, found = learnable_votes(9, 1), []
    plan_memory = ActivationMemory.__init__
    for shard_base in (False, True):
        shards: list[int] = []

        def noted(*given: Any, shards_of: list[int] = shards, **options: Any) -> None:
            shards_of.append(options["shards"])
            plan_memory(*given, **options)

        monkeypatch.setattr(ActivationMemory, "__init__", noted)
        workers = [
            trainer_of(
                valid=valid, max_steps=2, micro_batches=3, quantization="w8a8-int8", shard_base=shard_base,
                group=group,
            )
            for group in groups_of_threads(2)
        ]  # fmt: skip
        layers = workers[0].model.decoder.layers
        with ThreadPoolExecutor(2) as pool:
            steps = list(pool.map(lambda worker: list(worker.steps()), workers))
            workers[1].model.set_token_budget(200)
            assert any(len(workers[1].plan(pairs).costs) > 1 for _, pairs in workers[1].encode_valid(valid))
            valids = list(pool.map(lambda worker: worker.evaluate(), workers))
            states = list(pool.map(Trainer.optimizer_state, workers))
            tensors, held = workers[0].snapshot(states[0]).optimizer[0], by_path(states[0]["state"])
            assert {tensors[path].data_ptr() == held[path].data_ptr() for path in tensors} == {shard_base}
            folder = tmp_path / str(shard_base)
            list(pool.map(functools.partial(Trainer.save, folder=str(folder)), workers))
            for worker in workers:
                worker.restore(str(folder))
            workers[1].model.set_token_budget(200)  # the first one's checkpoint has another
            assert list(pool.map(lambda worker: worker.evaluate(), workers)) == valids
        assert valids[0] == valids[1]
        written = [
            (folder / name).read_bytes()
            for name in ("adapter_model.safetensors", "optimizer.safetensors", "trainer_state.json")
        ]
        found.append(([(row.loss, row.grad_norm) for row in steps[0]], valids[0], written))
        assert isinstance(workers[0].optimizer, ShardedOptimizer) == shard_base
        assert shards == ([2, 2] if shard_base else [1, 1])
        assert bool(layers[0].qkv.weight.values.untyped_storage().nbytes()) == (not shard_base)
    assert found[0] == found[1], "to the last bit"


def test_one_worker_alone_holds_the_whole_base(trainer_of, monkeypatch):
    monkeypatch.setattr(sharded_weights, "LEAST_BYTES", 1)
    trainer = trainer_of(quantization="w8a8-int8", shard_base=True, max_steps=1)
    assert trainer.model.decoder.layers[0].qkv.weight.values.untyped_storage().nbytes()
    [row] = trainer.steps()
    [plain] = trainer_of(quantization="w8a8-int8", max_steps=1).steps()
    assert row.loss == plain.loss


def test_a_message_between_gpus_that_fails_is_no_step_to_take_again():
    """Its other ends would wait for ever."""
    assert is_oom(RuntimeError("Triton Error [CUDA]: out of memory"))
    assert not is_oom(torch.distributed.DistBackendError("NCCL: Cuda failure 'out of memory'"))


@dataclass(frozen=True)
class GroupOfTwoKinds(WorkerGroup):
    """Two workers, the other of which makes other things of the options."""

    size: int = 2
    other: Any = None

    @property
    def can_exchange(self) -> bool:
        return True

    def all_gather(self, value: Any) -> list[Any]:
        return [value, self.other]


def test_workers_on_gpus_of_several_kinds_are_refused():
    """Each would cut the steps in its own way: pairs would run twice, or never."""
    here = ResolvedOptions(
        layout="shared", precision="bf16", quantization="bnb-int8", compile="no", decoder=True
    )
    there = dataclasses.replace(here, layout="padded", precision="fp32", decoder=False)
    check_alike(here, WorkerGroup())
    check_alike(here, GroupOfTwoKinds(other=here))
    with pytest.raises(ConfigError, match=r"GPUs are of several kinds.*layout shared.* and layout padded"):
        check_alike(here, GroupOfTwoKinds(other=there))


def test_a_gpu_without_gemms_in_the_precision_of_the_base_is_refused():
    check_gpu("bnb-int8", (7, 5))
    check_gpu("w8a8-int8", (8, 0))
    with pytest.raises(ConfigError, match=r"held as w8a8-fp8, for GPUs of compute capability 8\.9 or later"):
        check_gpu("w8a8-fp8", (8, 6))
