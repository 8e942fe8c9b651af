"""The checkpoint folder: plain Hugging Face or PEFT files, and `wsdm_ray.json`, which says how they fit.

    adapter   adapter_config.json, adapter_model.safetensors (adapter and head), tokenizer; needs its base
    full      config.json, model.safetensors (with the head), tokenizer; larger weights stand in
              model-NNNNN-of-NNNNN.safetensors, and model.safetensors.index.json says which is where
    base      the same without a head: what `quantize` makes of a model that was not trained yet

`wsdm_ray.json` is written last, so a folder that has one is whole. Safetensors only; no code from a folder is
run.
"""

import dataclasses
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from wsdm_ray.config import HeadConfig, TextConfig, to_dict
from wsdm_ray.errors import ConfigError, ModelError
from wsdm_ray.modeling.classifier import (
    device_and_dtype,
    load_network,
    make_head,
    peft_warnings,
    quiet,
)
from wsdm_ray.modeling.quantized_linear import HADAMARD_BLOCK, HOPPER
from wsdm_ray.runs import versions
from wsdm_ray.storage import local_copy, reason, sha256_of_files
from wsdm_ray.text.encoding import read_settings

__all__ = [
    "BY_CAPABILITY",
    "MANIFEST",
    "Manifest",
    "add_adapter",
    "complete_folder",
    "folder_digest",
    "folder_quantization",
    "load_adapter_weights",
    "load_classifier",
    "local_base",
    "read_manifest",
    "resolve_precision",
    "save_classifier",
    "stored_head",
    "stored_quantization",
    "weight_files",
]

MANIFEST = "wsdm_ray.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = re.compile(
    r"(tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab\..*|merges\.txt)"
)
Quantization = Literal["int8", "nf4", "fp8", "int8-rows", "none"]
"""How weights are stored; `int8` and `nf4` are bitsandbytes'."""
IN_ROWS = {"fp8": "fp8", "int8-rows": "int8"}
"""What is stored for scoring alone, and the precision that takes it as it is."""
INT8_ROWS = {"quant_method": "int8_rows", "hadamard": HADAMARD_BLOCK}
"""What config.json says of `int8-rows`: a scale a row, after blocks of so many columns were spread."""
CALIBRATED_ROWS = INT8_ROWS | {"calibrated": True}
"""The same of rows whose columns were balanced against norms: nothing can be added to them."""
LEAST_CAPABILITY = {"fp8": (8, 9), "int8": (8, 0)}
"""The compute capability from which GPUs have products in a precision."""
BY_CAPABILITY = ("auto", *LEAST_CAPABILITY)
"""Precisions of which the GPU decides whether they are to be had, or what they are."""
LABEL_ORDER = ("first response wins", "second response wins")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `wsdm_ray.json`."""

    kind: Literal["adapter", "full", "base"]
    base: str | None = None
    """Where the base was in training (kind adapter)."""
    base_digest: str | None = None
    quantization: Quantization = "none"
    """Of the base as it was trained on, or of the folder's own weights."""
    head: HeadConfig | None = None
    text: TextConfig = field(default_factory=TextConfig)
    orders: str = "both"
    """Orderings trained on."""
    label_order: tuple[str, str] = LABEL_ORDER
    temperature: float = 1.0
    tokenizer_digest: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def folder_digest(folder: str) -> str:
    """SHA-256 of a model folder's weights and the files that say how to use them.

    Raises:
        ModelError: there are no safetensors in the folder.
    """
    root = Path(folder)
    weights = sorted(root.glob("*.safetensors"))
    if not weights:
        others = ", ".join(sorted(path.name for path in root.glob("*.bin"))) or "none"
        raise ModelError(
            f"{folder}: no .safetensors weights (other weights: {others}); save the model as safetensors"
        )
    files = [
        root / name
        for name in (
            "config.json",
            "adapter_config.json",
            MANIFEST,
            "tokenizer.json",
            "tokenizer_config.json",
        )
    ]
    return sha256_of_files([str(path) for path in [*files, *weights] if path.is_file()])


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
    files = [root / name for name in sorted(set(places.values()))]
    for path in files:
        if not path.is_file():
            raise ModelError(f"{folder}: no {path.name}, which {INDEX} names; fetch or save the model anew")
    return files


