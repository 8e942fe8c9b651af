"""Checkpoint folders: the same numbers in a new process and by plain libraries; what does not fit."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.modeling import plain_loading
from wsdm_ray.config import HeadConfig, LoraConfig, QuantizeConfig, TextConfig
from wsdm_ray.errors import ConfigError, ModelError, RunMismatchError, StorageError, WsdmRayError
from wsdm_ray.modeling.adapter_io import load_adapter, load_adapter_weights
from wsdm_ray.modeling.checkpoint import save_classifier
from wsdm_ray.modeling.classifier import add_lora, load_network, ordering_logits, trainable_parameters
from wsdm_ray.modeling.loading import load_classifier
from wsdm_ray.modeling.manifest import MANIFEST, Manifest, folder_digest, read_manifest
from wsdm_ray.modeling.precision import W8A8, resolve_precision
from wsdm_ray.modeling.quantization import quantize
from wsdm_ray.modeling.quantization_config import stored_quantization
from wsdm_ray.packing.layouts import lay_out
from wsdm_ray.text.encoding import PairEncoder

TEXT = TextConfig(max_tokens=200)
LORA = LoraConfig(r=4, alpha=8)
PAIR = (
    "What is the sum of <eos> 12 and 30?",
    "The answer is 42, of course.",
    "Das weiß ich nicht, <bos> 对不起。",
)


def logits_of(network: Any, folder: str | Path) -> torch.Tensor:
    """Logits of both orderings of `PAIR`, with the folder's tokenizer: float32 [2, 2]."""
    pairs = PairEncoder(str(folder), TEXT).encode(*([text] for text in PAIR))
    with torch.no_grad():
        return ordering_logits(
            network.eval(), lay_out("shared", pairs.prefix, [pairs.suffix_ab, pairs.suffix_ba], np.array([0]))
        )


