"""The loop of one worker: a run twice, or in two parts, is the same to the byte; it learns."""

import dataclasses
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.training.conftest import groups_of_threads, learnable_votes
from wsdm_ray.config import HeadConfig, LoraConfig, OptimizerConfig
from wsdm_ray.training import loop
from wsdm_ray.training.batches import dropout_seed, step_rows
from wsdm_ray.training.distributed import WorkerGroup
from wsdm_ray.training.gradients import GradientReducer
from wsdm_ray.training.loop import Trainer
from wsdm_ray.training.metrics import StepMetrics

EIGHT_BIT = {"optimizer": OptimizerConfig(kind="adamw_8bit", learning_rate=5e-3), "lora": LoraConfig(r=64)}
DROPOUT = {"lora": LoraConfig(r=4, alpha=8, dropout=0.1), "head": HeadConfig(dropout=0.1)}
LEARNING = {
    "epochs": 4,
    "lora": LoraConfig(r=8, alpha=16, dropout=0.0),
    "head": HeadConfig(kind="linear"),
    "optimizer": OptimizerConfig(learning_rate=5e-3, warmup_fraction=0.1),
}
STATE_FILES = ("adapter_model.safetensors", "optimizer.safetensors")


def without_times(rows: list[StepMetrics]) -> list[StepMetrics]:
    return [dataclasses.replace(row, seconds=0.0, memory_gb=0.0) for row in rows]


def saved(trainer: Trainer, folder: Path) -> list[bytes]:
    trainer.save(str(folder))
    return [(folder / name).read_bytes() for name in STATE_FILES]


def saved_after(trainer: Trainer, folder: Path) -> list[bytes]:
    list(trainer.steps())
    return saved(trainer, folder)


def disturb() -> None:
    """What other code of a process may do to global random numbers."""
    torch.manual_seed(random.randrange(10**9))
    np.random.seed(random.randrange(10**9))


@pytest.mark.parametrize("quantization", ["none", "bnb-int8"])
def test_two_runs_are_the_same_to_the_byte(trainer_of, tmp_path, quantization):
    runs = []
    for number in range(2):
        disturb()
        trainer = trainer_of(**DROPOUT, quantization=quantization, max_steps=4)
        disturb()
        metrics = without_times(list(trainer.steps()))
        runs.append((metrics, saved(trainer, tmp_path / str(number))))
    assert runs[0] == runs[1]
    assert [row.step for row in runs[0][0]] == [1, 2, 3, 4][: len(runs[0][0])]


@pytest.mark.parametrize(
    "options",
    [{}, DROPOUT, EIGHT_BIT, {"optimizer": OptimizerConfig(learning_rate=5e-3, head_learning_rate=1e-3)}],
    ids=["plain", "dropout", "adamw_8bit", "head_rate"],
)
def test_a_run_in_two_parts_is_the_same_to_the_byte(trainer_of, tmp_path, options):
    whole, metrics = trainer_of(**options, epochs=2), []
    for row in whole.steps():
        metrics += without_times([row])
        if whole.step in (1, 4):
            whole.save(str(tmp_path / f"after-{whole.step}"))
    assert len(metrics) == 6
    expected = saved(whole, tmp_path / "whole")
    for stop in (1, 4):
        disturb()
        second = trainer_of(**options, epochs=2)
        second.restore(str(tmp_path / f"after-{stop}"))
        assert second.step == stop
        disturb()
        rest = list(second.steps())
        assert without_times(rest) == metrics[stop:]
        assert without_times(second.metrics) == metrics, "those of the first part included"
        assert saved(second, tmp_path / "second") == expected


def test_dropout_changes_the_run(trainer_of, tmp_path):
    plain, dropped = (
        saved_after(trainer_of(**options, max_steps=2), tmp_path / name)
        for name, options in (("a", {}), ("b", DROPOUT))
    )
    assert plain[0] != dropped[0]


def test_seeds_differ(trainer_of, tmp_path):
    first, second = (saved_after(trainer_of(seed=seed, max_steps=1), tmp_path / str(seed)) for seed in (1, 2))
    assert first[0] != second[0]


def test_it_learns(trainer_of):
    train, valid = learnable_votes(160, 1), learnable_votes(60, 2)
    trainer = trainer_of(train, valid, **LEARNING)
    before = trainer.evaluate()
    losses = [row.loss for row in trainer.steps()]
    after = trainer.evaluate()
    assert before
    assert after
    assert before.accuracy < 0.8
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:3])
    assert after.accuracy > 0.95
    assert after.log_loss < 0.3
    assert after.rows == 60


