"""What `auto` means for training."""

from typing import Any

import pytest

from wsdm_ray.config import TrainConfig
from wsdm_ray.training.policy import ResolvedOptions, compile_pays_off, fastest_layout, resolve_options


def resolved(config: dict[str, Any], **machine: Any) -> ResolvedOptions:
    whole = {"device": "cuda", "precision": "bf16", "has_varlen": True, "total_steps": 1_000}
    return resolve_options(
        TrainConfig(base="b", train=("t",), output="o", **config), quantization="nf4", **(whole | machine)
    )


@pytest.mark.parametrize(
    ("device", "precision", "has_varlen", "layout"),
    [
        ("cuda", "bf16", True, "packed"),
        ("cuda", "bf16", False, "padded"),
        ("cuda", "fp32", True, "padded"),
        ("cpu", "bf16", True, "padded"),
        ("cpu", "fp32", True, "padded"),
    ],
)
def test_the_fastest_layout(device, precision, has_varlen, layout):
    assert fastest_layout(device, precision, has_varlen) == layout


def test_compiling_pays_off_in_long_packed_runs_where_packed_is_fastest():
    assert compile_pays_off("packed", "packed", 100)
    assert not compile_pays_off("packed", "packed", 99)
    assert not compile_pays_off("packed", "padded", 100)
    assert not compile_pays_off("padded", "packed", 100)


def test_options_that_say_what_they_want_are_obeyed():
    assert resolved({}) == ResolvedOptions(
        layout="packed", precision="bf16", quantization="nf4", compile="yes"
    )
    assert resolved({"compile": "no"}).compile == "no"
    assert resolved({"layout": "shared"}) == ResolvedOptions(
        layout="shared", precision="bf16", quantization="nf4", compile="no"
    )
    assert resolved({"layout": "shared", "compile": "yes"}).compile == "yes"
    assert resolved({}, total_steps=50).compile == "no"
    assert resolved({}, device="cpu", precision="fp32").layout == "padded"
