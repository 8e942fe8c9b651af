"""Configs check themselves, and say which option is wrong and what it takes."""

import dataclasses
import json
import math
import os

import pytest

from jobs._options import options_of
from wsdm_ray import config
from wsdm_ray.config.checks import PATHS
from wsdm_ray.errors import ConfigError

REQUIRED = {
    config.ArenaConfig: {"output": "o"},
    config.PrepareConfig: {"input": ("i",), "output": "o"},
    config.QuantizeConfig: {"base": "b", "output": "o"},
    config.TrainConfig: {"base": "b", "train": ("t",), "output": "o"},
    config.ScoreConfig: {"model": ("m",), "input": ("i",), "output": "o"},
    config.PseudolabelConfig: {"model": ("m",), "input": ("i",), "output": "o"},
    config.EnsembleConfig: {"predictions": ("p", "q"), "output": "o"},
    config.EvaluateConfig: {"predictions": "p", "votes": ("v",), "output": "o"},
    config.QuickstartConfig: {},
}


@pytest.mark.parametrize("cls", REQUIRED)
def test_frozen_keyword_only_and_plain_values(cls):
    made = cls(**REQUIRED[cls])
    assert json.loads(json.dumps(config.to_dict(made)))["output"] == made.output
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.output = "x"
    with pytest.raises(TypeError):
        cls("o")


@pytest.mark.parametrize("cls", [cls for cls in REQUIRED if REQUIRED[cls]])
def test_empty_path_is_refused(cls):
    for name, value in REQUIRED[cls].items():
        for empty in ("", ()) if isinstance(value, tuple) else ("",):
            with pytest.raises(ConfigError, match=f"--{name} .*must be given"):
                cls(**(REQUIRED[cls] | {name: empty}))


OF_INPUTS = [cls for cls in REQUIRED if "format" in {field.name for field in dataclasses.fields(cls)}]


@pytest.mark.parametrize("cls", OF_INPUTS)
def test_names_of_columns_beside_a_format_that_has_its_own(cls):
    renamed = config.Columns(prompt="question")
    assert cls(**REQUIRED[cls], columns=renamed).columns == renamed
    with pytest.raises(ConfigError, match=r"--columns: --format wsdm has its own columns; leave one"):
        cls(**REQUIRED[cls], format="wsdm", columns=renamed)


def test_every_job_with_a_format_is_tried():
    assert len(OF_INPUTS) == 5


PATH_FIELDS = [
    (cls, name)
    for cls in [*REQUIRED, config.ObjectiveConfig]
    for name in sorted(PATHS & {field.name for field in dataclasses.fields(cls)})
]


def test_every_option_that_takes_a_path_is_known_as_one():
    shown = {
        option.flag.split(".")[-1].strip("-").replace("-", "_")
        for cls in REQUIRED
        for option in options_of(cls)
        if option.takes_path
    }
    assert shown == PATHS | {"config"}  # which is read before there is a config
    assert len(PATH_FIELDS) > 20


