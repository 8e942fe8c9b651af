"""The best checkpoint becomes the classifier, and a finished run notices what it lost."""

from pathlib import Path

import pytest

from wsdm_ray.errors import ModelError
from wsdm_ray.training.publish import best_checkpoint, check_published, publish, published_files

CHECKPOINTS = [
    ("a", {"step": 2, "valid_log_loss": 0.7}),
    ("b", {"step": 4, "valid_log_loss": 0.5}),
    ("c", {"step": 6, "valid_log_loss": 0.6}),
]


def test_the_best_checkpoint_has_the_lowest_log_loss_or_is_the_last():
    assert best_checkpoint(CHECKPOINTS, has_valid=True) == CHECKPOINTS[1]
    assert best_checkpoint(CHECKPOINTS, has_valid=False) == CHECKPOINTS[2]


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, dict]:
    checkpoint, output = tmp_path / "checkpoint", tmp_path / "output"
    checkpoint.mkdir()
    for name in (
        "adapter_model.safetensors", "wsdm_ray.json", "tokenizer.json", "optimizer.safetensors",
        "trainer_state.json", "metrics.jsonl",
    ):  # fmt: skip
        (checkpoint / name).write_text(name)
    return output, publish(str(checkpoint), str(output))


def test_the_classifier_is_published_without_what_is_for_resuming(published):
    output, names = published
    assert names == {"adapter_model.safetensors": 25, "wsdm_ray.json": None, "tokenizer.json": None}
    assert {path.name: path.read_text() for path in output.iterdir()} == {name: name for name in names}
    check_published(str(output), names)


def test_what_is_lost_is_named(published):
    output, names = published
    (output / "tokenizer.json").write_text("edited by a person")
    check_published(str(output), names)
    (output / "adapter_model.safetensors").write_text("cut")
    with pytest.raises(
        ModelError, match=r"adapter_model.safetensors is of 3 bytes instead of 25; copy it back"
    ):
        check_published(str(output), names)
    (output / "adapter_model.safetensors").unlink()
    for run in ({"published": names}, {}):  # runs of earlier versions did not write down what they published
        with pytest.raises(ModelError, match=r"adapter_model.safetensors is gone; .*--restart"):
            check_published(str(output), published_files(run))
