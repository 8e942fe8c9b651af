"""`--config FILE`: YAML or the run.json of an earlier run; the command line wins, then it, then a preset."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs._main import main
from jobs._parse import parse
from jobs._registry import JOBS
from wsdm_ray.config import (
    ArenaConfig,
    Columns,
    LoraConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PrepareConfig,
    ScoreConfig,
    TextConfig,
    TrainConfig,
    to_dict,
)
from wsdm_ray.errors import ConfigError
from wsdm_ray.presets import PRESETS

REQUIRED: dict[str, dict[str, Any]] = {
    "quickstart": {},
    "arena": {"output": "o"},
    "prepare": {"input": ("i", "j k"), "output": "o"},
    "quantize": {"base": "b", "output": "o"},
    "train": {"base": "b", "train": ("t",), "output": "o"},
    "score": {"model": ("m",), "input": ("i",), "output": "o"},
    "pseudolabel": {"model": ("m",), "input": ("i",), "output": "o"},
    "ensemble": {"predictions": ("p", "q"), "output": "o"},
    "evaluate": {"predictions": ("p",), "votes": ("v",), "output": "o"},
}
CHANGED: dict[str, dict[str, Any]] = {
    "quickstart": {"rows": 300},
    "arena": {"seed": 2**40, "lengths": "short"},
    "prepare": {"columns": Columns(prompt="the question"), "make_ids": True, "exclude": ("a", "b")},
    "quantize": {"precision": "w8a8-int8", "calibrate": ("c",), "adapter": ("x", "y")},
    "train": {
        "text": TextConfig(prompt_tag="", first_tag="--a\n b: ", max_tokens=64),
        "lora": LoraConfig(alpha=0.5, targets=("q_proj",)),
        "optimizer": OptimizerConfig(learning_rate=1e-5, head_learning_rate=3e-4, betas=(0.8, 0.9)),
        "objective": ObjectiveConfig(source_weights={"a b": 0.5, "c": 2.0}, teachers=("x", "y")),
        "mix": {"wsdm": 0.25}, "tensorboard": False, "compile": "yes", "max_steps": 3, "wandb": "a project",
    },
    "score": {"model": ("m", "n"), "model_weights": (1.0, 0.1), "token_budget": 640, "logits": True},
    "pseudolabel": {"hard_threshold": 0.95, "source": "x", "predictions": "p", "orders": "adaptive"},
    "ensemble": {"weights": (0.3, 0.7), "temperature": 1.5, "submission": "s.csv"},
    "evaluate": {"seed": 3, "bootstrap": 20, "columns": Columns(winner="label")},
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write_file(text: str, name: str = "options.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write_file


def test_every_job_is_tried():
    assert set(REQUIRED) == set(CHANGED) == set(JOBS)


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("changed", [False, True])
def test_the_config_in_run_json_makes_the_same_config(write, job, changed):
    config = JOBS[job].config_type()(**(REQUIRED[job] | (CHANGED[job] if changed else {})))
    path = write(json.dumps({"job": job, "config": to_dict(config), "versions": {}}), "run.json")
    assert parse(type(config), ["--config", path]) == config


@pytest.mark.parametrize("preset", PRESETS)
def test_the_config_of_a_preset_in_run_json_makes_the_same_config(write, preset):
    config = PRESETS[preset]("b", ("t",), "o")
    path = write(json.dumps({"job": "train", "config": to_dict(config)}), "run.json")
    assert parse(TrainConfig, [f"--config={path}"]) == config
    over = parse(TrainConfig, [f"--config={path}", "--preset", "smollm2_135m"])
    assert over == config, "also where another preset has a value and the file has null"


def test_what_an_earlier_run_did_to_its_folder_is_not_done_again(write):
    earlier = to_dict(ScoreConfig(**REQUIRED["score"], restart=True, dry_run=True))
    path = write(json.dumps({"job": "score", "config": earlier}), "run.json")
    assert parse(ScoreConfig, ["--config", path]) == ScoreConfig(**REQUIRED["score"])


def test_old_names_in_run_json_are_known(write):
    path = write(
        json.dumps(
            {
                "job": "train",
                "config": {
                    **REQUIRED["train"], "quantization": "int8", "objective": {"order_agreement": 0.5}
                },
            }
        ),
        "run.json",
    )  # fmt: skip
    config = parse(TrainConfig, ["--config", path])
    assert config.quantization == "bnb-int8"
    assert config.objective.swap_consistency_weight == 0.5


TRAIN = """
base: ~/base             # as on the command line
train: [a, ../b]
output: o
preset: tiny
compile: yes             # a truth value to YAML
tensorboard: no
optimizer:
  learning-rate: 1e-4    # a string to YAML
  betas: [0.8, 0.9]
