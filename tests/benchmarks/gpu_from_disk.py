"""Scoring from a model on disk: how long a replica takes to start, and what more replicas bring."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from gpu_bench import BOTH, Bench
from gpu_measures import peak_memory
from synthetic import random_parquet, write_checkpoint

from wsdm_ray.config import ScoreConfig
from wsdm_ray.modeling.manifest import read_manifest
from wsdm_ray.scoring.engine import log_odds
from wsdm_ray.scoring.model_spec import ModelSpec
from wsdm_ray.scoring.models import Models

__all__ = ["first_pass", "scaling", "start"]


def start(bench: Bench) -> Iterator[list[dict[str, Any]]]:
    """A new process twice, the second time with the compile caches that the first has left."""
    given, rows = bench.given, []
    folder = saved_model(bench)
    with tempfile.TemporaryDirectory() as caches:
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": caches, "TRITON_CACHE_DIR": f"{caches}/triton"}
        for cache in ("empty", "full"):
            options = {
                "--shape": given.shape, "--served": given.served, "--max-tokens": given.max_tokens,
                "--token-budget": given.token_budget, "--pool": min(given.pool, 100),
            }  # fmt: skip
            words = [str(word) for option in options.items() for word in option]
            child = subprocess.run(
                [sys.executable, sys.argv[0], *words, "--child", str(folder), str(time.time())],
                env=environment, stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            rows.append({"compile_cache": cache} | json.loads(child.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
            yield rows


def first_pass(bench: Bench, folder: str, started: float) -> dict[str, float]:
    """Seconds from `started` (time.time()) until this process has imported, loaded, and scored two passes."""
    compiling: list[float] = []
    seconds: dict[str, float] = {"imported": time.time() - started}
    torch._dynamo.callback.on_compile_start(lambda *_: compiling.append(-time.time()))
    torch._dynamo.callback.on_compile_end(lambda *_: compiling.append(time.time()))
    models = Models((ModelSpec(folder, None, read_manifest(folder), bench.given.served),))
    seconds["loaded"] = time.time() - started
    models.warm_up(bench.given.token_budget)
    seconds["compiled"] = time.time() - started
    for name in ("first_pass", "second_pass"):
        network, pairs = models.scorers[0], bench.pairs.take(np.arange(bench.rows_of(0.9)))
        log_odds(network, pairs, BOTH, layout="shared", token_budget=bench.given.token_budget)
        seconds[name] = time.time() - started
    return seconds | {"compiling": sum(compiling)} | peak_memory()


def scaling(bench: Bench) -> Iterator[list[dict[str, Any]]]:
    """The whole pipeline on Ray, from parquet to parquet, with one replica and with one on each GPU."""
    from wsdm_ray.scoring.pipeline import score
    from wsdm_ray.session import connect

    folder, given, rows = saved_model(bench), bench.given, []
    random_parquet(folder.parent / "rows.parquet", given.rows, max_tokens=given.max_tokens)
    connect(local=True)
    for replicas in sorted({1, given.gpus}):
        output = folder.parent / f"replicas_{replicas}"
        run = score(
            ScoreConfig(
                model=(str(folder),),
                input=(f"{folder.parent}/rows.parquet",),
                output=str(output),
                precision=given.served,
                layout="shared",
                token_budget=given.token_budget,
                unit_rows=given.unit_rows,
                replicas=replicas,
            )
        )
        rows.append(
            run["throughput"] | {"replicas": replicas, "steady_pairs_per_second": steady(output, replicas)}
        )
        rows[-1]["times_one"] = rows[-1]["steady_pairs_per_second"] / rows[0]["steady_pairs_per_second"]
        print(rows[-1], flush=True)
        yield rows


def steady(output: Path, replicas: int) -> float:
    """Pairs/s while all replicas are at work: between their first commits and their last but one."""
    parts = sorted((path.stat().st_mtime, pq.read_metadata(path).num_rows) for path in output.glob("part-*"))
    times, rows = zip(*parts, strict=True)
    last = max(len(parts) - replicas, replicas)
    return sum(rows[replicas : last + 1]) / (times[last] - times[replicas - 1])


def saved_model(bench: Bench) -> Path:
    """A folder that `score` takes, written when first asked for; the GPU is empty then."""
    assert bench.work is not None
    bench.drop()
    folder = bench.work / "model"
    if not folder.exists():
        started = time.monotonic()
        write_checkpoint(folder, bench.config, bench.given.stored, bench.device, bench.given.max_tokens)
        bench.drop()
        print(f"wrote {folder} in {time.monotonic() - started:.0f} s", flush=True)
    return folder
