"""The objective in the loop: weights, smoothed labels, teachers, swap consistency."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.unit.training.conftest import learnable_votes
from wsdm_ray.config import HeadConfig, LoraConfig, ObjectiveConfig, OptimizerConfig
from wsdm_ray.data.votes import Votes
from wsdm_ray.modeling.classifier import ordering_logits, preference_log_odds
from wsdm_ray.packing.layouts import lay_out
from wsdm_ray.training.loop import Trainer

LEARNING = {
    "epochs": 6,
    "lora": LoraConfig(r=8, alpha=16, dropout=0.0),
    "head": HeadConfig(kind="linear"),
    "optimizer": OptimizerConfig(learning_rate=5e-3, warmup_fraction=0.1),
}


def first_step(trainer: Trainer) -> tuple[float, float]:
    row = next(iter(trainer.steps()))
    return row.loss, row.grad_norm


def with_sources(votes: Votes, sources: list[str]) -> Votes:
    return Votes(votes.table.append_column("source", pa.array(sources)), votes.prob_a_N)


def test_weights_of_sources_count_rows_as_if_they_came_more_than_once(trainer_of):
    votes = learnable_votes(16, 0)
    weighted = trainer_of(
        with_sources(votes, ["wsdm"] * 8 + ["lmsys"] * 8),
        objective=ObjectiveConfig(source_weights={"wsdm": 2.0}),
        max_steps=1,
    )
    twice = trainer_of(votes.take(np.r_[0:8, 0:8, 8:16]), pairs_per_step=24, max_steps=1)
    assert first_step(weighted) == pytest.approx(first_step(twice), rel=1e-5)


def test_label_smoothing_in_the_loop(trainer_of):
    votes = learnable_votes(16, 0)
    smooth = trainer_of(votes, objective=ObjectiveConfig(label_smoothing=0.5), max_steps=1)
    soft = trainer_of(Votes(votes.table, 0.25 + 0.5 * votes.prob_a_N), max_steps=1)
    assert first_step(smooth) == pytest.approx(first_step(soft), rel=1e-6)


def test_teachers_in_the_loop(trainer_of, tmp_path):
    votes = learnable_votes(16, 0)
    prob_a = np.where(votes.prob_a_N == 1, 0.8, 0.2)
    ids = votes.table["id"].to_pylist()[::-1]  # in another order, and of half of the rows
    pq.write_table(pa.table({"id": ids[:8], "prob_a": prob_a[::-1][:8]}), tmp_path / "part-000000.parquet")
    options = {"teachers": (str(tmp_path),), "teacher_weight": 1.0, "teacher_temperature": 1.0}
    taught = trainer_of(votes, objective=ObjectiveConfig(**options), max_steps=1)
    # At temperature 1 and weight 1 the gradient is that of the soft label; 8 rows have none.
    soft = trainer_of(Votes(votes.table, np.r_[votes.prob_a_N[:8], prob_a[8:]]), max_steps=1)
    assert first_step(taught)[1] == pytest.approx(first_step(soft)[1], rel=1e-5)


def test_swap_consistency_in_the_loop(trainer_of):
    votes = learnable_votes(160, 1)
    apart = []
    for weight in (0.0, 10.0):
        trainer = trainer_of(
            votes, **(LEARNING | {"epochs": 2}), objective=ObjectiveConfig(swap_consistency_weight=weight)
        )
        list(trainer.steps())
        apart.append(disagreement_of(trainer, votes))
    assert apart[1] < 0.5 * apart[0]


@torch.no_grad()
def disagreement_of(trainer: Trainer, votes: Votes) -> float:
    """Mean distance of the two orderings' log-odds of response_a."""
    trainer.network.eval()
    pairs = trainer.encoder.encode(*votes.texts(np.arange(40)))
    layout = lay_out("padded", pairs.prefix, [pairs.suffix_ab, pairs.suffix_ba], np.arange(40))
    log_odds = preference_log_odds(ordering_logits(trainer.network, layout)).view(-1, 2)
    return float((log_odds[:, 0] + log_odds[:, 1]).abs().mean())
