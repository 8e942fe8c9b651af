"""What the simulated people and models of the arena can say, in eight languages.

The phrases are the files of `languages/`, one a language. They are few on purpose: a vocabulary of about
2,000 tokens covers them all, so that a tiny model can learn the votes within a minute. The numbers in the
prompts make most of them distinct.
"""

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

__all__ = ["LANGUAGES", "Language"]

NAMES = ("English", "Chinese", "Japanese", "Russian", "Arabic", "Hindi", "Spanish", "German")
"""In the order that the arena draws by: another order makes other rows."""


@dataclass(frozen=True, kw_only=True)
class Language:
    """Phrases of one language. Fields in braces are filled in; the comments name what they hold."""

    name: str
    tokens_per_character: float
    """Roughly what tokenizers of large vocabularies (Gemma, Qwen) need."""
    space: str
    """Between sentences."""
    refusals: tuple[str, ...]
    openers: tuple[str, ...]
    """Polite first words."""
    closers: tuple[str, ...]
    """Polite last words."""
    careful: tuple[str, ...]
    """Sentences of an answer that was made with care."""
    plain: tuple[str, ...]
    sloppy: tuple[str, ...]
    check: str
    """Last line of a careful answer."""
    context: tuple[str, ...]
    """Sentences that make a prompt long."""
    names: tuple[str, ...]
    capitals: tuple[tuple[str, str], ...]
    """Country and its capital."""
    fruits: tuple[str, ...]
    animals: tuple[str, ...]
    ask_capital: str  # {country}, {n}: words
    say_capital: str  # {country}, {capital}
    ask_sum: str  # {a}, {b}
    say_sum: str  # {a}, {b}, {c}
    ask_fruits: str  # {k}: how many, {n}: guests
    ask_animals: str
    ask_code: str  # {a}, {b}
    say_code: str
    ask_notes: str  # {name}
    say_notes: str  # {name}, {a}


def read_language(name: str) -> Language:
    """The phrases of the language `name`, from its file."""
    file = files("wsdm_ray.data").joinpath("languages", f"{name.lower()}.toml")
    phrases = tomllib.loads(file.read_text("utf-8"))
    return Language(**{field: as_tuple(value) for field, value in phrases.items()})


def as_tuple(value: Any) -> Any:
    """`value` with tuples for its lists: phrases cannot be changed."""
    return tuple(map(as_tuple, value)) if isinstance(value, list) else value


LANGUAGES = tuple(map(read_language, NAMES))
