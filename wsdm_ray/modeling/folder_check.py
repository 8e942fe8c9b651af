"""What is wrong with a model folder, found out from its JSON files and the headers of its weights.

Nothing of a remote folder is copied for it, and no weights are read. Every job that takes a model calls this
first, so that an error names the option and the folder as the user gave them. Not covered: digests, and
whether the weights are whole (`weight_files`, `classifier`).
"""

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wsdm_ray.errors import DataError, ModelError, StorageError
from wsdm_ray.modeling.adapter_io import ADAPTER_WEIGHTS
from wsdm_ray.modeling.classifier import model_config
from wsdm_ray.modeling.lora import ADAPTER_CONFIG
from wsdm_ray.modeling.manifest import MANIFEST
from wsdm_ray.modeling.weight_files import INDEX, WEIGHTS
from wsdm_ray.storage import HUB, hub_name, join, model_location, names_in_folder, open_read, read_json

__all__ = [
    "about",
    "as_given",
    "check_adapter_folder",
    "check_classifier_folder",
    "check_model_folder",
]

EMBEDDING = "embed_tokens.weight"
MOST_HEADER_BYTES = 100_000_000
"""Of a safetensors file, by its format."""
SHOWN_IDS = 3


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


def check_model_folder(folder: str, option: str, *, tokenizer: str | None = None) -> None:
    """Raise unless a folder has all that a full model needs, and its tokenizer fits its embedding.

    Args:
        folder: local, in a store or on the Hub, as the user gave it.
        option: that named it.
        tokenizer: the local folder of the tokenizer, where it is not the model's own: that of an adapter.

    Raises:
        ModelError, StorageError: of one line that begins with the option and the folder.
    """
    with about(option, folder):
        place = model_location(folder)
        names = names_in_folder(place)
        check_kind(names)
        config = read_object(place, "config.json", names)
        check_config(config)
        check_weights_named(place, names)
        rows = embedding_rows(place, names, config)
        check_pad(config, rows)
        check_tokenizer(tokenizer or place, config, rows)


def check_adapter_folder(folder: str, option: str) -> None:
    """Raise unless a folder has the files of an adapter; the arguments are those of `check_model_folder`."""
    with about(option, folder):
        place = model_location(folder)
        names = names_in_folder(place)
        if ADAPTER_CONFIG not in names:
            if "config.json" in names:
                raise ModelError("is a whole model, no adapter; give it as --base")
            raise ModelError(f"no {ADAPTER_CONFIG}; give the folder of a PEFT adapter")
        if ADAPTER_WEIGHTS not in names:
            raise ModelError(f"no {ADAPTER_WEIGHTS}; save the adapter as safetensors")
        read_object(place, ADAPTER_CONFIG, names)


def check_classifier_folder(folder: str, option: str) -> None:
    """Raise unless a folder is a whole one of `train` or `quantize`; the arguments are as above."""
    with about(option, folder):
        names = names_in_folder(model_location(folder))
        if MANIFEST not in names:
            raise ModelError(
                f"no {MANIFEST}; this is no folder of `train` or `quantize`, or it is not complete"
            )
    if "config.json" in names:
        check_model_folder(folder, option)
    else:
        check_adapter_folder(folder, option)


def check_kind(names: set[str]) -> None:
    """Raise where a folder is an adapter, or no model at all."""
    if ADAPTER_CONFIG in names and "config.json" not in names:
        raise ModelError(
            "is an adapter, no whole model; give the model that it was trained on, or merge the two "
            "first: `python -m jobs.quantize --base MODEL --adapter ADAPTER --output MERGED`"
        )
    if "config.json" not in names:
        raise ModelError("no config.json; give the folder of a Hugging Face model")


def read_object(folder: str, name: str, names: set[str]) -> dict[str, Any]:
    """The object that a JSON file of a folder holds; empty where there is no such file."""
    if name not in names:
        return {}
    try:
        value = read_json(join(folder, name))
    except DataError:
        value = None
    if not isinstance(value, dict):
        raise ModelError(f"{name} is not a JSON object; restore the model's own file")
    return value


def check_config(config: dict[str, Any]) -> None:
    """Raise unless the model is one that can be trained or scored."""
    with tempfile.TemporaryDirectory() as work:
        Path(work, "config.json").write_text(json.dumps(config))
        try:
            model_config(work)
        except ModelError as error:
            raise ModelError(str(error).removeprefix(f"{work}: ").replace(work, "it")) from error


def check_weights_named(folder: str, names: set[str]) -> None:
    """Raise where the folder has no safetensors, or lacks a file that their index names."""
    if WEIGHTS in names:
        return
    if INDEX not in names:
        others = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".gguf", ".h5")))
        said = f" (it has {others[0]})" if others else ""
        raise ModelError(f"no {WEIGHTS} and no {INDEX}{said}; save the model as safetensors")
    places = read_object(folder, INDEX, names).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ModelError(f"{INDEX} has no weight_map; restore the model's own file")
    if missing := sorted(set(places.values()) - names):
        more = f" and {len(missing) - 1} other files" if missing[1:] else ""
        raise ModelError(f"no {missing[0]}{more}, which {INDEX} names; fetch or save the model anew")


