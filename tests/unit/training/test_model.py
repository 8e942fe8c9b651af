"""The network of a run: gradient checkpointing saves memory; int8 weights meet activations as they are."""

from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Linear8bitLt

from tests.unit.training.conftest import learnable_votes
from wsdm_ray.modeling.classifier import unwrap_peft
from wsdm_ray.training.loop import Trainer


def test_gradient_checkpointing_changes_nothing(trainer_of):
    plain, frugal = (
        list(trainer_of(max_steps=2, gradient_checkpointing=enabled).steps()) for enabled in (False, True)
    )
    assert [row.loss for row in frugal] == pytest.approx([row.loss for row in plain], abs=1e-5)
    assert frugal[0].grad_norm == pytest.approx(plain[0].grad_norm, rel=1e-4)


@pytest.mark.parametrize("quantization", ["none", "bnb-int8"])
def test_gradient_checkpointing_keeps_fewer_activations(trainer_of, quantization):
    plain, frugal = (
        kept_bytes(trainer_of(gradient_checkpointing=enabled, quantization=quantization))
        for enabled in (False, True)
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
