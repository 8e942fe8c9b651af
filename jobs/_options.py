"""The options of a job as records, for the help and for shell completion: what tyro makes of a config class.

A field's docstring is the option's text; what follows "Example: " in it is the example.
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import shlex
import textwrap
import types
from collections.abc import Collection, Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from wsdm_ray.config import TrainConfig
from wsdm_ray.presets import PRESETS

__all__ = ["GROUPS", "Option", "nearest", "options_of"]

GROUPS: dict[str, tuple[str, ...]] = {
    "Input and output": (
        "config", "model", "input", "base", "adapter", "start_from", "train", "valid", "predictions", "votes",
        "exclude",
        "output", "submission", "submission_format",
    ),
    "Model": (
        "preset", "average", "precision", "quantization", "int8_activations", "compile", "calibrate",
        "calibration_pairs",
    ),
    "Rows and labels": (
        "rows", "lengths", "format", "split", "valid_fraction", "ties", "make_ids", "shard_rows",
        "hard_threshold", "source", "mix", "allow_leakage", "keep_columns", "on_bad_file", "duplicate_ids",
    ),
    "Orderings and averages": ("orders", "adaptive_threshold", "model_weights", "weights", "temperature"),
    "Ties": ("tie_rate", "tie_votes", "tie_predictions"),
    "Length of training": ("epochs", "max_steps", "pairs_per_step"),
    "Batching and memory": (
        "layout", "token_budget", "max_tokens", "micro_batches", "gradient_checkpointing", "shard_base",
        "unit_rows", "replicas", "min_replicas", "num_workers", "min_workers", "wait_for_resources_seconds",
    ),
    "Reporting": (
        "logits", "dry_run", "tensorboard", "wandb", "bootstrap", "adaptive_tolerance",
        "gpu_hour_price",
    ),
    "Seed, restart and resume": (
        "seed", "checkpoint_steps", "max_failures", "loss_spike", "store_timeout_seconds", "restart",
        "unit_timeout_seconds", "strict",
        "allow_version_change",
    ),
    "Text": ("text",),
    "Head": ("head",),
    "LoRA adapter": ("lora",),
    "Optimizer": ("optimizer",),
    "Objective and labels": ("objective",),
    "Column names": ("columns",),
}  # fmt: skip
"""Fields of the configs by the group that the help shows them in, in the order of the help."""

METAVARS = {
    **dict.fromkeys(
        ("output", "base", "adapter", "model", "predictions", "start_from", "teachers", "tie_predictions"),
        "DIR",
    ),
    **dict.fromkeys(("input", "train", "valid", "votes", "exclude", "calibrate", "tie_votes"), "PATH"),
    "keep_columns": "NAME",
    "submission": "FILE",
    "wandb": "PROJECT",
    "targets": "LAYER",
    "mix": "SOURCE SHARE",
    "source_weights": "SOURCE WEIGHT",
    "columns": "NAME",
}
"""What the help shows for a value, where the type alone says too little; by field."""

WORDS: dict[Any, str] = {int: "N", float: "X", str: "TEXT"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a job.

    Args:
        flag: such as `--text.max-tokens`.
        metavar: what stands for its values in the help; empty for a switch.
        choices: the values it takes, where they are few.
        optional: whether `None` is a value, which is what it has where nothing is given.
        default: None for a required one, and where the default depends on other things.
        example: a use of it, with the flag; empty where the value is plain.
    """

    flag: str
    group: str
    text: str
    metavar: str
    choices: tuple[str, ...] = ()
    required: bool = False
    optional: bool = False
    default: Any = None
    example: str = ""

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value; `--no-...` turns it off."""
        return not self.metavar and not self.choices

    @property
    def off(self) -> str:
        """The flag that turns a switch off."""
        parent, dot, name = self.flag.removeprefix("--").rpartition(".")
        return f"--{parent}{dot}no-{name}"

    @property
    def flags(self) -> tuple[str, ...]:
        """Every spelling."""
        return (self.flag, self.off) if self.is_switch else (self.flag,)

    @property
    def takes_path(self) -> bool:
        """Whether its values are files or folders."""
        return self.metavar.startswith(("DIR", "PATH", "FILE"))


def options_of(config_type: type[Any], default: Any = None) -> tuple[Option, ...]:
    """The options of a config class, group by group, required ones first.

    Args:
        default: a config whose values are the defaults, such as a preset; by default those of the class.
    """
    preset = [preset_option()] if config_type is TrainConfig else []
    found = [*preset, *walk(config_type, default, ()), config_option(bool(preset))]
    order = {group: place for place, group in enumerate(GROUPS)}
    return tuple(sorted(found, key=lambda option: (order[option.group], not option.required)))


def preset_option() -> Option:
    return Option(
        flag="--preset",
        group="Model",
        text="A whole config to start from; other options change it.",
        metavar="NAME",
        choices=tuple(sorted(PRESETS)),
        example="--preset gemma2_9b",
    )


def config_option(has_presets: bool) -> Option:
    over = " They win over --preset." if has_presets else ""
    return Option(
        flag="--config",
        group="Input and output",
        text="YAML file of options, or the run.json of an earlier run whose options are taken. Options given "
        f"here win over it.{over}",
        metavar="FILE",
        example="--config options.yaml",
    )


def walk(config_type: type[Any], default: Any, path: tuple[str, ...]) -> Iterator[Option]:
    """The options of a config class and of the classes within it; `path` is where it lies in the job's."""
    hints, docs = get_type_hints(config_type), field_docs(config_type)
    for field in dataclasses.fields(config_type):
        value = getattr(default, field.name) if default is not None else initial(field)
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            yield from walk(kind, value, (*path, field.name))
            continue
        text, _, example = docs.get(field.name, "").partition(" Example: ")
        choices, metavar = values_of(kind, METAVARS.get(path[0] if path == ("columns",) else field.name))
        yield Option(
            flag="--" + ".".join((*path, field.name)).replace("_", "-"),
            group=group_of((*path, field.name)[0]),
            text=text,
            metavar=metavar,
            choices=choices,
            required=field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
            optional=type(None) in get_args(kind),
            default=shown(value),
            example=example,
        )


