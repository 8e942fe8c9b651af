"""Repair of broken text, the same for training and for scoring."""

import re

import ftfy

__all__ = ["fix_text"]

# Text of these characters alone is what ftfy returns as it is: no entity (&), no terminal escape, no control character.
PLAIN = re.compile(r"[\t\n -%'-~]*\Z")


def fix_text(text: str) -> str:
    """`text` with mojibake, entities, odd line breaks, lone surrogates and control characters repaired (ftfy)."""
    return text if PLAIN.match(text) else ftfy.fix_text(text)
