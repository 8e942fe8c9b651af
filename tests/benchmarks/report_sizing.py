"""Tables of docs/sizing.md: hours and GPU-hours of two jobs, and memory, from the JSON files in results/.

    python tests/benchmarks/report_sizing.py --gpu-hour-price 2.5    print them with what they cost

`report.py` writes them, without prices, which are the reader's.
"""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from wsdm_ray.preflight.measured import MEASURED, MODELS, SIZES, Job, Measured
from wsdm_ray.preflight.model_size import parameters_of, trained_parameters
from wsdm_ray.training.policy import least_activation_bytes

__all__ = ["sizing"]

RESULTS = Path(__file__).parent / "results"
PAIRS: dict[Job, int] = {"score": 600_000, "train": 48_439}
TITLES: dict[Job, str] = {
    "score": "Scoring 600,000 pairs in both orders",
    "train": "Training on 48,439 votes, one epoch, both orders",
}
GPUS = (1, 4, 8)
WEIGHT_BYTES = {"none": 2.0, "bf16": 2.0, "w8a8-int8": 1.0, "w8a8-fp8": 1.0, "bnb-int8": 1.0, "nf4": 0.5}
"""Bytes of a number of a linear layer's weight; scales come on top, about 1 % or less. Embeddings have 2."""
TRAINED_BYTES, SUMS_BYTES = 16, 4
"""Of a number that trains: itself, its gradient and AdamW's state in float32; what the sum of gradients takes more
in float64. Peaks were measured before sums were that exact."""
RANK = 64
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GIB = 1 << 30
QWEN25_32B = {
    "vocab_size": 152_064, "hidden_size": 5_120, "intermediate_size": 27_648, "num_hidden_layers": 64,
    "num_attention_heads": 40, "num_key_value_heads": 8,
}  # fmt: skip
LEAST_TOKENS = 8_192


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text())


def row_of(measured: Measured) -> dict[str, Any]:
    """The row of a benchmark's file that a speed was taken from."""
    rows = read(measured.source)["results"]["speed"]
    return next(row for row in rows if row["way"] == measured.way)


def sizing(price: float | None = None) -> str:
    """The generated part of the page. Args: price: of one GPU for an hour; None leaves the costs out."""
    pair_tokens = read("score_gpu_gemma2-9b.json")["results"]["pairs"]["tokens_of_both_orderings"]
    lines = [
        "## Hours",
        "",
        f"A pair has {pair_tokens:,.0f} tokens in both orders, the mean of the pairs that scoring was timed with. "
        "Hours are of steps and micro-batches alone, with all GPUs at full speed.",
    ]
    for job in PAIRS:
        lines += ["", f"### {TITLES[job]}", "", *hours(job, pair_tokens, price)]
    lines += [
        "",
        *beside_hours(),
        "",
        "## Memory",
        "",
        *weights(),
        "",
        *training_memory(),
        "",
        *least_memory(),
        "",
        *replica_memory(),
        "",
    ]
    return "\n".join(lines)


