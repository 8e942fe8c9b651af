"""A job's arguments to its config; whatever is wrong with them is a `ConfigError` of one line.

tyro does the parsing. What it would say in a box of several lines is said here first, or by its hook.
"""

import re
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar, cast

import tyro
from tyro import _errors as tyro_errors  # experimental, and pinned with tyro's version

from jobs._options import Option, nearest, options_of
from jobs._registry import Job, command, job_of
from wsdm_ray.config import TrainConfig
from wsdm_ray.errors import ConfigError
from wsdm_ray.legacy import modernize_arguments
from wsdm_ray.plain_text import has_credentials
from wsdm_ray.presets import PRESETS

__all__ = ["parse", "parse_values", "preset_of", "take_preset"]

Config = TypeVar("Config")


def parse(config_type: type[Config], argv: Sequence[str], remedy: str | None = None) -> Config:
    """The config that the arguments of a job make; a line on standard error for each old name among them.

    Args:
        remedy: what lists the options, for messages; by default the job's help.

    Raises:
        ConfigError: an argument is unknown, missing, repeated, or of a wrong value.
        StorageError: the file of `--config` cannot be read.
    """
    check_no_secret(argv)
    check_repeated(argv)
    job = job_of(config_type)
    path, words = take_option("--config", with_present_names(job, argv))
    from_file: list[str] = []
    if path is not None:
        from jobs._values import with_file

        words, from_file = with_file(job, words, path)
        check_no_secret(words)
        words = with_present_names(job, words)
    try:
        return parse_words(config_type, words, remedy or f"`{command(job.name)} --help` lists the options")
    except ConfigError as error:
        if re.split(r"[\s:]", str(error))[0] in from_file:
            raise ConfigError(f"{path}: {error}") from None
        raise


def parse_values(config_type: type[Config], values: Mapping[str, Any], name: str) -> Config:
    """The config that Python's keywords make, as `parse` does of arguments.

    Args:
        name: of the function that was called, for messages.
    """
    from jobs._values import arguments_of

    found = arguments_of(job_of(config_type), values, name)
    words = [word for _, words in found for word in words]
    return parse(config_type, words, f"help(wsdm_ray.{name}) lists the options")


def with_present_names(job: Job, argv: Sequence[str]) -> list[str]:
    """The arguments under present names; a line on standard error for each old one."""
    words, renamed = modernize_arguments(job.name, argv)
    for line in renamed:
        print(line, file=sys.stderr)
    return words


def parse_words(config_type: type[Config], argv: Sequence[str], remedy: str) -> Config:
    """The config of arguments without `--config` and old names."""
    default, words = preset_of(config_type, argv)
    options = {option.flag: option for option in options_of(config_type)}
    check_flags(words, options.values(), remedy)

    def refuse(event: tyro_errors.ParseErrorEvent) -> None:
        raise RefusedError(reason(event, options))

    try:
        with tyro_errors.on_parse_error(refuse):
            return tyro.cli(
                config_type,
                prog=command(job_of(config_type).name),
                args=words,
                default=cast(Config, tyro.MISSING_NONPROP if default is None else default),
            )
    except RefusedError as refused:
        raise ConfigError(str(refused)) from None


class RefusedError(Exception):
    """How the hook leaves tyro."""


def preset_of(config_type: type[Config], argv: Sequence[str]) -> tuple[Config | None, list[str]]:
    """The config that the arguments start from, if any, and the arguments without its name."""
    check_repeated(argv)
    if config_type is not TrainConfig:
        return None, list(argv)
    default, words = take_preset(list(argv))
    return default, words  # pyright: ignore[reportReturnType]  # Config is TrainConfig here


