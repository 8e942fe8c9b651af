"""Hours and costs by measured speeds, and nothing where nothing is known."""

import pytest

from wsdm_ray.preflight.estimate import Speed, estimate, speed_of
from wsdm_ray.preflight.measured import MODELS, Measured
from wsdm_ray.preflight.model_size import Parameters

GEMMA = MODELS["gemma2-9b"]


def row(job, model, precision, speed, memory_gib=None, gpu="H"):
    return Measured(
        job=job, gpu=gpu, model=model, precision=precision, tokens_per_second=speed, source="s", way="w",
        memory_gib=memory_gib,
    )  # fmt: skip


ROWS = (
    row("score", "gemma2-9b", "w8a8-fp8", 1_000),
    row("score", "qwen25-14b", "w8a8-fp8", 600),
    row("train", "gemma2-9b", "nf4", 50, 23.0),
    row("train", "gemma2-9b", "none", 100),
)


def test_a_model_that_was_timed():
    speed = speed_of("score", "H", "w8a8-fp8", GEMMA, ROWS)
    assert speed == Speed(
        tokens_per_second=1_000, origin="measured 1,000 tokens/s of gemma2-9b as w8a8-fp8 on one H"
    )
    held = speed_of("train", "H", "nf4", GEMMA, ROWS)
    assert held.origin == "measured 50 tokens/s of gemma2-9b as nf4 on one H held to 23 GiB"


def test_another_size_is_scaled_from_the_nearest():
    half = Parameters(linear=GEMMA.linear // 2, embedding=0)
    speed = speed_of("score", "H", "w8a8-fp8", half, ROWS)
    assert speed.tokens_per_second == pytest.approx(2_000)
    assert speed.origin == "estimated from 1,000 tokens/s of gemma2-9b as w8a8-fp8 on one H"
    larger = Parameters(linear=15 * 10**9, embedding=0)
    assert "qwen25-14b" in speed_of("score", "H", "w8a8-fp8", larger, ROWS).origin


def test_the_other_8_bits_stand_for_some_that_were_not_timed_in_scoring_alone():
    speed = speed_of("score", "H", "w8a8-int8", GEMMA, ROWS)
    assert (speed.tokens_per_second, speed.origin[:14]) == (1_000, "estimated from")
    assert speed_of("train", "H", "w8a8-int8", GEMMA, ROWS).tokens_per_second is None


@pytest.mark.parametrize(
    ("gpu", "precision", "linear", "origin"),
    [
        (None, "w8a8-fp8", 8e9, "only GPUs were timed, and none is known here"),
        ("L4", "w8a8-fp8", 8e9, "no score was timed on L4, but on H"),
        ("H", "bnb-int8", 8e9, "no score as bnb-int8 was timed on H, but as w8a8-fp8"),
        ("H", "w8a8-fp8", 0.1e9, "none of about 0.1 billion weights was timed; the nearest is gemma2-9b"),
    ],
)
def test_where_nothing_is_known_that_is_said(gpu, precision, linear, origin):
    speed = speed_of("score", gpu, precision, Parameters(linear=int(linear), embedding=0), ROWS)
    assert speed == Speed(tokens_per_second=None, origin=origin)
    found = estimate([(1e6, speed)], 1, 2.5)
    assert (found.figures(), found.lines()) == (
        {"estimated_from": origin},
        [("hours", f"not known: {origin}")],
    )


def test_hours_are_shared_and_costs_are_not():
    fast, slow = (Speed(tokens_per_second=speed, origin=f"at {speed}") for speed in (1_000, 500))
    found = estimate([(3_600_000, fast), (3_600_000, slow)], 2, 2.5)
    assert found.figures() == {
        "hours": 1.5,
        "gpu_hours": 3.0,
        "cost": 7.5,
        "estimated_from": "at 1000; at 500",
    }
    assert found.lines() == [
        ("hours", "1.50 without start-up, 3.00 GPU-hours"), ("estimate", "at 1000; at 500"), ("cost", "7.50"),
    ]  # fmt: skip
    assert "cost" not in estimate([(1.0, fast)], 1, None).figures()