def initial(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def group_of(name: str) -> str:
    return next(group for group, names in GROUPS.items() if name in names)


@functools.cache
def field_docs(config_type: type[Any]) -> dict[str, str]:
    """The docstrings of a class's fields, and of those that it inherits, each on one line."""
    docs: dict[str, str] = {}
    for owner in reversed(config_type.__mro__[:-1]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(definition, ast.ClassDef)
        for field, doc in itertools.pairwise(definition.body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(doc, ast.Expr)
                and isinstance(doc.value, ast.Constant)
            ):
                docs[field.target.id] = " ".join(str(doc.value.value).split())
    return docs


def values_of(kind: Any, word: str | None) -> tuple[tuple[str, ...], str]:
    """Choices and metavar of a type; `word` stands for one value where the field has a word of its own."""
    if get_origin(kind) in (Union, types.UnionType):
        parts = [values_of(part, word) for part in get_args(kind) if part is not type(None)]
        if not all(choices for choices, _ in parts):  # a number, or one of some words
            return (), "|".join(word for choices, name in parts for word in choices or (name,))
        return tuple(choice for choices, _ in parts for choice in choices), parts[0][1]
    if get_origin(kind) is Literal:
        return get_args(kind), "NAME"
    if get_origin(kind) is dict:
        return (), f"{word or 'NAME X'}..."
    if get_origin(kind) is tuple:
        first, last = get_args(kind)[0], get_args(kind)[-1]
        name = word or WORDS[first]
        return (), f"{name}..." if last is Ellipsis else " ".join([name] * len(get_args(kind)))
    return (), "" if kind is bool else word or WORDS[kind]


def shown(value: Any) -> str | None:
    """A default as it is typed; None where there is nothing to type."""
    if value is None or (isinstance(value, tuple | dict) and not value):
        return None
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return shlex.join(map(str, value))
    return repr(value)[1:-1] if isinstance(value, str) else str(value)


def nearest(word: str, names: Collection[str]) -> str:
    """`did you mean NAME? ` where a name is near to the word, else nothing."""
    near = difflib.get_close_matches(word, names, 1)
    return f"did you mean {near[0]}? " if near else ""
