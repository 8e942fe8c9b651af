"""A run that diverges stops before its weights are spoilt, and no spoilt weights are kept."""

from collections.abc import Callable

import pytest
import torch

from tests.unit.training.conftest import learnable_votes
from wsdm_ray.training.batches import step_rows
from wsdm_ray.training.health import TrainingDivergedError
from wsdm_ray.training.loop import Trainer


def change_logits(trainer: Trainer, step: int, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Have the head's logits changed in the step at index `step`."""
    head = trainer.network.get_submodule("base_model.model.score")
    head.register_forward_hook(
        lambda module, inputs, logits: change(logits) if trainer.step == step else logits
    )


def test_a_run_that_diverges(trainer_of, tmp_path):
    trainer = trainer_of()
    change_logits(trainer, 1, lambda logits: logits * float("nan"))
    steps = trainer.steps()
    assert next(steps).step == 1
    before = {name: parameter.clone() for name, parameter in trainer.parameters.items()}
    with pytest.raises(TrainingDivergedError) as caught:
        next(steps)
    ids = [f"vote {row}" for row in step_rows(0, 1, 40, 16)[:5]]
    assert str(caught.value) == (
        f"step 2: loss nan, gradient norm nan; of its 16 rows the worst are {ids}; "
        "there is no checkpoint yet; look at these rows, then lower --optimizer.learning-rate and start over "
        "with --restart"
    )
    assert all(torch.equal(before[name], parameter) for name, parameter in trainer.parameters.items())
    assert trainer.step == 1


def test_weights_that_are_spoilt_are_not_kept(trainer_of):
    trainer = trainer_of(checkpoint_steps=2)
    assert trainer.evaluate() is None
    trainer.step = 4
    parameter = next(iter(trainer.parameters.values()))
    parameter.data[0, :3] = torch.tensor([float("nan"), float("inf"), 1.0])
    with pytest.raises(TrainingDivergedError) as caught:
        trainer.evaluate()
    assert str(caught.value) == (
        "after step 4: 2 weights are not finite; the last good checkpoint is that of step 2; "
        "lower --optimizer.learning-rate and start over with --restart"
    )


def test_weights_that_overflow_are_not_kept(trainer_of):
    trainer = trainer_of(valid=learnable_votes(10, 3))
    trainer.step = 1
    for parameter in trainer.parameters.values():
        parameter.data.fill_(1e30)
    message = "after step 1: 10 of 10 rows of the valid set have no finite loss; there is no checkpoint yet"
    with pytest.raises(TrainingDivergedError, match=message):
        trainer.evaluate()


def test_a_loss_that_jumps_stops_the_run_before_it_spoils_the_weights(trainer_of):
    trainer = trainer_of(epochs=6, checkpoint_steps=5)
    change_logits(trainer, 13, lambda logits: logits + torch.tensor([40.0, 0.0]))
    with pytest.raises(
        TrainingDivergedError, match=r"step 14: loss is 20.*where 0\.[67]\d* is usual"
    ) as caught:
        list(trainer.steps())
    assert "the last good checkpoint is that of step 10" in str(caught.value)
    assert "or go on from there with a larger --loss-spike" in str(caught.value)
    assert trainer.step == 13
    assert len(trainer.metrics) == 13


def test_the_first_steps_are_no_spike(trainer_of):
    trainer = trainer_of(epochs=2)
    change_logits(trainer, 5, lambda logits: logits + torch.tensor([40.0, 0.0]))
    assert len(list(trainer.steps())) == 6