@pytest.mark.parametrize("layout", ["packed", "shared"])
@pytest.mark.parametrize("options", [{"token_budget": 2_000}, {"micro_batches": 5}])
def test_layouts_and_micro_batches_make_the_same_step(trainer_of, layout, options):
    expected, found = (
        list(trainer_of(max_steps=3, **changes).steps()) for changes in ({}, {"layout": layout, **options})
    )
    for one, other in zip(expected, found, strict=True):
        # float32 sums in another order, carried through two updates by AdamW
        assert other.loss == pytest.approx(one.loss, abs=1e-4)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-2)
        assert other.padding_share == pytest.approx(0)


def test_the_metrics_of_a_step(trainer_of):
    trainer = trainer_of(pairs_per_step=16)
    rows = list(trainer.steps())
    assert [row.pairs for row in rows] == [16, 16, 8]
    assert [row.step for row in rows] == [1, 2, 3]
    assert rows[0].learning_rate == 5e-3
    for number, row in enumerate(rows):
        pairs = trainer.encoder.encode(*trainer.train.texts(step_rows(0, number, 40, 16)))
        assert row.tokens == 2 * pairs.tokens_N.sum()
        assert 0 <= row.padding_share < 0.5
        assert 0 <= row.accuracy <= 1
        assert row.grad_norm > 0


def test_the_first_loss_by_the_stock_forward(trainer_of):
    trainer = trainer_of(max_steps=1)
    rows = step_rows(0, 0, 40, 16)
    pairs = trainer.encoder.encode(*trainer.train.texts(rows))
    network, losses = trainer.network.eval(), []
    with torch.no_grad():
        for i, label in enumerate(trainer.train.prob_a_N[rows]):
            for suffix, target in ((pairs.suffix_ab, label), (pairs.suffix_ba, 1 - label)):
                ids = torch.from_numpy(np.concatenate([pairs.prefix[i], suffix[i]]).astype(np.int64))
                logits = network(input_ids=ids[None]).logits[0]
                losses.append(float(-torch.log_softmax(logits, 0)[0 if target else 1]))
    [row] = trainer.steps()
    assert row.loss == pytest.approx(np.mean(losses), abs=1e-5)


@pytest.mark.parametrize("orders", ["ab", "ba"])
def test_one_ordering(trainer_of, orders):
    train, valid = learnable_votes(160, 1), learnable_votes(60, 2)
    trainer = trainer_of(train, valid, orders=orders, **(LEARNING | {"epochs": 8}))
    losses = [row.loss for row in trainer.steps()]
    assert losses[-1] < losses[0]
    # Half the sequences of both orderings, so less sure; a wrong sign would be far below a half.
    after = trainer.evaluate()
    assert after
    assert after.accuracy > 0.65, "of the given response_a, whichever stands first"


def test_without_valid_votes(trainer_of):
    assert trainer_of().evaluate() is None


def test_evaluation_does_not_disturb(trainer_of, tmp_path):
    valid = learnable_votes(10, 3)
    plain = saved_after(trainer_of(**DROPOUT, valid=valid, max_steps=3), tmp_path / "plain")
    trainer = trainer_of(**DROPOUT, valid=valid, max_steps=3)
    for _ in trainer.steps():
        assert trainer.evaluate() == trainer.evaluate()
    assert saved(trainer, tmp_path / "watched") == plain


def test_the_loss_of_each_row(trainer_of):
    trainer = trainer_of(max_steps=1, token_budget=300)
    rows, batches = trainer.prepare_step(0)
    _, sums, _ = trainer.forward_backward(rows, batches)
    losses = torch.zeros(16)
    for places, row_losses in sums.row_losses:
        losses[places] = row_losses
    assert len(sums.row_losses) > 1
    assert float(losses.sum()) == pytest.approx(float(sums.totals[0]), rel=1e-6)
    _, one, _ = trainer_of(max_steps=1).forward_backward(
        rows[3:4], trainer.plan(trainer.encoder.encode(*trainer.train.texts(rows[3:4])))
    )
    [(_, alone)] = one.row_losses
    assert float(losses[3]) == pytest.approx(float(alone), abs=1e-5)


