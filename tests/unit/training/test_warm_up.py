"""Kinds of rows that are compiled apart run before the first step, and change nothing."""

import numpy as np
import pytest
import torch

from tests.unit.training.test_loop import DROPOUT, saved_after
from wsdm_ray.training.loop import Trainer


def watched(trainer: Trainer, rows: tuple[int, ...]) -> list[int]:
    """Have the trainer's network tell of `rows` as compiled; returns the tokens of each row that it runs."""
    ran, logits = [], trainer.model.logits

    def run(layout):
        ran.append(layout.tokens_BT.shape[1])
        return logits(layout)

    trainer.model.compiled_rows = lambda: rows
    trainer.model.logits = run
    return ran


@pytest.mark.parametrize("start", [0, 2])
def test_a_row_of_each_kind_runs_first_and_changes_nothing(trainer_of, tmp_path, start):
    options = DROPOUT | {"layout": "shared", "quantization": "w8a8-int8", "max_steps": 4}
    plain, other = trainer_of(**options), trainer_of(**options)
    if start:
        for _, step in zip(range(start), plain.steps(), strict=False):
            assert step.step <= start
        plain.save(str(tmp_path / "checkpoint"))
        plain, other = trainer_of(**options), trainer_of(**options)
        for trainer in (plain, other):
            trainer.restore(str(tmp_path / "checkpoint"))
    ran, calm = watched(other, (3_000, 2_000)), watched(plain, ())
    assert saved_after(other, tmp_path / "other") == saved_after(plain, tmp_path / "plain")
    assert ran == [3_000, 2_000, *calm]


def test_a_row_holds_the_shortest_pair_at_least(trainer_of):
    trainer = trainer_of(layout="shared", quantization="w8a8-int8", max_steps=1)
    ran = watched(trainer, (1,))
    _, batches = trainer.prepare_step(0)
    list(trainer.steps())
    assert ran[0] == int(np.min(trainer.tokens_of(batches.pairs)))


def test_memory_that_runs_out_is_left_to_the_step(trainer_of, tmp_path):
    options = {"layout": "shared", "quantization": "w8a8-int8", "max_steps": 1}
    plain, other = trainer_of(**options), trainer_of(**options)
    watched(other, (3_000,))
    logits = other.model.logits

    def run(layout):
        if layout.tokens_BT.shape[1] == 3_000:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits(layout)

    other.model.logits = run
    assert saved_after(other, tmp_path / "other") == saved_after(plain, tmp_path / "plain")
    assert other.memory_ran_out == 0
