"""The command line of every job: options in, one line and a status out."""

import subprocess
import sys
from pathlib import Path

import pytest

from jobs._main import main
from wsdm_ray.config import ArenaConfig, PrepareConfig, TrainConfig
from wsdm_ray.errors import ConfigError, DataError
from wsdm_ray.failures import WorkerDefectError

ROOT = Path(__file__).parents[3]
ARENA = ["--output", "x"]


def raising(error: BaseException):
    def run(config):
        raise error

    return run


def test_a_defect_in_a_worker_is_shown_as_it_was_there(capsys):
    """Without the traceback of this process, which only waited."""
    there = 'Traceback (most recent call last):\n  File "loop.py", line 3\nIndexError: 7'
    assert main(raising(WorkerDefectError(there)), ArenaConfig, ARENA) == 1
    assert capsys.readouterr().err == f"{there}\n"


def test_options_reach_the_config():
    seen = []
    arguments = ["--input", "a", "b", "--output", "x", "--valid-fraction", "0.2", "--make-ids"]
    arguments.append("--columns.prompt=question")
    assert main(seen.append, PrepareConfig, arguments) == 0
    config = seen[0]
    assert (config.input, config.valid_fraction, config.columns.prompt) == (("a", "b"), 0.2, "question")
    assert config.make_ids


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--output: required and not given; `python -m jobs.arena --help` lists the options"),
        (["--output", "x", "--rows", "many"], "--rows many: must be a whole number"),
        (["--output", "x", "--rows", "0"], "--rows 0: must be at least 1"),
        (
            ["--output", "x", "--rwos", "3"],
            "--rwos: no such option; did you mean --rows? `python -m jobs.arena --help` lists the options",
        ),
        (["--output", "x", "y"], "y: belongs to no option; an option's values follow it"),
        (["--output"], "--output: too few values; takes DIR"),
        (
            ["--output", "x", "--lengths", "shrt"],
            "--lengths shrt: did you mean short? must be one of real, short",
        ),
    ],
)
def test_wrong_arguments_take_one_line(capsys, arguments, message):
    assert main(print, ArenaConfig, arguments) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {message}\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer.betas", "1"], "--optimizer.betas: too few values; takes X X"),
        (["--lora.alpha", "x"], "--lora.alpha x: must be a number"),
        (["--mix", "wsdm"], "--mix: must be SOURCE SHARE..."),
        (["--text.max-tokens", "3"], "--text.max-tokens 3: must be at least 32"),
    ],
)
def test_wrong_arguments_of_nested_options_take_one_line(capsys, arguments, message):
    assert main(print, TrainConfig, ["--base", "b", "--train", "t", "--output", "o", *arguments]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_an_old_name_gives_one_line_with_the_new_one(capsys):
    seen = []
    arguments = ["--base", "b", "--train", "t", "--output", "o", "--objective.order-agreement", "0.5"]
    assert main(seen.append, TrainConfig, arguments) == 0
    assert seen[0].objective.swap_consistency_weight == 0.5
    assert capsys.readouterr().err == (
        "--objective.order-agreement is called --objective.swap-consistency-weight now\n"
    )


@pytest.mark.parametrize("script", ["wsdm-ray", "/opt/bin/wsdm-ray", "prepare.py"])
def test_remedies_name_jobs_as_the_user_typed_them(capsys, monkeypatch, script):
    monkeypatch.setattr(sys, "argv", [script])
    assert main(raising(DataError("x: no column; run `python -m jobs.prepare`")), ArenaConfig, ARENA) == 1
    typed = "wsdm-ray prepare" if script.endswith("wsdm-ray") else "python -m jobs.prepare"
    assert capsys.readouterr().err == f"error: x: no column; run `{typed}`\n"


def test_a_terminated_job_removes_its_temporary_files(tmp_path):
    code = f"""
import os, signal, sys, tempfile
from jobs._main import main
from wsdm_ray.config import ArenaConfig

def run(config):
    with tempfile.TemporaryDirectory(dir={str(tmp_path)!r}):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

sys.exit(main(run, ArenaConfig, ["--output", "x"]))
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert ended.returncode == 143
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--input", "s3://k:SECRET@b/x"], ["--input=a", "gs://k:SEC/RET@b"]])
def test_credentials_in_a_path_are_not_repeated(capsys, arguments):
    assert main(print, PrepareConfig, [*arguments, "--output", "x"]) == 2
    told = capsys.readouterr()
    assert "SECRET" not in told.out + told.err
    assert "RET@" not in told.out + told.err
    assert told.err.startswith("error: --input: has a path with credentials in it; leave them to the environ")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (DataError("x.parquet: no\nrows"), 1, "error: x.parquet: no rows\n"),
        (ConfigError("--rows 0: must be at least 1"), 2, "error: --rows 0: must be at least 1\n"),
    ],
)
def test_errors_of_the_user_take_one_line(capsys, error, status, line):
    assert main(raising(error), ArenaConfig, ARENA) == status
    assert capsys.readouterr().err == line


def test_an_error_within_another_is_found(capsys):
    outer = RuntimeError("a worker failed")
    outer.__cause__ = DataError("x: no rows")
    assert main(raising(outer), ArenaConfig, ARENA) == 1
    assert capsys.readouterr().err == "error: x: no rows\n"


def test_an_error_that_ray_brings_back_is_unwrapped(capsys):
    class CopyError(DataError):
        """As Ray makes it: both a Ray error and the user's, whose text is a traceback."""

        def __init__(self, cause):
            super().__init__("ray::worker() Traceback (most recent call last) ...")
            self.cause = cause

    assert main(raising(CopyError(DataError("x: no rows"))), ArenaConfig, ARENA) == 1
    assert capsys.readouterr().err == "error: x: no rows\n"


def test_an_interrupt(capsys):
    assert main(raising(KeyboardInterrupt()), ArenaConfig, ARENA) == 130
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        main(raising(ZeroDivisionError()), ArenaConfig, ARENA)


def job(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"jobs.{name}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_arena_then_prepare(tmp_path):
    arena, data = str(tmp_path / "arena"), str(tmp_path / "data")
    done = job("arena", "--output", arena, "--rows", "500", "--lengths", "short")
    assert (done.returncode, done.stdout) == (0, "")
    assert "best accuracy 0.8" in done.stderr
    done = job("prepare", "--input", arena, "--output", data)
    assert done.returncode == 0
    assert "500 input rows" in done.stderr
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"train", "valid", "run.json"}
    done = job("prepare", "--input", arena, "--output", data)
    assert done.returncode == 0
    assert "nothing to do" in done.stderr
    done = job("prepare", "--input", arena, "--output", data, "--seed", "1")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {data}: belongs to another run")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", [["--input", "a", "--input", "b"], ["--input=a", "--input", "b"]])
def test_an_option_given_twice_is_refused(capsys, words):
    assert main(lambda config: None, PrepareConfig, [*words, "--output", "o"]) == 2
    assert (
        "error: --input is given twice; give all its values at once: --input A B" in capsys.readouterr().err
    )
