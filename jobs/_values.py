"""Options as values, of a file or of Python's keywords, to the arguments that say the same.

`--config FILE` names a YAML or JSON file of options, nested as the config is, or the run.json of an earlier
run. As arguments they are parsed and checked like those of the command line, which win over the file.
"""

import dataclasses
import datetime
import json
import numbers
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from jobs._options import Option, nearest, options_of
from jobs._registry import Job
from wsdm_ray.config import to_dict
from wsdm_ray.errors import ConfigError
from wsdm_ray.legacy import modernize_run
from wsdm_ray.storage import open_read, reason

__all__ = ["arguments_of", "read_options", "with_file"]

ONE_RUN_ONLY = ("restart", "dry_run", "allow_version_change")
"""Options of an earlier run that say what to do with a folder then, not what the run was."""


def with_file(job: Job, argv: Sequence[str], path: str) -> tuple[list[str], list[str]]:
    """The arguments with those of a file that they do not give themselves; and the flags of the latter.

    Raises:
        ConfigError: the file holds no options of the job. StorageError: it cannot be read.
    """
    known = {flag: option for option in options_of(job.config_type()) for flag in option.flags}
    given = {known[flag].flag for flag in map(flag_in, argv) if flag in known}
    found, flags = [], []
    for flag, words in arguments_of(job, read_options(job, path), path):
        if flag == "--config":
            raise ConfigError(f"{path}: config: a file of options cannot name another")
        if flag not in given:
            found += words
            flags.append(flag)
    return [*found, *argv], flags


def flag_in(word: str) -> str:
    """The option that an argument begins with, as the help spells it."""
    return word.partition("=")[0].replace("_", "-")


def read_options(job: Job, path: str) -> dict[str, Any]:
    """The options of a job that a file holds, nested as its config is."""
    with open_read(path) as file:
        text = file.read()
    kind = "JSON" if path.lower().endswith(".json") else "YAML"
    try:
        if kind == "JSON":
            values = json.loads(text, object_pairs_hook=mapping_of)
        else:
            values = yaml.load(text, UniqueKeyLoader)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{path}: not {kind} ({reason(error)}{line}); write `option: value` lines"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no options; write `option: value` lines")
    if not isinstance(values.get("config"), dict):
        return values
    if values.get("job", job.name) != job.name:
        raise ConfigError(f"{path}: is of a run of {values['job']}, not of {job.name}")
    config = modernize_run({"job": job.name, "config": values["config"]})["config"]
    return {name: value for name, value in config.items() if name not in ONE_RUN_ONLY}


def check_given_once(keys: Sequence[Any]) -> None:
    """Raise `ValueError` for a key that is given twice: the last would win in silence."""
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{key} is given twice")


def mapping_of(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON."""
    check_given_once([key for key, _ in pairs])
    return dict(pairs)


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, which a key that is given twice stops; those that `<<` brings may be given anew."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        check_given_once([self.construct_object(key, deep=True) for key in own])
        return super().construct_mapping(node, deep)


def arguments_of(job: Job, values: Mapping[str, Any], source: str) -> Iterator[tuple[str, list[str]]]:
    """Each option that is given, as its flag and its arguments.

    Args:
        values: by option, spelled with underscores or as on the command line; those of a group in a mapping.
        source: of the values, for messages.

    Raises:
        ConfigError: there is no such option, or its value is of a kind that no option takes.
    """
    options = {option.flag: option for option in options_of(job.config_type())}
    seen: set[str] = set()
    for flag, value in leaves(values, options, source):
        if flag in seen:
            raise ConfigError(f"{source}: {flag} is given twice")
        seen.add(flag)
        if words := words_of(options[flag], value, source):
            yield flag, words


def leaves(
    values: Mapping[str, Any], options: Mapping[str, Option], source: str, prefix: str = "--"
) -> Iterator[tuple[str, Any]]:
    """The flag and the value of each option in a mapping and in those within it."""
    for key, value in values.items():
        flag = prefix + str(key).replace("_", "-")
        if flag in options:
            yield flag, value
        elif any(other.startswith(f"{flag}.") for other in options):
            inner = to_dict(value) if dataclasses.is_dataclass(value) else value
            if not isinstance(inner, Mapping):
                raise ConfigError(f"{source}: {key}: must hold options, such as {{name: value}}")
            yield from leaves(inner, options, source, f"{flag}.")
        else:
            names = sorted({name_after(prefix, other) for other in options if other.startswith(prefix)})
            place = f" in {prefix[2:-1]}" if prefix != "--" else ""
            near = nearest(str(key), names)
            known = f"there are {', '.join(names)}" if place or not near else ""
            raise ConfigError(f"{source}: {key}: no such option{place}; {near}{known}")


def name_after(prefix: str, flag: str) -> str:
    """The name of an option or group right after the prefix of a flag."""
    return flag.removeprefix(prefix).partition(".")[0].replace("-", "_")


def words_of(option: Option, value: Any, source: str) -> list[str]:
    """The arguments of one option; none where nothing is given."""
    flag = option.flag
    if value is None:
        return [flag, "None"] if option.optional else []
    if isinstance(value, bool):
        if option.is_switch:
            return [flag if value else option.off]
        value = "yes" if value else "no"  # which YAML takes for these
    elif option.is_switch:
        raise ConfigError(f"{source}: {flag.removeprefix('--')}: must be true or false")
    if isinstance(value, Mapping):
        value = [item for pair in value.items() for item in pair]
    if isinstance(value, str | numbers.Number | os.PathLike | datetime.date):
        return [f"{flag}={text_of(value)}"]
    if not isinstance(value, list | tuple | set | Iterator) or not several(option):
        name = flag.removeprefix("--")
        raise ConfigError(f"{source}: {name}: takes {option.metavar}, not a {type(value).__name__}")
    words = list(map(text_of, value))
    return [flag, *words] if words or option.default is not None else []


def several(option: Option) -> bool:
    """Whether an option takes more than one value."""
    return option.metavar.endswith("...") or " " in option.metavar


def text_of(value: Any) -> str:
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
