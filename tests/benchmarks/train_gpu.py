"""How fast is a step of training on one GPU, beside the recipe's step and that of transformers with PEFT?

    python tests/benchmarks/train_gpu.py --shape gemma2-9b [--parts speed ceiling timeline]
    python tests/benchmarks/train_gpu.py --shape small --max-tokens 128 --token-budget 512 --pairs 8

Random weights of the shape and random pairs with the lengths of real votes, both orderings of each in the
same step. Rank 64 on all linear layers, AdamW. The parts:

    speed     every way in turns: tokens/s, real tokens of both orderings for every way, pairs/s, peak memory,
              seconds from the first call to the end of the first step (compilation)
    ceiling   the GEMMs of all layers alone, forward and of the input's gradient
    timeline  one step on the GPU's timeline: its idle share, where the time goes

The ways of others, whose activations are recomputed:

    recipe           LLM.int8(), 8 sequences a micro-batch, padded, eager attention
    recipe_float32   the same after PEFT's `prepare_model_for_kbit_training`, as the recipe trains: what is
                     not quantized is in float32
    transformers     bfloat16, otherwise as `recipe`, with the attention that transformers chooses, which
                     leaves soft-capping out
    transformers_row the same, sequences side by side in one row of the token budget, told apart by positions

and ours, named by how the base is held and by the layout. A way that does not fit is `out of memory`. Writes
results/train_gpu_SHAPE.json, or --json, anew after every turn.
"""

import argparse
import collections
import gc
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import HERE, spread, write_result
from gpu_measures import peak_memory, timeline_of
from peft import prepare_model_for_kbit_training
from references import left_padded, random_network, recipe_batches, sequences_of, to_bitsandbytes, to_nf4
from synthetic import HEAD, SHAPES, config_of, synthetic_pairs
from torch import Tensor, nn
from torch.autograd import DeviceType

from wsdm_ray.config import LoraConfig, OptimizerConfig
from wsdm_ray.modeling.classifier import add_lora, preference_log_odds, trainable_parameters, unwrap_peft
from wsdm_ray.modeling.families import shape_of
from wsdm_ray.modeling.frozen_weights import to_rows
from wsdm_ray.modeling.head import make_head
from wsdm_ray.modeling.training_decoder import TrainingDecoder, padded_tokens
from wsdm_ray.modeling.training_linear import FrozenWeight, frozen_gemm, input_gradient
from wsdm_ray.packing.layouts import lay_out
from wsdm_ray.packing.plan import pair_tokens, plan_batches
from wsdm_ray.training.distributed import WorkerGroup
from wsdm_ray.training.gradients import GradientReducer
from wsdm_ray.training.optimizer import make_optimizer

OURS = tuple(
    f"{held} {layout}"
    for held in ("none", "w8a8-int8", "w8a8-fp8", "bnb-int8", "nf4")
    for layout in ("packed", "shared")
)
RECIPES, STOCK = ("recipe", "recipe_float32"), ("transformers", "transformers_row")
WAYS = (*RECIPES, *STOCK, *OURS)
RECIPE_BATCH = 8


