"""What tests of every kind share: tiny votes and models, made when first asked for; the order of files."""

import gc
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

if not (shutil.which("nvidia-smi") or Path("/dev/nvidiactl").exists()):  # before anything imports Triton
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait leave their core to other processes


@pytest.fixture(autouse=True)
def own_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that runs in a test sets up the log for good; each test begins without.

    pytest adds its handler to each logger that does not propagate as well as to the root.
    """
    logger = logging.getLogger("wsdm_ray")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """The folder of a name that the first of the run's processes to ask for it makes, for all of them."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def folder_of(name: str, make: Callable[[Path], object]) -> Path:
        folder, whole = root / f"once-{name}", root / f"once-{name}.whole"
        with FileLock(root / f"once-{name}.lock"):
            if not whole.exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                whole.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def tiny_votes(made_once) -> Path:
    """A folder of 400 short canonical votes of the arena: part-000000.parquet and run.json."""
    from wsdm_ray.config import ArenaConfig
    from wsdm_ray.data.arena import make_arena

    return made_once(
        "votes", lambda folder: make_arena(ArenaConfig(output=str(folder), rows=400, lengths="short"))
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_votes: Path, made_once) -> Path:
    """A folder with a tiny random Gemma-2 whose tokenizer was made from `tiny_votes`."""
    import pyarrow.parquet as pq

    from wsdm_ray.modeling.tiny import make_tiny_model
    from wsdm_ray.storage import list_files

    def make(folder: Path) -> None:
        table = pq.read_table(list_files(str(tiny_votes)), columns=["prompt", "response_a", "response_b"])
        texts = [text for column in table.columns for text in column.to_pylist()]
        make_tiny_model(str(folder), texts, vocabulary=1024, width=32)

    return made_once("model", make)


@pytest.fixture(scope="session")
def prepared(tiny_votes: Path, made_once) -> Path:
    """`tiny_votes` as canonical shards: train/ and valid/."""
    from wsdm_ray.config import PrepareConfig
    from wsdm_ray.data.prepare import prepare

    def make(folder: Path) -> None:
        prepare(PrepareConfig(input=(str(tiny_votes),), output=str(folder), valid_fraction=0.2))

    return made_once("prepared", make)


@pytest.fixture(scope="session")
def int8_base(tiny_model: Path, made_once) -> Path:
    """`tiny_model`, quantized to bnb-int8."""
    from wsdm_ray.config import QuantizeConfig
    from wsdm_ray.modeling.quantization import quantize

    return made_once(
        "int8-base", lambda folder: quantize(QuantizeConfig(base=str(tiny_model), output=str(folder)))
    )


LONGEST = (
    "integration/test_training.py",
    "integration/test_nodes.py",
    "integration/test_quickstart.py",
    "integration/test_scoring.py",
    "integration/test_job_submit.py",
    "integration/test_remote.py",
    "integration/test_stores.py",
    "unit/training/test_loop.py",
    "integration/test_python.py",
    "integration/test_outputs.py",
    "integration",
    "unit/modeling/test_norm_kernels.py",
    "unit/modeling/test_checkpoint.py",
    "unit/modeling/test_fused_decoder.py",
    "unit/modeling/test_attention_kernel.py",
    "unit/modeling/test_loading.py",
    "unit/modeling/test_gptq.py",
    "unit/modeling/test_attention.py",
    "unit/modeling",
    "unit/scoring",
)
"""Files and folders in the order in which processes take them: the longest first.

Files that need no `ray_session` stand between those that do: it costs each process half a minute, so that
the process which began with `test_quickstart.py` is to do without.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by folder, and begin with what takes longest: processes that are done early take what is short."""
    here = Path(__file__).parent

    def rank(item: pytest.Item) -> int:
        path = item.path.relative_to(here)
        return next((place for place, name in enumerate(LONGEST) if path.is_relative_to(name)), len(LONGEST))

    for item in items:
        if item.path.is_relative_to(here / "integration"):
            item.add_marker("integration")
            if not item.get_closest_marker("timeout"):  # ends a test that hangs; a busy machine takes minutes
                item.add_marker(pytest.mark.timeout(1_800))
    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """Leave what libraries have made so far, a million objects, out of every garbage collection."""
    gc.freeze()


# Tests read hubs' and clouds' names only by mistake; a refusal is quicker than a time-out.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
