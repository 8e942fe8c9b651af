"""What runs, as a table: compute capabilities, how checkpoints are stored, precisions asked for."""

from typing import Any

import pytest
import torch

from wsdm_ray.errors import ConfigError
from wsdm_ray.modeling.manifest import Manifest
from wsdm_ray.modeling.precision import (
    BNB,
    W8A8,
    ExecutionPlan,
    activation_dtype,
    device_and_dtype,
    merges_adapter,
    plan_execution,
    plan_here,
    resolve_precision,
    scoring_layout,
    training_quantization,
    uses_fused_decoder,
)

STORED = ("none", *BNB, *W8A8)
CAPABILITIES = ((7, 5), (8, 0), (8, 9), (9, 0), (10, 0))
AUTO = {
    # stored: on (7, 5), (8, 0), (8, 9), (9, 0), (10, 0); None is refused
    "none": ("bnb-int8", "w8a8-int8", "w8a8-fp8", "w8a8-int8", "w8a8-fp8"),
    "bnb-int8": ("bnb-int8", "w8a8-int8", "w8a8-fp8", "w8a8-int8", "w8a8-fp8"),
    "nf4": ("nf4", "w8a8-int8", "w8a8-fp8", "w8a8-int8", "w8a8-fp8"),
    "w8a8-int8": (None, "w8a8-int8", "w8a8-int8", "w8a8-int8", "w8a8-int8"),
    "w8a8-fp8": (None, "w8a8-int8", "w8a8-fp8", "w8a8-fp8", "w8a8-fp8"),
}
LACKING = {"w8a8-int8": {(7, 5)}, "w8a8-fp8": {(7, 5), (8, 0)}, "bf16": {(7, 5)}}
"""Precisions that GPUs of a compute capability lack."""
UNREADABLE = {
    "bnb-int8": {"nf4", "w8a8-int8", "w8a8-fp8"},
    "nf4": {"bnb-int8", "w8a8-int8", "w8a8-fp8"},
}
"""Precisions, and in what a checkpoint is stored that cannot be scored in them."""
ASKED = ("fp32", "bf16", "w8a8-int8", "w8a8-fp8", "bnb-int8", "nf4")


def stored_as(quantization: Any) -> Manifest:
    return Manifest(kind="full", quantization=quantization)


@pytest.mark.parametrize("stored", STORED)
def test_auto_on_gpus(stored):
    for capability, expected in zip(CAPABILITIES, AUTO[stored], strict=True):
        if expected is None:
            with pytest.raises(ConfigError, match=r"takes a GPU of compute capability 8\.0 or later"):
                plan_execution("auto", "cuda", stored_as(stored), capability)
        else:
            plan = plan_execution("auto", "cuda", stored_as(stored), capability)
            assert plan == plan_execution(expected, "cuda", stored_as(stored), capability)
            assert plan.precision == expected, capability


@pytest.mark.parametrize("stored", STORED)
def test_auto_on_a_cpu(stored):
    assert plan_execution("auto", "cpu", stored_as(stored), None) == ExecutionPlan(
        device="cpu",
        precision="fp32",
        weights="none",
        activations=torch.float32,
        fused=stored in W8A8,
        merged=True,
        layout="padded",
    )


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("capability", [None, *CAPABILITIES])
def test_what_is_asked_for_runs_or_is_refused(capability, asked, stored):
    device = "cpu" if capability is None else "cuda"
    if capability in LACKING.get(asked, ()) or stored in UNREADABLE.get(asked, ()):
        with pytest.raises(ConfigError, match=f"--precision {asked}: "):
            plan_execution(asked, device, stored_as(stored), capability)
        return
    bf16 = asked == "bf16" or (asked != "fp32" and capability is not None and capability >= (8, 0))
    fused = asked in W8A8 or stored in W8A8 or (device == "cuda" and asked == "bf16")
    assert plan_execution(asked, device, stored_as(stored), capability) == ExecutionPlan(
        device=device,
        precision=asked,
        weights="none" if asked in ("fp32", "bf16") else asked,
        activations=torch.bfloat16 if bf16 else torch.float32,
        fused=fused,
        merged=asked not in BNB,
        layout="shared" if fused and device == "cuda" else "padded",
    )


@pytest.mark.parametrize(
    ("asked", "stored", "capability", "remedy"),
    [
        (
            "w8a8-fp8",
            "none",
            (8, 0),
            "takes a GPU of compute capability 8.9 or later, and there is one of 8.0; "
            "use --precision w8a8-int8",
        ),
        (
            "w8a8-int8",
            "none",
            (7, 5),
            "takes a GPU of compute capability 8.0 or later, and there is one of 7.5; "
            "use --precision bnb-int8",
        ),
        (
            "w8a8-int8",
            "w8a8-fp8",
            (7, 5),
            "takes a GPU of compute capability 8.0 or later, and there is one of 7.5; "
            "use --precision bnb-int8, with the model before it was made w8a8-fp8",
        ),
        (
            "nf4",
            "bnb-int8",
            (9, 0),
            "the weights are stored as bnb-int8; use it, fp32, bf16, w8a8-int8 or w8a8-fp8",
        ),
        (
            "bnb-int8",
            "w8a8-int8",
            (9, 0),
            "the weights are stored as w8a8-int8; use fp32, bf16, w8a8-int8 or w8a8-fp8",
        ),
    ],
)
def test_refusals_name_the_remedy(asked, stored, capability, remedy):
    with pytest.raises(ConfigError) as caught:
        plan_execution(asked, "cuda", stored_as(stored), capability)
    assert str(caught.value) == f"--precision {asked}: {remedy}"


