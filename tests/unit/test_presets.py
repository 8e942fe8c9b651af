"""The recipe's figures, one by one, and what every preset has in common."""

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import tyro

from jobs._main import main
from jobs.train import take_preset
from wsdm_ray.config import ObjectiveConfig, TrainConfig, to_dict
from wsdm_ray.errors import ConfigError
from wsdm_ray.presets import PRESETS

ROOT = Path(__file__).parents[2]

# Stage 2 of the recipe as published, a line a figure; written from its description, not from the preset.
RECIPE: dict[str, Any] = {
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


def made(name: str) -> TrainConfig:
    return PRESETS[name](base="base", train=("train",), output="output", valid=("valid",))


def field_of(config: TrainConfig, path: str) -> Any:
    value: Any = json.loads(json.dumps(to_dict(config)))
    for name in path.split("."):
        value = value[name]
    return value


@pytest.mark.parametrize(("name", "orders"), [("recipe_gemma2_9b_ab", "ab"), ("recipe_gemma2_9b_ba", "ba")])
def test_the_recipe_to_the_figure(name, orders):
    config = made(name)
    assert {path: field_of(config, path) for path in RECIPE} == RECIPE
    assert config.orders == orders
    assert config.token_budget >= 8 * 2200, "eight rows of full length in a pass"


def test_the_two_models_of_the_recipe_differ_in_their_order_alone():
    ab, ba = made("recipe_gemma2_9b_ab"), made("recipe_gemma2_9b_ba")
    assert dataclasses.replace(ab, orders="ba") == ba


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_whole_config(name):
    config = made(name)
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
    with pytest.raises(ConfigError, match="--preset stands twice"):
        take_preset(["--preset", "tiny", "--base", "b", "--preset=tiny"])
    assert caught.value.exit_status == 2
    given = ["--preset", "tiny", "--base", "b", "--train", "t", "--output", "o", "--lora.rr", "3"]
    preset, rest = take_preset(given)
    assert main(lambda config: pytest.fail("ran"), TrainConfig, rest, default=preset) == 2
    assert "--lora.r" in "".join(capsys.readouterr())