def test_losses_are_added_up_exactly(trainer_of, monkeypatch):
    """As multiples of 2**-32, which float32 sums of small losses are not."""
    loss = Trainer.loss

    def small(*given: Any) -> Any:
        loss_S, right = loss(*given)
        return loss_S * 2**-20, right

    monkeypatch.setattr(Trainer, "loss", small)
    trainer = trainer_of(max_steps=1, token_budget=300)
    _, sums, _ = trainer.forward_backward(*trainer.prepare_step(0))
    total = float(sums.totals[0])
    assert total > 0
    assert total * 2**32 == int(total * 2**32)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_micro_batches_are_as_many_as_asked_for_on_any_number_of_workers(trainer_of, num_workers):
    groups = [WorkerGroup(rank, num_workers) for rank in range(num_workers)]
    for least in (2, 5):
        trainers = [trainer_of(token_budget=4_000, micro_batches=least, group=group) for group in groups]
        prepared = [trainer.prepare_step(0)[1] for trainer in trainers]
        assert [len(batches.micro_batches) for batches in prepared] == [least] * num_workers
        own = [group.own_batches(prepared[0].costs) for group in groups]
        assert sorted(number for numbers in own for number in numbers) == list(range(least))


@pytest.mark.parametrize(
    "options", [{}, {"layout": "padded", "orders": "ab", "head": HeadConfig(precision="bf16", dropout=0.0)}]
)
def test_any_number_of_workers_takes_the_same_steps_to_the_bit(trainer_of, tmp_path, options):
    valid = learnable_votes(30, 3)
    runs = []
    for size in (1, 2, 3):
        workers = [
            trainer_of(valid=valid, max_steps=3, micro_batches=6, group=group, **options)
            for group in groups_of_threads(size)
        ]
        with ThreadPoolExecutor(size) as pool:
            steps = [without_times(rows) for rows in pool.map(lambda worker: list(worker.steps()), workers)]
            valids = list(pool.map(Trainer.evaluate, workers))
        assert steps == [steps[0]] * size
        assert valids == [valids[0]] * size
        runs.append((steps[0], valids[0], saved(workers[0], tmp_path / str(size))))
    assert len(runs[0][0]) == 3
    assert runs == [runs[0]] * 3


@pytest.mark.parametrize("shard_base", [False, True])
def test_sums_begin_in_the_last_pass_but_not_beside_weights_that_are_gathered(
    trainer_of, monkeypatch, shard_base
):
    passes: dict[int, list[bool]] = {0: [], 1: []}
    backward_pass = GradientReducer.backward_pass

    def noted(self: GradientReducer, *, last: bool) -> Any:
        passes[self.group.rank].append(last)
        return backward_pass(self, last=last)

    monkeypatch.setattr(GradientReducer, "backward_pass", noted)
    options = {"max_steps": 1, "micro_batches": 6, "quantization": "w8a8-int8", "shard_base": shard_base}
    workers = [trainer_of(**options, group=group) for group in groups_of_threads(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda worker: list(worker.steps()), workers))
    assert passes == {rank: [False, False, not shard_base] for rank in (0, 1)}


def test_a_plan_says_which_budget_it_was_cut_by(trainer_of, monkeypatch):
    """Another thread lowers it meanwhile: so the step is planned anew."""
    trainer = trainer_of(token_budget=4_000)
    cut = loop.plan_for_workers

    def lowered_meanwhile(*given):
        trainer.model.set_token_budget(400)
        return cut(*given)

    monkeypatch.setattr(loop, "plan_for_workers", lowered_meanwhile)
    assert trainer.prepare_step(0)[1].token_budget == 4_000


def test_by_default_each_worker_has_a_micro_batch(trainer_of):
    for size in (1, 3):
        _, batches = trainer_of(token_budget=4_000, group=WorkerGroup(0, size)).prepare_step(0)
        assert len(batches.micro_batches) == size


def test_fewer_workers_than_asked_for_cut_the_same_micro_batches(trainer_of):
    plans = [
        trainer_of(token_budget=4_000, num_workers=3, group=WorkerGroup(0, size)).prepare_step(0)[1]
        for size in (1, 2, 3)
    ]
    assert [plan.costs for plan in plans] == [plans[0].costs] * 3
    assert len(plans[0].costs) == 3


def test_seeds_of_micro_batches_differ():
    seeds = {
        dropout_seed(seed, step, number) for seed in range(3) for step in range(5) for number in range(4)
    }
    assert len(seeds) == 60
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_frozen_config(trainer_of):
    trainer = trainer_of()
    with pytest.raises(dataclasses.FrozenInstanceError):
        trainer.config.seed = 1
