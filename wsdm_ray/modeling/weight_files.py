"""The safetensors files of a model folder: which there are, and what is in them."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from wsdm_ray.errors import ModelError
from wsdm_ray.text.encoding import read_settings

__all__ = ["INDEX", "WEIGHTS", "read_tensor", "tensor_shapes", "weight_files"]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def weight_files(folder: str) -> list[Path]:
    """The safetensors files of a full model's folder, as transformers finds them: one, or those of the index.

    Raises:
        ModelError: there are none, or one that the index names is not there.
    """
    root = Path(folder)
    if (root / WEIGHTS).is_file():
        return [root / WEIGHTS]
    if not (root / INDEX).is_file():
        raise ModelError(f"{folder}: no {WEIGHTS} and no {INDEX}; save the model as safetensors")
    places = read_settings(root / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ModelError(f"{root / INDEX}: has no weight_map; restore the model's own file")
    if outside := [name for name in places.values() if Path(name).name != name]:
        raise ModelError(
            f"{root / INDEX}: names {outside[0]!r}, which is no file of this folder; fetch it anew"
        )
    files = [root / name for name in sorted(set(places.values()))]
    for path in files:
        if not path.is_file():
            raise ModelError(f"{folder}: no {path.name}, which {INDEX} names; fetch or save the model anew")
    return files


def tensor_shapes(path: Path, prefix: str) -> dict[str, tuple[int, ...]]:
    """Name without `prefix` to shape, of the tensors of a safetensors file whose names begin with it."""
    try:
        with safe_open(path, "pt") as file:
            return {
                name.removeprefix(prefix): tuple(file.get_slice(name).get_shape())
                for name in file.keys()  # noqa: SIM118  (not a dict)
                if name.startswith(prefix)
            }
    except SafetensorError as error:
        raise ModelError(f"{path}: not whole ({error}); copy it anew") from error


def read_tensor(path: Path, name: str) -> torch.Tensor:
    """A tensor of a safetensors file; on a CPU its data stay in the file's pages."""
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)
