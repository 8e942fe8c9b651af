"""Model folders that cannot work are found out from JSON files and headers, by every job."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from safetensors.torch import load_file, save_file

from wsdm_ray.config import QuantizeConfig, ScoreConfig
from wsdm_ray.errors import ModelError, StorageError, WsdmRayError
from wsdm_ray.modeling import folder_check
from wsdm_ray.modeling.folder_check import check_adapter_folder, check_classifier_folder, check_model_folder
from wsdm_ray.modeling.quantization import quantize
from wsdm_ray.presets import tiny
from wsdm_ray.scoring.check import Cluster, check_models
from wsdm_ray.training.check import check_base


@pytest.fixture
def base(family_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A tiny model of 400 embedding rows, to break."""
    return shutil.copytree(family_model("gemma2"), tmp_path / "base")


def edit(path: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(WsdmRayError) as caught:
        act()
    return str(caught.value)


def added(id: int, content: str, *, special: bool = False) -> Callable[[dict], None]:
    token = {"id": id, "content": content, "special": special, "normalized": not special}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    return lambda tokenizer: tokenizer["added_tokens"].append(token | flags)


def shard(base: Path) -> None:
    """Lay the weights out in two files with an index."""
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    halves = {"a.safetensors": {}, "b.safetensors": {}}
    for number, (name, tensor) in enumerate(sorted(tensors.items())):
        halves[f"{'ab'[number % 2]}.safetensors"][name] = tensor
    for file, half in halves.items():
        save_file(half, base / file, metadata={"format": "pt"})
    places = {name: file for file, half in halves.items() for name in half}
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def without(name: str) -> Callable[[Path], None]:
    return lambda base: (base / name).unlink()


def written(name: str, text: str) -> Callable[[Path], object]:
    return lambda base: (base / name).write_text(text)


def edited(name: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    return lambda base: edit(base / name, change)


def lacks_a_shard(base: Path) -> None:
    shard(base)
    (base / "b.safetensors").unlink()


def sharded_with_a_token_beyond(base: Path) -> None:
    shard(base)
    edit(base / "tokenizer.json", added(400, "beyond"))


def only_pickles(base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")


def an_adapter(base: Path) -> None:
    (base / "config.json").rename(base / "adapter_config.json")


def cut_short(base: Path) -> None:
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


BEYOND = "the tokenizer has the ids 400 ('beyond'), but the embedding only 400 rows; use the tokenizer that"
BROKEN = [
    ("an added token", edited("tokenizer.json", added(400, "beyond")), BEYOND),
    ("an added token, sharded weights", sharded_with_a_token_beyond, BEYOND),
    (
        "many added tokens",
        edited("tokenizer.json", lambda value: [added(400 + n, f"t{n}")(value) for n in range(5)]),
        "the tokenizer has the ids 400 ('t0'), 401 ('t1'), 402 ('t2') and 2 more, but",
    ),
    (
        "a word of the vocabulary",
        edited("tokenizer.json", lambda value: value["model"]["vocab"].update(beyond=400)),
        BEYOND,
    ),
    (
        "a Unigram tokenizer",
        edited("tokenizer.json", lambda value: value["model"].update(
            type="Unigram", vocab=[[f"<t{n}>", 0.0] for n in range(400)] + [["beyond", 0.0]])),
        BEYOND,
    ),
    (
        "a token that the tokenizer puts first",
        edited("tokenizer.json", lambda value: value["post_processor"].update(
            special_tokens={"beyond": {"id": "beyond", "ids": [400], "tokens": ["beyond"]}})),
        BEYOND,
    ),
    (
        "the same in a sequence",
        edited("tokenizer.json", lambda value: value.update(post_processor={"processors": [
            {"type": "ByteLevel"}, {"special_tokens": {"beyond": {"ids": [400]}}}]})),
        BEYOND,
    ),
    (
        "an eos beyond",
        lambda base: (
            edit(base / "tokenizer.json", added(401, "<end>", special=True)),
            edit(base / "tokenizer_config.json", lambda value: value.update(eos_token="<end>")),
        ),
        "the tokenizer has the ids 401 ('<end>'), but the embedding only 400 rows",
    ),
    (
        "an eos that is not there",
        lambda base: (
            edit(base / "tokenizer_config.json", lambda value: value.update(eos_token="<none>")),
            edit(base / "config.json", lambda value: value.pop("eos_token_id")),
        ),
        "eos token <none> is not in tokenizer.json; set eos_token in tokenizer_config.json to a token",
    ),
    (
        "no eos",
        lambda base: (
            edit(base / "tokenizer_config.json", lambda value: value.pop("eos_token")),
            edit(base / "config.json", lambda value: value.update(eos_token_id=None)),
        ),
        "no eos token; set eos_token in tokenizer_config.json",
    ),
    (
        "a pad beyond",
        edited("config.json", lambda value: value.update(pad_token_id=400)),
        "config.json has pad_token_id 400, the embedding 400 rows; correct config.json",
    ),
    ("no tokenizer", without("tokenizer.json"), "no tokenizer.json; write it there with transformers: "),
    (
        "a slow tokenizer",
        lambda base: (base / "tokenizer.json").rename(base / "tokenizer.model"),
        "no tokenizer.json (tokenizer.model is a slow tokenizer's); write it there with transformers: ",
    ),
    ("a broken tokenizer", written("tokenizer.json", "{"), "tokenizer.json is not a JSON object; restore"),
    ("another JSON", written("tokenizer.json", '{"a": 1}'), "tokenizer.json is not a tokenizer; restore"),
    ("no config", without("config.json"), "no config.json; give the folder of a Hugging Face model"),
    ("a broken config", written("config.json", "{"), "config.json is not a JSON object; restore"),
    ("a list as a config", written("config.json", "[]"), "config.json is not a JSON object; restore"),
    ("no model type", written("config.json", '{"a": 1}'), "no usable config.json ("),
    (
        "another model",
        written("config.json", '{"model_type": "bert"}'),
        "model type bert is not one of gemma2, ",
    ),
    ("a missing shard", lacks_a_shard, "no b.safetensors, which model.safetensors.index.json names"),
    (
        "an index without a map",
        lambda base: (shard(base), written("model.safetensors.index.json", "{}")(base)),
        "model.safetensors.index.json has no weight_map; restore",
    ),
    (
        "pickles",
        only_pickles,
        "no model.safetensors and no model.safetensors.index.json (it has pytorch_model.bin); save",
    ),
    ("weights cut short", cut_short, "model.safetensors is not whole, or no safetensors file; copy it anew"),
    ("an adapter", an_adapter, "is an adapter, no whole model; give the model that it was trained on"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "said"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_base_that_cannot_work(base, spoil, said, tmp_path, monkeypatch):
    spoil(base)
    monkeypatch.chdir(tmp_path)
    for given in ("base", str(base)):
        line = refusal(lambda given=given: check_model_folder(given, "--base"))
        assert line.startswith(f"--base {given}: {said}")
        assert "\n" not in line
        assert str(tmp_path) not in line.replace(str(base), "")


def test_every_family_passes(family_model):
    for family in ("gemma2", "gemma3_text", "llama", "qwen2", "qwen3"):
        check_model_folder(str(family_model(family)), "--base")


def test_what_is_no_fault(base):
    """A special token that no text becomes, as Gemma 3's for images; padding by minus one; shards."""
    edit(base / "tokenizer.json", added(400, "<image>", special=True))
    edit(base / "config.json", lambda value: value.update(pad_token_id=-1, eos_token_id=[1, 3]))
    shard(base)
    check_model_folder(str(base), "--base")


def test_a_quantized_checkpoint_passes(folders):
    for name in ("bnb-int8", "nf4"):
        check_classifier_folder(str(folders[name]), "--model")
    check_classifier_folder(str(folders["adapter_int8"]), "--model")
    check_adapter_folder(str(folders["adapter_int8"]), "--adapter")


def test_what_is_no_adapter(base, tmp_path):
    assert refusal(lambda: check_adapter_folder(str(base), "--adapter")) == (
        f"--adapter {base}: is a whole model, no adapter; give it as --base"
    )
    (tmp_path / "empty").mkdir()
    assert refusal(lambda: check_adapter_folder(str(tmp_path / "empty"), "--adapter")) == (
        f"--adapter {tmp_path}/empty: no adapter_config.json; give the folder of a PEFT adapter"
    )
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    assert "no adapter_model.safetensors" in refusal(
        lambda: check_adapter_folder(str(tmp_path / "empty"), "--adapter")
    )
    with pytest.raises(StorageError, match=r"^--adapter /nowhere: no such folder; check the path$"):
        check_adapter_folder("/nowhere", "--adapter")


def test_a_remote_folder_is_not_copied(base, monkeypatch):
    """Its headers and JSON files are read where they are; the error names the URL."""
    edit(base / "tokenizer.json", added(400, "beyond"))
    fs, url = fsspec.filesystem("memory"), "memory://checked/base"
    for path in base.iterdir():
        fs.pipe_file(f"/checked/base/{path.name}", path.read_bytes())
    monkeypatch.setattr(type(fs), "get_file", lambda *rest, **options: pytest.fail("copies"))
    assert refusal(lambda: check_model_folder(url, "--base")).startswith(f"--base {url}: {BEYOND}")
    fs.rm("/checked", recursive=True)


def test_only_headers_are_read(base, monkeypatch):
    read = []

    class Counted:
        def __init__(self, file):
            self.file = file

        def read(self, size):
            read.append(size)
            return self.file.read(size)

    opened = folder_check.open_read

    class Opened:
        def __init__(self, path):
            self.inner = opened(path)

        def __enter__(self):
            return Counted(self.inner.__enter__())

        def __exit__(self, *error):
            return self.inner.__exit__(*error)

    monkeypatch.setattr(folder_check, "open_read", Opened)
    check_model_folder(str(base), "--base")
    (length,) = struct.unpack("<Q", (base / "model.safetensors").read_bytes()[:8])
    assert read == [8, length]


def test_every_job_asks_first(base, folders, tmp_path, monkeypatch):
    """quantize, train and score: the same line, before a byte of weights is read or a folder made."""
    edit(base / "tokenizer.json", added(400, "beyond"))
    output = tmp_path / "out"
    for name in ("wsdm_ray.modeling.quantization", "wsdm_ray.training.check", "wsdm_ray.scoring.check"):
        monkeypatch.setattr(f"{name}.folder_digest", lambda folder: pytest.fail("reads weights"))
    acts = [
        lambda: quantize(QuantizeConfig(base=str(base), output=str(output))),
        lambda: check_base(tiny(str(base), ("train",), str(output))),
    ]
    for act in acts:
        assert refusal(act).startswith(f"--base {base}: {BEYOND}")
    with pytest.raises(ModelError, match=r"^--adapter .*: is a whole model, no adapter"):
        quantize(QuantizeConfig(base=str(folders["plain"]), adapter=(str(base),), output=str(output)))
    one_cpu = Cluster(replicas=1, on_gpu=False, threads=1)
    model = shutil.copytree(folders["full_bf16"], tmp_path / "model")
    edit(model / "config.json", lambda value: value.update(pad_token_id=9_999))
    with pytest.raises(ModelError, match=f"^--model {model}: config.json has pad_token_id 9999"):
        check_models(ScoreConfig(model=(str(model),), input=("i",), output="o"), one_cpu)
    edit(base / "config.json", lambda value: value.update(pad_token_id=9_999))
    scored = ScoreConfig(model=(str(folders["adapter_plain"]),), base=(str(base),), input=("i",), output="o")
    with pytest.raises(ModelError, match=f"^--base {base}: config.json has pad_token_id 9999"):
        check_models(scored, one_cpu)
    assert not output.exists()


def test_the_tokenizer_of_an_adapter_is_the_one_that_counts(folders, base, tmp_path):
    """Not that of the base, which encodes nothing."""
    adapter = shutil.copytree(folders["adapter_plain"], tmp_path / "adapter")
    edit(adapter / "tokenizer.json", added(400, "beyond"))
    with pytest.raises(ModelError, match=r"^--base .*: the tokenizer has the ids 400 \('beyond'\)"):
        check_model_folder(str(folders["plain"]), "--base", tokenizer=str(adapter))
    (base / "tokenizer.json").unlink()
    check_model_folder(str(base), "--base", tokenizer=str(folders["adapter_plain"]))
