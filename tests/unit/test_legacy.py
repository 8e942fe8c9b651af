"""Old names in commands, manifests and runs become the present ones, in the context of their job."""

import pytest

from wsdm_ray import legacy
from wsdm_ray.legacy import modernize_arguments, modernize_manifest, modernize_run


@pytest.mark.parametrize(
    ("job", "argv", "expected", "lines"),
    [
        (
            "quantize",
            ["--base", "int8", "--precision", "int8"],
            ["--base", "int8", "--precision", "bnb-int8"],
            ["--precision int8 is called bnb-int8 now"],
        ),
        (
            "quantize",
            ["--precision=int8-rows", "--output", "fp8"],
            ["--precision=w8a8-int8", "--output", "fp8"],
            ["--precision int8-rows is called w8a8-int8 now"],
        ),
        (
            "quantize",
            ["--precision", "fp8"],
            ["--precision", "w8a8-fp8"],
            ["--precision fp8 is called w8a8-fp8 now"],
        ),
        (
            "score",
            ["--precision", "int8", "--model", "fp8"],
            ["--precision", "w8a8-int8", "--model", "fp8"],
            ["--precision int8 is called w8a8-int8 now"],
        ),
        (
            "pseudolabel",
            ["--precision=fp8"],
            ["--precision=w8a8-fp8"],
            ["--precision fp8 is called w8a8-fp8 now"],
        ),
        (
            "train",
            ["--quantization", "int8", "--objective.order_agreement=0.1"],
            ["--quantization", "bnb-int8", "--objective.swap-consistency-weight=0.1"],
            [
                "--quantization int8 is called bnb-int8 now",
                "--objective.order_agreement is called --objective.swap-consistency-weight now",
            ],
        ),
        (
            "train",
            ["--objective.order-agreement", "0.1"],
            ["--objective.swap-consistency-weight", "0.1"],
            ["--objective.order-agreement is called --objective.swap-consistency-weight now"],
        ),
    ],
)
def test_old_arguments(job, argv, expected, lines):
    assert modernize_arguments(job, argv) == (expected, lines)


@pytest.mark.parametrize(
    ("job", "argv"),
    [
        ("quantize", ["--precision", "bnb-int8", "--adapter", "int8", "fp8"]),
        ("score", ["--precision", "bnb-int8", "--model", "int8", "--output=int8"]),
        ("train", ["--precision", "bf16", "--quantization=none", "--base", "int8"]),
        ("evaluate", ["--predictions", "int8"]),
        ("arena", []),
    ],
)
def test_present_arguments_stay(job, argv):
    assert modernize_arguments(job, argv) == (argv, [])


def test_no_present_name_is_an_old_one():
    for names in (legacy.STORED, legacy.SCORED):
        assert not set(names) & set(names.values())
    for options in legacy.OPTIONS.values():
        assert not set(options) & set(options.values())


@pytest.mark.parametrize(
    ("old", "new"),
    [("int8", "bnb-int8"), ("nf4", "nf4"), ("fp8", "w8a8-fp8"), ("int8-rows", "w8a8-int8"), ("none", "none")],
)
def test_manifest(old, new):
    manifest = {"kind": "full", "quantization": old, "temperature": 1.5}
    modern = modernize_manifest(manifest)
    assert modern == manifest | {"quantization": new}
    assert modernize_manifest(modern) == modern
    assert modernize_manifest({"kind": "full"}) == {"kind": "full"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            {
                "job": "quantize",
                "config": {"precision": "int8", "base": "int8"},
                "fingerprint": {"base": "b", "precision": "int8"},
            },
            {
                "job": "quantize",
                "config": {"precision": "bnb-int8", "base": "int8"},
                "fingerprint": {"base": "b", "precision": "bnb-int8"},
            },
        ),
        (
            {
                "job": "score",
                "config": {"precision": "int8"},
                "fingerprint": {
                    "options": {"orders": "both"},
                    "models": [{"precision": "int8"}, {"precision": "bnb-int8"}, {"precision": "fp8"}],
                },
            },
            {
                "job": "score",
                "config": {"precision": "w8a8-int8"},
                "fingerprint": {
                    "options": {"orders": "both"},
                    "models": [
                        {"precision": "w8a8-int8"},
                        {"precision": "bnb-int8"},
                        {"precision": "w8a8-fp8"},
                    ],
                },
            },
        ),
        (
            {
                "job": "train",
                "resolved": {"quantization": "int8", "precision": "fp32"},
                "fingerprint": {
                    "options": {"quantization": "int8", "objective": {"order_agreement": 0.1, "teachers": []}}
                },
            },
            {
                "job": "train",
                "resolved": {"quantization": "bnb-int8", "precision": "fp32"},
                "fingerprint": {
                    "options": {
                        "quantization": "bnb-int8",
                        "objective": {"swap_consistency_weight": 0.1, "teachers": []},
                    }
                },
            },
        ),
        (
            {"job": "tiny model", "fingerprint": {"rows": 3}},
            {"job": "tiny model", "fingerprint": {"rows": 3}},
        ),
    ],
)
def test_runs(old, new):
    assert modernize_run(old) == new
    assert modernize_run(new) == new
