"""What runs in the processes of a run that the fault campaign strikes, and what the run is about.

The replicas score with a function of the tokens in place of a network, so that a run takes seconds and a
mix-up of rows shows.

Injected                     what goes wrong by the processes' own code
make_model, make_pairs       a model of which only tokenizer and manifest are of use, and pairs
hashing_replica              replicas that need no network
drive                        `score` with them, as its command line runs it
"""

import contextlib
import errno
import functools
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from wsdm_ray import storage
from wsdm_ray.config import ScoreConfig
from wsdm_ray.errors import StorageError

__all__ = ["Injected", "drive", "hashing_replica", "load_hashing", "make_model", "make_pairs"]

WORDS = (
    *("sum", "answer", "help", "wind", "leaf", "world", "sky", "rain", "12", "42", ".", ",", "?"),
    *("of", "the", "a", "to", "and", "is"),
)


@dataclass(frozen=True, kw_only=True)
class Injected:
    """What goes wrong within the processes of a run, by their own code.

    id: the row at which it does. poison: the row ends the replica (`row`) or the reader (`file`) of its unit.
    full_disk: the disk of its replica is full, once; `mark` is the file that says so. full_cache: that of one
    replica is whenever it starts.
    clock_step: seconds by which the driver's clock jumps, back and forth.
    """

    id: str = ""
    poison: str = ""
    full_disk: bool = False
    full_cache: bool = False
    mark: str = ""
    clock_step: float = 0.0


def make_model(
    folder: str, max_tokens: int = 64, texts: Sequence[str] = WORDS, vocabulary: int = 400
) -> None:
    """Write a tiny classifier; only its tokenizer and its manifest are of use.

    Args:
        texts: what the tokenizer is made from.
    """
    import torch

    from wsdm_ray.config import HeadConfig, TextConfig
    from wsdm_ray.modeling.checkpoint import save_classifier
    from wsdm_ray.modeling.classifier import load_network
    from wsdm_ray.modeling.manifest import Manifest
    from wsdm_ray.modeling.tiny import make_tiny_model

    base, head = f"{folder}-base", HeadConfig(kind="linear")
    make_tiny_model(base, texts, vocabulary=vocabulary, width=32)
    network: Any = load_network(base, head, seed=3, device="cpu", dtype=torch.float32, quantization="none")
    manifest = Manifest(kind="full", head=head, text=TextConfig(max_tokens=max_tokens))
    save_classifier(network, base, folder, manifest)


def make_pairs(folder: str, files: int, rows: int, seed: int = 0) -> None:
    """Write `rows` pairs of different texts over `files` parquet files into a folder."""
    chance = np.random.default_rng(seed)
    words = np.array(WORDS)
    count = rows // files

    def texts(low: int, high: int) -> list[str]:
        return [" ".join(chance.choice(words, size)) for size in chance.integers(low, high, count)]

    for number in range(files):
        columns = {"prompt": texts(2, 8), "response_a": texts(3, 12), "response_b": texts(3, 12)}
        ids = [f"row-{number * count + row}" for row in range(count)]
        storage.write_parquet(f"{folder}/pairs-{number:03d}.parquet", pa.table({"id": ids, **columns}))


def hashing_replica(injected: Injected) -> type:
    """Replicas that score by a function of the tokens. Ray sends the class by value."""
    from wsdm_ray.scoring.replica import Replica

    class HashingReplica(Replica):
        def __init__(self, options: Any):
            from tests.integration.struck_run import load_hashing, strike_start

            def load(folder: str, **given: Any) -> Any:
                strike_start(injected)
                return load_hashing(folder, **given)

            super().__init__(options, load)

        def score(self, encoded: Any, *arguments: Any, **options: Any) -> Any:
            from tests.integration.struck_run import strike_replica

            strike_replica(injected, encoded)
            return super().score(encoded, *arguments, **options)

    return HashingReplica


def load_hashing(folder: str, **options: Any) -> Any:
    """A scorer in place of a model's, and the model's manifest."""
    from tests.unit.scoring.fakes import FakeScorer
    from wsdm_ray.modeling.manifest import read_manifest

    return FakeScorer(), read_manifest(storage.local_copy(folder))


def strike_start(injected: Injected) -> None:
    """Find no space for the model, in all processes that the Ray worker starts which did so first."""
    if injected.full_cache and is_owner(f"{injected.mark}-at-start", str(os.getppid())):
        raise StorageError("/cache/model: no space left on device; free space on its disk")


def is_owner(mark: str, name: str) -> bool:
    """Whether a file is of that name, to which it belongs from now on if it was not there."""
    if first_time(mark):
        Path(mark).write_text(name)
    return Path(mark).read_text() == name


def strike_replica(injected: Injected, encoded: pa.Table) -> None:
    """End this process where a poison row is among the rows, or find the disk full."""
    if not has_row(encoded, injected.id):
        return
    if injected.poison == "row":
        os.kill(os.getpid(), signal.SIGKILL)
    if injected.full_disk and first_time(injected.mark):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def encode(injected: Injected, unit: Any, *arguments: Any, **options: Any) -> pa.Table:
    """`encode_unit` that a poison file ends."""
    from wsdm_ray.scoring.encode import encode_unit

    encoded = encode_unit(unit, *arguments, **options)
    if injected.poison == "file" and has_row(encoded, injected.id):
        os.kill(os.getpid(), signal.SIGKILL)
    return encoded


def has_row(encoded: pa.Table, id: str) -> bool:
    """Whether the row is among those that are to be scored."""
    errors = dict(zip(encoded["id"].to_pylist(), encoded["error"].to_pylist(), strict=True))
    return id in errors and errors[id] is None


def first_time(mark: str) -> bool:
    """Whether a file was not there, which is from now on."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        return True
    return False


def drive(campaign_options: list[str], address: str, injected: Injected, log: str) -> None:
    """Run `score` in this process, as its command line does, and end it with its status."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ["RAY_ADDRESS"] = address
    if injected.clock_step:
        step_clock(injected.clock_step)
    from jobs._main import main
    from wsdm_ray.scoring.pipeline import check, execute

    def score(config: ScoreConfig) -> Any:
        storage.set_store_timeout(config.store_timeout_seconds)
        reading = {"encode": functools.partial(encode, injected)} if injected.poison == "file" else {}
        return execute(check(config), hashing_replica(injected), **reading)

    status = main(score, ScoreConfig, campaign_options)
    sys.stdout.flush()
    os._exit(status)


def step_clock(seconds: float) -> None:
    """Let this process's wall clock jump by `seconds` every other second, and back."""
    real = time.time

    def stepped() -> float:
        now = real()
        return now + (seconds if int(now) % 2 else 0.0)

    time.time = stepped
