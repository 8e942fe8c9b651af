"""What scoring a pair costs beside the model: read, repair, tokenize, plan micro-batches, write; CPU time.

    python tests/benchmarks/control_plane.py --tokenizer FOLDER --pairs PAIRS.parquet [--json FILE]

FOLDER has the tokenizer.json of any model, such as Gemma-2's. The model is a constant. One process does all,
so that its CPU time is that of a reader and a replica together. `--long` repeats texts until answers have so
many characters, to see that memory does not grow with them.
"""

import argparse
import cProfile
import json
import os
import pstats
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from wsdm_ray.config import HeadConfig, TextConfig
from wsdm_ray.inputs.conversion import parquet_inputs
from wsdm_ray.inputs.files import list_inputs
from wsdm_ray.inputs.rows import Reading
from wsdm_ray.modeling.manifest import Manifest
from wsdm_ray.modeling.scorers import BatchMemory
from wsdm_ray.packing.layouts import Layout
from wsdm_ray.scoring.encode import encode_unit, encoder_of, table_from_bytes, table_to_bytes
from wsdm_ray.scoring.model_spec import ModelSpec
from wsdm_ray.scoring.plan import make_plan
from wsdm_ray.scoring.replica import Replica, ReplicaOptions
from wsdm_ray.storage import write_parquet


class Constant:
    """A scorer whose logits are always the same, as fast as one can be."""

    static_shapes = False
    alignment = 1
    max_in_flight = 1

    def __call__(self, layout: Layout) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0]]).expand(int(layout.groups_BT.max()) + 1, 2)

    def memory(self, layout: str) -> BatchMemory:
        return BatchMemory(token=1, key=0)

    def warm_up(self, token_budget: int) -> None:
        pass


def run(replica: Replica, units: Any, models: tuple[ModelSpec, ...], output: str) -> int:
    """Score units as readers and replicas do; returns the tokens of one ordering of all rows."""
    tokens = 0
    for unit in units:
        encoded = table_from_bytes(table_to_bytes(encode_unit(unit, models)))
        table, _ = replica.score(encoded)
        write_parquet(f"{output}/{unit.number}.parquet", table)
        tokens += int(np.sum(table["tokens"].to_numpy()))
    return tokens


def lengthened(path: str, characters: int, folder: str) -> str:
    """A file whose texts are repeated until answers have so many characters."""
    table = pq.read_table(path)
    for name in ("response_a", "response_b"):
        texts = [
            (text or "x") * (characters // max(len(text or "x"), 1) + 1) for text in table[name].to_pylist()
        ]
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array([text[:characters] for text in texts]))
    pq.write_table(table, f"{folder}/long.parquet", row_group_size=1_000)
    return f"{folder}/long.parquet"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--max-tokens", type=int, default=2_048)
    parser.add_argument("--long", type=int, help="characters of each answer")
    parser.add_argument("--profile", action="store_true", help="where the time goes, which makes it longer")
    parser.add_argument("--json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    manifest = Manifest(
        kind="full", head=HeadConfig(kind="linear"), text=TextConfig(max_tokens=given.max_tokens)
    )
    models = (ModelSpec(given.tokenizer, None, manifest, "fp32"),)
    encoder_of(given.tokenizer, manifest.text)
    with tempfile.TemporaryDirectory() as output:
        pairs = lengthened(given.pairs, given.long, output) if given.long else given.pairs
        plan = make_plan(parquet_inputs(list_inputs([pairs]), Reading(labels=False)), None)
        options = ReplicaOptions(
            models=models, output=output, id_type=plan.id_type, orders="both", layout="shared",
            token_budget=16_896, logits=False, threads=None,
        )  # fmt: skip
        replica = Replica(options, lambda folder, **_: (Constant(), manifest))
        profile = cProfile.Profile(time.process_time) if given.profile else None
        begun, cpu = time.monotonic(), time.process_time()
        if profile:
            profile.enable()
        tokens = run(replica, plan.units, models, output)
        if profile:
            profile.disable()
    figures: dict[str, Any] = {
        "rows": plan.rows, "tokens_per_ordering": round(tokens / plan.rows, 1),
        "cpu_ms_a_pair": round((time.process_time() - cpu) / plan.rows * 1e3, 3),
        "wall_ms_a_pair": round((time.monotonic() - begun) / plan.rows * 1e3, 3),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "load": os.getloadavg()[0], "long": given.long,
    }  # fmt: skip
    if profile:
        figures["profile_ms_a_pair"] = top(profile, plan.rows)
    print(json.dumps(figures, indent=2))
    if given.json:
        Path(given.json).write_text(json.dumps(figures, indent=2) + "\n")


def top(profile: cProfile.Profile, rows: int) -> dict[str, float]:
    """Milliseconds a pair within each of the functions that take longest, without what they call."""
    found: Any = pstats.Stats(profile)
    own = sorted(((entry[2], place) for place, entry in found.stats.items()), reverse=True)[:30]
    return {
        f"{Path(file).name}:{line}:{name}": round(seconds / rows * 1e3, 3)
        for seconds, (file, line, name) in own
    }


if __name__ == "__main__":
    main()
