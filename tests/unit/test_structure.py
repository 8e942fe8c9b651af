"""Files and functions stay small enough to read at once."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MOST_FILE_LINES = 400
MOST_FUNCTION_LINES = 60

LONG_FUNCTIONS: dict[str, str] = {}
"""Functions that may be longer, as "path:name", and why."""

FILES = sorted(path for part in ("wsdm_ray", "jobs", "tests") for path in (ROOT / part).glob("**/*.py"))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def`, without decorators, to the last of the body."""
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text, name = path.read_text("utf-8"), str(path.relative_to(ROOT))
    lines = len(text.splitlines())
    assert lines <= MOST_FILE_LINES, f"{name} has {lines} lines: split it"
    long = {
        f"{name}:{function.name}": length(function)
        for function in functions(ast.parse(text))
        if length(function) > MOST_FUNCTION_LINES
    }
    assert not long.keys() - LONG_FUNCTIONS.keys(), f"too long: {long}"


def test_every_exemption_is_needed_and_has_a_reason():
    for place, reason in LONG_FUNCTIONS.items():
        path, _, name = place.partition(":")
        found = {function.name: length(function) for function in functions(ast.parse((ROOT / path).read_text()))}
        assert found[name] > MOST_FUNCTION_LINES, place
        assert len(reason.split()) > 3, place
