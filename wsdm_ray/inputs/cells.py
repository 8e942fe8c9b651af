"""What one cell of a published file holds: a list as JSON text, or as Python shows it, or a value as it is.

pandas writes a list to CSV as Python shows it: `['a', None]`. Such text is read without running it. A numpy
array is shown without commas, `['a' 'b']`, which Python would read as one text: it is named, not read. `NaN`
is how tools that lack a null write one. Not covered: messages (`messages`), types of columns (`values`).
"""

import ast
import json
import re
import warnings
from typing import Any

from wsdm_ray.errors import DataError
from wsdm_ray.inputs.objects import whole_characters

__all__ = ["MalformedRowError", "brief", "cell", "is_numpy_text", "list_hint", "parsed_list"]

MOST_PYTHON_CHARACTERS = 1_000_000
"""Longest text that is read as Python: its syntax tree takes about a hundred times as much memory."""

PYTHON_STRING = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
NUMPY_SIGN = re.compile(r"''\s*''|''\s+(None|nan)\b|\b(None|nan)\s+''|\}\s+\{|\barray\(")
"""Signs of numpy in a list whose strings are empty."""


class MalformedRowError(DataError):
    """A row that is not of its format. `reason` is a constant phrase, by which such rows can be counted."""

    def __init__(self, message: str, reason: str = "malformed") -> None:
        super().__init__(message)
        self.reason = reason


def cell(row: dict[str, Any], name: str) -> Any:
    """The value of a row in a column; None where there is no such column, and for NaN."""
    value = row.get(name)
    return None if isinstance(value, float) and value != value else value


def parsed_list(text: str) -> list[Any] | dict[str, Any] | None:
    """The list or object that a text is, as JSON or as Python shows it; None where it is something else."""
    text = text.strip()
    if not text.startswith(("[", "{")):
        return None
    try:
        value = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        value = python_value(text)
    if not isinstance(value, list | dict):
        return None
    return whole_characters(value) if "\\" in text else value


def python_value(text: str) -> Any:
    """The value of a Python literal, with None for `nan`; None where it is none, or too long."""
    if len(text) > MOST_PYTHON_CHARACTERS or is_numpy_text(text):
        return None
    try:
        with warnings.catch_warnings(action="ignore", category=SyntaxWarning):  # escapes that Python has not
            return ast.literal_eval(NanIsNone().visit(ast.parse(text, mode="eval")))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


class NanIsNone(ast.NodeTransformer):
    """A syntax tree with None for the name `nan`."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.copy_location(ast.Constant(None), node) if node.id == "nan" else node


def is_numpy_text(text: str) -> bool:
    """Whether a text is an array as numpy shows it: items without commas, or `array(...)` within."""
    text = text.strip()
    return text[:1] == "[" and text[-1:] == "]" and bool(NUMPY_SIGN.search(PYTHON_STRING.sub("''", text)))


def list_hint(value: Any) -> str:
    """What to do about a text that ought to be a list, where the cause is known; else empty."""
    if not isinstance(value, str):
        return ""
    if is_numpy_text(value):
        return "; it is a numpy array as text: write parquet, or JSON of lists (json.dumps(list(array)))"
    if len(value) > MOST_PYTHON_CHARACTERS and value.lstrip().startswith("['"):
        return (
            f"; a Python list of more than {MOST_PYTHON_CHARACTERS:,} characters is not read: write parquet, "
            "or JSON (json.dumps)"
        )
    return ""


def brief(value: Any) -> str:
    """The repr of a value, of at most 80 characters: for messages of errors."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
