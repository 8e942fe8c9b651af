"""The loop of one worker: a run twice, or in two parts, is the same to the byte; it learns; it stops."""

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from wsdm_ray.config import (
    HeadConfig,
    LoraConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TextConfig,
    TrainConfig,
)
from wsdm_ray.data.votes import Votes
from wsdm_ray.errors import ModelError
from wsdm_ray.modeling.classifier import preference_log_odds
from wsdm_ray.modeling.loading import load_classifier
from wsdm_ray.modeling.manifest import Manifest, folder_digest, read_manifest
from wsdm_ray.packing.layouts import lay_out
from wsdm_ray.training import loop
from wsdm_ray.training.batches import step_rows
from wsdm_ray.training.loop import Trainer, TrainingDivergedError

EIGHT_BIT = {"optimizer": OptimizerConfig(kind="adamw_8bit", learning_rate=5e-3), "lora": LoraConfig(r=64)}
DROPOUT = {"lora": LoraConfig(r=4, alpha=8, dropout=0.1), "head": HeadConfig(dropout=0.1)}
LEARNING = {
    "epochs": 6,
    "lora": LoraConfig(r=8, alpha=16, dropout=0.0),
    "head": HeadConfig(kind="linear"),
    "optimizer": OptimizerConfig(learning_rate=5e-3, warmup_fraction=0.1),
}
STATE_FILES = ("adapter_model.safetensors", "optimizer.safetensors")


def learnable_votes(rows: int, seed: int) -> Votes:
    """The answer with a "42" in it wins."""
    source = random.Random(seed)
    columns: dict[str, list] = {
        "id": [f"vote {i}" for i in range(rows)],
        "prompt": [],
        "response_a": [],
        "response_b": [],
    }
    labels = []
    for _ in range(rows):
        good, bad = (
            " ".join(source.choices(["Wind", "sum", "answer"], k=source.randint(1, 12))) for _ in range(2)
        )
        a_wins = source.random() < 0.5
        columns["prompt"].append("What? " * source.randint(0, 5))
        columns["response_a"].append(f"42 {good}" if a_wins else bad)
        columns["response_b"].append(bad if a_wins else f"42 {good}")
        labels.append(float(a_wins))
    return Votes(pa.table(columns), np.asarray(labels))


@pytest.fixture(scope="module")
def base(family_model: Callable[..., Path]) -> str:
    return str(family_model("llama"))


@pytest.fixture(scope="module")
def trainer_of(base: str) -> Callable[..., Trainer]:
    """A trainer of a tiny Llama on 40 votes; keywords are options of `TrainConfig`."""

    def make(
        train: Votes | None = None, valid: Votes | None = None, quantization: str = "none", **options: Any
    ) -> Trainer:
        values: dict[str, Any] = {
            "base": base, "train": ("unused",), "output": "unused", "pairs_per_step": 16, "token_budget": 400,
            "text": TextConfig(max_tokens=96), "lora": LoraConfig(r=4, alpha=8, dropout=0.0),
            "head": HeadConfig(dropout=0.0), "optimizer": OptimizerConfig(learning_rate=5e-3),
        }  # fmt: skip
        config = TrainConfig(**(values | options))
        manifest = Manifest(
            kind="adapter", base=base, base_digest=folder_digest(base), quantization=quantization,  # pyright: ignore[reportArgumentType]
            head=config.head, text=config.text, orders=config.orders,
        )  # fmt: skip
        return Trainer(config, base, manifest, train or learnable_votes(40, 0), valid)

    return make


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    measured = ("pairs_per_second", "tokens_per_second", "memory_gb", "seconds")
    return [{name: value for name, value in row.items() if name not in measured} for row in rows]


def saved(trainer: Trainer, folder: Path) -> list[bytes]:
    trainer.save(str(folder), {"loss": 1.0})
    return [(folder / name).read_bytes() for name in STATE_FILES]


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
    assert [row["step"] for row in runs[0][0]] == [1, 2, 3, 4][: len(runs[0][0])]


