"""Checks that configs share: each raises an error that names the option, its value and what it takes."""

import dataclasses
import math
import os
from typing import Any

from wsdm_ray.errors import ConfigError

__all__ = [
    "check",
    "check_not_negative",
    "check_paths",
    "check_positive",
    "check_seed",
    "check_token_budget",
    "expand_home",
    "to_dict",
]


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain values, ready for JSON."""
    return dataclasses.asdict(config)


def check(condition: bool, option: str, value: object, remedy: str) -> None:
    """Raise `ConfigError` that names the option, its value and what it takes."""
    if not condition:
        raise ConfigError(f"--{option.replace('_', '-')} {value}: must be {remedy}")


def check_positive(option: str, value: float | None) -> None:
    """Raise `ConfigError` for a number that is given and not above 0, or infinite."""
    if value is not None:
        check(value > 0, option, value, "above 0")
        check(value < math.inf, option, value, "finite")


def check_not_negative(option: str, value: float) -> None:
    """Raise `ConfigError` for a number below 0, or an infinite one."""
    check(value >= 0, option, value, "0 or more")
    check(value < math.inf, option, value, "finite")


def check_seed(seed: int) -> None:
    check(0 <= seed < 2**63, "seed", seed, "from 0 to 2**63 - 1")


def check_paths(**paths: str | tuple[str, ...]) -> None:
    for option, value in paths.items():
        check(
            bool(value) and (not isinstance(value, tuple) or all(value)), option, value or "(empty)", "given"
        )


PATHS = frozenset(
    {
        *(
            "adapter",
            "base",
            "calibrate",
            "exclude",
            "input",
            "model",
            "output",
            "predictions",
            "start_from",
            "submission",
            "tie_predictions",
            "tie_votes",
        ),
        *("teachers", "train", "valid", "votes"),
    }
)
"""Fields of all configs that hold paths."""


def expand_home(config: Any) -> None:
    """Replace `~` and `~user` at the start of every path of a config; no shell does so in `--input=~/x`."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in PATHS and isinstance(value, str):
            object.__setattr__(config, field.name, os.path.expanduser(value))
        elif field.name in PATHS and isinstance(value, tuple):
            object.__setattr__(config, field.name, tuple(map(os.path.expanduser, value)))


def check_token_budget(token_budget: int, max_tokens: int) -> None:
    """Both orderings of the longest pair must fit one forward pass."""
    check(
        token_budget >= 2 * max_tokens,
        "token_budget",
        token_budget,
        f"at least twice max_tokens ({max_tokens})",
    )
