"""How fast does the engine score on one GPU, beside the recipe's loop and the transformers pipeline?

    python tests/benchmarks/score_gpu.py --shape gemma2-9b [--parts speed ceiling timeline memory]
    python tests/benchmarks/score_gpu.py --shape gemma2-9b --parts start --work /local/disk
    python tests/benchmarks/score_gpu.py --shape gemma2-9b --parts scaling --gpus 2 --work /local/disk
    python tests/benchmarks/score_gpu.py --shape small --max-tokens 128 --token-budget 1024 --scale 0.1

Random weights of the shape and random pairs with the lengths of real votes, in both orders. The parts:

    speed     every way in turns: pairs/s, and tokens/s, real tokens of both orderings for every way
    ceiling   the four products of a layer alone, of as many tokens as a pass
    timeline  ten passes of the layout `shared` on the GPU's timeline: its idle share, where the time goes
    memory    the most that one replica takes of the GPU in that layout
    start     a new process: from its start with weights on disk to its first scored pass; with empty and
              with full compile caches
    scaling   `wsdm_ray.scoring.pipeline` with one replica, then with one on each of `--gpus`

The last four are in the precision `--served`.

The recipe's loop and the pipeline run on sorted batches, chosen evenly among those of all `--pool` pairs,
ours on the first pairs of the pool, so many that their passes are about as full as those of all; pairs/s are
tokens/s over the mean tokens of a pair of the pool. Networks are kept between turns where memory allows.

Writes results/score_gpu_SHAPE.json, or --json, anew after every turn.
"""

import argparse
import collections
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import spread
from gpu_bench import PRECISIONS, Bench
from gpu_from_disk import first_pass, scaling, start
from gpu_measures import peak_memory, product, timeline_of
from references import recipe_batches, score_recipe
from synthetic import SHAPES
from torch.autograd import DeviceType

from wsdm_ray.modeling.families import shape_of
from wsdm_ray.scoring.models import MAX_GPU_TOKENS
from wsdm_ray.scoring.recovery import is_oom

