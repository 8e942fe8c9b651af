"""Writes modules.md: every module of the repository with the first sentence of its docstring.

python docs/module_map.py            write it
python docs/module_map.py --check    exit with 1 where it is not up to date
"""

import ast
import re
import sys
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "modules.md"

HEAD = """\
# Module map

Every module with the first sentence of its docstring. `python docs/module_map.py` writes this page. What the
packages are for, and how they build on each other, is in [architecture](architecture.md).
"""


def modules() -> list[Path]:
    """Every module of `jobs` and `wsdm_ray`, by package; without packages that only export names."""
    found = [path for part in ("jobs", "wsdm_ray") for path in (ROOT / part).rglob("*.py")]
    named = (path for path in found if path.name != "__init__.py")
    return sorted(named, key=lambda path: (path.parent, path))


def summary(path: Path) -> str:
    """The first sentence of a module's docstring. Raises `SystemExit` where there is none."""
    text = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    if not text:
        raise SystemExit(f"error: {path}: has no docstring; say in one sentence what the module is for")
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", paragraph)[0].rstrip(".:").replace("|", "\\|")


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for folder, paths in groupby(modules(), key=lambda path: path.parent):
        lines += [f"## {folder.relative_to(ROOT).as_posix()}", "", "| module | what it is |", "|---|---|"]
        for path in paths:
            lines.append(f"| [{path.name}](../{path.relative_to(ROOT).as_posix()}) | {summary(path)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        fresh = PAGE.exists() and PAGE.read_text("utf-8") == page()
        sys.exit(0 if fresh else f"error: {PAGE} is not up to date; run python {Path(__file__)}")
    PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
