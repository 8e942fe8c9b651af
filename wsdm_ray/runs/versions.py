"""Versions of code and libraries: all that shape an output, and those that change its numbers."""

import functools
import importlib.metadata
import platform
from collections.abc import Iterable, Mapping

from wsdm_ray.errors import RunMismatchError

__all__ = ["NUMERIC_VERSION", "check_same_numbers", "numeric_versions", "version_changes", "versions"]

NUMERIC_VERSION = "3"
"""Of this package's own arithmetic. It goes up with each change after which the same model, pair and options
give other probabilities, also where only their last digits differ."""

SHAPE_OUTPUTS = (
    *("wsdm_ray", "numpy", "pyarrow", "ftfy", "ray", "torch", "transformers"),
    *("peft", "bitsandbytes"),
)

CHANGE_NUMBERS = ("torch", "transformers", "tokenizers", "ftfy")
"""Of every model. Triton is not among them: builds of torch for CUDA take one version of it. Nor is numpy: of
what it computes only the last bit of a tanh differs between versions, and that is rounded to 2**-24."""

CHANGE_SOME_NUMBERS = ("bitsandbytes", "peft")
"""Of some models."""


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that shape an output, those that are installed."""
    return {"python": platform.python_version()} | installed(SHAPE_OUTPUTS)


@functools.cache
def installed(names: tuple[str, ...]) -> dict[str, str]:
    """Versions of the distributions that are installed, by name."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def numeric_versions(some: Iterable[str] = ()) -> dict[str, str]:
    """Versions of all that changes a probability. Builds of one version (`2.13.0+cpu`) count as the same.

    Args:
        some: which of `CHANGE_SOME_NUMBERS` the models take.
    """
    found = {name: version.partition("+")[0] for name, version in installed((*CHANGE_NUMBERS, *some)).items()}
    return {"wsdm_ray numbers": NUMERIC_VERSION} | found


def version_changes(earlier: Mapping[str, str], now: Mapping[str, str]) -> dict[str, list[str]]:
    """What differs: name to the earlier version and the present one. What `earlier` lacks is not known."""
    return {
        name: [earlier[name], now.get(name, "none")] for name in earlier if earlier[name] != now.get(name)
    }


def check_same_numbers(of_driver: Mapping[str, str]) -> None:
    """Raise `RunMismatchError` where this process has other versions than the one that started the run."""
    changed = version_changes(of_driver, numeric_versions(CHANGE_SOME_NUMBERS)) if of_driver else {}
    if changed:
        shown = "; ".join(f"{name} {here} instead of {there}" for name, (there, here) in changed.items())
        raise RunMismatchError(
            f"{platform.node()}: has {shown}, which the job was started with; install the same versions on "
            "all nodes"
        )