lora: {r: 8, alpha: 8}
text.max_tokens: 128
mix: {wsdm: 2}
valid:
"""


def test_yaml_over_a_preset_and_the_command_line_over_yaml(write):
    path = write(TRAIN)
    config = parse(TrainConfig, ["--lora.r", "4", "--config", path, "--tensorboard", "--mix", "x", "0.5"])
    assert (config.base, config.train, config.valid, config.output) == (
        str(Path("~/base").expanduser()),
        ("a", "../b"),
        (),
        "o",
    )
    assert (config.compile, config.optimizer.learning_rate, config.optimizer.betas) == (
        "yes",
        1e-4,
        (0.8, 0.9),
    )
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (4, 8.0, 0.0)
    assert (config.text.max_tokens, config.tensorboard, config.mix) == (128, True, {"x": 0.5})
    assert config.pairs_per_step == PRESETS["tiny"]("b", ("t",), "o").pairs_per_step
    assert parse(TrainConfig, ["--no-tensorboard", "--config", path]).tensorboard is False


def test_what_a_merge_key_brings_may_be_given_anew(write):
    path = write("lora: {<<: {r: 2, alpha: 3}, r: 4}\nbase: b\ntrain: t\noutput: o\n")
    config = parse(TrainConfig, ["--config", path])
    assert (config.lora.r, config.lora.alpha) == (4, 3.0)


def test_a_key_of_json_that_is_given_twice(tmp_path):
    path = tmp_path / "options.json"
    path.write_text('{"base": "b", "train": "t", "output": "o", "output": "p"}')
    with pytest.raises(ConfigError, match=r"not JSON \(ValueError: output is given twice\)"):
        parse(TrainConfig, ["--config", str(path)])


def test_only_the_options_together_are_checked(write):
    path = write("base: b\ntrain: t\noutput: o\ntoken_budget: 100\n")
    config = parse(TrainConfig, ["--config", path, "--text.max-tokens", "50"])
    assert (config.token_budget, config.text.max_tokens) == (100, 50)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1", "FILE: lerning_rate: no such option; there are "),
        ("trian: t", "FILE: trian: no such option; did you mean train?"),
        (
            "lora: {alfa: 3}",
            "FILE: alfa: no such option in lora; did you mean alpha? there are alpha, dropout, r, targets",
        ),
        ("lora: 3", "FILE: lora: must hold options, such as {name: value}"),
        ("lora: {r: 0}", "FILE: --lora.r 0: must be at least 1"),
        ("lora: {r: many}", "FILE: --lora.r many: must be a whole number"),
        ("epochs: [1, 2]", "FILE: epochs: takes X, not a list"),
        ("restart: 1", "FILE: restart: must be true or false"),
        ("output: o\noutput: p", "FILE: not YAML (ValueError: output is given twice); write "),
        ("num_workers: 1\nnum-workers: 2", "FILE: --num-workers is given twice"),
        ("output: [", "FILE: not YAML (ParserError: "),
        ("- output", "FILE: holds no options; write `option: value` lines"),
        ("config: other.yaml", "FILE: config: a file of options cannot name another"),
        ("job: score\nconfig: {output: o}", "FILE: is of a run of score, not of train"),
        ("train: s3://key:secret@bucket/x", "--train: has a path with credentials in it"),
    ],
)  # fmt: skip
def test_a_wrong_file_takes_one_line(write, capsys, text, message):
    path = write(text)
    given = {"--base": "b", "--train": "t", "--output": "o"}
    words = [word for flag in given if flag[2:] not in text for word in (flag, given[flag])]
    assert main(print, TrainConfig, [*words, "--config", path]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message.replace('FILE', path)}")
    assert "secret" not in line


def test_a_file_that_is_missing_and_one_that_lacks_an_option(write, capsys):
    assert main(print, ArenaConfig, ["--config", "none.yaml"]) == 1
    assert capsys.readouterr().err == "error: none.yaml: not found; check the path\n"
    assert main(print, ArenaConfig, ["--config", write("rows: 3")]) == 2
    assert capsys.readouterr().err.startswith("error: --output: required and not given; ")
    with pytest.raises(ConfigError, match="--config is given twice"):
        parse(ArenaConfig, ["--config", "a", "--config", "b"])


def test_json_of_options(write):
    path = write('{"output": "o", "input": "i"}', "options.json")
    assert parse(PrepareConfig, ["--config", path]) == PrepareConfig(input=("i",), output="o")
