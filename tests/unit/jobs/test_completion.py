"""Completion in a real bash, and in zsh and fish where they are installed."""

import dataclasses
import shutil
import subprocess

import pytest

from jobs._cli import main
from jobs._options import options_of
from jobs._registry import JOBS


@pytest.fixture
def script(capsys):
    def of(shell: str) -> str:
        assert main(["completion", shell]) == 0
        return capsys.readouterr().out

    return of


def bash(script: str, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    code = f"""{script}
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_wsdm_ray
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", code, "bash", "wsdm-ray", *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_bash_completes_jobs(script):
    assert bash(script("bash"), "") == [*JOBS, "cache", "completion", "--help", "--version"]
    assert bash(script("bash"), "qu") == ["quickstart", "quantize"]


@pytest.mark.parametrize("job", JOBS.values(), ids=lambda job: job.name)
def test_bash_completes_every_option_of_a_job(script, job):
    offered = bash(script("bash"), job.name, "--")
    options = options_of(job.config_type())
    assert offered == [*(flag for option in options for flag in option.flags), "--help"]
    names = {field.name.replace("_", "-") for field in dataclasses.fields(job.config_type())}
    roots = {flag.removeprefix("--").removeprefix("no-").split(".")[0] for flag in offered}
    assert roots - {"help", "preset", "config"} == names


def test_bash_completes_values_that_are_few_and_files_elsewhere(script):
    assert bash(script("bash"), "train", "--preset", "gemma") == ["gemma2_9b", "gemma3_270m"]
    assert bash(script("bash"), "arena", "--lengths", "") == ["real", "short"]
    assert bash(script("bash"), "score", "--text", "--dry") == ["--dry-run"]
    assert bash(script("bash"), "score", "--input", "") == [], "bash's own completion of files comes next"
    assert bash(script("bash"), "completion", "") == ["bash", "zsh", "fish"]
    assert bash(script("bash"), "cache", "") == ["list", "clear"]


def test_bash_calls_the_function_for_the_script(script):
    done = subprocess.run(
        ["bash", "-c", script("bash") + "complete -p wsdm-ray"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "complete -o default -F _wsdm_ray wsdm-ray\n"


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_read_their_script(script, shell):
    text = script(shell)
    for job in JOBS.values():
        for option in options_of(job.config_type()):
            assert (f"-l {option.flag[2:]} " if shell == "fish" else option.flag) in text
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True)


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes(script):
    code = script("fish") + "\ncomplete -C 'wsdm-ray score --precision '"
    done = subprocess.run(["fish", "-c", code], capture_output=True, text=True, check=True)
    assert "auto" in done.stdout.split()


def test_an_unknown_shell_is_refused(capsys):
    assert main(["completion", "tcsh"]) == 2
    assert capsys.readouterr().err == "error: wsdm-ray completion: name a shell: bash, zsh, fish\n"
