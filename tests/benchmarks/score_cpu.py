"""Which way of scoring is the fastest on a CPU, and how far is each from float32?

    python tests/benchmarks/score_cpu.py --base FOLDER --pairs FILES [--rows 12] [--repeats 3]

The same pairs, both orders, through the engine in several precisions and layouts and through the transformers
pipeline (one text an ordering, batches of 8, sorted by length), in turns in one process. The classifier is
the base with a random linear head: speed does not depend on what it learned. Writes results/score_cpu.json,
or --json.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import HERE, write_result
from references import both_orderings, pipeline_scorer, recipe_batches, sequences_of

from wsdm_ray.config import HeadConfig, TextConfig
from wsdm_ray.data.votes import read_votes
from wsdm_ray.modeling.classifier import load_network, meta_model
from wsdm_ray.modeling.fused_decoder import FusedDecoder
from wsdm_ray.modeling.merging import Merged, read_base
from wsdm_ray.modeling.scorers import FusedClassifier, Scorer, TransformersScorer
from wsdm_ray.schema import Ordering
from wsdm_ray.scoring.engine import log_odds
from wsdm_ray.text.encoding import EncodedPairs, PairEncoder

HEAD = HeadConfig(kind="linear")
BOTH = (Ordering.AB, Ordering.BA)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", required=True)
    parser.add_argument("--pairs", nargs="+", required=True)
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--max-tokens", type=int, default=1_024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "score_cpu.json")
    given = parser.parse_args()
    votes = read_votes(given.pairs)
    rows = np.random.default_rng(0).permutation(len(votes))[: given.rows]
    text = TextConfig(max_tokens=given.max_tokens)
    pairs = PairEncoder(given.base, text).encode(*votes.texts(rows))
    ways = {name: make(given.base, pairs) for name, make in WAYS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, np.ndarray] = {}
    for repeat in range(given.repeats):
        for name, run in ways.items():
            started = time.monotonic()
            found[name] = run()
            seconds[name].append(time.monotonic() - started)
            print(f"{repeat} {name:24} {given.rows / seconds[name][-1]:.3f} pairs/s", flush=True)
    exact = found["fp32 padded 2048"]
    tokens = int(2 * pairs.tokens_N.sum())
    results = [
        {
            "way": name,
            "pairs_per_second": {
                "median": given.rows / statistics.median(each),
                "min": given.rows / max(each),
                "max": given.rows / min(each),
            },
            "tokens_per_second": tokens / statistics.median(each),
            "mean_abs_prob": float(np.abs(sigmoid(found[name]) - sigmoid(exact)).mean()),
            "max_abs_prob": float(np.abs(sigmoid(found[name]) - sigmoid(exact)).max()),
        }
        for name, each in seconds.items()
    ]
    settings = {name: value for name, value in vars(given).items() if name not in ("base", "pairs", "json")}
    settings |= {"base": Path(given.base).name, "threads": torch.get_num_threads(), "tokens": tokens}
    write_result(given.json, __doc__.splitlines()[0], settings, results)
    for row in results:
        print(row)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def network_of(base: str, dtype: torch.dtype, quantization: str = "none") -> Any:
    return load_network(base, HEAD, seed=0, device="cpu", dtype=dtype, quantization=quantization)


def engine(
    load: Callable[[str], Scorer], layout: str, token_budget: int
) -> Callable[[str, EncodedPairs], Callable[[], np.ndarray]]:
    def make(base: str, pairs: EncodedPairs) -> Callable[[], np.ndarray]:
        scorer = load(base)
        return lambda: (
            log_odds(
                scorer,
                pairs,
                BOTH,
                layout=layout,
                token_budget=max(token_budget, 2 * int(pairs.tokens_N.max())),
            ).log_odds_NO
        )

    return make


def stack_of(base: str, precision: str) -> FusedClassifier:
    merged = Merged(base=read_base(base), adapters=())
    backbone: Any = meta_model(merged.base.config).get_submodule("model")
    stack = FusedDecoder(merged.parameter, merged.base.config, backbone.rotary_emb, precision=precision)
    return FusedClassifier(stack, network_of(base, torch.float32).score)


def pipeline(base: str, pairs: EncodedPairs) -> Callable[[], np.ndarray]:
    """The transformers pipeline in float32 on the same token ids, in batches of 8 sorted by length."""
    run = pipeline_scorer(network_of(base, torch.float32), "cpu")
    sequences = sequences_of(pairs)
    order = np.concatenate(recipe_batches(sequences, 8))
    return lambda: both_orderings(run(sequences, order, 8))


WAYS = {
    "fp32 padded 2048": engine(
        lambda base: TransformersScorer(network_of(base, torch.float32)), "padded", 2_048
    ),
    "bf16 padded 2048": engine(
        lambda base: TransformersScorer(network_of(base, torch.bfloat16)), "padded", 2_048
    ),
    "bnb-int8 padded 2048": engine(
        lambda base: TransformersScorer(network_of(base, torch.float32, "bnb-int8")), "padded", 2_048
    ),
    "fp32 shared 2048": engine(
        lambda base: TransformersScorer(network_of(base, torch.float32)), "shared", 2_048
    ),
    "w8a8-int8 shared 2048": engine(lambda base: stack_of(base, "w8a8-int8"), "shared", 2_048),
    "transformers pipeline": pipeline,
}


if __name__ == "__main__":
    main()
