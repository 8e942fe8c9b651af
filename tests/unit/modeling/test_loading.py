"""A checkpoint as a stack gives the probabilities of the network that it stands for."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.modeling.checkpoints import manifest_of, trained
from wsdm_ray.config import QuantizeConfig, TextConfig
from wsdm_ray.errors import ConfigError, ModelError
from wsdm_ray.modeling import quantized_linear
from wsdm_ray.modeling.checkpoint import save_classifier
from wsdm_ray.modeling.checkpoint_writer import write_checkpoint
from wsdm_ray.modeling.families import FAMILIES
from wsdm_ray.modeling.loading import load_classifier, load_fused_classifier, load_scorer
from wsdm_ray.modeling.manifest import folder_digest
from wsdm_ray.modeling.merging import Merged, read_base
from wsdm_ray.modeling.precision import W8A8, uses_fused_decoder
from wsdm_ray.modeling.quantization import merge, quantize
from wsdm_ray.modeling.scorers import FusedClassifier, Scorer, TransformersScorer
from wsdm_ray.packing.layouts import lay_out
from wsdm_ray.text.encoding import PairEncoder

STORED_ROWS = tuple(f"full_{stored}" for stored in W8A8)
TEXT = TextConfig(max_tokens=64)
PAIRS = (
    ["What is 2 + 2?", ""],
    ["4", "The answer is 42, of course."],
    ["I cannot help with that, sorry.", "好"],
)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def folders(request, family_model: Callable[..., Path], tmp_path_factory) -> dict[str, str]:
    """Checkpoints of one family by kind."""
    root, plain = tmp_path_factory.mktemp("loading"), family_model(request.param, 64)
    quantize(QuantizeConfig(base=str(plain), output=f"{root}/int8"))
    for name, base, asked in (("adapter", plain, "none"), ("adapter_int8", root / "int8", "auto")):
        manifest = manifest_of(base, asked)
        save_classifier(trained(base, manifest.quantization), str(base), f"{root}/{name}", manifest)
    for precision in ("bnb-int8", *W8A8):
        written(f"{root}/full_{precision}", plain, f"{root}/adapter", precision)
    layer_types = ("adapter", "adapter_int8", "full_bnb-int8", *STORED_ROWS)
    return {name: f"{root}/{name}" for name in layer_types}


def written(output: str, base: Path, adapter: str, precision: str) -> None:
    """What `quantize` writes, without its check."""
    Path(output).mkdir()
    write_checkpoint(merge(str(base), [adapter], folder_digest(str(base))), precision, output)


@torch.no_grad()
def logits(scorer: Scorer, folder: str, text) -> np.ndarray:
    pairs = PairEncoder(folder, text).encode(*PAIRS)
    layout = lay_out("shared", pairs.prefix, [pairs.suffix_ab, pairs.suffix_ba], np.arange(2))
    return scorer(layout).numpy()


@pytest.mark.parametrize("kind", ["adapter", "adapter_int8", "full_bnb-int8"])
def test_as_the_merged_network(folders, kind):
    network, manifest = load_classifier(folders[kind], precision="fp32")
    made, found = load_fused_classifier(folders[kind], precision="fp32")
    assert found == manifest
    expected = logits(TransformersScorer(network), folders[kind], manifest.text)
    np.testing.assert_allclose(logits(made, folders[kind], manifest.text), expected, atol=1e-5)
    for precision, near in (("w8a8-int8", 0.1), ("w8a8-fp8", 0.5)):
        made, _ = load_fused_classifier(folders[kind], precision=precision)
        apart = np.abs(logits(made, folders[kind], manifest.text) - expected).mean()
        assert 0 < apart < near * expected.std(), precision


def test_a_base_without_a_head_is_refused(folders):
    with pytest.raises(ModelError, match="a base without a head"):
        load_fused_classifier(str(Path(folders["full_bnb-int8"]).parent / "int8"), precision="w8a8-int8")


def assert_same_stacks(one: FusedClassifier, other: FusedClassifier) -> None:
    for layers in zip(one.stack.layers, other.stack.layers, strict=True):
        for name in ("qkv", "o", "gate_up", "down"):
            first, second = (getattr(layer, name) for layer in layers)
            assert first.values.dtype == second.values.dtype
            assert torch.equal(first.values.view(torch.uint8), second.values.view(torch.uint8)), name
            torch.testing.assert_close(first.scale, second.scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize("stored", W8A8)
def test_what_is_stored_in_rows_is_taken_as_it_is(folders, monkeypatch, stored):
    folder, precision = folders[f"full_{stored}"], stored
    with monkeypatch.context() as patch:
        patch.setattr(quantized_linear, "quantize_weight", lambda *_, **__: pytest.fail("quantized anew"))
        straight, _ = load_fused_classifier(folder, precision=precision)
    with monkeypatch.context() as patch:
        patch.setattr(Merged, "rows", lambda *_, **__: None)
        requantized, _ = load_fused_classifier(folder, precision=precision)
    assert_same_stacks(straight, requantized)
    found, expected = (logits(each, folder, TEXT) for each in (straight, requantized))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("stored", W8A8)
def test_rows_that_were_saved_are_rows_of_the_adapter(folders, stored):
    saved, manifest = load_fused_classifier(folders[f"full_{stored}"], precision=stored)
    assert (manifest.kind, manifest.quantization) == ("full", stored)
    loaded, _ = load_fused_classifier(folders["adapter"], precision=stored)
    assert_same_stacks(saved, loaded)
    found, expected = (logits(each, folders["adapter"], TEXT) for each in (saved, loaded))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("folders", ["gemma2"], indirect=True)
def test_what_runs_what(folders):
    for kind, precision, expected in (
        ("adapter", "auto", None),
        ("adapter", "bf16", None),
        ("adapter_int8", "bnb-int8", None),
        ("adapter_int8", "w8a8-int8", torch.int8),
        ("adapter", "w8a8-fp8", torch.float8_e4m3fn),
        ("full_bnb-int8", "auto", None),
        ("full_w8a8-fp8", "auto", torch.float32),
        ("full_w8a8-fp8", "bf16", torch.bfloat16),
        ("full_w8a8-fp8", "w8a8-int8", torch.int8),
        ("full_w8a8-fp8", "w8a8-fp8", torch.float8_e4m3fn),
        ("full_w8a8-int8", "auto", torch.float32),
        ("full_w8a8-int8", "w8a8-fp8", torch.float8_e4m3fn),
        ("full_w8a8-int8", "w8a8-int8", torch.int8),
    ):
        scorer, manifest = load_scorer(folders[kind], precision=precision)
        assert isinstance(scorer, FusedClassifier) == (expected is not None), (kind, precision)
        if isinstance(scorer, FusedClassifier):
            assert scorer.stack.layers[0].qkv.values.dtype == expected
        assert np.isfinite(logits(scorer, folders[kind], manifest.text)).all()
    assert uses_fused_decoder("bf16", "cuda", manifest)
    plain = dataclasses.replace(manifest, quantization="none")
    assert not any(uses_fused_decoder(precision, "cuda", plain) for precision in ("fp32", "bnb-int8", "nf4"))


def test_what_a_network_of_transformers_cannot_run(folders):
    for kind in STORED_ROWS:
        with pytest.raises(
            ModelError, match=rf"{kind}: a network of transformers cannot run fp32 of it; use lo"
        ):
            load_classifier(folders[kind])
    with pytest.raises(ModelError, match="cannot run w8a8-int8 of it"):
        load_classifier(folders["full_bnb-int8"], precision="w8a8-int8")
    for stored in W8A8:
        message = (
            rf"^--precision bnb-int8: the weights are stored as {stored}; "
            "use fp32, bf16, w8a8-int8 or w8a8-fp8$"
        )
        with pytest.raises(ConfigError, match=message):
            load_scorer(folders[f"full_{stored}"], precision="bnb-int8")


def test_a_layer_that_was_left_out_of_quantizing_has_no_rows(folders):
    base = read_base(folders["full_w8a8-fp8"])
    name = f"{sorted(base.linears)[0]}.weight"
    assert Merged(base=base).rows(name, "w8a8-fp8") is not None
    places = base.places | {name: {"weight": base.places[name]["weight"]}}
    assert Merged(base=dataclasses.replace(base, places=places)).rows(name, "w8a8-fp8") is None
