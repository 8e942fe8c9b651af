"""Do the engine's precisions and layouts give the answers of bfloat16, one sequence at a time?

    python tests/benchmarks/same_answers.py --model CLASSIFIER_FOLDER --pairs VOTES.parquet [--rows 1000]

The classifier should be trained on votes of people, and the rows be ones that it did not see. A way is a
precision and how sequences share a pass:

    single           the network of transformers, one sequence at a time; `bf16 single` is the reference
    packed, shared   the engine on a stack; `calibrated` is w8a8-int8 as `quantize --calibrate` stores it
    recipe           the recipe's loop: sorted batches of 32, padded, in fp16 autocast, its adapter unmerged

For each: how far its probabilities (both orders, averaged) are from the reference and from `fp32 single`, and
its accuracy and log loss on the votes. Then how far they are from those that the same way gives some rows,
each alone; and a few rows in ten batches, each time with other rows beside them: how far apart a row's
probabilities are. Writes results/same_answers.json, or --json, anew after every way.
"""

import argparse
import functools
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import HERE, write_result
from references import both_orderings, recipe_batches, score_recipe, sequences_of

from wsdm_ray.data.votes import read_votes
from wsdm_ray.modeling.classifier import ordering_logits, preference_log_odds, unwrap_peft
from wsdm_ray.modeling.loading import load_classifier, load_fused_classifier
from wsdm_ray.modeling.manifest import read_manifest
from wsdm_ray.packing.layouts import lay_out
from wsdm_ray.schema import Ordering
from wsdm_ray.scoring.engine import log_odds
from wsdm_ray.scoring.probabilities import combine, to_probability
from wsdm_ray.statistics import agreement, cross_entropy
from wsdm_ray.storage import local_copy
from wsdm_ray.text.encoding import EncodedPairs, PairEncoder

BOTH = (Ordering.AB, Ordering.BA)
REFERENCE, FLOAT32 = "bf16 single", "fp32 single"
WAYS = (
    *(REFERENCE, FLOAT32, "bf16 packed", "bf16 shared"),
    *("w8a8-int8 packed", "w8a8-int8 shared", "w8a8-fp8 packed", "w8a8-fp8 shared", "bnb-int8 recipe"),
    *("calibrated packed", "calibrated shared"),
)
BATCH = 32
"""Sequences of a batch of the recipe."""

Scorer = Callable[[EncodedPairs], np.ndarray]
"""Pairs to log-odds of the given response_a: float [N, 2]."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--base", help="where the classifier's base is, if not where it was in training")
    parser.add_argument("--calibrated", help="the classifier's folder in calibrated w8a8-int8")
    parser.add_argument("--pairs", required=True, nargs="+")
    parser.add_argument("--rows", type=int, default=1_000, help="at most, chosen at random")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--token-budget", type=int, default=16_384)
    parser.add_argument("--alone-rows", type=int, default=100, help="that run alone, too")
    parser.add_argument("--repeated-rows", type=int, default=20, help="that run in several batches")
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--others", type=int, default=44, help="rows beside them in each batch")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "same_answers.json")
    given = parser.parse_args()
    if REFERENCE not in given.ways:
        parser.error(f"--ways: must hold {REFERENCE!r}, which the others are compared with")
    lacking = [] if given.calibrated else [way for way in WAYS if way.startswith("calibrated")]
    ways = [REFERENCE, *(way for way in given.ways if way not in (REFERENCE, *lacking))]

    manifest = read_manifest(local_copy(given.model))
    votes = read_votes(given.pairs)
    votes = votes.take(np.random.default_rng(0).permutation(len(votes))[: given.rows])
    texts = votes.texts(np.arange(len(votes)))
    pairs = PairEncoder(local_copy(given.model), manifest.text).encode(*texts)
    budget = max(given.token_budget, 2 * manifest.text.max_tokens)

    def probabilities(log_odds_NO: np.ndarray) -> np.ndarray:
        return combine(to_probability(log_odds_NO, manifest.temperature)).astype(np.float64)

    found_N: dict[str, np.ndarray] = {}
    results: list[dict[str, Any]] = []
    for way in ways:
        score = scorer_of(way, given.model, given.base, given.calibrated, budget)
        started = time.monotonic()
        prob_N = probabilities(score(pairs))
        seconds = time.monotonic() - started
        found_N[way] = prob_N
        found = {"way": way} | compared(prob_N, found_N[REFERENCE]) | on_votes(prob_N, votes.prob_a_N)
        if not way.endswith("single"):
            some = np.arange(min(given.alone_rows, len(pairs)))
            alone = np.concatenate([probabilities(score(pairs.take(some[[row]]))) for row in some])
            apart = compared(prob_N[some], alone)
            found |= {f"alone_{name}": apart[name] for name in ("mean_abs", "max_abs")}
            found |= repeated(lambda some, score=score: probabilities(score(some)), pairs, given)
        results.append(found | {"seconds": seconds})
        for result in results if FLOAT32 in found_N else []:
            far = compared(found_N[result["way"]], found_N[FLOAT32])
            result["float32_mean_abs"] = far["mean_abs"]
        print(results[-1], flush=True)
        left_out = ("model", "base", "calibrated", "pairs", "json")
        settings = {name: value for name, value in vars(given).items() if name not in left_out}
        settings |= {"rows": len(votes), "model": Path(given.model).name, "temperature": manifest.temperature}
        write_result(given.json, __doc__.splitlines()[0], settings, results)
        del score
        gc.collect()


def scorer_of(way: str, folder: str, base: str | None, calibrated: str | None, token_budget: int) -> Scorer:
    """The way's function; the model is loaded here."""
    precision, kind = way.split(" ")
    if precision == "calibrated":
        assert calibrated is not None
        precision, folder, base = "w8a8-int8", calibrated, None
    if kind in ("packed", "shared"):
        stack = stack_of(folder, base, precision)
        return lambda pairs: log_odds(stack, pairs, BOTH, layout=kind, token_budget=token_budget).log_odds_NO
    network, _ = load_classifier(folder, precision=precision, base=base, verify=False)
    if kind == "single":
        return lambda pairs: score_single(network, pairs)
    unwrap_peft(network).set_attn_implementation("eager")

    def recipe(pairs: EncodedPairs) -> np.ndarray:
        sequences = sequences_of(pairs)
        return both_orderings(score_recipe(network, sequences, recipe_batches(sequences, BATCH)))

    return recipe


