"""The comparison of a checkpoint with the unquantized merge."""

import json
import shutil
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.modeling.checkpoints import refusal
from tests.unit.modeling.quantized_folders import (
    EARLIER,
    TEXT,
    made,
    our_adapter,
    peft_adapter,
    sequence_classifier,
    written,
)
from wsdm_ray.errors import ModelError
from wsdm_ray.modeling import quantization_check
from wsdm_ray.modeling.classifier import (
    ordering_logits,
    peft_warnings,
)
from wsdm_ray.modeling.families import FAMILIES
from wsdm_ray.modeling.loading import load_classifier
from wsdm_ray.modeling.manifest import Manifest
from wsdm_ray.modeling.quantization import merge
from wsdm_ray.packing.layouts import lay_out
from wsdm_ray.text.encoding import PairEncoder


@pytest.mark.parametrize("family", FAMILIES)
def test_the_merge_layer_by_layer_is_the_whole_merge(family_model, tmp_path, monkeypatch, family):
    base = family_model(family)
    adapter = peft_adapter(base, tmp_path / "adapter", 1, **EARLIER)
    written(tmp_path / "out", base, adapter, precision="bf16")
    layout = quantization_check.probe_layout(str(tmp_path / "out"), Manifest(kind="base"))

    alive: list[int] = []
    fill = quantization_check.fill

    def counted(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
        fill(module, tensors)
        held = [not parameter.is_meta for parameter in module.parameters()]
        if len(held) > 1:  # a layer
            assert all(held) or not any(held)
            alive.append(1 if all(held) else -1)

    monkeypatch.setattr(quantization_check, "fill", counted)
    found = quantization_check.merged_states(merge(str(base), [adapter], ""), layout, "cpu")
    assert alive == [1, -1, 1, -1], "a layer goes before the next comes"

    with peft_warnings():
        network: Any = peft.PeftModel.from_pretrained(sequence_classifier(base, 3), adapter)  # pyright: ignore
        backbone = network.merge_and_unload().model
    expected = quantization_check.states(backbone, backbone.config, layout, torch.float32, "cpu")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_check_of_a_backbone(family_model, tmp_path, lines):
    base = family_model("gemma2", 64)
    checks = {
        precision: made(tmp_path / precision, base, precision=precision)["check"]
        for precision in ("bf16", "bnb-int8", "w8a8-int8", "w8a8-fp8", "nf4")
    }
    stored = json.loads((tmp_path / "nf4" / "run.json").read_text())
    assert stored["check"] == checks["nf4"]
    for check in checks.values():
        assert check["compared"] == "hidden states"
        assert check["sequences"] == 2 * len(quantization_check.PROBES)
        assert 0 < check["mean_abs"] < check["max_abs"]
        assert check["mean_abs_relative"] == pytest.approx(check["mean_abs"] / check["spread"])
        assert "mean_abs_prob" not in check
    # 8 bits of mantissa, of each row's largest weight, 4 bits of mantissa (activations too), and 4 bits
    order = [checks[precision]["mean_abs"] for precision in ("bf16", "bnb-int8", "w8a8-fp8", "nf4")]
    assert order == sorted(order)
    assert order[0] < checks["w8a8-int8"]["mean_abs"] < order[2]
    assert order[-1] < 1
    (line,) = [line for line in lines() if "against" in line][-1:]
    assert line.startswith("quantize: against the unquantized weights, hidden states: off by ")


def test_the_check_of_a_classifier(family_model, tmp_path):
    base = family_model("qwen3", 64)
    ours = our_adapter(base, tmp_path / "ours", "none")
    check = made(tmp_path / "full", base, ours)["check"]

    pairs = PairEncoder(ours, TEXT).encode(*zip(*quantization_check.PROBES, strict=True))
    layout = lay_out("shared", pairs.prefix, [pairs.suffix_ab, pairs.suffix_ba], np.arange(len(pairs)))
    with torch.no_grad():
        found, expected = (
            ordering_logits(load_classifier(folder, precision=precision)[0], layout)
            for folder, precision in ((str(tmp_path / "full"), "bnb-int8"), (ours, "fp32"))
        )
    assert check["compared"] == "logits"
    assert check["tokens"] == layout.num_tokens
    # The same two networks but for the order of float32 sums.
    assert check["max_abs"] == pytest.approx(float((found - expected).abs().max()), abs=1e-5)
    assert check["mean_abs"] == pytest.approx(float((found - expected).abs().mean()), abs=1e-5)
    moved = (found.softmax(-1) - expected.softmax(-1))[:, 0].abs()
    assert check["mean_abs_prob"] == pytest.approx(float(moved.mean()), abs=1e-5)
    assert 0 < check["mean_abs_prob"] < 0.05


def test_weights_that_are_not_numbers(family_model, tmp_path):
    base = shutil.copytree(family_model("llama"), tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    message = refusal(ModelError, lambda: made(tmp_path / "out", base))
    assert message == (
        f"{base}: the unquantized merge gives hidden states that are not numbers; check its weights"
    )
    assert not (tmp_path / "out" / "model.safetensors").exists()
