"""The README and docs/ are true: links and anchors resolve, commands parse, names exist, tables are fresh."""

import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from jobs._options import options_of
from jobs._parse import parse
from jobs._registry import JOBS
from wsdm_ray.config import QuantizeConfig, ScoreConfig, TrainConfig

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
GUIDES = [README, *PAGES]
"""Pages that describe the present code."""
HISTORY = [ROOT / "CHANGELOG.md", ROOT / "tests/benchmarks/LOG.md"]
"""Pages that name what was, too."""
LINKING = [*GUIDES, *HISTORY, ROOT / "SECURITY.md"]

MAX_README_LINES = 150
MAX_NUMBERS_BEFORE_FIRST_COMMAND = 15

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
INLINE_CODE = re.compile(r"`([^`\n]+)`")
COMMAND = re.compile(r"(?:wsdm-ray|python -m jobs\.)\s*(\w+) (.+)")
OPTION = re.compile(r"--[a-z][\w.-]*")
REPOSITORY_PATH = re.compile(r"(?:wsdm_ray|jobs|tests|docs|cluster)/[\w/.-]*")

OF_OTHER_PROGRAMS = {
    "--address", "--check", "--help", "--logdir", "--runtime-env", "--shape", "--submission-id", "--version",
    "--working-dir",
}  # fmt: skip
"""Options in the pages that belong to no job: of ray, tensorboard, the benchmarks, and of every command."""
NOT_JOBS = {"NAME", "cache", "completion"}
"""What may follow `wsdm-ray` besides a job."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def fences(page: Path, language: str) -> list[str]:
    return [body for named, body in FENCE.findall(page.read_text("utf-8")) if named == language]


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", page.read_text("utf-8"))


def inline_code(page: Path) -> list[str]:
    return INLINE_CODE.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    seen: Counter[str] = Counter()
    names = set()
    for title in re.findall(r"^#{1,6} +(.+?) *$", prose(page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        names.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return names


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Every job in a page's blocks of bash, with its arguments."""
    for block in fences(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if match := COMMAND.search(line):
                job, rest = match.groups()
                yield job, shlex.split(rest, comments=True)


COMMANDS = [
    pytest.param(job, arguments, id=f"{name_of(page)}: {job} {' '.join(arguments)}")
    for page in GUIDES
    for job, arguments in commands(page)
]


@pytest.mark.parametrize("page", LINKING, ids=name_of)
def test_links_and_anchors_resolve(page: Path):
    for target in LINK.findall(prose(page)):
        if re.match(r"\w+://", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.is_relative_to(ROOT), f"{target}: outside the repository"
        assert linked.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in anchors(linked), f"{target}: no such heading"


@pytest.fixture
def option_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with the files of options that the pages show, `# NAME` first, and a run.json."""
    monkeypatch.chdir(tmp_path)
    for page in GUIDES:
        for block in fences(page, "yaml"):
            Path(block.split("\n")[0].removeprefix("# ")).write_text(block)
    Path("model").mkdir()
    Path("model/run.json").write_text(
        '{"job": "train", "config": {"base": "b", "train": ["t"], "output": "o"}}'
    )


@pytest.mark.parametrize(("job", "arguments"), COMMANDS)
def test_commands_parse_without_an_old_name(option_files, job: str, arguments: list[str], capsys):
    parse(JOBS[job].config_type(), arguments)
    assert capsys.readouterr().err == ""  # a line for each old name


def test_the_readme_has_commands_of_both_kinds():
    text = "\n".join(fences(README, "bash"))
    assert "wsdm-ray quickstart" in text
    assert "wsdm-ray score" in text
    assert "ray job submit" in text
    assert "-- python -m jobs.score" in text


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_jobs_and_options_that_are_named_exist(page: Path):
    flags = {job: flags_of(job) for job in JOBS}
    anywhere = set.union(OF_OTHER_PROGRAMS, *flags.values())
    for code in inline_code(page):
        if code.startswith("python tests/"):  # a benchmark, with options of its own
            assert (ROOT / code.split()[1]).is_file(), code
            continue
        words = code.removeprefix("wsdm-ray ").split()
        if code.startswith("wsdm-ray "):
            assert words[0] in JOBS or words[0] in NOT_JOBS or words[0].startswith("--"), code
        for name in re.findall(r"jobs\.(\w+)", code):
            assert name in JOBS or name in NOT_JOBS, code
        known = flags[words[0]] | OF_OTHER_PROGRAMS if words and words[0] in JOBS else anywhere
        for option in OPTION.findall(code):
            option = option.rstrip(".-")
            group = any(flag.startswith(f"{option}.") for flag in known)  # `--columns...`
            assert option in known or group, code


def flags_of(job: str) -> set[str]:
    return {flag for option in options_of(JOBS[job].config_type()) for flag in option.flags}


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_paths_of_the_repository_that_are_named_exist(page: Path):
    for code in inline_code(page):
        if REPOSITORY_PATH.fullmatch(code):
            assert (ROOT / code).exists(), code


def test_the_table_of_jobs_is_complete():
    section = README.read_text("utf-8").split("## Jobs\n")[1].split("\n## ")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == sorted(JOBS)


def test_every_precision_is_in_the_table_of_precisions():
    table = (ROOT / "docs/precision.md").read_text("utf-8").split("\n## ")[0]
    rows = dict(re.findall(r"^\| `([\w-]+)` \|(.+)\|$", table, re.MULTILINE))
    taken = {
        "quantize": get_args(get_type_hints(QuantizeConfig)["precision"]),
        "train": (
            *get_args(get_type_hints(TrainConfig)["quantization"]),
            *get_args(get_type_hints(TrainConfig)["precision"]),
        ),
        "score": get_args(get_type_hints(ScoreConfig)["precision"]),
    }
    for column, job in enumerate(("quantize", "train", "score"), start=1):
        documented = {name for name, cells in rows.items() if cells.split("|")[column].strip()}
        assert documented == set(taken[job]) - {"none"}, job


def test_every_page_is_linked_from_the_index():
    index = ROOT / "docs/index.md"
    linked = {target.partition("#")[0] for target in LINK.findall(prose(index))}
    assert {page.name for page in PAGES} - {index.name} <= linked


def test_the_architecture_names_every_package():
    text = (ROOT / "docs/architecture.md").read_text("utf-8").split("## Packages\n")[1].split("\n## ")[0]
    named = set(re.findall(r"^\| `([\w/]+)` \|", text, re.MULTILINE))
    packages = {"jobs", *(name_of(path.parent) for path in (ROOT / "wsdm_ray").glob("*/__init__.py"))}
    assert packages <= named
    alone = {path.stem for path in (ROOT / "wsdm_ray").glob("*.py")} - {"__init__"}
    assert alone <= set(re.findall(r"`(\w+)`", text))


def test_the_readme_is_one_screen_and_a_half():
    text = README.read_text("utf-8")
    assert len(text.splitlines()) <= MAX_README_LINES
    before = text.split("```bash")[0]
    assert len(re.findall(r"\d[\d.,]*", before)) <= MAX_NUMBERS_BEFORE_FIRST_COMMAND


@pytest.mark.parametrize("page", LINKING, ids=name_of)
def test_nothing_is_left_to_fill_in(page: Path):
    text = page.read_text("utf-8")
    assert not re.search(r"\bQS_|\bTODO\b|\bTBD\b|<!-- (?!Generated)", text)


@pytest.mark.parametrize("script", ["tests/benchmarks/report.py", "docs/module_map.py"])
def test_what_is_generated_is_up_to_date(script: str):
    done = subprocess.run(
        [sys.executable, ROOT / script, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