@pytest.mark.parametrize(
    "options",
    [{}, DROPOUT, EIGHT_BIT, {"optimizer": OptimizerConfig(learning_rate=5e-3, head_learning_rate=1e-3)}],
    ids=["plain", "dropout", "adamw_8bit", "head_rate"],
)
@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_in_two_parts_is_the_same_to_the_byte(trainer_of, tmp_path, options, stop):
    whole = trainer_of(**options, epochs=2)
    metrics = without_times(list(whole.steps()))
    assert len(metrics) == 6
    expected = saved(whole, tmp_path / "whole")

    first = trainer_of(**options, epochs=2)
    steps = first.steps()
    for _ in range(stop):
        next(steps)
    first.save(str(tmp_path / "part"), {})
    steps.close()

    disturb()
    second = trainer_of(**options, epochs=2)
    second.restore(str(tmp_path / "part"))
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


def saved_after(trainer: Trainer, folder: Path) -> list[bytes]:
    list(trainer.steps())
    return saved(trainer, folder)


def test_seeds_differ(trainer_of, tmp_path):
    first, second = (saved_after(trainer_of(seed=seed, max_steps=1), tmp_path / str(seed)) for seed in (1, 2))
    assert first[0] != second[0]


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


def test_it_learns(trainer_of):
    train, valid = learnable_votes(160, 1), learnable_votes(60, 2)
    trainer = trainer_of(train, valid, **LEARNING)
    before = trainer.evaluate()
    losses = [row["loss"] for row in trainer.steps()]
    after = trainer.evaluate()
    assert before["valid_accuracy"] < 0.8
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:3])
    assert after["valid_accuracy"] > 0.95
    assert after["valid_log_loss"] < 0.3
    assert after["valid_rows"] == 60


@pytest.mark.parametrize("layout", ["packed", "shared"])
@pytest.mark.parametrize("options", [{"token_budget": 2_000}, {"micro_batches": 5}])
def test_layouts_and_passes_make_the_same_step(trainer_of, layout, options):
    expected, found = (
        without_times(list(trainer_of(max_steps=3, **each).steps()))
        for each in ({}, {"layout": layout, **options})
    )
    for one, other in zip(expected, found, strict=True):
        # float32 sums in another order, carried through two updates by AdamW
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-4)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-2)
        assert other["padding_share"] == pytest.approx(0)


def test_the_metrics_of_a_step(trainer_of):
    trainer = trainer_of(pairs_per_step=16)
    rows = list(trainer.steps())
    assert [row["pairs"] for row in rows] == [16, 16, 8]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["learning_rate"] == 5e-3
    for number, row in enumerate(rows):
        pairs = trainer.encoder.encode(*trainer.train.texts(step_rows(0, number, 40, 16)))
        assert row["tokens"] == 2 * pairs.tokens_N.sum()
        assert 0 <= row["padding_share"] < 0.5
        assert 0 <= row["accuracy"] <= 1
        assert row["grad_norm"] > 0


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
    assert row["loss"] == pytest.approx(np.mean(losses), abs=1e-5)


@pytest.mark.parametrize("orders", ["ab", "ba"])
def test_one_ordering(trainer_of, orders):
    train, valid = learnable_votes(160, 1), learnable_votes(60, 2)
    trainer = trainer_of(train, valid, orders=orders, **(LEARNING | {"epochs": 8}))
    losses = [row["loss"] for row in trainer.steps()]
    assert losses[-1] < losses[0]
    # Half the sequences of both orderings, so less sure; a wrong sign would stand far below a half.
    assert trainer.evaluate()["valid_accuracy"] > 0.65, "of the given response_a, whichever stands first"


def test_without_valid_votes(trainer_of):
    assert trainer_of().evaluate() == {}


def test_evaluation_does_not_disturb(trainer_of, tmp_path):
    valid = learnable_votes(10, 3)
    plain = saved_after(trainer_of(**DROPOUT, valid=valid, max_steps=3), tmp_path / "plain")
    trainer = trainer_of(**DROPOUT, valid=valid, max_steps=3)
    for _ in trainer.steps():
        assert trainer.evaluate() == trainer.evaluate()
    assert saved(trainer, tmp_path / "watched") == plain


def spoil(monkeypatch: pytest.MonkeyPatch, trainer: Trainer, at: int) -> None:
    """Not a number out of the network in the step at index `at`."""
    real = loop.ordering_logits

    def spoiled(network: nn.Module, layout: Any) -> torch.Tensor:
        logits = real(network, layout)
        return logits * float("nan") if trainer.step == at else logits

    monkeypatch.setattr(loop, "ordering_logits", spoiled)


