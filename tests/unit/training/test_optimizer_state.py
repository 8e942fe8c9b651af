"""The state of an optimizer is plain tensors and JSON."""

import json

import torch

from wsdm_ray.training.optimizer_state import flatten_state, load_state, unflatten_state, write_state


def test_the_state_is_plain_json(trainer_of, tmp_path):
    trainer = trainer_of(max_steps=1)
    list(trainer.steps())
    trainer.save(str(tmp_path))
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert (state["step"], state["token_budget"]) == (1, 400)
    back = unflatten_state(*flatten_state(trainer.optimizer.state_dict()))
    assert back["param_groups"] == trainer.optimizer.state_dict()["param_groups"]
    for index, values in trainer.optimizer.state_dict()["state"].items():
        assert {name: value.tolist() for name, value in values.items()} == {
            name: value.tolist() for name, value in back["state"][index].items()
        }


def test_a_state_is_continued_by_the_optimizer_of_this_device(tmp_path):
    def optimizer(fused: bool | None) -> torch.optim.Optimizer:
        weight = torch.nn.Parameter(torch.ones(3))
        weight.grad = torch.full((3,), 0.5)
        made = torch.optim.AdamW([weight], lr=0.1, fused=fused)
        made.step()
        return made

    write_state(flatten_state(optimizer(None).state_dict()), 1, 400, str(tmp_path))
    found = optimizer(True)
    assert load_state(found, str(tmp_path)) == (1, 400)
    assert found.param_groups[0]["fused"] is True
    found.step()
    assert [float(state["step"]) for state in found.state.values()] == [2.0]


def test_a_state_in_use_is_copied_and_another_is_not():
    """Memory holds a large model's state once."""
    state = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}
    held = state["state"][0]["exp_avg"]
    for copy in (True, False):
        tensors, _ = flatten_state(state, copy=copy)
        assert (tensors["0/exp_avg"].data_ptr() == held.data_ptr()) == (not copy)
