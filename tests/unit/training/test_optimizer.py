"""The optimizer: its options move weights as they should."""

from typing import Any

import pytest
import torch

from wsdm_ray.config import OptimizerConfig


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_a_learning_rate_of_the_heads_own(trainer_of, kind):
    def moved(**rates: Any) -> dict[str, float]:
        """The most that each tensor moves in the first step: by AdamW, the rate, whatever the gradient."""
        trainer = trainer_of(
            optimizer=OptimizerConfig(kind=kind, warmup_fraction=0.0, schedule="constant", **rates),
            max_steps=1,
        )
        before = {name: parameter.clone() for name, parameter in trainer.parameters.items()}
        list(trainer.steps())
        return {
            name: float((parameter - before[name]).detach().abs().max())
            for name, parameter in trainer.parameters.items()
            if "lora_A" not in name  # no gradient at first
        }

    for name, distance in moved(learning_rate=1e-3, head_learning_rate=2e-5).items():
        assert distance == pytest.approx(2e-5 if ".score." in name else 1e-3, rel=0.02), name
    assert set(map("{:.1e}".format, moved(learning_rate=1e-3).values())) == {"1.0e-03"}


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_weight_decay_shrinks_weights_beside_the_step(trainer_of, kind):
    def after_a_step(weight_decay: float) -> dict[str, torch.Tensor]:
        options = OptimizerConfig(
            kind=kind, learning_rate=1e-2, weight_decay=weight_decay, warmup_fraction=0.0, schedule="constant"
        )
        trainer = trainer_of(optimizer=options, max_steps=1)
        list(trainer.steps())
        return {name: parameter.detach() for name, parameter in trainer.parameters.items()}

    before = {name: parameter.detach() for name, parameter in trainer_of().parameters.items()}
    plain, decayed = after_a_step(0.0), after_a_step(0.5)
    for name, start in before.items():
        # Decoupled decay (Loshchilov and Hutter, 2019): the rate times the decay, of the weight before
        expected = 1e-2 * 0.5 * start
        torch.testing.assert_close(plain[name] - decayed[name], expected, rtol=1e-3, atol=1e-6, msg=name)
    assert any(bool(start.abs().max() > 0.05) for start in before.values())


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_betas_of_zero_leave_no_memory_of_earlier_steps(trainer_of, kind):
    def moved_in_the_third_step(**betas: Any) -> torch.Tensor:
        """How far each of the head's last biases moves, as a share of the learning rate."""
        options = OptimizerConfig(
            kind=kind, learning_rate=1e-3, warmup_fraction=0.0, schedule="constant", **betas
        )
        trainer = trainer_of(optimizer=options, max_steps=3)
        [name] = [
            name for name in trainer.parameters if name.endswith("score.modules_to_save.default.4.bias")
        ]
        steps = trainer.steps()
        next(steps)
        next(steps)
        before = trainer.parameters[name].detach().clone()
        next(steps)
        return (trainer.parameters[name].detach() - before).abs() / 1e-3

    # Without momentum the step of AdamW is the rate times the gradient's sign.
    torch.testing.assert_close(moved_in_the_third_step(betas=(0.0, 0.0)), torch.ones(2), rtol=1e-2, atol=0)
    remembered = moved_in_the_third_step()
    assert float((remembered - 1).abs().max()) > 0.05
