"""The help of every job: each option in a group, described, with default and example, in whole words."""

import re
import shlex

import pytest

from jobs import _help
from jobs._help import render_help
from jobs._main import main
from jobs._options import GROUPS, Option, options_of
from jobs._parse import parse
from jobs._registry import JOBS, Job
from wsdm_ray.config import ArenaConfig, TrainConfig
from wsdm_ray.presets import PRESETS

OPTIONS = [(job, option) for job in JOBS.values() for option in options_of(job.config_type())]
NEEDS = {
    "--weights": ["--predictions", "a", "b"],
    "--model-weights": ["--model", "a", "b"],
    "--calibrate": ["--precision", "w8a8-int8"],
}
"""What else the checks of a config ask for, beside an option."""


def label(value: object) -> str:
    return value.flag if isinstance(value, Option) else getattr(value, "name", "")


def whole_command(job: Job, *words: str) -> list[str]:
    """The words with what else the job requires."""
    words = (*words, *NEEDS.get(words[0], []))
    required = (option.flag for option in options_of(job.config_type()) if option.required)
    return [*words, *(word for flag in required if flag not in words for word in (flag, "x"))]


def test_help_is_printed_with_status_0(capsys):
    assert main(lambda config: pytest.fail("ran"), ArenaConfig, ["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "usage: python -m jobs.arena --output DIR [options]" in text
    assert "median about 1,000 tokens a triple" in text


@pytest.mark.parametrize(("job", "option"), OPTIONS, ids=label)
def test_every_option_says_what_it_is(job, option):
    shown = _help.render_option(option, 80)
    assert len(option.text.split()) >= 2, "a description"
    assert re.search(r"^ +(Required\.|Default: \S+)", shown, re.MULTILINE) or "by default" in option.text
    plain = option.is_switch or option.choices or option.metavar in ("N", "X")
    assert plain or option.example or "columns" in option.flag, "an example where the value is not obvious"


@pytest.mark.parametrize(("job", "option"), [pair for pair in OPTIONS if pair[1].example], ids=label)
def test_an_example_parses(job, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "options.yaml").write_text("{}")
    words = shlex.split(option.example)
    if option.group == "Column names":
        assert words[0].startswith("--columns.")
    else:
        assert words[0] == option.flag
    parse(job.config_type(), whole_command(job, *words))


@pytest.mark.parametrize("job", JOBS.values(), ids=label)
def test_the_example_of_a_job_parses(job):
    parse(job.config_type(), job.example.split())


@pytest.mark.parametrize("job", JOBS.values(), ids=label)
@pytest.mark.parametrize("width", range(60, 121, 5))
def test_no_line_is_broken_within_a_word_or_too_long(job, width):
    options = options_of(job.config_type())
    text = render_help(job, options, width)
    assert max(map(len, text.splitlines())) <= width
    words = {word.rstrip(end) for word in text.split() for end in ("", ",")}
    for option in options:
        for word in f"{option.flag} {option.text} {option.metavar} {option.default or ''}".split():
            assert word in words, f"{word} of {option.flag} is broken at width {width}"


@pytest.mark.parametrize("job", JOBS.values(), ids=label)
def test_options_stand_in_their_groups(job):
    options = options_of(job.config_type())
    lines = render_help(job, options, 80).splitlines()
    places = [lines.index(group) for group in GROUPS if group in lines]
    assert places == sorted(places)
    for group in dict.fromkeys(option.group for option in options):
        block = lines[lines.index(group) + 1 :]
        block = block[: block.index("")] if "" in block else block
        heads = [line.split()[0].rstrip(",") for line in block if line.startswith("  --")]
        assert heads == [option.flag for option in options if option.group == group]


def test_the_help_with_a_preset_shows_its_defaults(capsys):
    assert main(print, TrainConfig, ["--preset", "tiny", "--help"]) == 0
    (rank,) = [option for option in options_of(TrainConfig) if option.flag == "--lora.r"]
    blocks = capsys.readouterr().out.split("  --")
    (shown,) = [block for block in blocks if block.startswith("lora.r ")]
    assert (rank.default, PRESETS["tiny"]("b", ("t",), "o").lora.r) == ("64", 16)
    assert "Default: 16" in shown


def test_a_switch_that_is_on_shows_how_to_turn_it_off():
    (switch,) = [option for option in options_of(TrainConfig) if option.flag == "--tensorboard"]
    assert _help.render_option(switch, 80).startswith("  --tensorboard, --no-tensorboard\n")