def trained(base: Path, quantization: str) -> Any:
    """A network with an adapter and a head that do something, as training leaves it."""
    network = load_network(
        str(base), HeadConfig(), seed=0, device="cpu", dtype=torch.float32, quantization=quantization
    )
    network = add_lora(network, LORA, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_parameters(network).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def manifest_of(base: Path, asked: str) -> Manifest:
    return Manifest(
        kind="adapter",
        base=str(base),
        base_digest=folder_digest(str(base)),
        quantization=stored_quantization(str(base), asked),
        head=HeadConfig(),
        text=TEXT,
        temperature=1.5,
        metrics={"step": 3},
    )


@pytest.fixture(scope="module")
def folders(family_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoint folders of every kind, and bases; beside adapters NAME.npy, their logits before saving."""
    root = tmp_path_factory.mktemp("checkpoints")
    plain = family_model("gemma2", 64)
    found = {"plain": plain, "bnb-int8": root / "bnb-int8", "nf4": root / "nf4"}
    for precision in ("bnb-int8", "nf4"):
        quantize(QuantizeConfig(base=str(plain), output=str(found[precision]), precision=precision))
    for name, base, asked in (
        ("adapter_int8", found["bnb-int8"], "auto"),
        ("adapter_as_int8", plain, "auto"),
        ("adapter_nf4", found["nf4"], "auto"),
        ("adapter_plain", plain, "none"),
    ):
        found[name] = root / name
        manifest = manifest_of(base, asked)
        network = trained(base, manifest.quantization)
        save_classifier(network, str(base), str(found[name]), manifest)
        np.save(root / f"{name}.npy", logits_of(network, plain).numpy())
    for precision in ("bnb-int8", "nf4", "bf16"):
        found[f"full_{precision}"] = root / f"full_{precision}"
        quantize(
            QuantizeConfig(
                base=str(plain), adapter=(str(found["adapter_plain"]),),
                output=str(found[f"full_{precision}"]), precision=precision,
            )
        )  # fmt: skip
    return found


ADAPTERS = ("adapter_int8", "adapter_as_int8", "adapter_nf4", "adapter_plain")
FULL = ("full_bnb-int8", "full_nf4", "full_bf16")
AS_TRAINED = {"bnb-int8": "bnb-int8", "nf4": "nf4", "none": "fp32"}

RELOAD = """
import json, socket, sys

def refuse(self, address):
    raise AssertionError(f"reaches for {address}")

socket.socket.connect = refuse
import torch
torch.set_num_threads(1)  # as in the process that tells what to expect
from tests.unit.modeling.test_checkpoint import AS_TRAINED, logits_of
from wsdm_ray.modeling.loading import load_classifier
from wsdm_ray.modeling.manifest import read_manifest
found = {}
for folder in sys.argv[1:]:
    for precision in {"auto", AS_TRAINED[read_manifest(folder).quantization]}:
        network, _ = load_classifier(folder, precision=precision)
        found[f"{folder} {precision}"] = logits_of(network, folder).tolist()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def other_processes(folders: dict[str, Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Logits by a new process of ours, and by one that has transformers and PEFT alone."""
    names = [str(folders[name]) for name in (*ADAPTERS, *FULL)]
    plain = str(Path(plain_loading.__file__))
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    commands = (["-c", RELOAD, *names], [plain, json.dumps(PAIR), *names])
    running = [
        subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for command in commands
    ]
    ended = [(*process.communicate(timeout=200), process.returncode) for process in running]
    for out, errors, status in ended:
        assert status == 0, errors or out
    ours, plainly = (json.loads(out.splitlines()[-1]) for out, _, _ in ended)
    return ours, plainly


def before(folders: dict[str, Path], name: str) -> np.ndarray:
    return np.load(folders[name].parent / f"{name}.npy")


# The same numbers


@pytest.mark.parametrize("name", [name for name in ADAPTERS if name != "adapter_plain"])
def test_a_new_process_gives_the_trained_network_bit_by_bit(folders, other_processes, name):
    ours, _ = other_processes
    as_trained = AS_TRAINED[read_manifest(str(folders[name])).quantization]
    np.testing.assert_array_equal(np.float32(ours[f"{folders[name]} {as_trained}"]), before(folders, name))


def test_an_unmerged_adapter_on_an_unquantized_base_bit_by_bit(folders):
    folder = folders["adapter_plain"]
    for load in (load_adapter, restored):
        base = load_network(
            str(folders["plain"]),
            HeadConfig(),
            seed=5,
            device="cpu",
            dtype=torch.float32,
            quantization="none",
        )
        found = logits_of(load(base, str(folder)), folder)
        np.testing.assert_array_equal(found.numpy(), before(folders, "adapter_plain"))


def restored(network: Any, folder: str) -> Any:
    """As training goes on from a checkpoint: a new adapter, then overwritten."""
    wrapped = add_lora(network, LORA, seed=7)
    load_adapter_weights(wrapped, folder)
    return wrapped


@pytest.mark.parametrize("name", [*ADAPTERS, *FULL])
def test_a_new_process_gives_what_this_one_gives_bit_by_bit(folders, other_processes, name):
    ours, _ = other_processes
    found = logits_of(load_classifier(str(folders[name]))[0], folders[name])
    np.testing.assert_array_equal(found.numpy(), np.float32(ours[f"{folders[name]} auto"]))


@pytest.mark.parametrize("name", [*ADAPTERS, *FULL])
def test_plain_transformers_and_peft_give_the_same(folders, other_processes, name):
    ours, plainly = other_processes
    as_stored = AS_TRAINED[read_manifest(str(folders[name])).quantization]
    # float32, one sequence against two in one row; bf16 weights are computed in float32 by both.
    np.testing.assert_allclose(
        plainly[str(folders[name])], ours[f"{folders[name]} {as_stored}"][0], rtol=0, atol=1e-5
    )


def test_plain_token_ids_are_ours(folders):
    folder = str(folders["full_bnb-int8"])
    _, tokenizer, about = plain_loading.load(folder)
    pairs = PairEncoder(folder, TEXT).encode(*([text] for text in PAIR))
    assert plain_loading.token_ids(tokenizer, about["text"], *PAIR) == [*pairs.prefix[0], *pairs.suffix_ab[0]]


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("adapter_plain", 5e-6),  # float32 all the way: only W x + B A x against (W + B A) x
        ("adapter_int8", 0.02),  # unmerged, LLM.int8() also rounds the activations to 8 bits
        ("adapter_as_int8", 0.02),
        ("adapter_nf4", 0.02),  # unmerged, products are taken in bfloat16
    ],
)
def test_merged_in_float32_against_unmerged(folders, name, tolerance):
    network, _ = load_classifier(str(folders[name]), precision="fp32")
    assert not [module for module in network.modules() if "lora" in type(module).__module__]
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32}
    found = logits_of(network, folders[name]).numpy()
    np.testing.assert_allclose(found, before(folders, name), rtol=0, atol=tolerance)


def test_a_base_quantized_on_loading_is_the_same_as_one_stored(folders):
    stored, loaded = (
        logits_of(load_classifier(str(folders[name]), precision="fp32")[0], folders[name])
        for name in ("adapter_int8", "adapter_as_int8")
    )
    torch.testing.assert_close(stored, loaded, rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    ("name", "tolerance"), [("full_bnb-int8", 0.02), ("full_bf16", 0.02), ("full_nf4", 0.5)]
)
def test_quantized_with_its_adapter(folders, name, tolerance):
    """Against the unquantized network; weights of 0.02 (the random model) leave 4 bits much to round."""
    found = logits_of(load_classifier(str(folders[name]))[0], folders[name]).numpy()
    np.testing.assert_allclose(found, before(folders, "adapter_plain"), rtol=0, atol=tolerance)


def test_bfloat16_keeps_a_float32_head(folders):
    network, _ = load_classifier(str(folders["full_bf16"]), precision="bf16")
    assert {parameter.dtype for parameter in network.model.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in network.score.parameters()} == {torch.float32}
    stored = load_file(folders["full_bf16"] / "model.safetensors")
    for name, parameter in network.score.named_parameters():
        assert torch.equal(parameter, stored[f"score.{name}"])  # not by way of bfloat16
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network.training


# What stands in a folder


def test_files(folders):
    tokenizer = {"tokenizer.json", "tokenizer_config.json", MANIFEST}
    for name in ADAPTERS:
        found = {path.name for path in folders[name].iterdir()}
        assert found == {"adapter_config.json", "adapter_model.safetensors", *tokenizer}, (
            "no README.md, no pickle"
        )
    for name in ("bnb-int8", "nf4", *FULL):
        found = {path.name for path in folders[name].iterdir()}
        assert found == {"config.json", "model.safetensors", "run.json", *tokenizer}


def test_the_manifest_of_an_adapter(folders):
    manifest = read_manifest(str(folders["adapter_int8"]))
    assert manifest.base == str(folders["bnb-int8"])
    assert manifest.base_digest == folder_digest(str(folders["bnb-int8"]))
    assert (manifest.kind, manifest.quantization, manifest.temperature) == ("adapter", "bnb-int8", 1.5)
    assert (manifest.head, manifest.text, manifest.metrics) == (HeadConfig(), TEXT, {"step": 3})
    assert {"python", "torch", "transformers", "peft"} <= set(manifest.versions)
    settings = json.loads((folders["adapter_int8"] / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(folders["bnb-int8"])


def test_what_quantize_keeps_of_a_trained_classifier(folders):
    manifest = read_manifest(str(folders["full_nf4"]))
    assert (manifest.kind, manifest.base, manifest.quantization) == ("full", None, "nf4")
    assert (manifest.temperature, manifest.text, manifest.metrics) == (1.5, TEXT, {"step": 3})


def test_quantizing_again(folders, tmp_path):
    options = {"base": str(folders["plain"]), "output": str(folders["bnb-int8"])}
    stamp = (folders["bnb-int8"] / "model.safetensors").stat().st_mtime_ns
    assert quantize(QuantizeConfig(**options, precision="bnb-int8"))["kind"] == "base"
    assert (folders["bnb-int8"] / "model.safetensors").stat().st_mtime_ns == stamp, "nothing is done twice"
    with pytest.raises(RunMismatchError, match="precision"):
        quantize(QuantizeConfig(**options, precision="nf4"))


# Bad input


def refusal(kind: type[WsdmRayError], act: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def copy_of(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a folder, to break."""
    return lambda name: shutil.copytree(folders[name], tmp_path / name)


def rewrite(folder: Path, **values: Any) -> None:
    """Change fields of the manifest."""
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_without_its_base(copy_of):
    folder = copy_of("adapter_int8")
    rewrite(folder, base="/nowhere/base")
    message = refusal(ModelError, lambda: load_classifier(str(folder)))
    assert message.startswith(f"{folder}: its base /nowhere/base cannot be had (")
    assert message.endswith("; use --base FOLDER")


def test_a_base_that_moved(folders, copy_of):
    folder = copy_of("adapter_int8")
    rewrite(folder, base="/nowhere/base")
    network, _ = load_classifier(str(folder), precision="bnb-int8", base=str(folders["bnb-int8"]))
    np.testing.assert_array_equal(logits_of(network, folder).numpy(), before(folders, "adapter_int8"))


def test_another_base(folders):
    message = refusal(
        ModelError, lambda: load_classifier(str(folders["adapter_int8"]), base=str(folders["plain"]))
    )
    mine, other = (folder_digest(str(folders[name]))[:12] for name in ("bnb-int8", "plain"))
    assert message == (
        f"{folders['adapter_int8']}: was trained on a base with digest {mine}, but {folders['plain']} has "
        f"{other}; use --base with the base it was trained on"
    )


@pytest.mark.parametrize(("name", "file"), [("adapter_int8", "adapter_model"), ("full_bnb-int8", "model")])
def test_without_its_head(copy_of, name, file):
    folder = copy_of(name)
    edit_tensors(
        folder / f"{file}.safetensors",
        lambda tensors: {name: tensor for name, tensor in tensors.items() if "score." not in name},
    )
    message = refusal(ModelError, lambda: load_classifier(str(folder)))
    assert message == (
        f"{folder}: has no head; "
        "it needs the tensors score.1.weight, score.1.bias, score.4.weight, score.4.bias"
    )


@pytest.mark.parametrize(("name", "file"), [("adapter_int8", "adapter_model"), ("full_bnb-int8", "model")])
def test_a_head_of_another_width(copy_of, name, file):
    folder = copy_of(name)
    edit_tensors(
        folder / f"{file}.safetensors",
        lambda tensors: {
            name: torch.zeros(32, 48) if name.endswith("score.1.weight") else tensor
            for name, tensor in tensors.items()
        },
    )
    message = refusal(ModelError, lambda: load_classifier(str(folder)))
    assert message.startswith(f"{folder}: its head {{")
    assert "'1.weight': (32, 48)" in message
    assert "does not fit this base, which needs {'1.weight': (32, 64)" in message


def test_a_head_of_another_kind(copy_of):
    folder = copy_of("adapter_int8")
    rewrite(folder, head={"kind": "linear", "dropout": 0.1})
    assert "which needs {'weight': (2, 64)}" in refusal(ModelError, lambda: load_classifier(str(folder)))


def test_an_adapter_that_lacks_a_layer(copy_of):
    folder = copy_of("adapter_int8")
    edit_tensors(
        folder / "adapter_model.safetensors",
        lambda tensors: {name: tensor for name, tensor in tensors.items() if ".layers.1.mlp.up" not in name},
    )
    message = refusal(ModelError, lambda: load_classifier(str(folder)))
    assert (
        "adapter_model.safetensors: lacks base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
        in message
    )
    assert "copy it anew" in message


def test_an_adapter_that_is_cut_off(copy_of):
    path = copy_of("adapter_int8") / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    message = refusal(ModelError, lambda: load_classifier(str(path.parent)))
    assert message.startswith(f"{path}: not whole (")


def test_an_adapter_of_which_a_part_is_gone(copy_of):
    folder = copy_of("adapter_int8")
    (folder / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors; the checkpoint is not complete" in refusal(
        ModelError, lambda: load_classifier(str(folder))
    )


def test_another_tokenizer(copy_of):
    folder = copy_of("full_bnb-int8")
    values = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(values | {"normalizer": None}))
    assert refusal(ModelError, lambda: read_manifest(str(folder))) == (
        f"{folder}: tokenizer.json is not the one it was trained with; restore the original file"
    )


def test_without_its_tokenizer(copy_of):
    folder = copy_of("full_bnb-int8")
    (folder / "tokenizer.json").unlink()
    assert refusal(ModelError, lambda: read_manifest(str(folder))) == (
        f"{folder}: no tokenizer.json; copy the tokenizer files it was trained with"
    )


@pytest.mark.parametrize("name", ["full_bnb-int8", "adapter_int8", "bnb-int8"])
def test_without_a_manifest(copy_of, name):
    folder = copy_of(name)
    (folder / MANIFEST).unlink()
    assert refusal(ModelError, lambda: load_classifier(str(folder))) == (
        f"{folder}: no wsdm_ray.json; this is no folder of `train` or `quantize`, or it is not complete"
    )


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", "null", "{}", '{"kind": "full", "head": null, "text": {}, "more": 1}']
)
def test_a_manifest_of_no_use(copy_of, content):
    folder = copy_of("full_bnb-int8")
    (folder / MANIFEST).write_text(content)
    message = refusal(ModelError, lambda: read_manifest(str(folder)))
    assert message.startswith(f"{folder / MANIFEST}: not readable by this version (")


@pytest.mark.parametrize(
    ("name", "value"), [("kind", "diff"), ("quantization", "int3"), ("label_order", ["b wins", "a wins"])]
)
def test_a_manifest_of_a_later_version(copy_of, name, value):
    folder = copy_of("full_bnb-int8")
    rewrite(folder, **{name: value})
    message = refusal(ModelError, lambda: read_manifest(str(folder)))
    assert message.startswith(f"{folder / MANIFEST}: not readable by this version ({name} is ")


def test_a_base_is_no_classifier(folders):
    message = refusal(ModelError, lambda: load_classifier(str(folders["bnb-int8"])))
    assert message == f"{folders['bnb-int8']}: a base without a head; train it first"
    assert read_manifest(str(folders["bnb-int8"]), need_head=False).kind == "base"


@pytest.mark.parametrize("folder", ["google/gemma-2-9b-it", "/nowhere"])
def test_a_hub_id_or_no_folder(folder):
    for act in (
        lambda: load_classifier(folder),
        lambda: quantize(QuantizeConfig(base=folder, output="unused")),
    ):
        assert refusal(StorageError, act) == f"{folder}: no such folder; check the path"


def test_weights_that_are_pickles(copy_of, tmp_path):
    folder = copy_of("plain")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    for act in (
        lambda: folder_digest(str(folder)),
        lambda: quantize(QuantizeConfig(base=str(folder), output=str(tmp_path / "out"))),
    ):
        assert refusal(ModelError, act) == (
            f"{folder}: no .safetensors weights (other weights: pytorch_model.bin); "
            "save the model as safetensors"
        )


@pytest.mark.parametrize("content", ["{", "[]", "null"])
def test_an_unreadable_config(copy_of, content):
    folder = copy_of("plain")
    (folder / "config.json").write_text(content)
    assert refusal(ModelError, lambda: stored_quantization(str(folder), "auto")) == (
        f"{folder / 'config.json'}: not a JSON object; restore the model's own file"
    )


def test_no_config(tmp_path):
    assert refusal(ModelError, lambda: stored_quantization(str(tmp_path), "auto")) == (
        f"{tmp_path}: no config.json; this is no model folder"
    )


@pytest.mark.parametrize("precision", ["bnb-int8", "bf16"])
@pytest.mark.parametrize("content", [b"{", b"{}", b'{"model_type": "bert"}'])
def test_a_base_that_quantize_cannot_use(copy_of, tmp_path, precision, content):
    folder = copy_of("plain")
    (folder / "config.json").write_bytes(content)
    config = QuantizeConfig(base=str(folder), output=str(tmp_path / "out"), precision=precision)
    assert refusal(ModelError, lambda: quantize(config)).startswith(str(folder))


def test_a_base_that_lacks_weights(copy_of, tmp_path):
    folder = copy_of("plain")
    edit_tensors(
        folder / "model.safetensors",
        lambda tensors: {name: tensor for name, tensor in tensors.items() if ".layers.1.mlp.up" not in name},
    )
    config = QuantizeConfig(base=str(folder), output=str(tmp_path / "out"), precision="bf16")
    assert "its weights lack layers.1.mlp.up_proj.weight" in refusal(ModelError, lambda: quantize(config))


def test_how_a_base_is_held(folders):
    plain, int8 = str(folders["plain"]), str(folders["bnb-int8"])
    assert [stored_quantization(plain, asked) for asked in ("auto", "bnb-int8", "nf4", "none")] == [
        "bnb-int8", "bnb-int8", "nf4", "none",
    ]  # fmt: skip
    assert stored_quantization(int8, "auto") == stored_quantization(int8, "bnb-int8") == "bnb-int8"
    assert stored_quantization(str(folders["nf4"]), "auto") == "nf4"
    assert refusal(ConfigError, lambda: stored_quantization(int8, "nf4")) == (
        f"--quantization nf4: {int8} is stored as bnb-int8; use auto, or an unquantized base"
    )


def test_quantizing_what_is_quantized(folders, tmp_path):
    config = QuantizeConfig(base=str(folders["bnb-int8"]), output=str(tmp_path / "out"), precision="nf4")
    message = refusal(ModelError, lambda: quantize(config))
    assert message == f"{folders['bnb-int8']}: is quantized already; give the model as it was before"


def test_precisions(folders):
    manifest = read_manifest(str(folders["full_bnb-int8"]))
    assert resolve_precision("auto", "cpu", manifest) == "fp32"
    for stored, found in {
        "bnb-int8": ["w8a8-fp8", "w8a8-int8", "w8a8-fp8", "w8a8-int8", "bnb-int8"],
        "nf4": ["w8a8-fp8", "w8a8-int8", "w8a8-fp8", "w8a8-int8", "nf4"],
        "none": ["w8a8-fp8", "w8a8-int8", "w8a8-fp8", "w8a8-int8", "bnb-int8"],
        "w8a8-fp8": ["w8a8-fp8", "w8a8-fp8", "w8a8-fp8", "w8a8-int8"],
        "w8a8-int8": ["w8a8-int8", "w8a8-int8", "w8a8-int8", "w8a8-int8"],
    }.items():
        kept = dataclasses.replace(manifest, quantization=stored)  # pyright: ignore[reportArgumentType]
        capabilities = [(10, 0), (9, 0), (8, 9), (8, 6), (7, 5)][: len(found)]
        assert [resolve_precision("auto", "cuda", kept, each) for each in capabilities] == found
        assert resolve_precision("auto", "cpu", kept) == "fp32"
        assert resolve_precision("w8a8-fp8", "cpu", kept) == "w8a8-fp8"
    assert refusal(ConfigError, lambda: resolve_precision("w8a8-fp8", "cuda", manifest, (8, 0))) == (
        "--precision w8a8-fp8: takes a GPU of compute capability 8.9 or later, and there is one of 8.0; use "
        "--precision w8a8-int8"
    )
    for stored in W8A8:
        rows = dataclasses.replace(manifest, quantization=stored)  # pyright: ignore[reportArgumentType]
        message = refusal(ConfigError, lambda rows=rows: resolve_precision("auto", "cuda", rows, (7, 5)))
        assert message == (
            "--precision w8a8-int8: takes a GPU of compute capability 8.0 or later, and there is one of 7.5; "
            f"use --precision bnb-int8, with the model before it was made {stored}"
        )
    for name in ("full_bnb-int8", "adapter_int8", "adapter_as_int8"):
        message = refusal(ConfigError, lambda name=name: load_classifier(str(folders[name]), precision="nf4"))
        assert message == (
            "--precision nf4: the weights are stored as bnb-int8; use it, fp32, bf16, w8a8-int8 or w8a8-fp8"
        )
    plain = dataclasses.replace(manifest, quantization="none")
    assert resolve_precision("nf4", "cpu", plain) == "nf4"
    assert resolve_precision("bnb-int8", "cpu", plain) == "bnb-int8"
