"""Text for people's eyes that holds no secret, and nothing that drives a terminal or breaks a line.

What is shown comes from libraries, stores and data: a client may repeat the URL that it was given, and an id
may hold any character. Errors, log lines and events go through here.
"""

import functools
import os
import re

__all__ = ["has_credentials", "one_line", "redact", "visible"]

HIDDEN = "***"

SECRET_NAME = re.compile(
    r"(^|_)(API_?KEY|ACCESS_KEY|PASSWD|PASSWORD|PRIVATE_KEY|SECRET|SECRET_KEY|TOKEN|CREDENTIALS?)(_|$)"
)
"""What a variable of the environment has in its name whose value is a secret."""

NO_SECRET = re.compile(r"(_FILE|_PATH|_URI|_URL|_MODE)$|^TOKENIZERS_")
"""Such variables that only say where a secret is, or how it is used."""

MIN_SECRET_CHARACTERS = 8
"""A shorter value is a switch, such as `anon`; hiding it would hide words."""

# Lengths are bounded, so that a text of any size takes time in proportion to it.
URL_USER = re.compile(r"(?<=://)[^\s/@'\"]{0,200}:[^\s@'\"]{0,2000}@")
QUERY = re.compile(
    r"([?&;](?:[\w.-]{0,40}[-_])?(?:api[-_]?key|credential|key|password|secret|sig|signature|token)=)"
    r"[^\s&;,)'\"]+",
    re.IGNORECASE,
)
BEARER = re.compile(r"(\bBearer\s{1,9})[\w.~+/=-]{8,}", re.IGNORECASE)

MOST_CHARACTERS = 4_000
"""A line is cut to about so many characters: an id may have any length."""

CONTROLS = {code: f"\\x{code:02x}" for code in (*range(9), 11, 12, *range(14, 32), *range(0x7F, 0xA0))}
"""All but tab, line feed and carriage return."""


def has_credentials(text: str) -> bool:
    """Whether a URL in `text` has a password, a key or a signature in it."""
    return "://" in text and bool(URL_USER.search(text) or QUERY.search(text))


def redact(text: str) -> str:
    """`text` with `***` for credentials in URLs, for tokens, and for the values of secret variables."""
    text = QUERY.sub(rf"\1{HIDDEN}", URL_USER.sub(f"{HIDDEN}@", text))
    text = BEARER.sub(rf"\1{HIDDEN}", text)
    for value in secret_values():
        text = text.replace(value, HIDDEN)
    return text


def secret_values() -> list[str]:
    """Values of the environment that are secrets, the longest first, as one may hold another."""
    found = {
        value
        for name, value in os.environ.items()
        if names_secret(name) and len(value) >= MIN_SECRET_CHARACTERS and not is_path(name, value)
    }
    return sorted(found, key=len, reverse=True)


@functools.lru_cache(maxsize=4096)
def is_path(variable: str, value: str) -> bool:
    """Whether a value only says where a secret is; a key of AWS may begin with a slash, too."""
    return value.startswith("/") and (variable.upper().endswith("CREDENTIALS") or os.path.exists(value))


@functools.lru_cache(maxsize=4096)
def names_secret(variable: str) -> bool:
    name = variable.upper()
    return bool(SECRET_NAME.search(name)) and not NO_SECRET.search(name)


def visible(text: str) -> str:
    """`text` with its control characters as `\\x1b`; ends of lines and tabs stay."""
    return text.translate(CONTROLS)


def one_line(text: str) -> str:
    """`text` on one line, without secrets and control characters, and not longer than a screen."""
    line = " ".join(text.split())
    more = len(line) - MOST_CHARACTERS
    # Twice as much is looked at, so that no secret is cut into what is not known as one.
    shown = visible(redact(line[: 2 * MOST_CHARACTERS]))
    return shown if more <= 0 else f"{shown[:MOST_CHARACTERS]}... ({more:,} more characters)"