@functools.lru_cache(maxsize=1)
def stack_of(folder: str, base: str | None, precision: str) -> torch.nn.Module:
    """One stack for the layouts that follow each other: what it compiled serves both."""
    return load_fused_classifier(folder, precision=precision, base=base, verify=False)[0]


@torch.inference_mode()
def score_single(network: torch.nn.Module, pairs: EncodedPairs) -> np.ndarray:
    """Log-odds of the given response_a [N, 2], a pass for each ordering of each pair."""
    found_S = [
        float(
            preference_log_odds(
                ordering_logits(network, lay_out("padded", pairs.prefix, [suffix], np.array([row])))
            )
        )
        for suffix in (pairs.suffix_ab, pairs.suffix_ba)
        for row in range(len(pairs))
    ]
    return both_orderings(np.array(found_S))


def compared(prob_N: np.ndarray, reference_N: np.ndarray) -> dict[str, Any]:
    """Distance of probabilities from the reference, over the rows where both are finite."""
    known_N = np.isfinite(prob_N) & np.isfinite(reference_N)
    apart = np.abs(prob_N - reference_N)[known_N]
    return {
        "not_finite": int((~np.isfinite(prob_N)).sum()),
        "mean_abs": float(apart.mean()),
        "p99_abs": float(np.quantile(apart, 0.99)),
        "max_abs": float(apart.max()),
        "other_winner": float(((prob_N > 0.5) != (reference_N > 0.5))[known_N].mean()),
    }


def on_votes(prob_N: np.ndarray, label_N: np.ndarray) -> dict[str, float]:
    """Accuracy and log loss; a probability that is not finite counts as 0.5."""
    prob_N = np.where(np.isfinite(prob_N), prob_N, 0.5)
    return {
        "accuracy": float(agreement(prob_N, label_N).mean()),
        "log_loss": float(cross_entropy(prob_N, label_N).mean()),
    }


def repeated(score: Scorer, pairs: EncodedPairs, given: argparse.Namespace) -> dict[str, float]:
    """How far apart (largest less smallest) the probabilities of a row are over batches with other rows."""
    random = np.random.default_rng(1)
    order = random.permutation(len(pairs))
    chosen, rest = order[: given.repeated_rows], order[given.repeated_rows :]
    found = []
    for _ in range(given.batches):
        others = random.choice(rest, min(given.others, len(rest)), replace=False)
        rows = random.permutation(np.concatenate([chosen, others]))
        place_of = {row: place for place, row in enumerate(rows.tolist())}
        prob = score(pairs.take(rows))
        found.append(prob[[place_of[row] for row in chosen.tolist()]])
    apart = np.max(found, axis=0) - np.min(found, axis=0)
    return {"batch_spread_mean": float(apart.mean()), "batch_spread_max": float(apart.max())}


if __name__ == "__main__":
    main()
