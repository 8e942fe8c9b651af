"""Two small classifiers, and pairs to score with them."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from wsdm_ray.config import HeadConfig, TextConfig
from wsdm_ray.modeling.checkpoint import save_classifier
from wsdm_ray.modeling.classifier import load_network
from wsdm_ray.modeling.manifest import Manifest
from wsdm_ray.scoring.models import ModelSpec
from wsdm_ray.scoring.replica import Replica, ReplicaOptions

WORDS = (
    "sum",
    "answer",
    "help",
    "Wind",
    "Blätter",
    "世界",
    "天气",
    "дела",
    "<eos>",
    "<bos>",
    "12",
    "42",
    ".",
    "\n",
)


def random_texts(rows: int, seed: int, most: int = 60) -> list[str]:
    """Texts of up to `most` words, most of them short, some empty."""
    source = random.Random(seed)
    return [" ".join(source.choices(WORDS, k=int(most * source.random() ** 2))) for _ in range(rows)]


def random_rows(rows: int, seed: int = 0) -> pa.Table:
    """Rows with int64 ids."""
    texts = {
        name: random_texts(rows, 10 * seed + i)
        for i, name in enumerate(("prompt", "response_a", "response_b"))
    }
    return pa.table({"id": pa.array(range(rows), pa.int64()), **texts})


def swapped(rows: pa.Table) -> pa.Table:
    """The rows with their two responses exchanged."""
    return rows.rename_columns(
        [
            {"response_a": "response_b", "response_b": "response_a"}.get(name, name)
            for name in rows.column_names
        ]
    )


@pytest.fixture(scope="session")
def classifiers(
    family_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[ModelSpec, ModelSpec]:
    """A Gemma-2 with temperature 1 and a Qwen3 with 2.5, in float32; each truncates in its own way."""
    found = []
    for family, temperature, text in (
        ("gemma2", 1.0, TextConfig(max_tokens=96)),
        ("qwen3", 2.5, TextConfig(max_tokens=64, truncation="left")),
    ):
        base = str(family_model(family))
        head = HeadConfig(kind="linear")
        network: Any = load_network(
            base, head, seed=3, device="cpu", dtype=torch.float32, quantization="none"
        )
        with torch.no_grad():
            network.score.weight.mul_(5)
            for name, parameter in network.named_parameters():
                if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")):
                    parameter.mul_(10)
        folder = str(tmp_path_factory.mktemp("classifiers") / family)
        manifest = Manifest(kind="full", head=head, text=text, temperature=temperature)
        save_classifier(network, base, folder, manifest)
        found.append(ModelSpec(folder, None, manifest, "fp32"))
    return found[0], found[1]


@pytest.fixture(scope="session")
def replica_of(classifiers: tuple[ModelSpec, ModelSpec]) -> Callable[..., Replica]:
    """A replica of the first classifier, unless `models` names others; keywords are options."""

    def make(models: tuple[ModelSpec, ...] = classifiers[:1], **options: Any) -> Replica:
        values: dict[str, Any] = {
            "output": "unused", "id_type": pa.int64(), "orders": "both", "layout": "padded",
            "token_budget": 600, "logits": False, "threads": None,
        }  # fmt: skip
        return Replica(ReplicaOptions(models=models, **(values | options)))

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write a table as parquet; returns its path."""

    def write_table(table: pa.Table, name: str = "rows.parquet", **options: Any) -> str:
        pq.write_table(table, tmp_path / name, **options)
        return str(tmp_path / name)

    return write_table