def take_preset(argv: list[str]) -> tuple[TrainConfig | None, list[str]]:
    """The config that `--preset NAME` names, if `argv` has it, and the arguments without it.

    Raises:
        ConfigError: there is no such preset.
    """
    name, words = take_option("--preset", argv)
    if name is None:
        return None, words
    if name not in PRESETS:
        raise ConfigError(f"--preset {name}: {nearest(name, PRESETS)}there are {', '.join(PRESETS)}")
    return PRESETS[name](base=tyro.MISSING, train=tyro.MISSING, output=tyro.MISSING), words


def take_option(flag: str, argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of an option that takes one, None where it is not given; and the arguments without it."""
    for index, argument in enumerate(argv):
        if argument == flag or argument.startswith(f"{flag}="):
            taken = 1 if "=" in argument else 2
            value = argument.partition("=")[2] or "".join(argv[index + 1 : index + 2]) or "(no name)"
            return value, [*argv[:index], *argv[index + taken :]]
    return None, list(argv)


def flags_in(argv: Sequence[str]) -> list[str]:
    """The options among the arguments, as the help spells them."""
    return [word.partition("=")[0].replace("_", "-") for word in argv if word.startswith("--")]


def check_repeated(argv: Sequence[str]) -> None:
    """Raise `ConfigError` for an option that is given twice, of which tyro takes the last."""
    seen: set[str] = set()
    for flag in flags_in(argv):
        if flag in seen:
            raise ConfigError(f"{flag} is given twice; give all its values at once: {flag} A B")
        seen.add(flag)


def check_no_secret(argv: Sequence[str]) -> None:
    """Raise `ConfigError` for a path with credentials in it: logs, errors and run.json name paths."""
    flag = ""
    for word in argv:
        flag = word.partition("=")[0] if word.startswith("--") else flag
        if has_credentials(word):
            raise ConfigError(
                f"{flag}: has a path with credentials in it; leave them to the environment, or to the "
                "store's own files"
            )


def check_flags(argv: Sequence[str], options: Collection[Option], remedy: str) -> None:
    """Raise `ConfigError` for an option that the job does not have, or a required one that is missing."""
    known, flags = [flag for option in options for flag in option.flags], flags_in(argv)
    for flag in flags:
        if flag not in known:
            raise ConfigError(f"{flag}: no such option; {nearest(flag, known)}{remedy}")
    missing = [option.flag for option in options if option.required and option.flag not in flags]
    if missing:
        raise ConfigError(f"{' and '.join(missing)}: required and not given; {remedy}")


def reason(event: tyro_errors.ParseErrorEvent, options: Mapping[str, Option]) -> str:
    """What tyro found wrong, on one line, and what the option takes."""
    match event:
        case tyro_errors.InstantiationFailure(argument=None, message=message):
            return message  # of the config's own checks
        case tyro_errors.InstantiationFailure(argument=argument, message=message):
            return message if message.startswith("--") else wrong_value(flag_of(argument), message, options)
        case tyro_errors.InvalidChoice(argument=argument, value=value, choices=choices):
            return (
                f"{flag_of(argument)} {value}: {nearest(value, choices)}must be one of {', '.join(choices)}"
            )
        case tyro_errors.BadValue(argument=argument):
            return f"{flag_of(argument)}: too few values; takes {options[flag_of(argument)].metavar}"
        case tyro_errors.UnrecognizedArgs(tokens=tokens):
            return f"{' '.join(tokens)}: belongs to no option; an option's values follow it"
        case _:
            return f"the arguments do not fit the options ({type(event).__name__})"


def wrong_value(flag: str, message: str, options: Mapping[str, Option]) -> str:
    """The line for a value that is not of the option's type.

    Args:
        message: of the conversion that failed, which quotes the value at its end.
    """
    value = re.search(r"'([^']*)'$", message)
    kinds = {"int()": "a whole number", "to float": "a number"}
    kind = next((kind for sign, kind in kinds.items() if sign in message), options[flag].metavar)
    return f"{flag}{f' {value[1]}' if value else ''}: must be {kind}"


def flag_of(argument: Any) -> str:
    """The option of tyro's record of an argument."""
    return argument.lowered.name_or_flags[-1]
