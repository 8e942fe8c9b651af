"""Each message that docs/troubleshooting.md quotes is one that the code prints."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from wsdm_ray.events import EVENTS, Event

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/troubleshooting.md").read_text("utf-8")
QUOTED = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)
ROWS = [line for line in PAGE.splitlines() if line.startswith("| `")]

FORMAT = re.compile(r"%[-+.\d,]*[a-z]")
LEAST_WORDS = 2
"""A quoted message has at least so many words of the code's own, or it would be found anywhere."""


def template(node: ast.expr) -> str:
    """What an expression makes, with `…` for what differs from call to call."""
    match node:
        case ast.Constant(value=str(text)):
            return FORMAT.sub("…", text)
        case ast.JoinedStr(values=values):
            return "".join(
                part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else "…"
                for part in values
            )
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return template(left) + template(right)
    return "…"


def templates(path: Path) -> Iterator[str]:
    """Those of a module, without docstrings and other strings that are statements."""
    tree = ast.parse(path.read_text("utf-8"))
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp) and id(node) not in statements:
            yield template(node)


@pytest.fixture(scope="module")
def printed() -> str:
    """All messages of the package, one a line."""
    files = [path for part in ("wsdm_ray", "jobs") for path in (ROOT / part).glob("**/*.py")]
    lines = [" ".join(text.split()) for path in files for text in templates(path)]
    events = [f"{job}: {Event(kind=kind)}" for job in ("score", "train") for kind in EVENTS]
    return re.sub("…+", "…", "\n".join([*lines, *events]).replace("`", "…"))


@pytest.mark.parametrize("message", QUOTED)
def test_the_code_prints_it(message, printed):
    assert len(re.findall(r"\w+", message)) >= LEAST_WORDS, "say more of it"
    assert message.removeprefix("…").removesuffix("…").strip() in printed


def test_the_page_has_the_likely_ones_each_once_with_cause_and_remedy():
    assert len(QUOTED) == len(set(QUOTED)) == len(ROWS)
    assert len(QUOTED) >= 25
    for row in ROWS:
        _, _, cause, remedy, _ = re.split(r"(?<!\\)\|", row)
        assert len(cause.split()) > 1, row
        assert remedy.strip(), row