def hours(job: Job, pair_tokens: float, price: float | None) -> list[str]:
    """What each GPU takes for one job."""
    on = " | ".join(f"on {number}" for number in GPUS)
    cost = "" if price is None else f" cost at {price:g} |"
    lines = [
        f"| GPU | model | linear layers as | tokens/s, one GPU | pairs/s | GPU-hours | hours {on} |{cost}",
        "|---" * (6 + len(GPUS) + (price is not None)) + "|",
    ]
    for measured in (each for each in MEASURED if each.job == job):
        speed = row_of(measured)["tokens_per_second"]["median"]
        gpu_hours = PAIRS[job] * pair_tokens / speed / 3600
        limit = f", {measured.memory_gib:g} GiB of it" if measured.memory_gib else ""
        cells = [
            measured.gpu + limit, measured.model, shown(measured.precision), f"{speed:,.0f}",
            f"{speed / pair_tokens:.1f}", f"{gpu_hours:.1f}", *(f"{gpu_hours / number:.1f}" for number in GPUS),
        ]  # fmt: skip
        cells += [] if price is None else [f"{gpu_hours * price:,.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def machines() -> str:
    """How far machines with one kind of GPU were apart."""
    speeds = []
    for path in sorted(RESULTS.glob("score_gpu_gemma2-9b*.json")):
        report = read(path.name)
        if "H100" in report["hardware"]["gpus"][0]:
            rows = report["results"]["speed"]
            same = [row for row in rows if row["way"] in ("int8 shared", "w8a8-int8 shared")]
            speeds += [row["tokens_per_second"]["median"] for row in same]
    return (
        f"- Machines differ: gemma2-9b as `w8a8-int8` was scored at {min(speeds):,.0f} to {max(speeds):,.0f} tokens/s "
        f"in {len(speeds)} runs on machines with an H100."
    )


def shown(precision: str) -> str:
    return "bf16" if precision == "none" else f"`{precision}`" if precision != "bf16" else precision


def beside_hours() -> list[str]:
    """What comes on top of the hours, and how far other sizes may be estimated."""
    two = read("score_gpu_gemma2-9b_two_h200.json")["results"]
    four = read("score_gpu_gemma2-9b_four_h200.json")["results"]["scaling"][-1]
    step, other = read("train_scaling_gemma2-9b_four_h200.json")["results"]["runs"][-2:]
    start = {row["compile_cache"]: row["second_pass"] for row in two["start"]}
    training = read("train_gpu_gemma2-9b_h200.json")["results"]["speed"]
    [first] = [row["first_step_seconds"] for row in training if row["way"] == "w8a8-int8 shared"]
    lines = [
        machines(),
        f"- Four replicas on four GPUs scored {four['times_one']:.2f} times what one does. Training on two GPUs is "
        f"{step['speedup']:.2f} times as fast as on one, on four {other['speedup']:.2f} times. "
        "More were not timed.",
        f"- A replica of gemma2-9b starts in {start['empty']:.0f} s, and in {start['full']:.0f} s where its kernels are "
        f"compiled already, with weights on a local disk. The first step of training gemma2-9b as "
        f"`w8a8-int8` on an H200 takes {first:.0f} s, with compilation.",
        "- Validation during training comes on top: a forward pass over the valid set at each checkpoint.",
    ]
    for job, name, precision in (("score", "Scoring", "w8a8-fp8"), ("train", "Training", "w8a8-int8")):
        products = [
            (each, MODELS[each.model].linear * row_of(each)["tokens_per_second"]["median"] / 1e12)
            for each in MEASURED
            if each.job == job and each.precision == precision
        ]
        h200 = [(each.model, product) for each, product in products if each.gpu == "NVIDIA H200"]
        listed = ", ".join(f"{product:,.0f} ({model})" for model, product in h200)
        lines.append(
            f"- {name} as `{precision}` on one H200: tokens/s times the numbers in linear layers is, in 10^12, {listed}. "
            "A dry run estimates other sizes of model so."
        )
    return lines


def weights() -> list[str]:
    """Memory of the weights of each model in each precision."""
    kinds = {"bf16": ("bf16",), "`w8a8-int8`, `w8a8-fp8`, `bnb-int8`": ("w8a8-int8",), "`nf4`": ("nf4",)}
    lines = [
        "Weights by their number: embeddings have two bytes each, whatever the precision.",
        "",
        f"| model | in linear layers | in embeddings | {' | '.join(kinds)} | adapter of rank {RANK}, trained |",
        "|---" * (4 + len(kinds)) + "|",
    ]
    for model, found in MODELS.items():
        sizes = [found.linear * WEIGHT_BYTES[kind[0]] + 2 * found.embedding for kind in kinds.values()]
        cells = [
            model, f"{found.linear / 1e9:.2f} billion", f"{found.embedding / 1e9:.2f} billion",
            *(gib(size) for size in sizes), gib(adapter_bytes(SIZES[model])),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "The last column is the adapter on all linear layers with AdamW's state in float32 and sums of gradients "
        "in float64. In scoring the adapter is merged, but for `bnb-int8` and `nf4`.",
    ]


def adapter_bytes(sizes: dict[str, int], bytes_each: int = TRAINED_BYTES + SUMS_BYTES) -> int:
    return bytes_each * trained_parameters(sizes, RANK, TARGETS)


def training_memory() -> list[str]:
    """The peak of training steps, and what of it is neither weights nor adapter."""
    lines = [
        "Peak of a training step, measured with sums of gradients in float32, and what of it is left for activations "
        "(sums in float64 take 0.8 GiB more of gemma2-9b):",
        "",
        "| model | base as | micro-batch | layers that recompute | peak | weights and adapter | activations |",
        "|---|---|---|---|---|---|---|",
    ]
    for measured in (each for each in MEASURED if each.job == "train"):
        settings, found = read(measured.source)["settings"], MODELS[measured.model]
        peak = row_of(measured)["allocated_gib"] * GIB
        held = found.linear * WEIGHT_BYTES[measured.precision] + 2 * found.embedding
        held += adapter_bytes(SIZES[measured.model], TRAINED_BYTES)
        recomputed = f"{settings['recomputed']} of {SIZES[measured.model]['num_hidden_layers']}"
        cells = [
            measured.model, shown(measured.precision), f"{settings['token_budget']:,} tokens", recomputed,
            gib(peak), gib(held), gib(peak - held),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def least_memory() -> list[str]:
    """What training takes where every layer recomputes, by the arithmetic that chooses how many do."""
    lines = [
        f"What training takes at least, where every layer recomputes, in micro-batches of {LEAST_TOKENS:,} tokens. "
        "Activations are by the arithmetic that `--gradient-checkpointing auto` uses. A 32B "
        "model was not timed.",
        "",
        "| model | base as `w8a8-int8` | adapter, trained | activations | in all |",
        "|---|---|---|---|---|",
    ]
    for model, sizes in (SIZES | {"qwen25-32b": QWEN25_32B}).items():
        found, heads = parameters_of(sizes), sizes["num_attention_heads"]
        shape: Any = SimpleNamespace(
            num_heads=heads,
            num_kv_heads=sizes["num_key_value_heads"],
            head_dim=sizes.get("head_dim", sizes["hidden_size"] // heads),
            hidden_size=sizes["hidden_size"],
            layer_types=range(sizes["num_hidden_layers"]),
        )
        parts = [
            found.linear + 2 * found.embedding,
            adapter_bytes(sizes),
            least_activation_bytes(LEAST_TOKENS, shape, sizes["intermediate_size"], RANK, compiled=True),
        ]
        lines.append(f"| {' | '.join([model, *map(gib, [*parts, sum(parts)])])} |")
    return lines


def replica_memory() -> list[str]:
    """The peak of a replica."""
    report = read("score_gpu_gemma2-9b.json")
    found, budget = report["results"]["memory"], report["settings"]["token_budget"]
    return [
        f"A replica of gemma2-9b as `w8a8-fp8` takes {found['weights_gib']:.1f} GiB for weights, and at its peak, in "
        f"micro-batches of {budget:,} tokens, {found['allocated_gib']:.1f} GiB, of {found['reserved_gib']:.1f} GiB reserved."
    ]


def gib(number: float) -> str:
    return f"{number / GIB:.1f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the tables of docs/sizing.md with costs.")
    parser.add_argument("--gpu-hour-price", type=float, help="of one GPU")
    print(sizing(parser.parse_args().gpu_hour_price))


if __name__ == "__main__":
    main()
