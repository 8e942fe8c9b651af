"""A run that starts with the adapter and the head of an earlier one."""

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.unit.training.conftest import learnable_votes
from wsdm_ray.config import HeadConfig, LoraConfig, ObjectiveConfig
from wsdm_ray.errors import ConfigError, ModelError
from wsdm_ray.modeling.manifest import folder_digest, read_manifest
from wsdm_ray.training.check import TrainingFiles, fingerprint_of
from wsdm_ray.training.start import check_start


@pytest.fixture(scope="module")
def warm_up(trainer_of, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("warm-up")
    trainer = trainer_of(max_steps=2)
    list(trainer.steps())
    trainer.save(str(folder))
    return folder


def test_it_begins_where_the_earlier_run_ended(trainer_of, warm_up, tmp_path):
    valid = learnable_votes(10, 3)
    fresh, started = trainer_of(valid=valid, seed=1), trainer_of(valid=valid, seed=1, start_from=str(warm_up))
    earlier = trainer_of(valid=valid)
    earlier.restore(str(warm_up))
    assert torch.equal(started.valid_log_odds(valid), earlier.valid_log_odds(valid))
    assert not torch.equal(started.valid_log_odds(valid), fresh.valid_log_odds(valid))
    assert started.step == 0
    assert started.total_steps == fresh.total_steps, "its steps and its optimizer are its own"
    assert not started.optimizer.state_dict()["state"]


def test_its_manifest_and_its_fingerprint_say_so(trainer_of, warm_up, tmp_path):
    config = trainer_of(start_from=str(warm_up)).config
    manifest = dataclasses.replace(read_manifest(str(warm_up)), metrics={})
    found = check_start(config, manifest)
    assert (found.started_from, found.started_from_digest) == (str(warm_up), folder_digest(str(warm_up)))
    files = TrainingFiles(train=[], valid=[])
    fingerprints = [fingerprint_of(config, files, given, False) for given in (manifest, found)]
    assert [given["start_from"] for given in fingerprints] == [None, found.started_from_digest]
    plain = dataclasses.replace(config, start_from=None)
    assert check_start(plain, manifest) is manifest
    assert "start_from" not in fingerprint_of(plain, files, manifest, False)


def test_what_does_not_fit_is_refused(trainer_of, warm_up, tmp_path):
    config = trainer_of(start_from=str(warm_up)).config
    manifest = read_manifest(str(warm_up))
    for changes, message in (
        ({"lora": LoraConfig(r=8, alpha=8)}, r"^--start-from \S+: has another lora.r .* give --lora.r 4$"),
        ({"lora": LoraConfig(r=4, alpha=4)}, r"another lora.alpha .* give --lora.alpha 8$"),
        ({"lora": LoraConfig(r=4, alpha=8, targets=("q_proj",))}, r"give --lora.targets down_proj gate_proj"),
        ({"head": HeadConfig(kind="linear")}, r"another head.kind .* give --head.kind mlp$"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_start(dataclasses.replace(config, **changes), manifest)
    with pytest.raises(ConfigError, match=r"trained on another base .*give that as --base"):
        check_start(config, dataclasses.replace(manifest, base_digest="other"))
    with pytest.raises(ModelError, match=r"^--start-from \S+: no wsdm_ray.json; this is no folder"):
        check_start(dataclasses.replace(config, start_from=str(tmp_path)), manifest)


def test_balanced_lengths_weigh_the_loss(trainer_of):
    plain = trainer_of()
    balanced = trainer_of(objective=ObjectiveConfig(length_balance=1.0))
    assert set(plain.weights_N) == {1.0}
    assert balanced.weights_N.mean() == pytest.approx(1)
    assert balanced.weights_N.std() > 0.1