def test_refusals_of_an_adapter_that_was_trained_on_8_bit_rows_name_the_way_out():
    adapter = Manifest(kind="adapter", quantization="w8a8-int8")
    for asked, capability, remedy in (
        ("bnb-int8", (9, 0), "the adapter was trained on a base in w8a8-int8; use fp32, bf16, w8a8-int8 or "),
        ("auto", (7, 5), "score what `quantize --adapter` makes of it with --precision bnb-int8"),
    ):
        with pytest.raises(ConfigError, match=remedy):
            plan_execution(asked, "cuda", adapter, capability)


def test_the_layout_of_several_models_is_that_of_the_slowest():
    assert scoring_layout([True, True], "cuda") == "shared"
    assert scoring_layout([True, False], "cuda") == "padded"
    assert scoring_layout([True, True], "cpu") == "padded"


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        ("none", "auto", "bnb-int8"),
        ("none", "bnb-int8", "bnb-int8"),
        ("none", "nf4", "nf4"),
        ("none", "none", "none"),
        ("bnb-int8", "auto", "bnb-int8"),
        ("bnb-int8", "bnb-int8", "bnb-int8"),
        ("nf4", "auto", "nf4"),
        ("none", "w8a8-int8", "w8a8-int8"),
        ("w8a8-fp8", "auto", "w8a8-fp8"),
    ],
)
def test_how_a_base_is_held_in_training(stored, asked, expected):
    assert training_quantization("base", stored, asked) == expected


def test_a_base_is_held_as_it_is_stored():
    with pytest.raises(ConfigError) as caught:
        training_quantization("base", "bnb-int8", "none")
    assert str(caught.value) == (
        "--quantization none: base is stored as bnb-int8; use auto, or an unquantized base"
    )


def test_the_type_of_activations():
    assert activation_dtype("auto", "cpu", None) == activation_dtype("fp32", "cpu", None) == torch.float32
    assert activation_dtype("bf16", "cpu", None) == torch.bfloat16
    assert (
        activation_dtype("auto", "cuda", (7, 5)) == activation_dtype("fp32", "cuda", (9, 0)) == torch.float32
    )
    assert (
        activation_dtype("auto", "cuda", (8, 0)) == activation_dtype("bf16", "cuda", (9, 0)) == torch.bfloat16
    )
    with pytest.raises(ConfigError, match="--precision bf16: this GPU has no bfloat16; use --precision fp32"):
        activation_dtype("bf16", "cuda", (7, 5))


def test_what_the_parts_say_is_what_the_plan_says():
    """`score` asks for them where it does not know a GPU yet."""
    for precision in ASKED:
        for device, capability in (("cpu", None), ("cuda", (9, 0))):
            plan = plan_execution(precision, device, stored_as("none"), capability)
            assert uses_fused_decoder(precision, device, stored_as("none")) == plan.fused
            assert merges_adapter(precision) == plan.merged


# With the GPU of this process


def test_the_gpu_of_this_process_is_asked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L4")
    assert plan_here("auto", None, stored_as("none")).precision == "w8a8-fp8"
    assert resolve_precision("auto", "cuda", stored_as("none")) == "w8a8-fp8"
    assert resolve_precision("auto", "cuda", stored_as("none"), (9, 0)) == "w8a8-int8"
    assert device_and_dtype("auto") == ("cuda", torch.bfloat16)
    assert plan_here("auto", "cpu", stored_as("none")).precision == "fp32"


def test_precisions_that_need_no_gpu_do_not_ask_one(monkeypatch):
    """The driver of a job may be on a node without."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: pytest.fail("there is no GPU here"))
    for precision in ("fp32", "bf16", "bnb-int8", "nf4"):
        assert resolve_precision(precision, "cuda", stored_as("none")) == precision


def test_precision_of_activations():
    assert device_and_dtype("auto", "cpu") == ("cpu", torch.float32)
    assert device_and_dtype("fp32", "cpu") == ("cpu", torch.float32)
    assert device_and_dtype("bf16", "cpu") == ("cpu", torch.bfloat16)


def test_a_gpu_without_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert device_and_dtype("auto", "cuda") == ("cuda", torch.float32)
    with pytest.raises(ConfigError, match="--precision bf16: Tesla T4 has no bfloat16; use --precision fp32"):
        device_and_dtype("bf16", "cuda")
