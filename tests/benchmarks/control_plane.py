"""What scoring a pair costs beside the model: read, repair, tokenize, plan micro-batches, write; CPU time.

    PYTHONPATH=. python tests/benchmarks/control_plane.py --tokenizer FOLDER --pairs PAIRS.parquet [PAIRS ...]

FOLDER has the tokenizer.json of any model, such as Gemma-2's. The model is a constant. One process does all
of a turn, so that its CPU time is that of a reader and a replica together. The turns: the pairs as they are;
the first --long-rows of them with texts repeated until answers have --long characters, to see what memory
that takes; and the pairs again with a profile, which makes it longer. Writes results/control_plane.json, or
--json.
"""

import argparse
import cProfile
import json
import os
import pstats
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import HERE, write_result

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

TURNS = ("plain", "long", "profile")


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


def lengthened(paths: list[str], characters: int, rows: int, folder: str) -> str:
    """A file of the first rows, whose texts are repeated until answers have so many characters."""
    table = pa.concat_tables(pq.read_table(path) for path in paths).slice(0, rows)
    for name in ("response_a", "response_b"):
        texts = [
            (text or "x") * (characters // max(len(text or "x"), 1) + 1) for text in table[name].to_pylist()
        ]
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array([text[:characters] for text in texts]))
    pq.write_table(table, f"{folder}/long.parquet", row_group_size=1_000)
    return f"{folder}/long.parquet"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--pairs", nargs="+", required=True)
    parser.add_argument("--max-tokens", type=int, default=2_048)
    parser.add_argument("--long", type=int, default=30_000, help="characters of each answer")
    parser.add_argument("--long-rows", type=int, default=2_000)
    parser.add_argument("--turn", choices=TURNS, help="for its own processes")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "control_plane.json")
    given = parser.parse_args()
    if given.turn:
        print(json.dumps(one_turn(given.turn, given)))
        return
    results = []
    for turn in TURNS:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--turn", turn],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        results.append({"turn": turn} | json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(results[-1], indent=1), flush=True)
        settings = {name: getattr(given, name) for name in ("max_tokens", "long", "long_rows")}
        write_result(given.json, str(__doc__).splitlines()[0], settings, results)


def one_turn(turn: str, given: argparse.Namespace) -> dict[str, Any]:
    """CPU time a pair, and this process's peak memory."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    manifest = Manifest(
        kind="full", head=HeadConfig(kind="linear"), text=TextConfig(max_tokens=given.max_tokens)
    )
    models = (ModelSpec(given.tokenizer, None, manifest, "fp32"),)
    encoder_of(given.tokenizer, manifest.text)
    with tempfile.TemporaryDirectory() as output:
        pairs = given.pairs
        if turn == "long":
            pairs = [lengthened(pairs, given.long, given.long_rows, output)]
        plan = make_plan(parquet_inputs(list_inputs(pairs), Reading(labels=False)), None)
        options = ReplicaOptions(
            models=models, output=output, id_type=plan.id_type, orders="both", layout="shared",
            token_budget=16_896, logits=False, threads=None,
        )  # fmt: skip
        replica = Replica(options, lambda folder, **_: (Constant(), manifest))
        profile = cProfile.Profile(time.process_time)
        begun, cpu = time.monotonic(), time.process_time()
        if turn == "profile":
            profile.enable()
        tokens = run(replica, plan.units, models, output)
        profile.disable()
        cpu, wall = time.process_time() - cpu, time.monotonic() - begun
    return {
        "rows": plan.rows,
        "tokens_per_ordering": round(tokens / plan.rows, 1),
        "cpu_ms_a_pair": round(cpu / plan.rows * 1e3, 3),
        "wall_ms_a_pair": round(wall / plan.rows * 1e3, 3),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "load": os.getloadavg()[0],
        "profile_ms_a_pair": top(profile, plan.rows) if turn == "profile" else {},
    }


def top(profile: cProfile.Profile, rows: int) -> dict[str, float]:
    """Milliseconds a pair within each of the functions that take longest, without what they call."""
    found: Any = pstats.Stats(profile)
    own = sorted(((entry[2], place) for place, entry in found.stats.items()), reverse=True)[:20]
    return {
        f"{Path(file).name}:{line}:{name}": round(seconds / rows * 1e3, 3)
        for seconds, (file, line, name) in own
    }


if __name__ == "__main__":
    main()