def test_a_run_that_diverges(monkeypatch, trainer_of, tmp_path):
    trainer = trainer_of()
    spoil(monkeypatch, trainer, 1)
    steps = trainer.steps()
    assert next(steps)["step"] == 1
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
    assert trainer.evaluate() == {}
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


def test_a_loss_that_jumps_stops_the_run_before_it_spoils_the_weights(monkeypatch, trainer_of):
    trainer = trainer_of(epochs=6, checkpoint_steps=5)
    real = loop.ordering_logits

    def jump(network: nn.Module, layout: Any) -> torch.Tensor:
        logits = real(network, layout)
        return logits + torch.tensor([40.0, 0.0]) if trainer.step == 13 else logits

    monkeypatch.setattr(loop, "ordering_logits", jump)
    with pytest.raises(
        TrainingDivergedError, match=r"step 14: loss is 20.*where 0\.[67]\d* is usual"
    ) as caught:
        list(trainer.steps())
    assert "the last good checkpoint is that of step 10" in str(caught.value)
    assert "or go on from there with a larger --loss-spike" in str(caught.value)
    assert trainer.step == 13
    assert len(trainer.metrics) == 13


def test_the_first_steps_are_no_spike(monkeypatch, trainer_of):
    trainer = trainer_of(epochs=2)
    real = loop.ordering_logits
    monkeypatch.setattr(
        loop,
        "ordering_logits",
        lambda network, layout: real(network, layout) + torch.tensor([40.0, 0.0]) * (trainer.step == 5),
    )
    assert len(list(trainer.steps())) == 6


def test_what_is_no_spike(trainer_of):
    trainer = trainer_of(max_steps=1)
    row = {"loss": 0.02, "weight": 1.0}
    trainer.metrics = [row] * 20
    rows = np.arange(16)
    trainer.check_health(0.15, 1.0, 1.0, rows, [])  # much more than usual, and a good loss
    trainer.check_health(9.0, 4.0, 1.0, rows, [])  # rows that count four times
    trainer.check_health(9.0, 1.0, 1.0, rows[:3], [])  # too few to tell
    trainer.check_health(0.0, 0.0, 1.0, rows, [])  # rows that do not count
    with pytest.raises(TrainingDivergedError, match=r"loss is 9 where 0.02 is usual"):
        trainer.check_health(9.0, 1.0, 1.0, rows, [])
    trainer.metrics = [{"loss": 0.0, "weight": 0.0}] * 20 + [row] * 3
    trainer.check_health(9.0, 1.0, 1.0, rows, [])


def test_the_worst_rows_of_a_step_are_named(trainer_of):
    losses = torch.arange(16.0)
    losses[4] = float("nan")
    losses[2] = float("inf")
    passes = [(np.arange(8, 16), losses[8:]), (np.arange(8), losses[:8])]
    with pytest.raises(TrainingDivergedError) as caught:
        trainer_of(max_steps=1).check_health(float("nan"), 1.0, 1.0, np.arange(20, 36), passes)
    named = [f"vote {20 + place}" for place in (4, 2, 15, 14, 13)]
    assert f"of its 16 rows the worst are {named};" in str(caught.value)


def test_the_loss_of_each_row(monkeypatch, trainer_of):
    seen: list[Any] = []
    trainer = trainer_of(max_steps=1, token_budget=300)
    monkeypatch.setattr(trainer, "check_health", lambda *given: seen.append(given[-1]))
    [row] = trainer.steps()
    losses = torch.zeros(16)
    for places, each in seen[0]:
        losses[places] = each
    assert len(seen[0]) > 1
    assert float(losses.sum()) / 2 / 16 == pytest.approx(row["loss"], rel=1e-6)
    one, rows = trainer_of(max_steps=1), step_rows(0, 0, 40, 16)
    pairs = one.encoder.encode(*one.train.texts(rows[3:4]))
    layout = lay_out("padded", pairs.prefix, one.suffixes(pairs), np.arange(1))
    alone, _ = one.loss(preference_log_odds(loop.ordering_logits(one.network.eval(), layout)), rows[3:4])
    assert float(losses[3]) == pytest.approx(float(alone.detach().sum()), abs=1e-5)


