"""Checkpoints of the loop: a folder that is a classifier, and all that a run continues from."""

import json

import pytest
import torch

from tests.unit.training.conftest import learnable_votes
from tests.unit.training.test_loop import DROPOUT, saved, saved_after
from wsdm_ray.config import HeadConfig, LoraConfig
from wsdm_ray.errors import ModelError
from wsdm_ray.modeling.loading import load_classifier
from wsdm_ray.modeling.manifest import read_manifest


def test_a_head_in_bfloat16(trainer_of, tmp_path):
    options = {"head": HeadConfig(dropout=0.0, precision="bf16"), "max_steps": 2}
    trainer = trainer_of(**options)
    list(trainer.steps())
    trainer.save(str(tmp_path))
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
    metrics = trainer.evaluate_step()
    trainer.save(str(tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "adapter_config.json", "adapter_model.safetensors", "metrics.jsonl", "optimizer.safetensors",
        "tokenizer.json", "tokenizer_config.json", "trainer_state.json", "wsdm_ray.json",
    }  # fmt: skip
    manifest = read_manifest(str(tmp_path))
    assert manifest.metrics["step"] == 2
    assert manifest.metrics["valid_rows"] == 10
    assert manifest.metrics["loss"] == metrics.loss
    assert manifest.text == trainer.config.text
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    network, _ = load_classifier(str(tmp_path))
    assert not network.training


def test_a_checkpoint_of_other_layers(trainer_of, tmp_path):
    trainer_of(lora=LoraConfig(r=4, targets=("q_proj",))).save(str(tmp_path))
    with pytest.raises(ModelError, match=r"lacks base_model\.model\.model\.layers\.0\.mlp\.down_proj"):
        trainer_of().restore(str(tmp_path))


def test_a_snapshot_is_not_changed_by_the_steps_that_follow(trainer_of, tmp_path):
    for name, options in (("fp32", {}), ("bf16", {"head": HeadConfig(dropout=0.0, precision="bf16")})):
        trainer = trainer_of(**options)
        steps = trainer.steps()
        next(steps)
        snapshot = trainer.snapshot(trainer.optimizer_state())
        trainer.network.save_pretrained(tmp_path / name / "by-peft", save_embedding_layers=False)
        trainer.save(str(tmp_path / name / "then"))
        list(steps)
        snapshot.write(str(tmp_path / name / "later"))
        names = {path.name for path in (tmp_path / name / "then").iterdir()}
        assert names == {path.name for path in (tmp_path / name / "later").iterdir()}
        files = [
            {file: (tmp_path / name / folder / file).read_bytes() for file in names}
            for folder in ("then", "later")
        ]
        assert files[0] == files[1]
        weights = tmp_path / name / "by-peft" / "adapter_model.safetensors"
        assert weights.read_bytes() == files[1]["adapter_model.safetensors"]


def test_a_lowered_token_budget_goes_on(trainer_of, tmp_path):
    """Micro-batches of another budget would have other dropout."""
    options = DROPOUT | {"epochs": 2}
    whole = trainer_of(**options)
    steps = whole.steps()
    next(steps)
    while whole.model.token_budget == 400:
        whole.save_memory(whole.prepare_step(1)[1])
    next(steps)
    whole.save(str(tmp_path / "after-2"))
    list(steps)
    expected = saved(whole, tmp_path / "whole")

    again = trainer_of(**options)
    before = again.prepare_step(2)[1]
    again.restore(str(tmp_path / "after-2"))
    assert (again.step, again.model.token_budget) == (2, whole.model.token_budget)
    assert again.prepare_step(2)[1].costs == whole.prepare_step(2)[1].costs != before.costs
    assert saved_after(again, tmp_path / "again") == expected


def test_a_checkpoint_without_a_token_budget_has_the_configured_one(trainer_of, tmp_path):
    trainer = trainer_of(max_steps=2)
    next(trainer.steps())
    trainer.save(str(tmp_path))
    file = tmp_path / "trainer_state.json"
    state = json.loads(file.read_text())
    del state["token_budget"]
    file.write_text(json.dumps(state))
    again = trainer_of(max_steps=2)
    again.restore(str(tmp_path))
    assert (again.step, again.model.token_budget) == (1, 400)
    assert saved_after(again, tmp_path / "again") == saved_after(trainer, tmp_path / "trainer")
