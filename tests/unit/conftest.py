"""What unit tests share: a tiny tokenizer, tiny random models, a hub. Made when asked for."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.unit.hub_server import FakeHub

if find_spec("hypothesis"):  # `make test-gpu` does without
    from hypothesis import settings

    # A busy machine is no failure; `timeout` in pyproject.toml bounds each test.
    settings.register_profile("unit", deadline=None)
    settings.load_profile("unit")

WORDS = (
    "What is the sum of 12 and 30? The answer is 42, of course. I cannot help with that, sorry.",
    "Bitte schreibe mir ein Gedicht über den Herbst. Der Wind, die Blätter, ein kalter Morgen.",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2))",
    "你好，世界。今天的天气怎么样？",
    "Как дела? Всё хорошо, спасибо.",
    "<prompt>: \n\n<response_a>: \n\n<response_b>: ",
)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and no model; it starts texts with <bos> (id 2), its <eos> is id 1."""
    from wsdm_ray.modeling.tiny import make_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(str(folder), WORDS, 400)
    return folder


@pytest.fixture(scope="session")
def family_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a tiny random model of a family, with a sliding window of 16 tokens."""
    import torch

    from wsdm_ray.modeling.tiny import make_tiny_model

    torch.set_num_threads(1)  # products this small are slower on more, far slower on a busy machine
    root = tmp_path_factory.mktemp("families")

    def folder(family: str, width: int = 32, layers: int = 2) -> Path:
        path = root / f"{family}_{width}_{layers}"
        if not path.exists():
            make_tiny_model(
                str(path), WORDS, family=family, vocabulary=400, width=width, layers=layers, window=16
            )
        return path

    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that the library asks, with an empty cache and no token."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    from wsdm_ray.storage import hub as module

    server = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", module.OFFLINE_BY_US):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.chdir(tmp_path)
    module.commit_of.cache_clear()
    yield server
    module.commit_of.cache_clear()
    close_session()
    server.close()