def embedding_rows(folder: str, names: set[str], config: dict[str, Any]) -> int | None:
    """Rows of the embedding by the header of its file, on the Hub by the config; None where unknown."""
    said = config.get("vocab_size")
    if hub_name(folder):  # a file's header would cost the file
        return said if isinstance(said, int) else None
    name = WEIGHTS
    if WEIGHTS not in names:
        places = read_object(folder, INDEX, names)["weight_map"]
        name = next((file for tensor, file in places.items() if tensor.endswith(EMBEDDING)), None)
    header = read_header(folder, name) if name else {}
    shapes = [entry.get("shape") for tensor, entry in header.items() if tensor.endswith(EMBEDDING)]
    return shapes[0][0] if shapes and shapes[0] else said if isinstance(said, int) else None


def read_header(folder: str, name: str) -> dict[str, Any]:
    """Tensors of a safetensors file by their names, with type and shape: only its first bytes are read."""
    with open_read(join(folder, name)) as file:
        length = int.from_bytes(file.read(8), "little")
        data = file.read(length) if length <= MOST_HEADER_BYTES else b""
    try:
        header = json.loads(data)
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise ModelError(f"{name} is not whole, or no safetensors file; copy it anew")
    return header


def check_pad(config: dict[str, Any], rows: int | None) -> None:
    """Raise where the padding id has no row, which no network can be made of."""
    pad = config.get("pad_token_id")
    if rows is not None and isinstance(pad, int) and not -rows <= pad < rows:
        raise ModelError(
            f"config.json has pad_token_id {pad}, the embedding {rows} rows; correct config.json"
        )


def check_tokenizer(folder: str, config: dict[str, Any], rows: int | None) -> None:
    """Raise where there is no fast tokenizer, or where ids that it gives to texts have no row."""
    names = names_in_folder(folder)
    if "tokenizer.json" not in names:
        slow = sorted({"tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"} & names)
        said = f" ({slow[0]} is a slow tokenizer's)" if slow else ""
        raise ModelError(
            f"no tokenizer.json{said}; write it there with transformers: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    tokenizer = read_object(folder, "tokenizer.json", names)
    settings = read_object(folder, "tokenizer_config.json", names)
    try:
        ids = ids_of_texts(tokenizer)
        eos, eos_id = eos_of(tokenizer, settings, config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError("tokenizer.json is not a tokenizer; restore the model's own file") from error
    if eos_id is None:
        said = f"eos token {eos} is not in tokenizer.json" if eos else "no eos token"
        raise ModelError(f"{said}; set eos_token in tokenizer_config.json to a token that it has")
    ids[eos_id] = str(eos)
    if beyond := sorted(item for item in ids.items() if rows is not None and item[0] >= rows):
        shown = ", ".join(f"{id} ({text!r})" for id, text in beyond[:SHOWN_IDS])
        more = f" and {len(beyond) - SHOWN_IDS} more" if beyond[SHOWN_IDS:] else ""
        raise ModelError(
            f"the tokenizer has the ids {shown}{more}, but the embedding only {rows} rows; use the "
            "tokenizer that the model was trained with, or add rows: "
            "model.resize_token_embeddings(len(tokenizer)), then save both"
        )


def ids_of_texts(tokenizer: dict[str, Any]) -> dict[int, str]:
    """Ids that a text can get, with their tokens.

    Special tokens are left out: their strings in a text are encoded as text. Those that the tokenizer itself
    puts around a text are in.
    """
    vocabulary = tokenizer["model"]["vocab"]
    if not isinstance(vocabulary, dict):  # of a Unigram model: a list of tokens with their scores
        vocabulary = {entry[0]: id for id, entry in enumerate(vocabulary)}
    added = tokenizer.get("added_tokens") or []
    special = {token["id"] for token in added if token.get("special")}
    ids = {int(id): text for text, id in vocabulary.items() if id not in special}
    ids |= {token["id"]: token["content"] for token in added if token["id"] not in special}
    processor = tokenizer.get("post_processor") or {}
    for step in processor.get("processors", [processor]):  # a sequence of them, or one
        around = step.get("special_tokens")
        if isinstance(around, dict):
            ids |= {id: name for name, entry in around.items() for id in entry["ids"]}
    return ids


def eos_of(
    tokenizer: dict[str, Any], settings: dict[str, Any], config: dict[str, Any]
) -> tuple[str | int | None, int | None]:
    """The eos token as the folder names it, and its id, as `PairEncoder` finds them; None without one."""
    eos = None
    for value in (settings.get("eos_token"), config.get("eos_token_id")):
        value = value[0] if isinstance(value, list) and value else value
        value = value.get("content") if isinstance(value, dict) else value
        eos = value if eos is None else eos
        if isinstance(value, int):
            return value, value
        if isinstance(value, str):
            found = id_of(tokenizer, value)
            if found is not None:
                return value, found
    return eos, None


def id_of(tokenizer: dict[str, Any], token: str) -> int | None:
    """The id of a token by its string."""
    for added in tokenizer.get("added_tokens") or []:
        if added["content"] == token:
            return added["id"]
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, dict):
        return vocabulary.get(token)
    return next((id for id, entry in enumerate(vocabulary) if entry[0] == token), None)
