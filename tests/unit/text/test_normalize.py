"""Text repair: the quick way gives what ftfy gives."""

import ftfy
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wsdm_ray.text.normalize import fix_text

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
