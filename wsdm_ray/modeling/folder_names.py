"""Errors about model folders that name the option and the folder as the user gave it. No torch."""

import contextlib
import re
from collections.abc import Iterator

from wsdm_ray.errors import DataError, ModelError, StorageError
from wsdm_ray.modeling.manifest import MANIFEST, read_manifest
from wsdm_ray.storage import HUB, is_remote, model_location, names_in_folder

__all__ = ["about", "as_given", "check_manifest_there"]


@contextlib.contextmanager
def as_given(*folders: tuple[str, str]) -> Iterator[None]:
    """Make errors name model folders as the user gave them.

    Args:
        folders: each as it was given, and where its files are.
    """
    try:
        yield
    except (DataError, ModelError, StorageError) as error:
        said = str(error)
        for folder, place in folders:
            said = said if place == folder else said.replace(place, folder)
        raise type(error)(said) from error


@contextlib.contextmanager
def about(option: str, folder: str) -> Iterator[None]:
    """Begin the text of an error with an option and a folder."""
    try:
        yield
    except (DataError, ModelError, StorageError) as error:
        said = str(error).removeprefix(f"{folder}: ")
        said = re.sub(rf"^{HUB}\S+@[0-9a-f]{{40}}: ", "", said)  # the same folder at its commit
        raise type(error)(f"{option} {folder}: {said}") from error


def check_manifest_there(folder: str, option: str) -> None:
    """Raise unless a folder is one of `train` or `quantize`; a local manifest is read, too."""
    with about(option, folder):
        location = model_location(folder)
        if MANIFEST not in names_in_folder(location):
            raise ModelError(
                f"no {MANIFEST}; this is no folder of `train` or `quantize`, or it is not complete"
            )
        if not is_remote(location):
            with as_given((folder, location)):
                read_manifest(location)
