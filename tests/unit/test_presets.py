"""The baseline's figures, one by one, and what every preset has in common."""

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import tyro

from jobs._main import main
from jobs._parse import parse, take_preset
from wsdm_ray.config import ObjectiveConfig, TrainConfig, to_dict
from wsdm_ray.errors import ConfigError
from wsdm_ray.presets import PRESETS

ROOT = Path(__file__).parents[2]

# Stage 2 of the baseline as published, a line a figure; written from its description, not from the preset.
BASELINE: dict[str, Any] = {
    "quantization": "bnb-int8",
    "lora.r": 64,
    "lora.alpha": 4,
    "lora.dropout": 0.05,
    "lora.targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "head.kind": "mlp",
    "head.dropout": 0.1,
    "head.precision": "bf16",
    "text.max_tokens": 2200,
    "text.truncation": "left",
    "text.prompt_tag": "<prompt>: ",
    "text.first_tag": "\n\n<response_a>: ",
    "text.second_tag": "\n\n<response_b>: ",
    "optimizer.kind": "adamw_8bit",
    "optimizer.learning_rate": 2e-4,
    "optimizer.warmup_fraction": 0.025,
    "optimizer.schedule": "linear",
    "optimizer.weight_decay": 0.0,
    "optimizer.max_grad_norm": 1.0,
    "pairs_per_step": 8 * 2,
    "epochs": 1.0,
    "precision": "bf16",
    "objective.label_smoothing": 0.0,
    "seed": 0xFACED,
    "checkpoint_steps": 1000,
    "layout": "padded",
    "int8_activations": True,
}


def preset_config(name: str) -> TrainConfig:
    return PRESETS[name](base="base", train=("train",), output="output", valid=("valid",))


def field_of(config: TrainConfig, path: str) -> Any:
    value: Any = json.loads(json.dumps(to_dict(config)))
    for name in path.split("."):
        value = value[name]
    return value


@pytest.mark.parametrize(("name", "orders"), [("recipe_gemma2_9b_ab", "ab"), ("recipe_gemma2_9b_ba", "ba")])
def test_the_baseline_to_the_figure(name, orders):
    config = preset_config(name)
    assert {path: field_of(config, path) for path in BASELINE} == BASELINE
    assert config.orders == orders
    assert config.token_budget >= 8 * 2200, "eight rows of full length in a micro-batch"


def test_the_two_models_of_the_baseline_differ_in_their_order_alone():
    ab, ba = preset_config("recipe_gemma2_9b_ab"), preset_config("recipe_gemma2_9b_ba")
    assert dataclasses.replace(ab, orders="ba") == ba


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_whole_config(name):
    config = preset_config(name)
    assert (config.base, config.train, config.output, config.valid) == (
        "base",
        ("train",),
        "output",
        ("valid",),
    )
    assert PRESETS[name].__name__ == name
    assert inspect.getdoc(PRESETS[name])
    assert name in str(TrainConfig.__doc__), "as --help shows it"
    if not name.startswith("recipe"):
        assert config.orders == "both"
        assert config.text.truncation == "balanced"


def test_larger_models_learn_at_lower_rates():
    sizes = ("smollm2_135m", "gemma3_270m", "qwen25_0_5b", "qwen25_1_5b", "gemma2_9b")
    rates = [preset_config(name).optimizer.learning_rate for name in sizes]
    assert rates == sorted(rates, reverse=True) == [3e-4, 3e-4, 2e-4, 1.5e-4, 1e-4]
    for name, head_rate in (("qwen25_0_5b", 1e-4), ("qwen25_1_5b", 5e-5)):
        config = preset_config(name)
        assert config.optimizer.head_learning_rate == head_rate
        assert config.token_budget >= 2 * config.text.max_tokens, "both orders of the longest pair"


def test_any_field_of_a_preset_can_be_given_anew():
    words = """--base b --train A B --output o --mix lmsys-57k 0.5 pseudolabels 0.3 --objective.teachers P1 P2
        --objective.source-weights pseudolabels 0.5 --lora.r 8 --text.truncation left --no-tensorboard"""
    preset = PRESETS["gemma2_9b"](base=tyro.MISSING, train=tyro.MISSING, output=tyro.MISSING)
    config = tyro.cli(TrainConfig, args=words.split(), default=preset)
    expected = PRESETS["gemma2_9b"](base="b", train=("A", "B"), output="o")
    assert config == dataclasses.replace(
        expected,
        mix={"lmsys-57k": 0.5, "pseudolabels": 0.3},
        objective=ObjectiveConfig(teachers=("P1", "P2"), source_weights={"pseudolabels": 0.5}),
        lora=dataclasses.replace(expected.lora, r=8),
        text=dataclasses.replace(expected.text, truncation="left"),
        tensorboard=False,
    )


def test_unknown_names_are_told_their_nearest(capsys):
    with pytest.raises(ConfigError, match=r"^--preset gema2_9b: did you mean gemma2_9b\?") as caught:
        take_preset(["--preset", "gema2_9b", "--base", "b", "--train", "t", "--output", "o"])
    with pytest.raises(ConfigError, match="--preset is given twice"):
        parse(TrainConfig, ["--preset", "tiny", "--base", "b", "--preset=tiny"])
    assert caught.value.exit_status == 2
    given = ["--preset", "tiny", "--base", "b", "--train", "t", "--output", "o"]
    assert parse(TrainConfig, given) == PRESETS["tiny"](base="b", train=("t",), output="o")
    assert main(lambda config: pytest.fail("ran"), TrainConfig, [*given, "--lora.rr", "3"]) == 2
    assert "did you mean --lora.r?" in "".join(capsys.readouterr())
