"""Names of earlier versions, mapped to the present ones at the edge: nothing else knows an old name.

    modernize_arguments   the arguments of a job
    modernize_manifest    the content of a model folder's wsdm_ray.json
    modernize_run         the content of an output folder's run.json, or of its _run.json

`int8` had two meanings: bitsandbytes' LLM.int8() in `quantize`, `train` and manifests, 8-bit weights and
activations by rows in `score`. No present name is an old one, so that what is mapped twice stays the same.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["modernize_arguments", "modernize_manifest", "modernize_run"]

STORED = {"int8": "bnb-int8", "int8-rows": "w8a8-int8", "fp8": "w8a8-fp8"}
"""Precisions of stored weights: old name to present one."""
SCORED = {"int8": "w8a8-int8", "fp8": "w8a8-fp8"}
"""Precisions of `score`: old name to present one."""

VALUES: dict[str, dict[str, Mapping[str, str]]] = {
    "quantize": {"precision": STORED},
    "train": {"quantization": STORED},
    "score": {"precision": SCORED},
    "pseudolabel": {"precision": SCORED},
}
"""By job and option, the old values and the present ones."""

OPTIONS: dict[str, dict[str, str]] = {
    "train": {"objective.order_agreement": "objective.swap_consistency_weight"},
}
"""By job, the old options and the present ones, as paths of config fields."""


FLAGS = {"train": ("gradient_checkpointing",)}
"""By job, options that were flags and take yes or no now."""

NO_LONGER_DECISIVE = {"train": ("gradient_checkpointing",)}
"""By job, options that fingerprints had although they do not change the result."""


def modernize_arguments(job: str, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments of a job under present names, and one line for each old name among them.

    Args:
        job: its name, such as `quantize`.
        argv: the arguments after the job's name; values follow their option or an equals sign.
    """
    words: list[str] = []
    argv, lines = modernize_flags(job, argv)
    values: Mapping[str, str] = {}
    shown = ""
    for word in argv:
        if word.startswith("--"):
            shown, equals, value = word.partition("=")
            field = shown.removeprefix("--").replace("-", "_")
            if field in OPTIONS.get(job, {}):
                field = OPTIONS[job][field]
                present = "--" + field.replace("_", "-")
                lines.append(f"{shown} is called {present} now")
                shown = present
            values = VALUES.get(job, {}).get(field, {})
            words.append(shown + equals + values.get(value, value))
        else:
            value = word
            words.append(values.get(word, word))
        if value in values:
            lines.append(f"{shown} {value} is called {values[value]} now")
    return words, lines


def modernize_flags(job: str, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments with a value after each of `FLAGS` that has none, and one line for each."""
    words: list[str] = []
    lines: list[str] = []
    present = {"--" + field.replace("_", "-"): "yes" for field in FLAGS.get(job, ())}
    negated = {option.replace("--", "--no-", 1): option for option in present}
    for word, following in itertools.zip_longest(argv, argv[1:], fillvalue="--"):
        option, value = negated.get(word, word), "no" if word in negated else present.get(word)
        words.append(option)
        if value and (word in negated or following.startswith("--")):
            words.append(value)
            lines.append(f"{word} is {option} {value} now")
    return words, lines


def modernize_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest under present names; what it does not have is not added."""
    return replace_value(manifest, "quantization", STORED)


def modernize_run(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run's record (job, fingerprint and, once finished, its content) under present names."""
    run, job = dict(run), run.get("job")
    if isinstance(run.get("config"), Mapping):
        run["config"] = modernize_options(job, run["config"])
    if isinstance(run.get("resolved"), Mapping):
        run["resolved"] = replace_value(run["resolved"], "quantization", STORED)
    if isinstance(run.get("fingerprint"), Mapping):
        run["fingerprint"] = modernize_fingerprint(job, run["fingerprint"])
    return run


def modernize_fingerprint(job: Any, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """`quantize` keeps its precision at the top, `score` and `pseudolabel` that of each model."""
    values = dict(fingerprint)
    if isinstance(values.get("options"), Mapping):
        present = modernize_options(job, values["options"])
        left_out = NO_LONGER_DECISIVE.get(job, ())
        values["options"] = {name: value for name, value in present.items() if name not in left_out}
    if job == "quantize":
        values = replace_value(values, "precision", STORED)
    if isinstance(values.get("models"), list):
        values["models"] = [
            replace_value(model, "precision", SCORED) if isinstance(model, Mapping) else model
            for model in values["models"]
        ]
    return values


def modernize_options(job: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """A job's options, nested as its config is, under present names and with present values."""
    values = dict(options)
    for old, new in OPTIONS.get(job, {}).items():
        group, _, old_name = old.rpartition(".")
        inner = values.get(group)
        if isinstance(inner, Mapping) and old_name in inner:
            kept = {name: value for name, value in inner.items() if name != old_name}
            values[group] = kept | {new.rpartition(".")[2]: inner[old_name]}
    for name, names in VALUES.get(job, {}).items():
        values = replace_value(values, name, names)
    return values


def replace_value(values: Mapping[str, Any], name: str, names: Mapping[str, str]) -> dict[str, Any]:
    """`values` with the one of `name`, where it is an old name, replaced by the present one."""
    value = values.get(name)
    return dict(values) | ({name: names[value]} if isinstance(value, str) and value in names else {})