@pytest.mark.parametrize(("cls", "name"), PATH_FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_a_path_may_begin_with_a_home_folder(monkeypatch, cls, name):
    monkeypatch.setenv("HOME", "/home/me")
    several = "tuple" in str(cls.__dataclass_fields__[name].type)
    extra = {
        "calibrate": {"precision": "w8a8-int8"},
        "tie_votes": {"submission": "s.csv", "submission_format": "lmsys"},
        "tie_predictions": {"submission": "s.csv", "submission_format": "lmsys", "tie_votes": ("v",)},
    }.get(name, {})
    for given, expected in (
        ("~/x", "/home/me/x"),
        ("~", "/home/me"),
        ("~root/x", os.path.expanduser("~root/x")),
        ("s3://b/~/x", "s3://b/~/x"),
        ("a/~/x", "a/~/x"),
    ):
        values = REQUIRED.get(cls, {}) | extra | {name: (given,) if several else given}
        found = getattr(cls(**values), name)
        assert (found[0] if several else found) == expected


WRONG = [
    (config.TextConfig, {"max_tokens": 31}, "--text.max-tokens 31: must be at least 32"),
    (config.TextConfig, {"prompt_share": 1.0}, "--text.prompt-share 1.0: must be between 0 and 1"),
    (config.HeadConfig, {"dropout": 1.0}, "--head.dropout 1.0: must be in [0, 1)"),
    (config.LoraConfig, {"r": 0}, "--lora.r 0: must be at least 1"),
    (config.LoraConfig, {"alpha": 0}, "--lora.alpha 0: must be above 0"),
    (config.LoraConfig, {"dropout": -0.1}, "--lora.dropout -0.1: must be in [0, 1)"),
    (config.LoraConfig, {"targets": ()}, "--lora.targets (): must be at least one layer name"),
    (config.OptimizerConfig, {"learning_rate": 0.0}, "--optimizer.learning-rate 0.0: must be above 0"),
    (
        config.OptimizerConfig,
        {"head_learning_rate": 0.0},
        "--optimizer.head-learning-rate 0.0: must be above 0",
    ),
    (config.OptimizerConfig, {"weight_decay": -1}, "--optimizer.weight-decay -1: must be 0 or more"),
    (config.OptimizerConfig, {"warmup_fraction": 1.1}, "--optimizer.warmup-fraction 1.1: must be in [0, 1]"),
    (config.OptimizerConfig, {"betas": (1.0, 0.9)}, "--optimizer.betas (1.0, 0.9): must be in [0, 1) each"),
    (config.TrainConfig, {"seed": 2**63}, f"--seed {2**63}: must be from 0 to 2**63 - 1"),
    (config.TrainConfig, {"epochs": math.inf}, "--epochs inf: must be finite"),
    (config.LoraConfig, {"alpha": math.inf}, "--lora.alpha inf: must be finite"),
    (config.OptimizerConfig, {"learning_rate": math.inf}, "--optimizer.learning-rate inf: must be finite"),
    (
        config.OptimizerConfig,
        {"head_learning_rate": math.inf},
        "--optimizer.head-learning-rate inf: must be finite",
    ),
    (config.OptimizerConfig, {"weight_decay": math.inf}, "--optimizer.weight-decay inf: must be finite"),
    (
        config.ObjectiveConfig,
        {"teacher_temperature": math.inf},
        "--objective.teacher-temperature inf: must be finite",
    ),
    (
        config.ObjectiveConfig,
        {"swap_consistency_weight": math.inf},
        "--objective.swap-consistency-weight inf: must be finite",
    ),
    (config.EnsembleConfig, {"temperature": math.inf}, "--temperature inf: must be finite"),
    (config.OptimizerConfig, {"max_grad_norm": 0}, "--optimizer.max-grad-norm 0: must be above 0"),
    (
        config.ObjectiveConfig,
        {"label_smoothing": 1.0},
        "--objective.label-smoothing 1.0: must be in [0, 1)",
    ),
    (config.ObjectiveConfig, {"teacher_weight": 1.1}, "--objective.teacher-weight 1.1: must be in [0, 1]"),
    (
        config.ObjectiveConfig,
        {"teacher_temperature": 0},
        "--objective.teacher-temperature 0: must be above 0",
    ),
    (
        config.ObjectiveConfig,
        {"swap_consistency_weight": -1},
        "--objective.swap-consistency-weight -1: must be 0 or more",
    ),
    (config.ObjectiveConfig, {"length_balance": 1.5}, "--objective.length-balance 1.5: must be in [0, 1]"),
    (
        config.ObjectiveConfig,
        {"source_weights": {"wsdm": -1.0}},
        "--objective.source-weights wsdm -1.0: must be 0 or more each",
    ),
    (config.TrainConfig, {"mix": {"wsdm": -0.5}}, "--mix wsdm -0.5: must be 0 or more each"),
    (config.TrainConfig, {"loss_spike": 1.0}, "--loss-spike 1.0: must be above 1"),
    (
        config.TrainConfig,
        {"orders": "ab", "objective": config.ObjectiveConfig(swap_consistency_weight=0.1)},
        "--objective.swap-consistency-weight 0.1: must be 0 with one order",
    ),
    (config.PseudolabelConfig, {"hard_threshold": 0.4}, "--hard-threshold 0.4: must be in [0.5, 1)"),
    (config.EnsembleConfig, {"temperature": 0}, "--temperature 0: must be above 0"),
    (
        config.EnsembleConfig,
        {"weights": (1.0,)},
        "--weights (1.0,): must be one for each of the 2 sets of predictions",
    ),
    (
        config.EnsembleConfig,
        {"weights": (0.0, 0.0)},
        "--weights (0.0, 0.0): must be 0 or more, and not all 0",
    ),
    (config.ArenaConfig, {"rows": 0}, "--rows 0: must be at least 1"),
    (config.PrepareConfig, {"valid_fraction": 1.0}, "--valid-fraction 1.0: must be in [0, 1)"),
    (
        config.PrepareConfig,
        {"split": "modulo", "valid_fraction": 0.7},
        "--valid-fraction 0.7: must be at most 0.5 with --split modulo",
    ),
    (config.PrepareConfig, {"shard_rows": 0}, "--shard-rows 0: must be at least 1"),
    (
        config.QuantizeConfig,
        {"average": True, "adapter": ("A",)},
        "--adapter A: must be two folders or more where --average is given",
    ),
    (
        config.TrainConfig,
        {"wait_for_resources_seconds": -1.0},
        "--wait-for-resources-seconds -1.0: must be 0 or more",
    ),
    (config.TrainConfig, {"min_workers": 2}, "--min-workers 2: must be between 1 and --num-workers (1)"),
    (config.TrainConfig, {"num_workers": 0}, "--num-workers 0: must be at least 1"),
    (config.TrainConfig, {"epochs": 0}, "--epochs 0: must be above 0"),
    (config.TrainConfig, {"epochs": float("nan")}, "--epochs nan: must be above 0"),
    (config.TrainConfig, {"max_steps": 0}, "--max-steps 0: must be at least 1"),
    (config.TrainConfig, {"pairs_per_step": 0}, "--pairs-per-step 0: must be at least 1"),
    (config.TrainConfig, {"micro_batches": 0}, "--micro-batches 0: must be at least 1"),
    (config.TrainConfig, {"checkpoint_steps": 0}, "--checkpoint-steps 0: must be at least 1"),
    (config.TrainConfig, {"max_failures": -1}, "--max-failures -1: must be 0 or more"),
    (config.TrainConfig, {"gpu_hour_price": 0.0}, "--gpu-hour-price 0.0: must be above 0"),
    (
        config.TrainConfig,
        {"token_budget": 4095},
        "--token-budget 4095: must be at least twice max_tokens (2048)",
    ),
    (config.ScoreConfig, {"unit_rows": 0}, "--unit-rows 0: must be at least 1"),
    (config.ScoreConfig, {"unit_timeout_seconds": 0}, "--unit-timeout-seconds 0: must be above 0"),
    (
        config.ScoreConfig,
        {"unit_timeout_seconds": 60.0, "output": "s3://bucket/out"},
        "--unit-timeout-seconds 60.0: must be above --store-timeout-seconds 120: a store may be waited for "
        "so long",
    ),
    (config.ScoreConfig, {"gpu_hour_price": -1.0}, "--gpu-hour-price -1.0: must be above 0"),
    (config.ScoreConfig, {"max_tokens": 31}, "--max-tokens 31: must be at least 32"),
    (config.ScoreConfig, {"token_budget": 63}, "--token-budget 63: must be at least 64"),
    (config.ScoreConfig, {"replicas": 0}, "--replicas 0: must be at least 1"),
    (config.ScoreConfig, {"min_replicas": 0}, "--min-replicas 0: must be between 1 and --replicas (auto)"),
    (
        config.ScoreConfig,
        {"replicas": 2, "min_replicas": 3},
        "--min-replicas 3: must be between 1 and --replicas (2)",
    ),
    (
        config.ScoreConfig,
        {"wait_for_resources_seconds": -1.0},
        "--wait-for-resources-seconds -1.0: must be 0 or more",
    ),
    (
        config.ScoreConfig,
        {"model_weights": (1.0, 2.0)},
        "--model-weights (1.0, 2.0): must be one for each of the 1 models",
    ),
    (config.ScoreConfig, {"model_weights": (0.0,)}, "--model-weights (0.0,): must be above 0 each"),
    (
        config.ScoreConfig,
        {"base": ("b", "c")},
        "--base ('b', 'c'): must be one folder, or one for each of the 1 models",
    ),
    (
        config.ScoreConfig,
        {"adaptive_threshold": 0.51},
        "--adaptive-threshold 0.51: must be in (0, 0.5]",
    ),
    (
        config.QuantizeConfig,
        {"precision": "w8a8-fp8", "calibrate": ("c",)},
        "--precision w8a8-fp8: must be w8a8-int8 where --calibrate is given",
    ),
    (config.QuantizeConfig, {"calibration_pairs": 0}, "--calibration-pairs 0: must be at least 1"),
    (config.EvaluateConfig, {"bootstrap": 19}, "--bootstrap 19: must be at least 20"),
    (
        config.EvaluateConfig,
        {"adaptive_tolerance": -0.1},
        "--adaptive-tolerance -0.1: must be 0 or more",
    ),
    (config.QuickstartConfig, {"rows": 199}, "--rows 199: must be at least 200"),
    (config.QuickstartConfig, {"num_workers": 0}, "--num-workers 0: must be at least 1"),
    (
        config.ScoreConfig,
        {"submission": "s.csv", "submission_format": "lmsys", "tie_rate": 1.0},
        "--tie-rate 1.0: must be in (0, 1)",
    ),
    (
        config.EnsembleConfig,
        {"submission": "s.csv", "submission_format": "lmsys", "tie_rate": 1.0},
        "--tie-rate 1.0: must be in (0, 1)",
    ),
    (config.ScoreConfig, {"tie_rate": 0.3}, "--tie-rate 0.3: must be beside --submission-format lmsys"),
    (
        config.ScoreConfig,
        {"submission_format": "lmsys"},
        "--submission-format lmsys: must be beside --submission",
    ),
    (
        config.ScoreConfig,
        {"submission": "s", "submission_format": "lmsys", "tie_predictions": "p"},
        "--tie-predictions p: must be beside --tie-votes",
    ),
    (
        config.ScoreConfig,
        {"submission": "s", "submission_format": "lmsys", "tie_rate": 0.3, "tie_votes": ("v",)},
        "--tie-rate 0.3: must be given without --tie-votes: the one or the other",
    ),
    (config.ScoreConfig, {"keep_columns": ("",)}, "--keep-columns ('',): must be names of columns"),
]


ON_STORES = (
    *(config.PrepareConfig, config.TrainConfig, config.ScoreConfig, config.EnsembleConfig),
    *(config.EvaluateConfig, config.ArenaConfig, config.QuantizeConfig, config.QuickstartConfig),
)
TOO_SHORT = "--store-timeout-seconds 0: must be above 0"
WRONG += [(cls, {"store_timeout_seconds": 0}, TOO_SHORT) for cls in ON_STORES]


@pytest.mark.parametrize(("cls", "options", "message"), WRONG)
def test_wrong_value_is_named_with_its_remedy(cls, options, message):
    with pytest.raises(ConfigError) as caught:
        cls(**(REQUIRED.get(cls, {}) | options))
    assert str(caught.value) == message


def test_every_checked_field_is_tested():
    """A new numeric field with a bound gets its line in WRONG; a field that takes anything is named here."""
    free = {"seed", "betas"}
    tested = {(cls, name) for cls, options, _ in WRONG for name in options}
    tested |= {(config.PseudolabelConfig, name) for cls, name in tested if cls is config.ScoreConfig}
    parts = (config.TextConfig, config.HeadConfig, config.LoraConfig, config.OptimizerConfig)
    for cls in (*parts, config.ObjectiveConfig, *REQUIRED):
        for field in dataclasses.fields(cls):
            kind = str(getattr(field.type, "__name__", field.type)).removesuffix(" | None")
            bounded = kind in ("int", "float") and field.name not in free
            assert not bounded or (cls, field.name) in tested, f"{cls.__name__}.{field.name}"
