"""Adapters and heads that do not fit their base, or are not whole."""

import numpy as np
import pytest
import torch

from tests.unit.modeling.checkpoints import before, edit_tensors, logits_of, refusal, rewrite
from wsdm_ray.errors import ModelError
from wsdm_ray.modeling.loading import load_classifier
from wsdm_ray.modeling.manifest import folder_digest


def test_without_its_base(copy_of):
    folder = copy_of("adapter_int8")
    rewrite(folder, base="/nowhere/base")
    message = refusal(ModelError, lambda: load_classifier(str(folder)))
    assert message.startswith(f"{folder}: its base /nowhere/base cannot be had (")
    assert message.endswith("; use --base FOLDER")


def test_a_base_that_moved(folders, copy_of):
    folder = copy_of("adapter_int8")
    rewrite(folder, base="/nowhere/base")
    network, _ = load_classifier(str(folder), precision="bnb-int8", base=str(folders["bnb-int8"]))
    np.testing.assert_array_equal(logits_of(network, folder).numpy(), before(folders, "adapter_int8"))


def test_another_base(folders):
    message = refusal(
        ModelError, lambda: load_classifier(str(folders["adapter_int8"]), base=str(folders["plain"]))
    )
    mine, other = (folder_digest(str(folders[name]))[:12] for name in ("bnb-int8", "plain"))
    assert message == (
        f"{folders['adapter_int8']}: was trained on a base with digest {mine}, but {folders['plain']} has "
        f"{other}; use --base with the base it was trained on"
    )


@pytest.mark.parametrize(("name", "file"), [("adapter_int8", "adapter_model"), ("full_bnb-int8", "model")])
def test_without_its_head(copy_of, name, file):
    folder = copy_of(name)
    edit_tensors(
        folder / f"{file}.safetensors",
        lambda tensors: {name: tensor for name, tensor in tensors.items() if "score." not in name},
    )
    message = refusal(ModelError, lambda: load_classifier(str(folder)))
    assert message == (
        f"{folder}: has no head; "
        "it needs the tensors score.1.weight, score.1.bias, score.4.weight, score.4.bias"
    )


@pytest.mark.parametrize(("name", "file"), [("adapter_int8", "adapter_model"), ("full_bnb-int8", "model")])
def test_a_head_of_another_width(copy_of, name, file):
    folder = copy_of(name)
    edit_tensors(
        folder / f"{file}.safetensors",
        lambda tensors: {
            name: torch.zeros(32, 48) if name.endswith("score.1.weight") else tensor
            for name, tensor in tensors.items()
        },
    )
    message = refusal(ModelError, lambda: load_classifier(str(folder)))
    assert message.startswith(f"{folder}: its head {{")
    assert "'1.weight': (32, 48)" in message
    assert "does not fit this base, which needs {'1.weight': (32, 64)" in message


def test_a_head_of_another_kind(copy_of):
    folder = copy_of("adapter_int8")
    rewrite(folder, head={"kind": "linear", "dropout": 0.1})
    assert "which needs {'weight': (2, 64)}" in refusal(ModelError, lambda: load_classifier(str(folder)))


def test_an_adapter_that_lacks_a_layer(copy_of):
    folder = copy_of("adapter_int8")
    edit_tensors(
        folder / "adapter_model.safetensors",
        lambda tensors: {name: tensor for name, tensor in tensors.items() if ".layers.1.mlp.up" not in name},
    )
    message = refusal(ModelError, lambda: load_classifier(str(folder)))
    assert (
        "adapter_model.safetensors: lacks base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
        in message
    )
    assert "copy it anew" in message


def test_an_adapter_that_is_cut_off(copy_of):
    path = copy_of("adapter_int8") / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    message = refusal(ModelError, lambda: load_classifier(str(path.parent)))
    assert message.startswith(f"{path}: not whole (")


def test_an_adapter_of_which_a_part_is_gone(copy_of):
    folder = copy_of("adapter_int8")
    (folder / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors; the checkpoint is not complete" in refusal(
        ModelError, lambda: load_classifier(str(folder))
    )
