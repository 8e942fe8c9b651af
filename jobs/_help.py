"""The help of a job and the list of jobs, as text of a given width. No line is broken within a word."""

import textwrap
from collections.abc import Sequence
from itertools import groupby

from jobs._options import Option
from jobs._registry import JOBS, SCRIPT, Job, command

__all__ = ["list_jobs", "render_help"]

INDENT = 2
TEXT_INDENT = 6


def list_jobs() -> str:
    """The jobs in the order of the flow, a line each, and what else there is to type."""
    width = max(map(len, JOBS))
    one = command("NAME")
    lines = [
        f"usage: {one} [options]",
        "",
        "The jobs, in the order of the flow:",
        *(f"  {job.name:<{width}}  {job.summary}" for job in JOBS.values()),
        "",
        f"`{one} --help` lists the options of a job, `{SCRIPT} --version` the versions,",
        f"`{SCRIPT} completion SHELL` prints completions for bash, zsh or fish,",
        f"`{SCRIPT} cache` lists copies of remote models, `{SCRIPT} cache clear` deletes them.",
    ]
    return "\n".join(lines) + "\n"


def render_help(job: Job, options: Sequence[Option], width: int) -> str:
    """Usage, description, an example and every option in its group.

    Args:
        width: of a line, in characters.
    """
    required = " ".join(f"{option.flag} {option.metavar}" for option in options if option.required)
    usage = f"usage: {command(job.name)} {required} [options]".replace("  ", " ")
    blocks = [fold(usage, width, TEXT_INDENT, first=0)]
    blocks += [fold(text, width) for text in (job.config_type().__doc__ or "").strip().split("\n\n")]
    example = fold(f"{command(job.name)} {job.example}", width - len(" \\"), TEXT_INDENT, first=INDENT)
    blocks.append("Example:\n" + example.replace("\n", " \\\n"))
    for group, members in groupby(options, key=lambda option: option.group):
        blocks.append("\n".join([group, *(render_option(option, width) for option in members)]))
    return "\n\n".join(blocks) + "\n"


def render_option(option: Option, width: int) -> str:
    """The flag with its values; then text, choices, default and example, indented."""
    # A switch that is on is of use by its negative alone.
    flags = option.flags if option.default == "on" else (option.flag,)
    head = f"{', '.join(flags)} {option.metavar}".rstrip()
    lines = [option.text]
    if option.choices:
        lines.append(f"One of: {', '.join(option.choices)}.")
    if option.required:
        lines.append("Required.")
    elif option.default is not None:
        lines.append(f"Default: {option.default}")
    elif "by default" not in option.text:
        lines.append("Default: none")
    if option.example:
        lines.append(f"Example: {option.example}")
    body = [fold(line, width, TEXT_INDENT) for line in lines if line]
    return "\n".join([fold(head, width, TEXT_INDENT, first=INDENT), *body])


def fold(text: str, width: int, indent: int = 0, *, first: int | None = None) -> str:
    """The text in lines of a width, broken at spaces alone.

    Args:
        indent: columns before every line; before the first one `first`, where it is given.
    """
    return textwrap.fill(
        " ".join(text.split()),
        width,
        initial_indent=" " * (indent if first is None else first),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