class Bench:
    """The settings, the pairs, the network that is held, and the results so far."""

    def __init__(self, given: argparse.Namespace):
        self.given = given
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        self.config = config_of(given.shape)
        self.pairs = synthetic_pairs(given.pairs, self.config.vocab_size, max_tokens=given.max_tokens)
        self.held: tuple[str, Any] = ("", None)
        self.results: dict[str, Any] = {"tokens_of_both_orderings": 2 * float(self.pairs.tokens_N.mean())}
        if self.device == "cuda" and given.memory_gib:
            share = given.memory_gib * 2**30 / torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(share)

    def save(self, part: str, found: Any) -> None:
        self.results[part] = found
        settings = {name: value for name, value in vars(self.given).items() if name != "json"}
        path = self.given.json or HERE / "results" / f"train_gpu_{self.given.shape}.json"
        write_result(path, __doc__.splitlines()[0], settings, self.results)

    def step_of(self, way: str) -> Callable[[], None]:
        """One optimizer step over all pairs; the network of another way is let go of first."""
        if self.held[0] != way:
            self.held = ("", None)
            gc.collect()
            if self.device == "cuda":
                torch.cuda.empty_cache()
            self.held = (way, self.make(way))
            if self.device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
        return self.held[1]

    def make(self, way: str) -> Callable[[], None]:
        torch.manual_seed(0)
        held, _, layout = way.partition(" ")
        attention = "eager" if held in RECIPES else None
        network = random_network(self.config, self.device, self.dtype, attention)
        backbone = network.get_submodule("model")
        if held in (*RECIPES, "bnb-int8"):
            to_bitsandbytes(backbone)
            network.is_loaded_in_8bit = True  # by which PEFT knows which of its layers to put there
        elif held == "nf4":
            to_nf4(backbone)
            network.is_loaded_in_4bit = True
        elif held.startswith("w8a8"):
            to_rows(backbone, held, self.dtype)
        if held == "recipe_float32":
            prepare_model_for_kbit_training(network, use_gradient_checkpointing=False)
        network.score = make_head(HEAD, self.config.hidden_size, seed=0).to(self.device)
        lora = LoraConfig(r=64, alpha=4, dropout=self.given.dropout)
        if not layout:
            # As `Trainer` of transformers does by default; LLM.int8() frees its inputs so alone.
            network.gradient_checkpointing_enable({"use_reentrant": True})
            network.enable_input_require_grads()
        wrapped = add_lora(network, lora, seed=0).train()
        parameters = trainable_parameters(wrapped)
        optimizer = make_optimizer(OptimizerConfig(), parameters)
        if layout:
            batches = self.packed(wrapped, layout)
        else:
            batches = self.rows(wrapped) if held == "transformers_row" else self.padded(wrapped)

        reducer = GradientReducer(WorkerGroup(), parameters.values() if layout else [])

        def step() -> None:
            for log_odds in batches():
                with reducer.backward_pass(last=False):
                    (nn.functional.softplus(-log_odds).sum() / (2 * len(self.pairs))).backward()
            reducer.finish()
            nn.utils.clip_grad_norm_(parameters.values(), 1.0, foreach=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def packed(self, network: nn.Module, layout: str) -> Callable[[], Iterator[Tensor]]:
        """Ours: the log-odds of each micro-batch within the token budget."""
        pairs, budget = self.pairs, self.given.token_budget
        decoder = TrainingDecoder(
            network, self.dtype, compiled=self.device == "cuda", usual_tokens=padded_tokens(budget, budget)
        )
        decoder.recomputed = self.given.recomputed
        tokens_N = pair_tokens(layout, pairs.prefix.lengths, pairs.suffix_ab.lengths, 2)
        plan = plan_batches(layout, tokens_N, budget)
        rows = [padded_tokens(int(tokens_N[places].sum()), budget) for places in plan]
        self.results[f"fill {layout}"] = float(tokens_N.sum() / sum(rows))

        def batches() -> Iterator[Tensor]:
            for places, row_tokens in zip(plan, rows, strict=True):
                suffixes = [pairs.suffix_ab, pairs.suffix_ba]
                yield preference_log_odds(
                    decoder.logits(lay_out(layout, pairs.prefix, suffixes, places, row_tokens=row_tokens))
                )

        return batches

    def padded(self, network: nn.Module) -> Callable[[], Iterator[Tensor]]:
        """Sorted micro-batches of 8 sequences, chosen evenly among all of the pairs."""
        sequences, model = sequences_of(self.pairs), unwrap_peft(network)
        batches = recipe_batches(sequences, RECIPE_BATCH)
        count = min(self.given.recipe_batches, len(batches))
        self.chosen = [batches[int((number + 0.5) * len(batches) / count)] for number in range(count)]

        def run() -> Iterator[Tensor]:
            for indices in self.chosen:
                tokens_BT, mask_BT = left_padded([sequences[index] for index in indices], 0)
                hidden_BTD = self.hidden(model, input_ids=tokens_BT, attention_mask=mask_BT)
                yield self.log_odds(model, hidden_BTD[:, -1])

        return run

    def rows(self, network: nn.Module) -> Callable[[], Iterator[Tensor]]:
        """Sequences side by side in one row of at most the token budget; all rows are of one length."""
        sequences, model = sequences_of(self.pairs), unwrap_peft(network)
        order, budget = recipe_batches(sequences, 1), self.given.token_budget
        self.chosen = [np.empty(0, np.int64)]
        for [index] in order:
            if sum(len(sequences[each]) for each in self.chosen[-1]) + len(sequences[index]) > budget:
                self.chosen.append(np.empty(0, np.int64))
            self.chosen[-1] = np.append(self.chosen[-1], index)

        def run() -> Iterator[Tensor]:
            for indices in self.chosen:
                lengths = [len(sequences[index]) for index in indices]
                tokens_T = np.concatenate([sequences[index] for index in indices]).astype(np.int64)
                positions_T = np.concatenate([np.arange(length) for length in lengths])
                hidden_BTD = self.hidden(
                    model,
                    input_ids=torch.from_numpy(tokens_T)[None],
                    position_ids=torch.from_numpy(positions_T)[None],
                )
                yield self.log_odds(model, hidden_BTD[0, np.cumsum(lengths) - 1])

        return run

    def hidden(self, model: Any, **inputs: Tensor) -> Tensor:
        on_device = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        with torch.autocast(self.device, self.dtype, enabled=self.device == "cuda"):
            return model.model(**on_device, use_cache=False).last_hidden_state

    def log_odds(self, model: Any, last_SD: Tensor) -> Tensor:
        return preference_log_odds(model.score(last_SD.to(next(model.score.parameters()).dtype)).float())

    def tokens(self, way: str) -> int:
        """Real tokens of a step, each ordering with its own prompt."""
        if " " in way:
            return 2 * int(self.pairs.tokens_N.sum())
        sequences = sequences_of(self.pairs)
        return sum(len(sequences[index]) for index in np.concatenate(self.chosen))

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def speed(bench: Bench) -> Iterator[list[dict[str, Any]]]:
    turns: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for way in bench.given.ways:
        try:
            started = time.monotonic()
            step = bench.step_of(way)
            made = time.monotonic()
            step()
            bench.wait()
            first = time.monotonic() - made
            step()
            bench.wait()
            for _ in range(bench.given.repeats):
                begun = time.monotonic()
                step()
                bench.wait()
                turns[way].append({"seconds": time.monotonic() - begun})
        except torch.OutOfMemoryError as error:
            print(f"{way:20} out of memory: {peak_memory()} {str(error)[:80]}", flush=True)
            del error
            bench.held = ("", None)
            turns[way] = [{"way": way, "out_of_memory": True}]
            yield [each for turn in turns.values() for each in turn]
            continue
        speeds = [bench.tokens(way) / turn["seconds"] for turn in turns[way]]
        turns[way] = [
            {
                "way": way,
                "tokens_per_second": spread(speeds),
                "pairs_per_second": spread(
                    [each / bench.results["tokens_of_both_orderings"] for each in speeds]
                ),
                "first_step_seconds": first,
                "made_seconds": made - started,
                **peak_memory(),
            }
        ]
        print(
            f"{way:20} {turns[way][0]['tokens_per_second']['median']:10,.0f} tokens/s "
            f"{turns[way][0]['pairs_per_second']['median']:8.2f} pairs/s, first step {first:.1f} s, "
            f"{turns[way][0]['allocated_gib']:.1f} GiB",
            flush=True,
        )
        yield [each for turn in turns.values() for each in turn]


def ceiling(bench: Bench) -> Iterator[list[dict[str, Any]]]:
    """The GEMMs of a layer, forward and of the input's gradient, of as many tokens as a micro-batch."""
    bench.held = ("", None)
    gc.collect()
    shape, tokens, rows = shape_of(bench.config), bench.given.token_budget, []
    wide, inner = shape.num_heads * shape.head_dim, bench.config.intermediate_size
    sizes = (
        (wide + 2 * shape.num_kv_heads * shape.head_dim, shape.hidden_size),
        (shape.hidden_size, wide),
        (2 * inner, shape.hidden_size),
        (shape.hidden_size, inner),
    )
    layers = len(shape.layer_types)
    for held in ("none", "w8a8-int8", "w8a8-fp8"):
        gemms = [one_gemm(held, tokens, out, each, bench) for out, each in sizes]
        for run in gemms:
            run()
        bench.wait()
        started = time.monotonic()
        for _ in range(layers):
            for run in gemms:
                run()
        bench.wait()
        seconds = time.monotonic() - started
        rows.append({"held": held, "pass_tokens_per_second": tokens / seconds})
        print(rows[-1], flush=True)
        yield rows


def one_gemm(held: str, tokens: int, out: int, wide: int, bench: Bench) -> Callable[[], object]:
    layer = nn.Linear(wide, out, bias=False, device=bench.device, dtype=bench.dtype)
    box = nn.Sequential(layer)
    weight = FrozenWeight(layer.weight.data, None, None, False, False, (out, wide))
    if held != "none":
        to_rows(box, held, bench.dtype)
        weight = box[0].frozen()  # pyright: ignore
    x, gradient = (torch.randn(tokens, each, device=bench.device, dtype=bench.dtype) for each in (wide, out))

    @torch.no_grad()
    def run() -> tuple[Tensor, Tensor]:
        return frozen_gemm(x, weight), input_gradient(gradient, weight)  # else compiling leaves them out

    return torch.compile(run) if bench.device == "cuda" else run


def timeline(bench: Bench) -> Iterator[dict[str, Any]]:
    """One step of the way `--profiled`."""
    step = bench.step_of(bench.given.profiled)
    step()
    bench.wait()
    kind = DeviceType.CUDA if bench.device == "cuda" else DeviceType.CPU
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(
        activities=[activity.CUDA if bench.device == "cuda" else activity.CPU]
    ) as profile:
        step()
        bench.wait()
    found = timeline_of(
        [
            (each.name, each.time_range.start, each.time_range.end)
            for each in profile.events()
            if each.device_type == kind and not each.is_user_annotation
        ]
    )
    print(json.dumps(found, indent=1), flush=True)
    yield found | {"way": bench.given.profiled}


PARTS = {"speed": speed, "ceiling": ceiling, "timeline": timeline}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", required=True, choices=SHAPES)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--profiled", default="w8a8-int8 shared", choices=OURS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=32, help="of a step")
    parser.add_argument("--recipe-batches", type=int, default=3, help="of 8 sequences, of the first two ways")
    parser.add_argument("--max-tokens", type=int, default=2_048)
    parser.add_argument("--token-budget", type=int, default=8_192)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--recomputed", type=int, default=0, help="layers whose activations are recomputed")
    parser.add_argument("--memory-gib", type=float, help="take the GPU for one with so much memory")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    bench = Bench(given)
    for part in given.parts:
        for found in PARTS[part](bench):
            bench.save(part, found)


if __name__ == "__main__":
    main()
