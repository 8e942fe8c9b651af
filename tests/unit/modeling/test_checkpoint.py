"""Checkpoint folders: the same numbers in a new process and by plain libraries."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.unit.modeling import plain_loading
from tests.unit.modeling.checkpoints import ADAPTERS, AS_TRAINED, FULL, LORA, PAIR, TEXT, before, logits_of
from wsdm_ray.config import HeadConfig, QuantizeConfig
from wsdm_ray.errors import RunMismatchError
from wsdm_ray.modeling.adapter_io import load_adapter, load_adapter_weights
from wsdm_ray.modeling.classifier import add_lora, load_network
from wsdm_ray.modeling.loading import load_classifier
from wsdm_ray.modeling.manifest import MANIFEST, read_manifest
from wsdm_ray.modeling.quantization import quantize
from wsdm_ray.text.encoding import PairEncoder

RELOAD = """
import json, socket, sys

def refuse(self, address):
    raise AssertionError(f"reaches for {address}")

socket.socket.connect = refuse
import torch
torch.set_num_threads(1)  # as in the process that tells what to expect
from tests.unit.modeling.checkpoints import AS_TRAINED, logits_of
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
    environment |= {
        "TORCHDYNAMO_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
    }  # else bitsandbytes imports a compiler
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


def test_bfloat16_keeps_the_frequencies_of_positions_in_float32(folders):
    """Rounded, they would turn tokens that are a thousand positions apart by another angle."""
    exact, rough = (
        load_classifier(str(folders["full_bf16"]), precision=precision)[0] for precision in ("fp32", "bf16")
    )
    buffers = dict(exact.named_buffers())
    assert any("inv_freq" in name for name in buffers)
    for name, buffer in rough.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


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
