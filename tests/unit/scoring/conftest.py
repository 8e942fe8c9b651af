"""Two small classifiers, and pairs to score with them."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.unit.scoring.fakes import plan_of
from wsdm_ray.config import HeadConfig, TextConfig
from wsdm_ray.modeling.checkpoint import save_classifier
from wsdm_ray.modeling.classifier import load_network
from wsdm_ray.modeling.loading import load_scorer
from wsdm_ray.modeling.manifest import Manifest
from wsdm_ray.modeling.scorers import Scorer
from wsdm_ray.scoring.encode import encode_unit, table_from_bytes, table_to_bytes
from wsdm_ray.scoring.model_spec import ModelSpec
from wsdm_ray.scoring.parts import UnitReport
from wsdm_ray.scoring.replica import Replica, ReplicaOptions
from wsdm_ray.storage import patience
from wsdm_ray.text.encoding import PairEncoder


@pytest.fixture(autouse=True)
def patience_of_its_own(monkeypatch):
    """What a test sets of how long stores are waited for ends with it."""
    monkeypatch.setattr(patience, "PATIENCE", patience.Patience())


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
def scorer(classifiers: tuple[ModelSpec, ModelSpec]) -> Scorer:
    """The first classifier, in float32."""
    return load_scorer(classifiers[0].folder, precision="fp32")[0]


@pytest.fixture(scope="session")
def encoder(classifiers: tuple[ModelSpec, ModelSpec]) -> PairEncoder:
    """The encoder of the first classifier."""
    return PairEncoder(classifiers[0].folder, classifiers[0].manifest.text)


@pytest.fixture(scope="session")
def texts() -> list[list[str]]:
    """Prompts, responses a and responses b of 30 pairs."""
    return [random_texts(60, seed)[30:] for seed in range(3)]


@pytest.fixture(scope="session")
def replica_of(classifiers: tuple[ModelSpec, ModelSpec]) -> Callable[..., Replica]:
    """A replica of the first classifier, unless `models` names others; keywords are options.

    `change`, if given, is applied to each scorer that is loaded.
    """

    def make(
        models: tuple[ModelSpec, ...] = classifiers[:1],
        change: Callable[[Scorer], Scorer] = lambda scorer: scorer,
        **options: Any,
    ) -> Replica:
        values: dict[str, Any] = {
            "output": "unused", "id_type": pa.int64(), "orders": "both", "layout": "padded",
            "token_budget": 600, "logits": False, "threads": None,
        }  # fmt: skip

        def load(folder: str, **options: Any) -> tuple[Scorer, Manifest]:
            scorer, manifest = load_scorer(folder, **options)
            return change(scorer), manifest

        return Replica(ReplicaOptions(models=models, **(values | options)), load)

    return make


@pytest.fixture(scope="session")
def score(classifiers: tuple[ModelSpec, ModelSpec], replica_of: Callable[..., Replica], tmp_path_factory):
    """Score a table as one unit, or as units of `unit_rows`: predictions and the report of each unit.

    The keywords are those of `replica_of`.
    """

    def run(table: pa.Table, unit_rows: int = 1_000, **options: Any) -> tuple[pa.Table, list[UnitReport]]:
        path = str(tmp_path_factory.mktemp("rows") / "rows.parquet")
        pq.write_table(table, path)
        plan = plan_of([path], unit_rows)
        models = options.pop("models", classifiers[:1])
        replica = replica_of(models, id_type=plan.id_type, **options)
        # Through the bytes that travel between the two halves.
        encoded = [table_from_bytes(table_to_bytes(encode_unit(unit, models))) for unit in plan.units]
        scored = [replica.score(unit) for unit in encoded]
        return pa.concat_tables([table for table, _ in scored]), [report for _, report in scored]

    return run


def column(table: pa.Table, name: str) -> np.ndarray:
    return table.column(name).to_numpy()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write a table as parquet; returns its path."""

    def write_table(table: pa.Table, name: str = "rows.parquet", **options: Any) -> str:
        pq.write_table(table, tmp_path / name, **options)
        return str(tmp_path / name)

    return write_table
