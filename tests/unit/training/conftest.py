"""What tests of training share: votes that can be learned, and trainers of a tiny Llama on the CPU."""

import pickle
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from wsdm_ray.config import HeadConfig, LoraConfig, OptimizerConfig, TextConfig, TrainConfig
from wsdm_ray.data.votes import Votes
from wsdm_ray.modeling.manifest import Manifest, folder_digest
from wsdm_ray.training.distributed import WorkerGroup
from wsdm_ray.training.loop import Trainer


def learnable_votes(rows: int, seed: int) -> Votes:
    """The answer with a "42" in it wins."""
    source = random.Random(seed)
    columns: dict[str, list] = {
        "id": [f"vote {i}" for i in range(rows)],
        "prompt": [],
        "response_a": [],
        "response_b": [],
    }
    labels = []
    for _ in range(rows):
        good, bad = (
            " ".join(source.choices(["Wind", "sum", "answer"], k=source.randint(1, 12))) for _ in range(2)
        )
        a_wins = source.random() < 0.5
        columns["prompt"].append("What? " * source.randint(0, 5))
        columns["response_a"].append(f"42 {good}" if a_wins else bad)
        columns["response_b"].append(bad if a_wins else f"42 {good}")
        labels.append(float(a_wins))
    return Votes(pa.table(columns), np.asarray(labels))


@dataclass(frozen=True, kw_only=True)
class GroupOfThreads(WorkerGroup):
    """Workers that are threads of this process."""

    meet: threading.Barrier
    sent: dict[int, Any]

    def exchanged(self, value: Any) -> list[Any]:
        """The value of each worker, by rank."""
        self.sent[self.rank] = value
        self.meet.wait()
        values = [self.sent[rank] for rank in range(self.size)]
        self.meet.wait()
        return values

    def all_gather(self, value: Any, *, in_step: bool = False) -> list[Any]:
        assert in_step, "as it is for tensors of a step"
        return self.exchanged(pickle.loads(pickle.dumps(value)))

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.copy_(sum(self.exchanged(tensor.detach().clone())))

    def start_all_reduce(self, tensor: torch.Tensor) -> Callable[[], object]:
        self.all_reduce(tensor)
        return lambda: None

    def start_all_gather(self, whole: torch.Tensor, part: torch.Tensor) -> Callable[[], object]:
        whole.copy_(torch.cat(self.exchanged(part.clone())))
        return lambda: None

    def start_broadcast(self, tensor: torch.Tensor, rank: int) -> Callable[[], object]:
        """It is there when it is waited for, not before."""
        sent = tensor.clone()
        return lambda: tensor.copy_(self.exchanged(sent)[rank])


def groups_of_threads(size: int) -> list[GroupOfThreads]:
    """The group as each of its workers sees it."""
    meet, sent = threading.Barrier(size, timeout=60), dict[int, Any]()
    return [GroupOfThreads(rank=rank, size=size, meet=meet, sent=sent) for rank in range(size)]


@pytest.fixture(scope="module")
def base(family_model: Callable[..., Path]) -> str:
    return str(family_model("llama"))


@pytest.fixture(scope="module")
def trainer_of(base: str) -> Callable[..., Trainer]:
    """A trainer of a tiny Llama on 40 votes; further keywords are options of `TrainConfig`."""

    def make(
        train: Votes | None = None,
        valid: Votes | None = None,
        quantization: str = "none",
        group: WorkerGroup | None = None,
        **options: Any,
    ) -> Trainer:
        values: dict[str, Any] = {
            "base": base, "train": ("unused",), "output": "unused", "pairs_per_step": 16, "token_budget": 400,
            "text": TextConfig(max_tokens=96), "lora": LoraConfig(r=4, alpha=8, dropout=0.0),
            "head": HeadConfig(dropout=0.0), "optimizer": OptimizerConfig(learning_rate=5e-3),
        }  # fmt: skip
        config = TrainConfig(**(values | options))
        manifest = Manifest(
            kind="adapter", base=base, base_digest=folder_digest(base), quantization=quantization,  # pyright: ignore[reportArgumentType]
            head=config.head, text=config.text, orders=config.orders,
        )  # fmt: skip
        return Trainer(config, base, manifest, train or learnable_votes(40, 0), valid, group)

    return make
