"""The console script: what it lists, what it refuses, and that a job is the same behind both names."""

import importlib
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import wsdm_ray
from jobs._cli import main
from jobs._registry import JOBS

ROOT = Path(__file__).parents[3]

SCRIPT = "import sys; sys.argv[0] = 'wsdm-ray'; from jobs._cli import main; sys.exit(main())"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_script_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["wsdm-ray"].partition(":")
    assert getattr(importlib.import_module(module), name) is main


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_jobs_are_listed_a_line_each_in_the_order_of_the_flow(capsys, arguments):
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split(maxsplit=1) for line in lines if line.startswith("  ")]
    assert listed == [[job.name, job.summary] for job in JOBS.values()]
    order = ["arena", "prepare", "quantize", "train", "score", "pseudolabel", "ensemble", "evaluate"]
    assert [name for name in JOBS if name in order] == order
    assert max(map(len, lines)) <= 110


def test_python_m_jobs_prints_the_same_list(capsys):
    main([])
    done = run("-m", "jobs")
    assert (done.returncode, done.stdout, done.stderr) == (0, capsys.readouterr().out, "")


def test_every_job_is_a_module_and_every_module_a_job():
    assert {path.stem for path in (ROOT / "jobs").glob("[a-z]*.py")} == set(JOBS)


@pytest.mark.parametrize("job", JOBS.values(), ids=lambda job: job.name)
def test_a_job_names_a_config_and_a_function(job):
    assert job.config_type().__module__.startswith("wsdm_ray.config")
    module, _, function = job.function.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_version_names_the_libraries_without_importing_them():
    done = run("-c", SCRIPT, "--version")
    assert done.stdout == (
        f"wsdm-ray {wsdm_ray.__version__} (ray {version('ray')}, torch {version('torch')}, "
        f"transformers {version('transformers')})\n"
    )
    code = "import sys; from jobs._cli import main; main(['--version']); print('ray' in sys.modules)"
    assert run("-c", code).stdout.splitlines()[1] == "False"


@pytest.mark.parametrize(("name", "hint"), [("scroe", "did you mean score? "), ("xyz", "")])
def test_an_unknown_job_is_refused(capsys, name, hint):
    assert main([name, "--input", "a"]) == 2
    names = "quickstart, arena, prepare, quantize, train, score, pseudolabel, ensemble, evaluate"
    assert capsys.readouterr().err == f"error: {name}: no such job; {hint}there are {names}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["prepare", "--input", "nowhere.parquet", "--output", "x"],
        ["prepare", "--input", "a"],
        ["arena", "--output", "x", "--rows", "0"],
        ["evaluate", "--help"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_job_is_the_same_behind_both_names(arguments):
    module = run("-m", f"jobs.{arguments[0]}", *arguments[1:])
    script = run("-c", SCRIPT, *arguments)
    assert script.returncode == module.returncode
    typed = (module.stdout + module.stderr).replace("python -m jobs.", "wsdm-ray ")
    # The shorter name has the lines of the usage and the example end elsewhere.
    assert (script.stdout + script.stderr).replace("\\", "").split() == typed.replace("\\", "").split()
    assert typed.startswith("error: ") != ("--help" in arguments)


HELP = """
import sys
sys.argv = ["wsdm-ray", *sys.stdin.read().split()]
from jobs._cli import main
assert main() == 0
heavy = {"torch", "ray", "transformers", "pyarrow", "pandas", "numpy", "datasets", "fsspec", "rich"}
print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("job", [*JOBS, "completion bash"])
def test_help_imports_nothing_heavy(job):
    """So that it takes well under a second."""
    arguments = job if "completion" in job else f"{job} --help"
    done = subprocess.run(
        [sys.executable, "-c", HELP], input=arguments, capture_output=True, text=True, cwd=ROOT
    )
    assert "--output" in done.stdout
    assert done.stderr.splitlines()[-1] == "[]"
