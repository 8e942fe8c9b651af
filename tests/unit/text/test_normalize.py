"""Text repair: the quick way gives what ftfy gives."""

import re
import warnings
from typing import Any

import ftfy
import pytest
from ftfy import badness
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsdm_ray.text.normalize import HARMLESS, MOJIBAKE_LENGTH, OF_MOJIBAKE, fix_text

SAMPLES = [
    "plain",
    "",
    "don&#39;t &amp; won&apos;t",
    "schÃ¶n â€œquotedâ€\x9d",
    "line\r\nbreaks\rof\u2028kinds",
    "nul\0 bell\x07 delete\x7f",
    "\x1b[36;44mterminal\x1b[0m",
    "\ud83d\ude00 a pair, \ud800 alone",
    "مرحبا \u200fright to left\u200e",
    "ﬁne ｆｕｌｌ width, e\u0301",
    "日本語。हिन्दी",
]


@given(st.text(st.characters(max_codepoint=127), max_size=60))
@example("a\n\tb & c")
@example("<b>&lt;</b>")
@example("\x00\x0b\x0c\x7f")
def test_ascii_as_ftfy_has_it(text):
    assert fix_text(text) == ftfy.fix_text(text)


@given(st.text(max_size=60))
def test_the_result_is_utf8_without_nul(text):
    fixed = fix_text(text)
    fixed.encode()
    assert "\0" not in fixed


@pytest.mark.parametrize("text", SAMPLES)
def test_twice_is_once(text):
    assert fix_text(fix_text(text)) == fix_text(text)


def test_repairs():
    fixed = [fix_text(text) for text in SAMPLES]
    assert fixed[2] == "don't & won't"
    assert fixed[3].startswith("schön")
    assert fixed[4].count("\n") == 3
    assert fixed[5] == "nul bell delete"
    assert fixed[6] == "terminal"
    assert fixed[7] == "😀 a pair, � alone"
    assert "\u200f" in fixed[8]


OF_REPAIRS = sorted(
    {c for c in badness.BADNESS_RE.pattern if ord(c) > 127} | set("&;<> \n\r\x85\x1b[m’“ﬁＡ\u0301eÃ©")
)
"""Characters that ftfy looks at."""

PIECES = st.one_of(
    st.sampled_from(
        [
            *("&amp;", "&lt;", "<b>", "\n", "\n\n", "\r\n", "plain text", "\x1b[0m"),
            *("schÃ¶n", "â€œ", "вЂ", "В-В", "Ã ", "Œ ", "“", "naïve", "Привет", "日本", "ｆ"),
            *("e\u0301", "\ud83d", "\ude00"),
        ]
    ),
    st.text(st.sampled_from(OF_REPAIRS), max_size=4),
    st.text(max_size=8),
)  # fmt: skip


@given(st.lists(PIECES, max_size=12).map("".join))
@settings(max_examples=400)
@example("&lt; é\n<\n&lt; é")
@example("é\nÃ foo")
def test_any_text_as_ftfy_has_it(text):
    assert fix_text(text) == ftfy.fix_text(text)


def alternatives(pattern: re.Pattern) -> Any:
    """What a pattern of alternatives is parsed to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import sre_parse

        parsed = sre_parse.parse(pattern.pattern, pattern.flags & ~re.UNICODE)
    assert parsed.getwidth()[1] == MOJIBAKE_LENGTH
    [(_, (_, branches))] = parsed
    return branches


def members(item: Any) -> set[str] | None:
    """The characters that a part of a pattern matches, None where they are not listed."""
    kind, value = str(item[0]), item[1]
    if kind == "LITERAL":
        return {chr(value)}
    if kind != "IN" or not all(str(name) in ("LITERAL", "RANGE") for name, _ in value):
        return None
    ranges = [(code, code) if str(name) == "LITERAL" else code for name, code in value]
    return {chr(code) for first, last in ranges for code in range(first, last + 1)}


def needs_a_telling_character(sequence: Any) -> bool:
    """Whether all that a sequence matches has a character of `OF_MOJIBAKE`."""
    for item in sequence:
        kind, value = str(item[0]), item[1]
        if kind == "BRANCH" and all(map(needs_a_telling_character, value[1])):
            return True
        if kind == "SUBPATTERN" and needs_a_telling_character(value[3]):
            return True
        found = members(item)
        if found is not None and all(OF_MOJIBAKE.match(character) for character in found):
            return True
    return False


def test_all_mojibake_has_a_character_that_is_looked_for():
    """What ftfy's pattern is made of; a newer version may have another."""
    assert "(?" not in badness.BADNESS_RE.pattern, "matches depend on what is around them"
    assert all(map(needs_a_telling_character, alternatives(badness.BADNESS_RE)))
    assert not OF_MOJIBAKE.search("abc " + "àöа…")
    assert HARMLESS