def test_gradients_of_several_workers_keep_their_types(monkeypatch, trainer_of):
    trainer = trainer_of(head=HeadConfig(dropout=0.0, precision="bf16"), max_steps=1)
    expected = first_step(trainer_of(head=HeadConfig(dropout=0.0, precision="bf16"), max_steps=1))
    monkeypatch.setattr(loop.dist, "all_reduce", lambda tensor: None)  # the others had no pass
    trainer.num_workers = 2
    monkeypatch.setattr(loop, "assign_batches", lambda costs, workers: [list(range(len(costs))), []])
    assert first_step(trainer) == pytest.approx(expected, rel=1e-2)


def first_step(trainer: Trainer) -> tuple[float, float]:
    row = next(iter(trainer.steps()))
    return row["loss"], row["grad_norm"]


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


def test_order_agreement_in_the_loop(trainer_of):
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
    log_odds = preference_log_odds(loop.ordering_logits(trainer.network, layout)).view(-1, 2)
    return float((log_odds[:, 0] + log_odds[:, 1]).abs().mean())


def test_a_head_in_bfloat16(trainer_of, tmp_path):
    options = {"head": HeadConfig(dropout=0.0, precision="bf16"), "max_steps": 2}
    trainer = trainer_of(**options)
    list(trainer.steps())
    trainer.save(str(tmp_path), {})
    kinds = {name: parameter.dtype for name, parameter in trainer.parameters.items()}
    assert {kind for name, kind in kinds.items() if "score" in name} == {torch.bfloat16}
    assert {kind for name, kind in kinds.items() if "lora" in name} == {torch.float32}
    network, manifest = load_classifier(str(tmp_path))
    assert manifest.head == options["head"]
    assert {parameter.dtype for parameter in network.get_submodule("score").parameters()} == {torch.bfloat16}
    again = trainer_of(**options)
    again.restore(str(tmp_path))
    for name, parameter in again.parameters.items():
        assert torch.equal(parameter, trainer.parameters[name]), name


def test_a_checkpoint_is_a_classifier(trainer_of, tmp_path):
    trainer = trainer_of(max_steps=2, valid=learnable_votes(10, 3))
    list(trainer.steps())
    trainer.save(str(tmp_path), {"loss": 0.5, **trainer.evaluate()})
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "adapter_config.json", "adapter_model.safetensors", "metrics.jsonl", "optimizer.safetensors",
        "tokenizer.json", "tokenizer_config.json", "trainer_state.json", "wsdm_ray.json",
    }  # fmt: skip
    manifest = read_manifest(str(tmp_path))
    assert manifest.metrics["step"] == 2
    assert manifest.metrics["valid_rows"] == 10
    assert manifest.text == trainer.config.text
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    network, _ = load_classifier(str(tmp_path))
    assert not network.training


def test_a_checkpoint_of_other_layers(trainer_of, tmp_path):
    trainer_of(lora=LoraConfig(r=4, targets=("q_proj",))).save(str(tmp_path), {})
    with pytest.raises(ModelError, match=r"lacks base_model\.model\.model\.layers\.0\.mlp\.down_proj"):
        trainer_of().restore(str(tmp_path))


def test_the_state_is_plain_json(trainer_of, tmp_path):
    trainer = trainer_of(max_steps=1)
    list(trainer.steps())
    trainer.save(str(tmp_path), {})
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert state["step"] == 1
    back = loop.unflatten(*loop.flatten(trainer.optimizer.state_dict()))
    assert back["param_groups"] == trainer.optimizer.state_dict()["param_groups"]
    for index, values in trainer.optimizer.state_dict()["state"].items():
        assert {name: value.tolist() for name, value in values.items()} == {
            name: value.tolist() for name, value in back["state"][index].items()
        }


def test_seeds_of_passes_differ():
    seeds = {
        loop.seed_of(seed, step, number) for seed in range(3) for step in range(5) for number in range(4)
    }
    assert len(seeds) == 60
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_gradient_checkpointing_changes_nothing(trainer_of, tmp_path):
    plain, frugal = (
        without_times(list(trainer_of(max_steps=2, gradient_checkpointing=each).steps()))
        for each in (False, True)
    )
    assert [row["loss"] for row in frugal] == pytest.approx([row["loss"] for row in plain], abs=1e-5)
    assert frugal[0]["grad_norm"] == pytest.approx(plain[0]["grad_norm"], rel=1e-4)


def test_a_frozen_config(trainer_of):
    trainer = trainer_of()
    with pytest.raises(dataclasses.FrozenInstanceError):
        trainer.config.seed = 1
