"""Planted secrets do not show in logs, errors, run.json, arguments of processes, or what travels with Ray."""

import json
import logging
import pickle
import subprocess
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs import _main
from jobs._main import main
from tests.runs import finish_run
from wsdm_ray import session, storage, telemetry
from wsdm_ray.config import EvaluateConfig, PrepareConfig, ScoreConfig
from wsdm_ray.errors import ConfigError, StorageError
from wsdm_ray.events import Event
from wsdm_ray.failures import pack_error, unpack_error
from wsdm_ray.scoring.child_process import ChildProcess, Death
from wsdm_ray.storage.patience import patiently
from wsdm_ray.storage.stores import errors_for

ROOT = Path(__file__).parents[2]
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDKEY000001", "AWS_SECRET_ACCESS_KEY": "planted/Secret+Key1",
    "AWS_SESSION_TOKEN": "planted-session-token", "HF_TOKEN": "hf_plantedToken12345",
    "WANDB_API_KEY": "planted0wandb0key00", "RAY_AUTH_TOKEN": "planted-ray-token-1",
}  # fmt: skip
KEYS = r"AKIA[0-9A-Z]{16}|hf_[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY"
"""What keys look like, for grep."""

IN_URLS = "https://user:plantedPassword@host/x?X-Amz-Signature=plantedSignature&token=plantedQuery"
SAID = f"cannot sign {IN_URLS} with {' '.join(SECRETS.values())}\nBearer plantedBearerToken"


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def check(text: str) -> None:
    """Fail where a secret is in a text; its rest is there."""
    assert not [secret for secret in (*SECRETS.values(), "planted") if secret in text], text
    assert "***" in text


def test_errors_of_users():
    check(str(ConfigError(SAID)))


def test_errors_of_stores_and_their_retries():
    def fail() -> None:
        raise ConnectionError(SAID)

    with pytest.raises(StorageError) as caught, errors_for("s3://bucket/x"):
        patiently("s3", fail, clock=iter(range(0, 1000, 100)).__next__, sleep=lambda seconds: None)
    check(str(caught.value))
    with pytest.raises(StorageError) as caught, errors_for("s3://bucket/x"):
        raise OSError(SAID)
    check(str(caught.value))


def test_log_lines_also_of_exceptions(capsys, monkeypatch):
    monkeypatch.setattr(telemetry.logger, "handlers", [])
    monkeypatch.setattr(telemetry.logger, "propagate", True)
    telemetry.set_up_logging()
    [handler] = telemetry.logger.handlers
    for line in ("plain %s", "events %s"):
        telemetry.logger.warning(line, SAID)
    try:
        raise OSError(SAID)
    except OSError:
        telemetry.logger.exception("with a traceback")
    handler.flush()
    told = capsys.readouterr().err
    check(told)
    assert len([line for line in told.splitlines() if "events" in line]) == 1
    assert handler.level == logging.NOTSET


def test_events_and_defects_of_workers():
    check(str(Event(kind="replica_died", reason=SAID)))
    packed = pack_error(OSError(SAID))
    check(packed)
    check(str(unpack_error(packed)))


def test_the_traceback_of_a_defect(capsys):
    try:
        raise ZeroDivisionError(SAID)
    except ZeroDivisionError as error:
        expected = traceback.format_exception(error)[1:-2]
        _main.print_defect(type(error), error, error.__traceback__)
    told = capsys.readouterr().err
    check(told)
    assert "".join(expected) in told


def test_a_job_prints_its_defects_that_way(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    with pytest.raises(ZeroDivisionError):
        main(lambda config: 1 / 0, PrepareConfig, ["--input", "x", "--output", "y"])
    assert sys.excepthook is _main.print_defect


def raising(notify: Any) -> None:
    raise ValueError(SAID)  # a defect: its traceback is shown


def test_child_processes_neither_in_their_arguments_nor_in_what_they_say(capfd, monkeypatch):
    commands = []

    class Popen(subprocess.Popen):  # pyright: ignore[reportMissingTypeArgument]
        def __init__(self, command, **options):
            commands.append(command)
            super().__init__(command, **options)

    monkeypatch.setattr("wsdm_ray.scoring.child_process.subprocess.Popen", Popen)
    child = ChildProcess(pickle.dumps(raising), "test")
    death = child.start()
    assert isinstance(death, Death)
    check(death.reason)
    check(capfd.readouterr().err)
    assert not [word for word in commands[0] for secret in SECRETS.values() if secret in word]


@pytest.mark.parametrize(
    "url", ["s3://KEY:planted@bucket/x", "https://h/x?token=planted", "gs://b/x?sig=planted"]
)
@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        (PrepareConfig, ["--output", "y", "--input"]),
        (ScoreConfig, ["--model", "m", "--input", "x", "--output"]),
        (EvaluateConfig, ["--votes", "v", "--output", "o", "--predictions"]),
    ],
)
def test_a_path_with_one_is_refused_and_not_repeated(config, arguments, url, capsys):
    assert main(print, config, [*arguments, url]) == 2
    told = capsys.readouterr()
    assert "planted" not in told.out + told.err
    assert "has a path with credentials in it" in told.err


def test_the_runtime_environment_of_a_job_is_left_alone(monkeypatch):
    """Ray is started without one, so that no variable of this process is written to its records."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(session.ray, "init", lambda **options: given.update(options))
    monkeypatch.setattr(session, "filter_native_lines", lambda: None)
    session.connect(local=True)
    assert given.keys() == {"address", "dashboard_port", "logging_level"}
    assert not [secret for secret in SECRETS.values() if secret in repr(given)]


def test_run_json_and_what_is_written_beside_it(tmp_path):
    config = {"input": ["s3://bucket/x"], "output": str(tmp_path / "out")}
    finish_run(str(tmp_path / "out"), "evaluate", {"options": config}, {"config": config})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    for path in files:
        text = path.read_text("utf-8", "replace")
        assert not [secret for secret in SECRETS.values() if secret in text], path


def test_file_systems_travel_without_them(monkeypatch):
    """Ray Train is given one for its checkpoints: it finds the keys where it arrives."""
    monkeypatch.setattr("wsdm_ray.storage.stores.count_retries_of_client", lambda fs, scheme: None)
    fs, _ = storage.filesystem("s3://bucket/x")
    data = pickle.dumps(fs)
    assert not [secret for secret in SECRETS.values() if secret.encode() in data]
    shown = json.dumps(SimpleNamespace(**vars(fs)).__dict__, default=repr)
    assert not [secret for secret in SECRETS.values() if secret in shown]


def test_the_repository_holds_no_key():
    """Manifests and examples name where a secret is, never one."""
    files = [
        path
        for folder in ("cluster", "docs", "examples", "jobs", "wsdm_ray")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".md", ".yaml", ".yml", ".py", ".json", ".sh", ".ipynb", ".toml"}
    ]
    assert files
    found = subprocess.run(
        ["grep", "-nE", KEYS, *map(str, files)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not found.stdout
