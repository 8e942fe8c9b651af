"""Nothing that was fetched or given can run code: weights are safetensors, no pickle but our own is read."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for part in ("wsdm_ray", "jobs") for path in (ROOT / part).glob("**/*.py"))

LOADERS = {
    *("cloudpickle.load", "cloudpickle.loads", "dill.load", "dill.loads", "joblib.load", "marshal.loads"),
    *("numpy.load", "np.load", "pandas.read_pickle", "pd.read_pickle", "pickle.Unpickler"),
    *("pickle.load", "pickle.loads", "shelve.open", "torch.hub.load", "torch.jit.load", "torch.load"),
    *("yaml.full_load", "yaml.load", "yaml.unsafe_load"),
}
"""What runs code that its input names."""

ALLOWED = {
    "wsdm_ray/scoring/child_process.py: pickle.loads": (
        "the target of a child process, which its parent sends over a pipe that nobody else can open"
    ),
    "jobs/_values.py: yaml.load": "with a loader of our own that is a SafeLoader",
}
"""Where such a call may be, and why."""

TRUST = {"trust_remote_code", "weights_only", "use_safetensors", "allow_pickle"}
SAFE = {"trust_remote_code": False, "weights_only": True, "use_safetensors": True, "allow_pickle": False}

LOAD_MODELS = {"AutoModelForSequenceClassification.from_pretrained", "AutoConfig.from_pretrained"}
"""Calls of transformers that would run a model's own code, or read its pickles, where they are let."""


def name_of(function: ast.expr) -> str:
    return ast.unparse(function)


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_what_runs_the_code_of_its_input_is_called_where_it_is_allowed_alone():
    found = set()
    for path in FILES:
        for call in calls(path):
            name = name_of(call.func)
            bare = {"exec", "eval", "compile", "__import__"}
            if name in LOADERS | bare:
                found.add(f"{place(path)}: {name}")
    assert found == set(ALLOWED)
    assert all(len(reason.split()) > 5 for reason in ALLOWED.values())


def test_such_functions_are_not_imported_under_another_name():
    names = {name.rpartition(".")[2] for name in LOADERS}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in {"pickle", "torch", "yaml", "cloudpickle"}:
                assert not names & {alias.name for alias in node.names}, place(path)


@pytest.mark.parametrize("path", FILES, ids=place)
def test_options_that_trust_are_off(path):
    for call in calls(path):
        given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg in TRUST}
        for option, value in given.items():
            assert ast.unparse(value) == str(SAFE[str(option)]), f"{place(path)}: line {call.lineno}"


def test_models_are_loaded_with_these_options():
    seen = set()
    for path in FILES:
        for call in calls(path):
            name = ".".join(name_of(call.func).split(".")[-2:])
            if name in LOAD_MODELS:
                given = {keyword.arg for keyword in call.keywords}
                seen.add(name)
                needed = {"trust_remote_code", "local_files_only"}
                needed |= {"use_safetensors"} if "Model" in name else set()
                assert needed <= given, f"{place(path)}: line {call.lineno}"
    assert seen == LOAD_MODELS


def test_no_name_of_an_option_turns_them_on():
    """Nor is there an option of a job that would."""
    for path in [*FILES, *(ROOT / "examples").rglob("*"), *(ROOT / "cluster").rglob("*")]:
        if path.is_file() and path.suffix in {".py", ".yaml", ".yml", ".ipynb", ".sh"}:
            text = path.read_text("utf-8")
            assert "trust_remote_code=True" not in text, path
            assert "trust-remote-code" not in text, path
            assert "HF_HUB_TRUST" not in text, path
