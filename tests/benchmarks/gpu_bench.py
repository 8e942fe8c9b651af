"""What the parts of `score_gpu.py` share: the pairs, the networks that are held, and the results so far."""

import argparse
import gc
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import HERE, write_result
from references import pipeline_scorer, random_network, recipe_network, sequences_of
from synthetic import HEAD, config_of, random_parameter, synthetic_pairs

from wsdm_ray.modeling.classifier import meta_model
from wsdm_ray.modeling.fused_decoder import FusedDecoder
from wsdm_ray.modeling.head import make_head
from wsdm_ray.modeling.scorers import FusedClassifier
from wsdm_ray.packing.plan import pair_tokens, plan_batches
from wsdm_ray.schema import Ordering
from wsdm_ray.scoring.engine import Scores, log_odds

__all__ = ["BOTH", "PRECISIONS", "Bench"]

BOTH = (Ordering.AB, Ordering.BA)
PRECISIONS = {"bf16": "none", "w8a8-int8": "w8a8-int8", "w8a8-fp8": "w8a8-fp8"}
"""The precisions of `score` that are compared, and what `FusedDecoder` calls them."""


class Bench:
    """The settings, the pairs, the networks that are held, and the results so far."""

    def __init__(self, given: argparse.Namespace, question: str, work: Path | None):
        self.given, self.question, self.work = given, question, work
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        self.config = config_of(given.shape)
        self.pairs = synthetic_pairs(given.pool, self.config.vocab_size, max_tokens=given.max_tokens)
        self.sequences = sequences_of(self.pairs)
        self.pair_tokens = 2 * float(self.pairs.tokens_N.mean())
        self.shared_N = pair_tokens("shared", self.pairs.prefix.lengths, self.pairs.suffix_ab.lengths, 2)
        self.networks: dict[str, Any] = {}
        self.warm: set[str] = set()
        self.results: dict[str, Any] = {
            "pairs": {
                "tokens_of_both_orderings": self.pair_tokens,
                "tokens_shared": float(self.shared_N.mean()),
                "cut_share": float((self.pairs.cut_tokens_N > 0).mean()),
                "prompt_share": float(self.pairs.prefix.lengths.sum() / self.pairs.tokens_N.sum()),
            }
        }
        torch._dynamo.config.recompile_limit = 64  # networks that are made again may be compiled again

    def save(self, part: str, found: Any) -> None:
        self.results[part] = found
        left_out = ("json", "work", "child")
        settings = {name: value for name, value in vars(self.given).items() if name not in left_out}
        path = self.given.json or HERE / "results" / f"score_gpu_{self.given.shape}.json"
        write_result(path, self.question, settings, self.results)

    def network(self, name: str) -> Any:
        if name not in self.networks:
            self.networks[name] = self.make(name)
        return self.networks[name]

    @torch.no_grad()
    def make(self, name: str) -> Any:
        torch.manual_seed(0)
        if name == "recipe":
            half = torch.float16 if self.device == "cuda" else torch.float32
            return recipe_network(self.config, self.device, half)
        if name == "pipeline":
            model = random_network(self.config, self.device, torch.bfloat16)
            self.results["pipeline_attention"] = model.config._attn_implementation
            return pipeline_scorer(model, self.device)
        rotary = meta_model(self.config).get_submodule("model.rotary_emb")
        parameter = random_parameter(self.config, self.device, self.dtype)
        stack = FusedDecoder(
            parameter, self.config, rotary, precision=PRECISIONS[name], device=self.device, dtype=self.dtype
        )
        return FusedClassifier(stack, make_head(HEAD, self.config.hidden_size, seed=0)).eval()

    def drop(self, keep: str = "") -> bool:
        """Let go of all networks but one; returns whether there were others."""
        others = [name for name in self.networks if name != keep]
        for name in others:
            del self.networks[name]
        self.warm = {way for way in self.warm if way.split(" ")[0] == keep}
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
        return bool(others)

    def score(self, precision: str, layout: str, rows: int) -> Scores:
        """The first pairs of the pool through the engine.

        Raises:
            torch.OutOfMemoryError: not in the budget that was asked for.
        """
        found = log_odds(
            self.network(precision), self.pairs.take(np.arange(rows)), BOTH, layout=layout,
            token_budget=self.given.token_budget,
        )  # fmt: skip
        if found.halvings:
            raise torch.OutOfMemoryError(
                f"{precision} {layout}: out of memory at {self.given.token_budget} tokens"
            )
        assert all(error is None for error in found.errors_N), found.errors_N
        return found

    def rows_of(self, passes: float) -> int:
        """Pairs that fill so many passes in the shared layout."""
        filled = np.cumsum(self.shared_N) >= passes * self.given.token_budget
        return min(int(np.argmax(filled)) + 1 if filled.any() else len(self.pairs), len(self.pairs))

    def filling(self, precision: str, layout: str, rows: int) -> int:
        """So many pairs, or up to a quarter fewer: as many as fill passes like all pairs of the pool do."""
        lengths = (self.pairs.prefix.lengths, self.pairs.suffix_ab.lengths)
        tokens_N = pair_tokens(layout, *lengths, 2, self.network(precision).alignment)
        budget = self.given.token_budget

        def fill(count: int) -> float:
            return tokens_N[:count].sum() / len(plan_batches(layout, tokens_N[:count], budget))

        pool = fill(len(tokens_N))
        return min(range(rows - rows // 4, rows + 1), key=lambda count: abs(fill(count) - pool))

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