def folder_quantization(folder: str) -> Quantization:
    """How a model folder stores the weights of its linear layers.

    Raises:
        ModelError: in another way than these.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ModelError(
            f"{folder}: no config.json; this is no model folder"
            + (", but an adapter: give its base, or merge it with `quantize --adapter`"
               if (path.parent / "adapter_config.json").is_file() else "")
        )  # fmt: skip
    settings = read_settings(path).get("quantization_config")
    if settings is None:
        return "none"
    method = settings.get("quant_method", "bitsandbytes") if isinstance(settings, dict) else settings
    if method == "bitsandbytes":
        return "int8" if settings.get("load_in_8bit") else "nf4"
    if method == "compressed-tensors" and is_w8a8_fp8(settings):
        return "fp8"
    if settings in (INT8_ROWS, CALIBRATED_ROWS):
        return "int8-rows"
    raise ModelError(
        f"{folder}: is quantized by {method}, neither by bitsandbytes nor in rows of 8 bit; give an "
        "unquantized base"
    )


def is_w8a8_fp8(settings: dict[str, Any]) -> bool:
    """Whether compressed-tensors' settings mean 8-bit floats with one scale a row in every linear layer."""
    try:
        [group] = settings["config_groups"].values()
        weights = group["weights"]
        found = (*(weights[name] for name in ("type", "num_bits", "strategy", "symmetric")), group["targets"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
    return found == ("float", 8, "channel", True, ["Linear"])


def stored_quantization(folder: str, asked: str) -> Literal["int8", "nf4", "none"]:
    """How a base will be held in training: as its folder stores it, else as asked for (`auto` is int8).

    Raises:
        ConfigError: the folder is quantized in another way than was asked for.
        ModelError: in a way beside which nothing can be trained.
    """
    stored = folder_quantization(folder)
    if stored == "none":
        return {"auto": "int8", "int8": "int8", "nf4": "nf4", "none": "none"}[asked]  # pyright: ignore[reportReturnType]
    if stored not in ("int8", "nf4"):
        raise ModelError(
            f"{folder}: is stored in {stored}, which is for scoring alone; train on the unquantized model, "
            "or on one that jobs.quantize made int8 or nf4"
        )
    if asked not in ("auto", stored):
        raise ConfigError(
            f"--quantization {asked}: {folder} is stored as {stored}; use auto, or an unquantized base"
        )
    return stored


def tokenizer_digest(folder: str | Path) -> str:
    return sha256_of_files([str(Path(folder) / "tokenizer.json")])


def read_manifest(folder: str, *, need_head: bool = True) -> Manifest:
    """The checked manifest of a local checkpoint folder.

    Raises:
        ModelError: the folder has no manifest or no tokenizer, or (where `need_head`) no head.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ModelError(
            f"{folder}: no {MANIFEST}; this is no folder of `train` or `quantize`, or it is not complete"
        )
    try:
        values = json.loads(path.read_text())
        head = values.pop("head")
        manifest = Manifest(
            head=HeadConfig(**head) if head else None, text=TextConfig(**values.pop("text")), **values
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{path}: not readable by this version ({error}); copy or make the folder anew"
        ) from error
    for name, value, known in (
        ("kind", manifest.kind, ("adapter", "full", "base")),
        ("quantization", manifest.quantization, get_args(Quantization)),
        ("label_order", tuple(manifest.label_order), (LABEL_ORDER,)),
    ):
        if value not in known:
            raise ModelError(f"{path}: not readable by this version ({name} is {value!r})")
    if not (Path(folder) / "tokenizer.json").is_file():
        raise ModelError(f"{folder}: no tokenizer.json; copy the tokenizer files it was trained with")
    if tokenizer_digest(folder) != manifest.tokenizer_digest:
        raise ModelError(
            f"{folder}: tokenizer.json is not the one it was trained with; restore the original file"
        )
    if need_head and manifest.head is None:
        raise ModelError(f"{folder}: a base without a head; train it first")
    return manifest


def save_classifier(network: nn.Module, tokenizer_folder: str, folder: str, manifest: Manifest) -> None:
    """Write a checkpoint folder; `complete_folder` says what is filled in."""
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    # PEFT would ask the hub for the base's vocabulary where it may save embeddings.
    options = {"save_embedding_layers": False} if manifest.kind == "adapter" else {}
    network.save_pretrained(root, safe_serialization=True, **options)  # pyright: ignore[reportCallIssue]
    (root / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    if manifest.kind == "adapter":
        path = root / "adapter_config.json"
        settings = json.loads(path.read_text()) | {"base_model_name_or_path": manifest.base}
        settings["target_modules"] = sorted(settings["target_modules"])  # PEFT's order is that of a set
        path.write_text(json.dumps(settings, indent=2, sort_keys=True))
    complete_folder(tokenizer_folder, folder, manifest)


def complete_folder(tokenizer_folder: str, folder: str, manifest: Manifest) -> None:
    """Put the tokenizer and, last, the manifest beside the weights of a checkpoint folder.

    The manifest's tokenizer digest and versions are filled in here.
    """
    root = Path(folder)
    for path in Path(tokenizer_folder).iterdir():
        if TOKENIZER_FILES.fullmatch(path.name) and path.is_file():
            shutil.copyfile(path, root / path.name)
    filled = dataclasses.replace(manifest, tokenizer_digest=tokenizer_digest(root), versions=versions())
    (root / MANIFEST).write_text(json.dumps(to_dict(filled), indent=2, ensure_ascii=False) + "\n")


def resolve_precision(
    precision: str, device: str, manifest: Manifest, capability: tuple[int, int] | None = None
) -> str:
    """What `auto` means for a checkpoint on a kind of device, and that both allow what was asked for.

    Args:
        capability: of the GPU, (major, minor); by default of this process's.

    Raises:
        ConfigError: the weights are quantized in another way than was asked for, or the GPU lacks it.
    """
    if device == "cuda" and precision in BY_CAPABILITY:
        capability = capability or torch.cuda.get_device_capability()
    stored = ({"int8": "bnb-int8", "nf4": "nf4", "none": None} | IN_ROWS)[manifest.quantization]
    if precision == "auto":
        precision = "fp32" if device == "cpu" else fastest_precision(capability or (0, 0), stored)
    in_rows = manifest.quantization in IN_ROWS
    least = LEAST_CAPABILITY.get(precision, (0, 0))
    if capability and capability < least:
        other = {"fp8": "int8", "int8": "bnb-int8"}[precision]
        unread = in_rows and other == "bnb-int8"
        raise ConfigError(
            f"--precision {precision}: takes a GPU of compute capability {least[0]}.{least[1]} or later, and "
            f"there is one of {capability[0]}.{capability[1]}; use --precision {other}"
            + (f", with the model before it was made {manifest.quantization}" if unread else "")
        )
    if precision in ("bnb-int8", "nf4") and stored not in (None, precision):
        also, name = ("", manifest.quantization) if in_rows else ("it, ", stored)
        raise ConfigError(
            f"--precision {precision}: the weights are stored as {name}; use {also}fp32, bf16, int8 or fp8"
        )
    return precision


def fastest_precision(capability: tuple[int, int], stored: str | None) -> str:
    """Of a GPU, for weights that are stored in a precision or (None) unquantized.

    On Hopper GPUs our kernel's products of int8 are faster than those of float8, and nearer to the exact
    ones. They take inner widths that are multiples of 128, which those of all known models are.
    """
    if stored == "int8" or (capability == HOPPER and stored != "fp8"):
        return "int8"
    if capability >= LEAST_CAPABILITY["fp8"]:
        return "fp8"
    if capability >= LEAST_CAPABILITY["int8"] or stored == "fp8":  # bitsandbytes has no such weights
        return "int8"
    return stored or "bnb-int8"


def load_classifier(
    folder: str,
    *,
    precision: str = "fp32",
    device: str | None = None,
    base: str | None = None,
    verify: bool = True,
) -> tuple[nn.Module, Manifest]:
    """A network of transformers ready to score, from a checkpoint folder (local or remote).

    With `fp32` or `bf16` the weights are dequantized and the adapter is merged, in float32; otherwise the
    base stays quantized as it was trained and the adapter stands beside it.

    Args:
        precision: `fp32`, `bf16`, `bnb-int8` or `nf4`; for others, and for checkpoints stored in 8-bit rows,
            there is `loading.load_scorer`.
        base: where the base is, if not where the manifest says.
        verify: compare the base's digest with the manifest's (reads all of its weights).

    Raises:
        ModelError: a part is missing or does not fit.
        ConfigError: the precision is not to be had.
    """
    folder = local_copy(folder)
    manifest = read_manifest(folder)
    assert manifest.head is not None
    device = device_and_dtype("auto", device)[0]
    precision = resolve_precision(precision, device, manifest)
    merge = precision in ("fp32", "bf16")
    if manifest.quantization in IN_ROWS or precision in ("int8", "fp8"):
        raise ModelError(f"{folder}: a network of transformers cannot run {precision} of it; use load_scorer")
    final = device_and_dtype(precision if merge else "auto", device)[1]
    weights = local_base(folder, manifest, base, verify) if manifest.kind == "adapter" else folder
    # An adapter was trained beside quantized weights: it is merged into what these stand for.
    quantization = (
        manifest.quantization if merge else {"bnb-int8": "int8", "nf4": "nf4"}.get(precision, "none")
    )
    network: Any = load_network(
        weights,
        manifest.head,
        seed=0,
        device=device,
        dtype=torch.float32 if merge else final,
        quantization=quantization,
    )
    if merge and manifest.quantization != "none":
        network = network.dequantize(dtype=torch.float32)
    if manifest.kind == "adapter":
        network = load_adapter(network, folder)
        if merge:
            network = network.merge_and_unload()
    else:
        load_head(network, folder)
    if final != torch.float32 and merge:
        head, network.score = network.score, nn.Identity()  # the head stays float32
        network.to(final)
        network.score = head
    return network.requires_grad_(False).eval(), manifest


def local_base(folder: str, manifest: Manifest, base: str | None, verify: bool) -> str:
    """The local folder of an adapter's base, whose digest fits."""
    assert manifest.base is not None
    where = base or manifest.base
    try:
        local = local_copy(where)
    except OSError as error:
        raise ModelError(f"{folder}: its base {where} cannot be had ({error}); use --base FOLDER") from error
    if verify and (found := folder_digest(local)) != manifest.base_digest:
        raise ModelError(
            f"{folder}: was trained on a base with digest {str(manifest.base_digest)[:12]}, but {where} has "
            f"{found[:12]}; use --base with the base it was trained on"
        )
    return local


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


def check_head(folder: str, head: nn.Module, found: dict[str, tuple[int, ...]]) -> None:
    """Raise `ModelError` where stored head tensors are not those of `head`."""
    expected = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    if not found:
        raise ModelError(
            f"{folder}: has no head; it needs the tensors {', '.join('score.' + name for name in expected)}"
        )
    if found != expected:
        raise ModelError(f"{folder}: its head {found} does not fit this base, which needs {expected}")


def load_adapter(network: nn.Module, folder: str) -> nn.Module:
    """`network` with the adapter and the head of a checkpoint folder."""
    import peft

    quiet()
    path = Path(folder) / "adapter_model.safetensors"
    if not path.is_file():
        raise ModelError(f"{folder}: no adapter_model.safetensors; the checkpoint is not complete")
    check_head(folder, network.get_submodule("score"), tensor_shapes(path, "base_model.model.score."))
    try:
        with peft_warnings():
            wrapped = peft.PeftModel.from_pretrained(network, folder)  # pyright: ignore[reportArgumentType]
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{folder}: its adapter does not fit the base ({reason(error)})") from error
    check_adapter(wrapped, path)
    return wrapped


def add_adapter(network: Any, folder: str, name: str) -> None:
    """Put the adapter and the head of another folder beside those that `network` has already.

    `network.set_adapter` switches both. The heads must be of one shape and type.
    """
    folder = local_copy(folder)
    path = Path(folder) / "adapter_model.safetensors"
    head = network.get_base_model().score.original_module
    check_head(folder, head, tensor_shapes(path, "base_model.model.score."))
    try:
        with peft_warnings():
            network.load_adapter(folder, name, torch_device=str(next(head.parameters()).device))
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{folder}: its adapter does not fit the base ({reason(error)})") from error
    check_adapter(network, path, name)
    network.requires_grad_(False).eval()


def check_adapter(network: nn.Module, path: Path, name: str = "default") -> None:
    """Raise `ModelError` unless the file holds the very tensors that train in `network`; PEFT would not."""
    import peft

    expected = set(peft.get_peft_model_state_dict(network, adapter_name=name, save_embedding_layers=False))
    found = set(tensor_shapes(path, ""))
    if lacking := sorted(expected - found):
        raise ModelError(f"{path}: lacks {lacking[0]} and {len(lacking) - 1} other tensors; copy it anew")
    if extra := sorted(found - expected):
        raise ModelError(f"{path}: has {extra[0]}, for which the network has no place; check --lora.targets")


def load_adapter_weights(network: nn.Module, folder: str) -> None:
    """Overwrite the adapter and the head of a network that has them by those of a folder, exactly."""
    import peft

    path = Path(folder) / "adapter_model.safetensors"
    check_adapter(network, path)
    peft.set_peft_model_state_dict(network, load_file(path))


def stored_head(folder: str, config: HeadConfig, width: int) -> nn.Module:
    """The head of a full model's folder, on the CPU."""
    network = nn.Module()
    network.score = make_head(config, width, seed=0)
    load_head(network, folder)
    return network.get_submodule("score").eval()


def load_head(network: nn.Module, folder: str) -> None:
    """Fill the head of `network` from a full checkpoint folder."""
    head = network.get_submodule("score")
    files = weight_files(folder)
    found = {name: (path, shape) for path in files for name, shape in tensor_shapes(path, "score.").items()}
    check_head(folder, head, {name: shape for name, (_, shape) in found.items()})
    tensors = {}
    for name, (path, _) in found.items():
        with safe_open(path, "pt") as file:
            tensors[name] = file.get_tensor(f"score.{name}")
    head.load_state_dict(tensors)
