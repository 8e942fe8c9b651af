"""Repair of broken text, the same for training and for scoring."""

import re

import ftfy

__all__ = ["fix_text"]

# ftfy returns text of these characters alone as it is: no entity (&), terminal escape or control character.
PLAIN = re.compile(r"[\t\n -%'-~]*\Z")


def fix_text(text: str) -> str:
    """`text` as ftfy repairs it: mojibake, entities, line breaks, lone surrogates, control characters.

    Curly quotes, ligatures and full or half width become plain characters, letters with marks one (NFC).
    """
    return text if PLAIN.match(text) else ftfy.fix_text(text)
