"""Files and functions stay small enough to read at once."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MOST_FILE_LINES = 400
MOST_FUNCTION_LINES = 60

LONG_FUNCTIONS: dict[str, str] = {}
"""Functions that may be longer, as "file name:function", and why."""

FILES = sorted(path for part in ("wsdm_ray", "jobs", "tests") for path in (ROOT / part).glob("**/*.py"))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def`, without decorators, to the last of the body."""
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def long_functions(path: Path) -> dict[str, int]:
    """Lines of the functions of a file that have too many."""
    return {
        f"{path.name}:{function.name}": length(function)
        for function in functions(ast.parse(path.read_text("utf-8")))
        if length(function) > MOST_FUNCTION_LINES
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= MOST_FILE_LINES, f"{path} has {lines} lines: split it"
    assert not long_functions(path).keys() - LONG_FUNCTIONS.keys(), f"split {long_functions(path)}"


def test_every_exemption_is_needed_and_has_a_reason():
    found = [place for path in FILES for place in long_functions(path)]
    assert set(LONG_FUNCTIONS) <= set(found)
    assert all(len(reason.split()) > 3 for reason in LONG_FUNCTIONS.values())


FAKES = [path for path in FILES if "register_fake" in path.read_text("utf-8")]


@pytest.mark.parametrize("path", FAKES, ids=lambda path: str(path.relative_to(ROOT)))
def test_shapes_of_operators_are_not_taken_for_constants(path):
    """`len` of a tensor is a number of Python, by which code is compiled anew for every number of rows."""
    for function in functions(ast.parse(path.read_text("utf-8"))):
        if any("register_fake" in ast.unparse(decorator) for decorator in function.decorator_list):
            called = [ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)]
            assert "len" not in called, f"{path.name}:{function.lineno}: use shape[0]"
