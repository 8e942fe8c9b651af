"""The jobs as functions: options as keywords, what run.json holds comes back, errors are of one line."""

import inspect
import logging

import pytest

import wsdm_ray
from jobs._options import options_of
from jobs._registry import JOBS
from wsdm_ray import api
from wsdm_ray.config import ArenaConfig, Columns, LoraConfig, PrepareConfig, ScoreConfig, TrainConfig
from wsdm_ray.errors import ConfigError, DataError, StorageError
from wsdm_ray.presets import tiny
from wsdm_ray.storage import read_json


@pytest.fixture
def ran(monkeypatch) -> list:
    """The configs that jobs are run with; none is run."""
    configs = []

    def run(self, config):
        configs.append(config)
        return {"job": self.name}

    monkeypatch.setattr("jobs._registry.Job.run", run)
    return configs


def test_keywords_make_the_config(ran, tmp_path):
    assert wsdm_ray.score(model="model", input=tmp_path, output="o", columns={"prompt": "q"}) == {
        "job": "score"
    }
    wsdm_ray.score(model=["a", "b"], input=(path for path in ("x", "y")), output="o", model_weights=(2, 1))
    wsdm_ray.prepare(input="i", output="o", columns=Columns(id="key"), make_ids=True, valid_fraction=0)
    wsdm_ray.train(
        base="b", train="t", output="o", preset="tiny", lora=LoraConfig(r=4), mix={"wsdm": 2},
        optimizer={"betas": [0.8, 0.9], "head_learning_rate": None}, token_budget=1_024, wandb=None,
        tensorboard=False,
    )  # fmt: skip
    preset = tiny("b", ("t",), "o")
    assert ran[:3] == [
        ScoreConfig(model=("model",), input=(str(tmp_path),), output="o", columns=Columns(prompt="q")),
        ScoreConfig(model=("a", "b"), input=("x", "y"), output="o", model_weights=(2, 1)),
        PrepareConfig(input=("i",), output="o", columns=Columns(id="key"), make_ids=True, valid_fraction=0),
    ]
    trained = ran[3]
    assert trained.lora == LoraConfig(r=4), "a config is taken whole"
    assert (trained.mix, trained.tensorboard, trained.token_budget) == ({"wsdm": 2.0}, False, 1_024)
    assert trained.optimizer.betas == (0.8, 0.9)
    assert trained.optimizer.learning_rate == preset.optimizer.learning_rate


def test_a_file_of_options_with_keywords_that_win(ran, tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("rows: 300\nlengths: short\n")
    wsdm_ray.arena(output="o", config=path, rows=200)
    assert ran == [ArenaConfig(output="o", rows=200, lengths="short")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input": "i"}, "--output: required and not given; help(wsdm_ray.prepare) lists the options"),
        ({"inputs": "i"}, "prepare: inputs: no such option; did you mean input?"),
        ({"columns": {"promt": "q"}}, "prepare: promt: no such option in columns; did you mean prompt?"),
        ({"columns": "q"}, "prepare: columns: must hold options, such as {name: value}"),
        ({"input": "i", "output": ["a", "b"]}, "prepare: output: takes DIR, not a list"),
        ({"input": {"a": 1}.keys(), "output": "o"}, "prepare: input: takes PATH..., not a dict_keys"),
        ({"input": "i", "output": "o", "make_ids": 1}, "prepare: make-ids: must be true or false"),
        ({"input": "i", "output": "o", "ties": "sft"}, "--ties sft: did you mean soft? must be one of "),
        ({"input": "i", "output": "o", "valid_fraction": 2}, "--valid-fraction 2.0: must be in [0, 1)"),
    ],
)  # fmt: skip
def test_wrong_options_take_one_line(ran, options, message):
    with pytest.raises(ConfigError) as caught:
        wsdm_ray.prepare(**options)
    assert str(caught.value).startswith(message)
    assert ran == []


@pytest.mark.parametrize("name", api.__all__)
def test_the_options_of_a_job_are_in_signature_and_help(name):
    function, config_type = getattr(api, name), JOBS[name].config_type()
    parameters = inspect.signature(function).parameters
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters.values())
    for option in options_of(config_type):
        spelled = option.flag.removeprefix("--").replace("-", "_")
        assert f"    {spelled}: {option.text.split()[0]}" in function.__doc__
        parameter = parameters[spelled.partition(".")[0]]
        assert (parameter.default is parameter.empty) == option.required
    assert "Returns:\n    What " in function.__doc__
    assert max(map(len, function.__doc__.splitlines())) <= 110
    assert name != "train" or parameters["lora"].default == LoraConfig()
    assert set(parameters) - {"config", "preset"} == set(config_type.__dataclass_fields__)


def test_a_job_runs_and_gives_what_run_json_holds(tmp_path, caplog):
    caplog.set_level(logging.INFO, "wsdm_ray")
    made = wsdm_ray.arena(output=tmp_path / "arena", rows=60, lengths="short")
    assert made["rows"] == 60
    run = wsdm_ray.prepare(input=tmp_path / "arena", output=tmp_path / "data", valid_fraction=0.2)
    assert run == read_json(str(tmp_path / "data" / "run.json"))
    assert sum(run["counts"]["kept"].values()) + sum(run["counts"]["dropped"].values()) == 60
    assert "kept" in caplog.text
    with pytest.raises(StorageError, match=r"none.parquet"):
        wsdm_ray.prepare(input=tmp_path / "none.parquet", output=tmp_path / "x")
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError):
        wsdm_ray.prepare(input=tmp_path / "bad.csv", output=tmp_path / "x")


def test_log_lines_go_to_standard_error_where_nobody_set_logging_up(ran, monkeypatch):
    calls = []
    monkeypatch.setattr(api, "set_up_logging", lambda: calls.append(1))
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    wsdm_ray.arena(output="o")
    assert calls == [1]
    monkeypatch.setattr(root, "handlers", [logging.NullHandler()])
    wsdm_ray.arena(output="o")
    assert calls == [1]


def test_train_config_is_found(ran):
    wsdm_ray.train(base="b", train="t", output="o")
    assert ran == [TrainConfig(base="b", train=("t",), output="o")]