WAYS = (
    *("recipe", "pipeline"),
    *(f"{precision} {layout}" for precision in PRECISIONS for layout in ("padded", "packed", "shared")),
)
PAIRS = {"recipe": 64, "pipeline": 48, "bf16": 128, "w8a8-int8": 256, "w8a8-fp8": 256}
"""Pairs that a way runs in a turn: about 15 s of the recipe and 7 s of ours for a 9B model on an H100."""
LEAST_BATCHES = 4
"""Of the recipe's loop and the pipeline in a turn, so that short and long sequences are among them."""
PROFILED_PASSES = 10
ROUNDS = 8
"""Times that the ceiling goes through all layers."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", required=True, choices=SHAPES)
    parser.add_argument("--parts", nargs="+", default=list(PARTS)[:4], choices=PARTS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of pairs a turn")
    parser.add_argument("--pool", type=int, default=2_000, help="pairs whose lengths stand for all")
    parser.add_argument("--max-tokens", type=int, default=2_048)
    parser.add_argument("--token-budget", type=int, default=MAX_GPU_TOKENS)
    parser.add_argument("--recipe-batch", type=int, default=32)
    parser.add_argument("--pipeline-batch", type=int, default=8)
    parser.add_argument(
        "--served", default="w8a8-fp8", choices=PRECISIONS, help="precision of the last four parts"
    )
    parser.add_argument(
        "--stored", default="w8a8-fp8", choices=("bf16", "w8a8-fp8"), help="weights of their model"
    )
    parser.add_argument("--gpus", type=int, default=2, help="of scaling")
    parser.add_argument("--rows", type=int, default=1_200, help="of scaling")
    parser.add_argument("--unit-rows", type=int, default=50, help="of scaling")
    parser.add_argument("--work", type=Path, help="where start and scaling write their model")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, metavar=("MODEL", "STARTED"), help="for the process of start")
    given = parser.parse_args()
    if given.child:
        print(json.dumps(first_pass(Bench(given, "", None), given.child[0], float(given.child[1]))))
        return
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        bench = Bench(given, __doc__.splitlines()[0], Path(folder))
        for part in given.parts:
            for found in PARTS[part](bench):
                bench.save(part, found)


# Speed


def speed(bench: Bench) -> Iterator[list[dict[str, Any]]]:
    turns: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for repeat in range(bench.given.repeats):
        for way in bench.given.ways:
            turns[way].append(turn := take_turn(bench, way))
            print(
                f"{repeat} {way:14} {turn['tokens_per_second'] / bench.pair_tokens:8.2f} pairs/s "
                f"{turn['tokens_per_second']:10,.0f} tokens/s in {turn['seconds']:.1f} s "
                f"{ {name: turn[name] for name in ('fill', 'batch') if name in turn} }",
                flush=True,
            )
            yield [summary(bench, way, each) for way, each in turns.items()]


def summary(bench: Bench, way: str, turns: list[dict[str, Any]]) -> dict[str, Any]:
    speeds = [turn["tokens_per_second"] for turn in turns]
    return turns[-1] | {
        "way": way,
        "turns": len(turns),
        "tokens_per_second": spread(speeds),
        "pairs_per_second": spread([each / bench.pair_tokens for each in speeds]),
    }


def take_turn(bench: Bench, way: str) -> dict[str, Any]:
    """One measurement of a way. Where memory is short, other networks go first; then batches are halved."""
    name, _, layout = way.partition(" ")
    rows = min(max(int(PAIRS[name] * bench.given.scale), 2), len(bench.pairs))
    batch = getattr(bench.given, f"{name}_batch", 0)
    while True:
        try:
            return run_ours(bench, name, layout, rows) if layout else run_reference(bench, name, rows, batch)
        except RuntimeError as error:
            if not is_oom(error):
                raise
            print(f"  {way}: {str(error).splitlines()[0][:90]}", flush=True)
        if not bench.drop(keep=name):
            if batch < 2:
                raise SystemExit(f"{way} does not fit this GPU")
            batch //= 2


def run_ours(bench: Bench, precision: str, layout: str, rows: int) -> dict[str, Any]:
    rows = bench.filling(precision, layout, rows)
    if f"{precision} {layout}" not in bench.warm:
        bench.score(precision, layout, bench.rows_of(2))
        bench.warm.add(f"{precision} {layout}")
    started = time.monotonic()
    found = bench.score(precision, layout, rows)
    seconds = time.monotonic() - started
    tokens = 2 * int(bench.pairs.tokens_N[:rows].sum())
    held = int(bench.shared_N[:rows].sum()) if layout == "shared" else tokens
    return {
        "pairs": rows,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "fill": round(held / found.forward_tokens, 4),
    }


def run_reference(bench: Bench, name: str, rows: int, batch: int) -> dict[str, Any]:
    """The recipe's loop or the pipeline on batches chosen evenly among all of the pool, longest first."""
    network = bench.network(name)
    batches = recipe_batches(bench.sequences, batch)
    count = min(max(2 * rows // batch, LEAST_BATCHES), len(batches))
    chosen = [batches[int((number + 0.5) * len(batches) / count)] for number in range(count)]

    def run(batches: list[np.ndarray]) -> None:
        if name == "recipe":
            score_recipe(network, bench.sequences, batches)
        else:
            network(bench.sequences, np.concatenate(batches), batch)
        bench.wait()

    if name not in bench.warm:
        run(chosen)  # all of them: the pipeline makes something anew for lengths that it has not seen
        bench.warm.add(name)
    started = time.monotonic()
    run(chosen)
    seconds = time.monotonic() - started
    tokens = sum(len(bench.sequences[index]) for index in np.concatenate(chosen))
    return {
        "pairs": count * batch // 2,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "batch": batch,
    }


# Ceiling


def ceiling(bench: Bench) -> Iterator[list[dict[str, Any]]]:
    bench.drop()
    shape, tokens, rows = shape_of(bench.config), bench.given.token_budget, []
    wide, inner = shape.num_heads * shape.head_dim, bench.config.intermediate_size
    fused = wide + 2 * shape.num_kv_heads * shape.head_dim
    sizes = (
        (shape.hidden_size, fused),
        (wide, shape.hidden_size),
        (shape.hidden_size, 2 * inner),
        (inner, shape.hidden_size),
    )
    layers = len(shape.layer_types)
    for precision in PRECISIONS:
        products = [product(precision, tokens, each, out, bench.device) for each, out in sizes]
        for run in products:
            run()
        bench.wait()
        started = time.monotonic()
        for _ in range(ROUNDS * layers):
            for run in products:
                run()
        bench.wait()
        seconds = (time.monotonic() - started) / ROUNDS
        pairs = tokens / seconds / bench.results["pairs"]["tokens_shared"]
        ours = [each for each in bench.results.get("speed", ()) if each["way"] == f"{precision} shared"]
        rows.append(
            {
                "precision": precision,
                "pass_tokens_per_second": tokens / seconds,
                "pairs_per_second": pairs,
                "tflops": 2e-12 * layers * tokens * sum(each * out for each, out in sizes) / seconds,
                "reached": ours[0]["pairs_per_second"]["median"] / pairs if ours else None,
            }
        )
        print(rows[-1], flush=True)
        yield rows


# What one replica does with its GPU


def timeline(bench: Bench) -> Iterator[dict[str, Any]]:
    rows, served = bench.rows_of(PROFILED_PASSES), bench.given.served
    bench.drop(keep=served)
    bench.score(served, "shared", bench.rows_of(2))
    activities = [torch.profiler.ProfilerActivity.CPU]
    if bench.device == "cuda":
        activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        bench.score(served, "shared", rows)
        bench.wait()
    kind = DeviceType.CUDA if bench.device == "cuda" else DeviceType.CPU
    events = [
        (each.name, each.time_range.start, each.time_range.end)
        for each in profile.events()
        if each.device_type == kind and not each.is_user_annotation
    ]
    found = timeline_of(events)
    print(json.dumps(found, indent=1), flush=True)
    yield found | {"precision": served, "pairs": rows}


def memory(bench: Bench) -> Iterator[dict[str, Any]]:
    served = bench.given.served
    bench.drop()
    bench.network(served)
    weights = 0
    if bench.device == "cuda":
        weights = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    bench.score(served, "shared", bench.rows_of(PROFILED_PASSES))
    found = {"precision": served, "weights_gib": weights / 2**30, **peak_memory()}
    print(found, flush=True)
    yield found


PARTS = {
    "speed": speed,
    "ceiling": ceiling,
    "timeline": timeline,
    "memory": memory,
    "start": start,
    "scaling": scaling,
}


if __name__ == "__main__":
    main()
