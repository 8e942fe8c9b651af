"""Repair of broken text, the same for training and for scoring.

ftfy takes long for a text that is not ASCII, and changes few of them. It repairs each line by itself, so only
lines that it may change are given to it: its repairs begin at characters of known sets.
"""

import re
import unicodedata
from collections.abc import Iterator

import ftfy
from ftfy import badness, chardata

__all__ = ["fix_text"]

# ftfy returns text of these characters alone as it is: no entity (&), terminal escape or control character.
NOT_PLAIN = re.compile(r"[^\t\n -%'-~]")

REPAIRED = re.compile(
    r"[&\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"
    + re.escape("".join(map(chr, {*chardata.LIGATURES, *chardata.WIDTH_MAP, *chardata.CONTROL_CHARS})))
    + "]|"
    + "|".join((chardata.SINGLE_QUOTE_RE.pattern, chardata.DOUBLE_QUOTE_RE.pattern))
)
"""What ftfy changes wherever it stands, but for mojibake and letters whose marks stand alone."""

HARMLESS = "à-öø-ÿа-яёα-ωάέήίΰ…—–’"
"""Besides ASCII: what alone is no mojibake, though it is a part of some."""

OF_MOJIBAKE = re.compile(rf"(?![{HARMLESS}])[\x80-\u058f\u1e00-\u2bff\uf8ff\ufb00-\ufb06\ufffd]")
"""All that ftfy calls mojibake (`badness.BADNESS_RE`) has such a character."""

MOJIBAKE_LENGTH = 7
"""Characters of the longest piece of text that ftfy calls mojibake."""

LOOKED_AT = re.compile(f"{REPAIRED.pattern}|{OF_MOJIBAKE.pattern}")

AS_IT_COMES = ftfy.TextFixerConfig(explain=False)
WITHOUT_ENTITIES = AS_IT_COMES._replace(unescape_html=False)


def fix_text(text: str) -> str:
    """`text` as ftfy repairs it: mojibake, entities, line breaks, lone surrogates, control characters.

    Curly quotes, ligatures and full or half width become plain characters, letters with marks one (NFC).
    """
    return "".join(pieces(text)) if NOT_PLAIN.search(text) else text


def pieces(text: str) -> Iterator[str]:
    """The text in pieces: lines that ftfy may change as it repairs them, and what is between them as it is.

    ftfy leaves entities alone from the first line on that has a `<`.
    """
    markup = text.find("<")
    looked_at = LOOKED_AT if unicodedata.is_normalized("NFC", text) else NOT_PLAIN
    done = taken = 0
    while match := looked_at.search(text, done):
        start = text.rfind("\n", done, match.start()) + 1 or done
        done = text.find("\n", match.start()) + 1 or len(text)
        line = text[start:done]
        if may_change(line):
            yield text[taken:start]
            yield ftfy.fix_text(line, WITHOUT_ENTITIES if -1 < markup < done else AS_IT_COMES)
            taken = done
    yield text[taken:]


def may_change(line: str) -> bool:
    """Whether ftfy may change a line; it changes none of which this is false."""
    if REPAIRED.search(line) or not unicodedata.is_normalized("NFC", line):
        return True
    around = MOJIBAKE_LENGTH - 1  # ftfy's own search of a whole line takes long
    return any(
        badness.is_bad(line[max(match.start() - around, 0) : match.end() + around])
        for match in OF_MOJIBAKE.finditer(line)
    )
