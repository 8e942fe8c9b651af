"""An optimizer whose state is sharded: the bits of a whole one, and a state that either continues."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

from tests.unit.training.conftest import groups_of_threads
from wsdm_ray.config import OptimizerConfig
from wsdm_ray.training.optimizer import RunOptimizer, make_optimizer
from wsdm_ray.training.optimizer_state import flatten_state, load_state, write_state
from wsdm_ray.training.sharded_optimizer import ShardedOptimizer

SIZES = {
    "a.weight": (64, 80),
    "b.weight": (3,),
    "c.weight": (200, 40),
    "x.score.weight": (5, 5),
    "d.weight": (96, 64),
}
"""Of bitsandbytes, those of fewer than 4,096 numbers have a state in 32 bits."""


def parameters_at(step: int) -> dict[str, nn.Parameter]:
    source = torch.Generator().manual_seed(step)
    return {name: nn.Parameter(torch.randn(size, generator=source)) for name, size in SIZES.items()}


ONE_AT_A_TIME = threading.Lock()


def in_turn(optimizer: RunOptimizer) -> ShardedOptimizer:
    """bitsandbytes' updates on CPUs, of several threads of a process at once, now and then differ."""
    assert isinstance(optimizer, ShardedOptimizer)
    step: Any = optimizer.local.step

    def step_in_turn() -> None:
        with ONE_AT_A_TIME:
            step()

    optimizer.local.step = step_in_turn  # pyright: ignore[reportAttributeAccessIssue]
    return optimizer


def take_steps(parameters: dict[str, nn.Parameter], optimizer: RunOptimizer, steps: range) -> None:
    for step in steps:
        for name, gradient in parameters_at(100 + step).items():
            parameters[name].grad = gradient.detach()
        optimizer.step()


def by_workers(size: int, run: Callable[[Any], Any]) -> list[Any]:
    """What each worker of a group returns, by rank."""
    with ThreadPoolExecutor(size) as pool:
        return [*pool.map(run, groups_of_threads(size))]


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("head_learning_rate", [None, 1e-2])
@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_steps_and_state_are_those_of_a_whole_one(kind, head_learning_rate, size, tmp_path):
    """After three steps, a resume and two more: from a whole state to a sharded one, and back."""
    options = OptimizerConfig(kind=kind, learning_rate=1e-3, head_learning_rate=head_learning_rate)
    parameters = parameters_at(0)
    optimizer = make_optimizer(options, parameters)
    take_steps(parameters, optimizer, range(3))
    for folder in ("whole", "sharded"):
        (tmp_path / folder).mkdir()
    write_state(flatten_state(optimizer.state_dict()), 3, 400, str(tmp_path / "whole"))
    then = {name: value.detach().clone() for name, value in parameters.items()}
    take_steps(parameters, optimizer, range(3, 5))

    def work(group):
        """Also each worker's own share of the state."""
        mine = parameters_at(0)
        sharded = in_turn(make_optimizer(options, mine, group))
        take_steps(mine, sharded, range(3))
        state = sharded.state_dict()
        if group.is_first:
            write_state(flatten_state(state), 3, 400, str(tmp_path / "sharded"))
        else:
            assert not state["state"]
        resumed = {name: nn.Parameter(value.clone()) for name, value in then.items()}
        again = in_turn(make_optimizer(options, resumed, group))
        assert load_state(again, str(tmp_path / "whole")) == (3, 400)
        take_steps(resumed, again, range(3, 5))
        return mine, resumed, sorted(sharded.own)

    found = by_workers(size, work)
    for mine, resumed, _ in found:
        for name in SIZES:
            assert torch.equal(mine[name], then[name]), name
            assert torch.equal(resumed[name], parameters[name]), name
    assert sorted(place for *_, own in found for place in own) == [*range(len(SIZES))], "each has one owner"
    for name in ("optimizer.safetensors", "trainer_state.json"):
        assert (tmp_path / "sharded" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    back = {name: nn.Parameter(value.clone()) for name, value in then.items()}
    whole = make_optimizer(options, back)
    load_state(whole, str(tmp_path / "sharded"))
    take_steps(back, whole, range(3, 5))
    assert all(torch.equal(back[name], parameters[name]) for name in SIZES)


def test_a_worker_alone_has_a_whole_one():
    [group] = groups_of_threads(1)
    assert isinstance(make_optimizer(OptimizerConfig(), parameters_at(0), group), torch.optim.AdamW)


def test_workers_keep_about_equally_much():
    def held(group) -> int:
        parameters = parameters_at(0)
        optimizer = make_optimizer(OptimizerConfig(), parameters, group)
        assert isinstance(optimizer, ShardedOptimizer)
        take_steps(parameters, optimizer, range(1))
        return sum(value["exp_avg"].numel() for value in optimizer.local.state.values())

    shares = by_workers(2, held)
    assert sum(shares) == sum(value.numel() for value in parameters_at(0).values())
    assert max(shares) < 0.65 * sum(shares)
