"""Which prompts are the same prompt: the key by which votes are split, excluded and resampled."""

import re
import unicodedata

__all__ = ["prompt_group_key"]

SPACES = re.compile(r"\s+")


def prompt_group_key(prompt: str) -> str:
    """The prompt in NFKC, case-folded, each run of white space one space; one prompt group has one key.

    NFKC makes full and half width, ligatures and other compatibility forms equal. It is applied again after
    the case folding, which can undo it. The text must be clean already (`fix_text`).
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", prompt).casefold())
    return SPACES.sub(" ", folded).strip()
